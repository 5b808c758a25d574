// Package kvm binds Linux's /dev/kvm for amd64: one Go method per ioctl, typed
// structures with the kernel's layout, and errors that name the ioctl and, when
// the host lacks a feature, the capability. It needs no cgo and nothing else of
// vmkit.
//
// Three handles follow the kernel's three kinds of file descriptor:
// [System] (/dev/kvm itself), [VM] (a guest-physical address space with its
// interrupt chips) and [VCPU] (one virtual CPU with its shared [Run] page).
//
//	sys, err := kvm.Open()
//	vm, err := sys.CreateVM(0)
//	err = vm.SetUserMemoryRegion(kvm.UserMemoryRegion{MemorySize: size, UserspaceAddr: addr})
//	cpu, err := vm.CreateVCPU(0)
//	err = cpu.SetRegs(&kvm.Regs{RIP: entry, RFLAGS: 2})
//	for {
//		if err := cpu.Run(); err != nil { ... }
//		switch run := cpu.RunData(); run.ExitReason {
//		case kvm.ExitIO:
//			fmt.Printf("%s", cpu.IOData())
//		case kvm.ExitHLT:
//			return
//		}
//	}
//
// The kernel's documentation of this interface is Documentation/virt/kvm/api.rst;
// the names of ioctls and capabilities in this package's comments and errors
// are those used there.
//
// # Concurrency
//
// System and VM methods may be called from any goroutine. A VCPU's ioctls are
// serialized by the kernel, which would make a second caller wait for Run to
// return; so a VCPU is best owned by one goroutine, locked to its thread
// because the kernel binds performance-relevant state to it. The exception is
// [VCPU.SetImmediateExit], meant for other goroutines.
//
// A method of a closed handle returns an error wrapping [ErrClosed]. Closing a
// handle while a method of it is in progress is allowed: the file descriptor
// lives until that method returns.
package kvm
