// Rawkvm runs a guest of a few instructions with package kvm alone: in 64-bit
// mode it writes a text to a port, byte by byte, and halts.
package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"syscall"

	"github.com/vmkit-go/vmkit/kvm"
)

var code = []byte{
	0x8a, 0x06, // loop: mov (%rsi), %al
	0x84, 0xc0, 0x74, 0x07, // test %al, %al; jz done
	0xe6, 0xe9, // out %al, $0xe9
	0x48, 0xff, 0xc6, 0xeb, 0xf3, // inc %rsi; jmp loop
	0xf4, // done: hlt
}

func run(w io.Writer) error {
	runtime.LockOSThread() // KVM wants a vCPU to stay on its thread
	defer runtime.UnlockOSThread()
	sys, err := kvm.Open()
	if err != nil {
		return err
	}
	defer sys.Close()
	vm, err := sys.CreateVM(0)
	if err != nil {
		return err
	}
	defer vm.Close()
	mem, err := syscall.Mmap(-1, 0, 0x8000, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANON)
	if err != nil {
		return err
	}
	defer syscall.Munmap(mem)
	binary.LittleEndian.PutUint64(mem[0x1000:], 0x2003) // page tables: three levels
	binary.LittleEndian.PutUint64(mem[0x2000:], 0x3003) // map the first 2 MiB to
	binary.LittleEndian.PutUint64(mem[0x3000:], 0x0083) // themselves
	copy(mem[0x4000:], code)
	copy(mem[0x5000:], "Hello from long mode!\n\x00")
	cpu, err := vm.CreateVCPU(0)
	if err != nil {
		return err
	}
	defer cpu.Close()
	sregs, err := cpu.Sregs()
	sregs.SetLongMode(0x1000)
	regs := kvm.Regs{RIP: 0x4000, RSI: 0x5000, RFLAGS: 2}
	err = errors.Join(err, vm.SetUserMemory(0, 0, 0, mem), cpu.SetSregs(&sregs), cpu.SetRegs(&regs))
	for err == nil {
		err = cpu.Run()
		switch reason := cpu.RunData().ExitReason; {
		case err == syscall.EINTR:
			err = nil // Go preempts threads by signals
		case err != nil: // and the loop ends
		case reason == kvm.ExitIO:
			w.Write(cpu.IOData())
		case reason == kvm.ExitHLT:
			return nil
		default:
			return fmt.Errorf("the guest left with %v", reason)
		}
	}
	return err
}

func main() {
	if err := run(os.Stdout); err != nil {
		log.Fatal("rawkvm: ", err)
	}
}
