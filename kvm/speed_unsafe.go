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

// speedClear, in instructions a second, is beyond any emulation: no need to
// measure again.
const speedClear = 100e6

// KernelSpeed measures at how many instructions a second this host's KVM runs guest code
// at CPL 0 in long mode, where kernels run. Hardware virtualization gives hundreds
// of millions or more; a KVM that emulates it gives a million or two, on which no kernel
// boots in reasonable time. It takes a few milliseconds, or a second where slow.
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
	// must not pass for emulation.
	best := 0.0
	for begin := time.Now(); best == 0 || best < speedClear && time.Since(begin) < time.Second; {
		if err := cpu.SetRegs(&Regs{RIP: entry, RCX: speedLoops, RFLAGS: 2}); err != nil {
			return 0, err
		}
		start := time.Now()
		for {
			err = cpu.Run()
			if err != unix.EINTR {
				break
			}
		}
		took := time.Since(start)
		if err != nil {
			return 0, err
		}
		if r := cpu.RunData().ExitReason; r != ExitHLT {
			return 0, fmt.Errorf("kvm: a short loop at CPL 0 ended with %v, not %v", r, ExitHLT)
		}
		best = max(best, 2*speedLoops/took.Seconds())
	}
	return best, nil
}
