package kvm

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How often KernelSpeed's loop of two instructions turns: to measure, long
// enough to outweigh entry and exit; and to see before whether KVM emulates.
const (
	speedLoops  = 40_000
	speedGlance = 2_000
)

// Speeds, in instructions a second, that leave no doubt: one beyond any
// emulation, and one below any processor, in the time that the thread itself
// has used.
const (
	speedClear     = 100e6
	speedClearlyNo = 5e6
)

// KernelSpeed measures at how many instructions a second this host's KVM runs guest code
// at CPL 0 in long mode, where kernels run. Hardware virtualization gives hundreds
// of millions or more; a KVM that emulates it gives a million or two, on which no kernel
// boots in reasonable time. It takes a few milliseconds, ten times
// that where the answer is no, or up to a second in between.
func (s *System) KernelSpeed() (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	vm, err := s.CreateVM(0)
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	const size, entry = 0x5000, 0x4000
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, &Error{Op: "mmap", Errno: err.(unix.Errno)}
	}
	defer unix.Munmap(mem)
	err = vm.SetUserMemoryRegion(UserMemoryRegion{MemorySize: size, UserspaceAddr: uint64(uintptr(unsafe.Pointer(&mem[0])))})
	if err != nil {
		return 0, err
	}
	// Page tables at 0x1000, 0x2000, 0x3000 map the first 2 MiB.
	binary.LittleEndian.PutUint64(mem[0x1000:], 0x2003)
	binary.LittleEndian.PutUint64(mem[0x2000:], 0x3003)
	binary.LittleEndian.PutUint64(mem[0x3000:], 0x83)
	copy(mem[entry:], []byte{
		0xff, 0xc9, // 1: dec %ecx
		0x75, 0xfc, // jnz 1b
		0xf4, // hlt
	})
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, err
	}
	defer cpu.Close()
	sregs, err := cpu.Sregs()
	if err != nil {
		return 0, err
	}
	sregs.SetLongMode(0x1000)
	if err := cpu.SetSregs(&sregs); err != nil {
		return 0, err
	}
	// count returns the speed of one run by the clock, and by the time that
	// this thread has used.
	count := func(loops uint64) (speed, net float64, err error) {
		if err := cpu.SetRegs(&Regs{RIP: entry, RCX: loops, RFLAGS: 2}); err != nil {
			return 0, 0, err
		}
		used, start := threadTime(), time.Now()
		for {
			err = cpu.Run()
			if err != unix.EINTR {
				break
			}
		}
		took := time.Since(start)
		used = threadTime() - used
		if err != nil {
			return 0, 0, err
		}
		if r := cpu.RunData().ExitReason; r != ExitHLT {
			return 0, 0, fmt.Errorf("kvm: a short loop at CPL 0 ended with %v, not %v", r, ExitHLT)
		}
		n := float64(2 * loops)
		return n / took.Seconds(), n / max(used, 1).Seconds(), nil
	}
	// The best of several counts: on a busy host one run may be held up, which
	// must not pass for emulation, and the first one has page faults.
	var best, bestNet float64
	for range 3 {
		speed, net, err := count(speedGlance)
		if err != nil {
			return 0, err
		}
		best, bestNet = max(best, speed), max(bestNet, net)
	}
	if bestNet < speedClearlyNo {
		return best, nil
	}
	for begin := time.Now(); best < speedClear && time.Since(begin) < time.Second; {
		speed, _, err := count(speedLoops)
		if err != nil {
			return 0, err
		}
		best = max(best, speed)
	}
	return best, nil
}

// threadTime is the processor time that this thread has used, guests included.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
