package irqchip_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmkit-go/vmkit/internal/irqchip"
	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
)

const kvmCPUs = 2

// kernel is a machine on KVM with its chips in the kernel, whose CPUs never run.
type kernel struct {
	t    *testing.T
	eng  *kvmcpu.Engine
	cpus []vcpu.CPU
}

func newKernel(t *testing.T) *kernel {
	t.Helper()
	sys := kvmtest.Open(t)
	mem, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	eng, err := kvmcpu.New(mem, kvmcpu.Config{CPUs: kvmCPUs, KVM: sys})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eng.Close() })
	k := &kernel{t: t, eng: eng}
	for i := range kvmCPUs {
		c, err := eng.NewCPU(i)
		if err != nil {
			t.Fatal(err)
		}
		k.cpus = append(k.cpus, c)
	}
	return k
}

// kvmBench is chips whose clock stands where a test sets it.
type kvmBench struct {
	*irqchip.Chips
	now int64
}

func newKVMBench(t testing.TB) *kvmBench {
	t.Helper()
	b := &kvmBench{}
	var err error
	b.Chips, err = irqchip.New(irqchip.Config{
		CPUs:    kvmCPUs,
		Now:     func() int64 { return b.now },
		TSCTime: func(_ int, tsc uint64) int64 { return int64((tsc + 1) / 2) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *kvmBench) out(port uint16, values ...byte) {
	for _, v := range values {
		b.Ports().WritePort(port, v)
	}
}

// redirect writes an entry of the I/O APIC.
func (b *kvmBench) redirect(pin int, entry uint64) {
	for half := range uint64(2) {
		b.WriteIOAPIC(0, uint32(0x10+2*uint64(pin)+half))
		b.WriteIOAPIC(0x10, uint32(entry>>(32*half)))
	}
}

// enable turns the local APICs on, in xAPIC mode with flat logical IDs or, if x2 is
// set, in x2APIC mode.
func (b *kvmBench) enable(t testing.TB, x2 bool) {
	t.Helper()
	for i := range kvmCPUs {
		l := b.LAPIC(i)
		l.Write(0xf0, 0x1ff)
		l.Write(0xe0, 0xffffffff)
		l.Write(0xd0, 1<<(24+i))
		if x2 && (!l.SetBase(l.Base()|vcpu.APICBaseX2APIC) || !l.WriteMSR(0x80f, 0x1ff)) {
			t.Fatal("no x2APIC mode")
		}
	}
}

func (k *kernel) save(cpu int) vcpu.State {
	k.t.Helper()
	var s vcpu.State
	if err := k.cpus[cpu].State(&s); err != nil {
		k.t.Fatal(err)
	}
	return s
}

// load gives KVM's chips the state of b.
func (k *kernel) load(b *kvmBench) {
	k.t.Helper()
	for i, c := range k.cpus {
		s := k.save(i)
		s.Control.APICBase = b.LAPIC(i).Base()
		s.Control.CR8 = uint64(b.LAPIC(i).TPR())
		s.LAPIC = b.LAPIC(i).SavePage()
		if err := c.SetState(&s); err != nil {
			k.t.Fatal(err)
		}
	}
	// Power-up first: KVM takes the master PIC before the slave, and what the
	// slave requested until then would get into the master's state.
	for _, s := range []vcpu.ChipState{newKVMBench(k.t).Save(), b.Save()} {
		if err := k.eng.LoadChips(s); err != nil {
			k.t.Fatal(err)
		}
	}
}

// chips makes chips with KVM's state.
func (k *kernel) chips() *kvmBench {
	k.t.Helper()
	b := newKVMBench(k.t)
	b.now = 1e9
	for i := range k.cpus {
		s := k.save(i)
		if err := b.LAPIC(i).Load(s.Control.APICBase, s.LAPIC); err != nil {
			k.t.Fatal(err)
		}
	}
	s, err := k.eng.SaveChips()
	if err != nil {
		k.t.Fatal(err)
	}
	if err := b.Load(s); err != nil {
		k.t.Fatal(err)
	}
	return b
}

// registers are a page's registers that KVM keeps. The current count goes on, and
// KVM computes the processor priority only when the CPU runs.
func registers(page []byte) map[string]uint32 {
	m := map[string]uint32{}
	for off := 0; off < 0x400; off += 16 {
		switch v := binary.LittleEndian.Uint32(page[off:]); {
		case off == 0x30:
			m["version"] = v &^ (1 << 30) // the timer has stopped: ours
		case off != 0x390 && off != 0xa0 && v != 0:
			m[fmt.Sprintf("%#x", off)] = v
		}
	}
	return m
}

// kept is what KVM keeps of a state.
func kept(s vcpu.ChipState) vcpu.ChipState {
	s.Clock = nil
	pics, io, timer := *s.PICs, *s.IOAPIC, *s.PIT
	for i := range pics {
		if pics[i].SpecialMask || pics[i].InitState != 0 {
			pics[0].IRR &^= 4 // KVM's slave interrupts nevertheless
		}
	}
	for i, e := range io.Redirect {
		if e&0x8000 == 0 {
			io.IRR &^= 1 << i // the level of an edge-triggered input
		}
	}
	for i := range timer.Channels {
		c := &timer.Channels[i]
		c.Elapsed = 0 // KVM starts the count again
		if c.Count == 0 {
			c.Count = 1 << 16
		}
	}
	return vcpu.ChipState{PICs: &pics, IOAPIC: &io, PIT: &timer}
}

// same compares KVM's state with that of b.
func (k *kernel) same(b *kvmBench, what string) {
	k.t.Helper()
	s, err := k.eng.SaveChips()
	if err != nil {
		k.t.Fatal(err)
	}
	if d := cmp.Diff(kept(b.Save()), kept(s)); d != "" {
		k.t.Fatalf("%s: ours, KVM's:\n%s", what, d)
	}
	for i := range k.cpus {
		state := k.save(i)
		page := b.LAPIC(i).SavePage()
		if d := cmp.Diff(registers(page), registers(state.LAPIC)); d != "" {
			k.t.Fatalf("%s: CPU %d: ours, KVM's:\n%s", what, i, d)
		}
		// KVM's clock does not stand still: the count may be lower, or have
		// come round.
		ours, theirs := binary.LittleEndian.Uint32(page[0x390:]), binary.LittleEndian.Uint32(state.LAPIC[0x390:])
		if periodic := binary.LittleEndian.Uint32(page[0x320:])>>17&3 == 1; theirs > ours && !periodic {
			k.t.Fatalf("%s: CPU %d: the current count is %d, KVM's %d", what, i, ours, theirs)
		}
		if got, want := state.Control.CR8, uint64(b.LAPIC(i).TPR()); got != want {
			k.t.Fatalf("%s: CPU %d: CR8 is %d, KVM's %d", what, i, want, got)
		}
	}
}

// TestKVMFresh: a new machine's chips are the same here and in the kernel.
func TestKVMFresh(t *testing.T) {
	newKernel(t).same(newKVMBench(t), "at power-up")
}

// TestKVMState moves states of many kinds to KVM's chips and back.
func TestKVMState(t *testing.T) {
	k := newKernel(t)
	for seed := range uint64(60) {
		b := newKVMBench(t)
		b.now = 5e9
		b.random(t, rand.New(rand.NewPCG(seed, 1)))
		what := fmt.Sprintf("seed %d", seed)
		k.load(b)
		k.same(b, what)
		k.same(k.chips(), what+", back")
	}
}

// TestKVMLines: an interrupt line leads to the same inputs of KVM's chips as of
// ours.
func TestKVMLines(t *testing.T) {
	k, b := newKernel(t), newKVMBench(t)
	for pin := range 24 {
		b.redirect(pin, 0x18000|uint64(0x30+pin)) // by level, masked
	}
	k.load(b)
	for gsi := range 24 {
		ours, kernels := b.Line(gsi).Set(true), k.eng.Line(gsi).Set(true)
		if (ours == nil) != (kernels == nil) {
			t.Fatalf("line %d: %v, KVM's: %v", gsi, ours, kernels)
		}
		k.same(b, fmt.Sprintf("line %d up", gsi))
		if gsi%3 == 0 && ours == nil {
			if err := errors.Join(b.Line(gsi).Set(false), k.eng.Line(gsi).Set(false)); err != nil {
				t.Fatal(err)
			}
			k.same(b, fmt.Sprintf("line %d down", gsi))
		}
	}
	if s := b.Save(); s.IOAPIC.IRR == 0 || s.PICs[0].IRR == 0 || s.PICs[1].IRR == 0 {
		t.Errorf("no line arrived: %+v", s)
	}
}

// random drives chips as a guest may, into a state in which KVM would not deliver
// anything by itself: no interrupt of the I/O APIC that nobody takes, and no
// edge-triggered input of its own that is high.
func (b *kvmBench) random(t testing.TB, r *rand.Rand) {
	x2 := r.IntN(2) == 0
	write := func(l *irqchip.LAPIC, reg, v uint32) {
		if x2 {
			l.WriteMSR(0x800+reg, uint64(v))
		} else {
			l.Write(reg<<4, v)
		}
	}
	b.enable(t, x2)
	for i := range kvmCPUs {
		l := b.LAPIC(i)
		for reg := uint32(0x33); reg < 0x38; reg++ {
			write(l, reg, r.Uint32()&0x100ff)
		}
		write(l, 0x35, r.Uint32()&0x1a7ff)
		write(l, 0x3e, r.Uint32()&0xb)
		write(l, 0x32, r.Uint32()&0x300ff)
		if r.IntN(3) > 0 {
			write(l, 0x38, 1<<31|r.Uint32()) // seconds
		}
		for range r.IntN(6) {
			b.Signal(0xfee00000|uint64(i)<<12, uint32(16+r.IntN(240))|uint32(r.IntN(2))<<15)
			if r.IntN(2) == 0 {
				l.Ack()
			}
		}
		if r.IntN(3) == 0 {
			l.SetTPR(byte(r.IntN(16)))
		}
	}
	for pin := range 24 {
		level := uint64(r.IntN(2))
		b.redirect(pin, level<<15|uint64(r.IntN(4)/3)<<16|uint64(r.IntN(2))<<56|uint64(16+r.IntN(240)))
		if line := b.Line(pin); level == 1 && r.IntN(2) == 0 || pin < 16 && r.IntN(2) == 0 {
			line.Set(true)
		}
	}
	b.WriteIOAPIC(0, 0)
	b.WriteIOAPIC(0x10, r.Uint32())
	b.WriteIOAPIC(0, r.Uint32())
	for _, port := range []uint16{platform.PortPIC1, platform.PortPIC2} {
		if r.IntN(3) > 0 {
			b.out(port, 0x11)
			b.out(port+1, byte(r.Uint32()), 4, byte(r.Uint32()), byte(r.Uint32()))
		}
		b.out(port, byte(r.Uint32())|0x08&^0x14)
		b.out(port, byte(r.Uint32())&^0x18)
	}
	b.out(platform.PortELCR1, byte(r.Uint32()))
	b.out(platform.PortELCR2, byte(r.Uint32()))
	for pin := range 16 {
		b.Line(pin).Set(r.IntN(2) == 0)
		if r.IntN(4) == 0 { // polling acknowledges
			port := [...]uint16{platform.PortPIC1, platform.PortPIC2}[r.IntN(2)]
			b.out(port, 0x0c)
			b.Ports().ReadPort(port)
		}
	}
	for i := range byte(3) {
		if r.IntN(4) > 0 {
			mode := byte(r.IntN(6))
			if i == 0 {
				mode = 5 // KVM's would tick at once
			}
			b.out(platform.PortPITControl, i<<6|byte(r.IntN(3)+1)<<4|mode<<1|byte(r.IntN(2)))
			b.out(platform.PortPIT+uint16(i), byte(r.Uint32()))
		}
		if r.IntN(2) == 0 {
			b.out(platform.PortPIT+uint16(i), byte(r.Uint32()))
		}
	}
	b.out(platform.PortPITControl, byte(0xc0|r.IntN(0x40)))
	b.out(platform.PortSystemB, byte(r.IntN(4)))
}
