package kvm_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

const (
	limit    = 20 * time.Second // more than any guest here takes, also where emulated
	memSize  = 1 << 20
	entry    = 0x1000  // where code starts
	handler  = 0x2000  // where every interrupt vector leads
	noMemory = 1 << 20 // first address without memory
)

// guest is a VM with a vCPU in real mode and a megabyte of memory.
type guest struct {
	t    *testing.T
	sys  *kvm.System
	vm   *kvm.VM
	cpu  *kvm.VCPU
	mem  []byte
	addr uint64
}

// newGuest makes a guest that starts with code, with CS and the other segments at 0.
// Before, called with the VM, may do what must precede vCPUs.
func newGuest(t *testing.T, before func(vm *kvm.VM), code ...byte) *guest {
	t.Helper()
	g := &guest{t: t, sys: kvmtest.Open(t)}
	var err error
	g.vm, err = g.sys.CreateVM(0)
	g.ok(err)
	t.Cleanup(func() { g.vm.Close() })
	g.mem, g.addr = kvmtest.Memory(t, memSize)
	g.slot(0)
	if before != nil {
		before(g.vm)
	}
	g.cpu = g.vcpu(0)
	copy(g.mem[entry:], code)
	return g
}

// slot makes the guest's memory, with flags.
func (g *guest) slot(flags uint32) {
	g.t.Helper()
	g.ok(g.vm.SetUserMemoryRegion(kvm.UserMemoryRegion{Flags: flags, MemorySize: memSize, UserspaceAddr: g.addr}))
}

func (g *guest) vcpu(id int) *kvm.VCPU {
	g.t.Helper()
	cpu, err := g.vm.CreateVCPU(id)
	g.ok(err)
	g.t.Cleanup(func() { cpu.Close() })
	sregs, err := cpu.Sregs()
	g.ok(err)
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	g.ok(cpu.SetSregs(&sregs))
	g.ok(cpu.SetRegs(&kvm.Regs{RIP: entry, RSP: 0x8000, RFLAGS: 2}))
	return cpu
}

// ok fails the test on an error, or skips it if the host lacks a capability.
func (g *guest) ok(err error) {
	g.t.Helper()
	kvmtest.Need(g.t, err)
}

// longMode puts the vCPU into 64-bit mode, with the first 2 MiB mapped.
func (g *guest) longMode() {
	g.t.Helper()
	binary.LittleEndian.PutUint64(g.mem[0x10000:], 0x11007)
	binary.LittleEndian.PutUint64(g.mem[0x11000:], 0x12007)
	binary.LittleEndian.PutUint64(g.mem[0x12000:], 0x87)
	sregs, err := g.cpu.Sregs()
	g.ok(err)
	sregs.SetLongMode(0x10000)
	g.ok(g.cpu.SetSregs(&sregs))
}

// run runs the vCPU to its next exit, which must be for reason.
func (g *guest) run(reason kvm.ExitReason) *kvm.Run {
	g.t.Helper()
	run := kvmtest.Run(g.t, g.cpu, limit)
	if run.ExitReason != reason {
		regs, _ := g.cpu.Regs()
		g.t.Fatalf("the guest left with %v at %#x, not %v: %s", run.ExitReason, regs.RIP, reason, describe(g.cpu))
	}
	return run
}

func describe(cpu *kvm.VCPU) string {
	switch run := cpu.RunData(); run.ExitReason {
	case kvm.ExitInternalError:
		e := run.InternalError()
		return "suberror " + string(rune('0'+e.Suberror)) + ", instruction " + hex(e.Instruction())
	case kvm.ExitIO:
		return "data " + hex(cpu.IOData())
	}
	return ""
}

func hex(b []byte) string {
	s := ""
	for _, c := range b {
		s += string("0123456789abcdef"[c>>4]) + string("0123456789abcdef"[c&15])
	}
	return s
}

// out runs the guest until it writes a byte to a port, and returns both.
func (g *guest) out() (port uint16, value byte) {
	g.t.Helper()
	io := g.run(kvm.ExitIO).IO()
	data := g.cpu.IOData()
	if io.Direction != kvm.IOOut || len(data) != 1 {
		g.t.Fatalf("exit %+v with %d bytes, not a byte written", *io, len(data))
	}
	return io.Port, data[0]
}

// wantOut runs the guest until it writes to a port: value to port.
func (g *guest) wantOut(port uint16, value byte) {
	g.t.Helper()
	if p, v := g.out(); p != port || v != value {
		g.t.Fatalf("the guest wrote %#x to port %#x, not %#x to %#x", v, p, value, port)
	}
}

// vectors points every interrupt vector to handler, with code there.
func (g *guest) vectors(code ...byte) {
	for v := range 256 {
		binary.LittleEndian.PutUint16(g.mem[4*v:], handler)
		binary.LittleEndian.PutUint16(g.mem[4*v+2:], 0)
	}
	copy(g.mem[handler:], code)
}

// Code that several guests share.
var (
	loopForever = []byte{0xeb, 0xfe}             // 1: jmp 1b
	haltForever = []byte{0xfb, 0xf4, 0xeb, 0xfc} // sti; 1: hlt; jmp 1b (hlt again)
	outHandler  = []byte{
		0xb0, '!', // mov $'!', %al
		0xe6, 0xe9, // out %al, $0xe9
		0xcf, // iret
	}
)

func isUnsupported(err error) bool { return errors.Is(err, kvm.ErrUnsupported) }
