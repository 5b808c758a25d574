package kvm_test

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

// BenchmarkIOExit is the round trip of a port write: guest, kernel, Run, and back.
func BenchmarkIOExit(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	sys := kvmtest.Open(b)
	vm, err := sys.CreateVM(0)
	kvmtest.Need(b, err)
	defer vm.Close()
	mem, _ := kvmtest.Memory(b, memSize)
	kvmtest.Need(b, vm.SetUserMemory(0, 0, 0, mem))
	copy(mem[entry:], []byte{0xe6, 0xe9, 0xeb, 0xfc}) // 1: out %al, $0xe9; jmp 1b
	cpu, err := vm.CreateVCPU(0)
	kvmtest.Need(b, err)
	defer cpu.Close()
	sregs, err := cpu.Sregs()
	kvmtest.Need(b, err)
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	kvmtest.Need(b, cpu.SetSregs(&sregs))
	kvmtest.Need(b, cpu.SetRegs(&kvm.Regs{RIP: entry, RFLAGS: 2}))
	b.ReportAllocs()
	for b.Loop() {
		err := cpu.Run()
		for err == unix.EINTR {
			err = cpu.Run()
		}
		if err != nil {
			b.Fatal(err)
		}
		if cpu.RunData().ExitReason != kvm.ExitIO || len(cpu.IOData()) != 1 {
			b.Fatal(cpu.RunData().ExitReason)
		}
	}
}
