package kvm

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// speedLoops is how often KernelSpeed's loop of two instructions turns: long
// enough to outweigh entry and exit, short enough where KVM emulates.
const speedLoops = 40_000

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
// boots in reasonable time. It takes a few milliseconds, a tenth of a second where
// the answer is clearly no, or up to a second in between.
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
	// The best of several counts: on a busy host one run may be held up, which
	// must not pass for emulation. Two that were slow without that settle it.
	best, slow := 0.0, 0
	for begin := time.Now(); best == 0 || best < speedClear && slow < 2 && time.Since(begin) < time.Second; {
		if err := cpu.SetRegs(&Regs{RIP: entry, RCX: speedLoops, RFLAGS: 2}); err != nil {
			return 0, err
		}
		used := threadTime()
		start := time.Now()
		for {
			err = cpu.Run()
			if err != unix.EINTR {
				break
			}
		}
		took := time.Since(start)
		used = threadTime() - used
		if err != nil {
			return 0, err
		}
		if r := cpu.RunData().ExitReason; r != ExitHLT {
			return 0, fmt.Errorf("kvm: a short loop at CPL 0 ended with %v, not %v", r, ExitHLT)
		}
		best = max(best, 2*speedLoops/took.Seconds())
		if 2*speedLoops < speedClearlyNo*used.Seconds() {
			slow++
		}
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
