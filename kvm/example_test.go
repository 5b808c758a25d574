package kvm_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/kvm"
)

// A guest of three instructions in real mode, started at the processor's reset vector. It needs
// KVM, so its output is not checked here; examples/rawkvm is a whole program, and is.
func Example() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sys, err := kvm.Open()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	defer sys.Close()
	vm, _ := sys.CreateVM(0)
	defer vm.Close()
	mem, _ := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	copy(mem[0xff0:], []byte{0xb0, 'A', 0xe6, 0xe9, 0xf4}) // mov $'A', %al; out %al, $0xe9; hlt
	_ = vm.SetUserMemory(0, 0, 0xfffff000, mem)
	cpu, _ := vm.CreateVCPU(0)
	defer cpu.Close()
	for {
		if err := cpu.Run(); err != nil && err != unix.EINTR {
			fmt.Fprintln(os.Stderr, err)
			return
		} else if err == nil && cpu.RunData().ExitReason == kvm.ExitIO {
			fmt.Printf("port %#x: %s\n", cpu.RunData().IO().Port, cpu.IOData())
		} else if err == nil {
			fmt.Println(cpu.RunData().ExitReason)
			return
		}
	}
}

// Errors can be told apart with errors.Is and errors.As, and say what they are about.
func ExampleOpenPath() {
	_, err := kvm.OpenPath("/dev/no-such-kvm")
	fmt.Println(err)
	fmt.Println(errors.Is(err, fs.ErrNotExist))
	// Output:
	// kvm: open (/dev/no-such-kvm): no such file or directory
	// true
}

func ExampleUnsupportedError() {
	var err error = &kvm.UnsupportedError{Op: "KVM_GET_SREGS2", Cap: kvm.CapSregs2}
	fmt.Println(err)
	fmt.Println(errors.Is(err, kvm.ErrUnsupported), errors.Is(err, errors.ErrUnsupported))
	// Output:
	// kvm: KVM_GET_SREGS2 needs KVM_CAP_SREGS2, which this host's KVM lacks
	// true true
}

func ExampleExitReason() {
	fmt.Println(kvm.ExitIO, kvm.ExitReason(99))
	// Output: KVM_EXIT_IO KVM_EXIT(99)
}
