package irqchip

import (
	"testing"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
)

// bench is chips with a clock that a test sets. Its TSC counts at 2 GHz.
type bench struct {
	*Chips
	t     testing.TB
	now   int64
	wakes []int
}

func newBench(t testing.TB, cpus int) *bench {
	t.Helper()
	b := &bench{t: t, wakes: make([]int, cpus)}
	c, err := New(Config{
		CPUs:    cpus,
		Now:     func() int64 { return b.now },
		TSCTime: func(cpu int, tsc uint64) int64 { return int64((tsc + 1) / 2) },
		Wake:    func(cpu int) { b.wakes[cpu]++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Chips = c
	return b
}

// to moves the clock, stopping wherever a timer has something to do.
func (b *bench) to(now int64) {
	b.t.Helper()
	if now == Never {
		b.t.Fatal("no timer is set")
	}
	for b.Next() <= now {
		b.now = max(b.Next(), b.now)
		b.Advance(b.now)
		if b.Next() <= b.now {
			b.t.Fatalf("Next is %d, after Advance(%d)", b.Next(), b.now)
		}
	}
	b.now = now
}

func (b *bench) out(port uint16, values ...byte) {
	for _, v := range values {
		b.Ports().WritePort(port, v)
	}
}

// wantAck takes the interrupts of a CPU and compares their vectors.
func (b *bench) wantAck(cpu int, vectors ...int) {
	b.t.Helper()
	l := b.LAPIC(cpu)
	for _, want := range vectors {
		if !l.HasEvent() || !l.Pending() {
			b.t.Fatalf("CPU %d: no interrupt, want %#x", cpu, want)
		}
		if v, ok := l.Ack(); !ok || v != want {
			b.t.Fatalf("CPU %d: vector %#x (%v), want %#x", cpu, v, ok, want)
		}
	}
	if l.Pending() {
		v, ok := l.Ack()
		b.t.Fatalf("CPU %d: one more interrupt, %#x (%v)", cpu, v, ok)
	}
}

// redirect writes an entry of the I/O APIC.
func (b *bench) redirect(pin int, entry uint64) {
	for half := range uint64(2) {
		b.WriteIOAPIC(0, uint32(0x10+2*uint64(pin)+half))
		b.WriteIOAPIC(0x10, uint32(entry>>(32*half)))
	}
}

// xapic turns the local APIC of every CPU on in xAPIC mode, with flat logical
// IDs 1<<cpu.
func (b *bench) xapic() {
	for i := range b.cpus {
		l := b.LAPIC(i)
		l.Write(0xf0, 0x1ff)
		l.Write(0xe0, 0xffffffff)
		l.Write(0xd0, 1<<(24+i%8))
	}
}

func (b *bench) x2apic() {
	for i := range b.cpus {
		l := b.LAPIC(i)
		if !l.SetBase(l.Base()|vcpu.APICBaseX2APIC) || !l.WriteMSR(0x80f, 0x1ff) {
			b.t.Fatal("no x2APIC mode")
		}
	}
}

func TestConfig(t *testing.T) {
	now := func() int64 { return 0 }
	for _, cfg := range []Config{{}, {CPUs: 1}, {CPUs: 0, Now: now}, {CPUs: MaxCPUs + 1, Now: now}} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
}

// TestVirtualWire takes the PIT's interrupt as Linux has it before it finds the
// I/O APIC, and as on a PC after its firmware: through the PICs and LINT0.
func TestVirtualWire(t *testing.T) {
	b := newBench(t, 2)
	b.out(platform.PortPIC1, 0x11)
	b.out(platform.PortPIC1+1, 0x30, 0x04, 0x01, 0xfe)
	b.out(platform.PortPIC2, 0x11)
	b.out(platform.PortPIC2+1, 0x38, 0x02, 0x01, 0xff)
	b.out(platform.PortPITControl, 0x34) // 100 Hz
	b.out(platform.PortPIT, 11932&0xff, 11932>>8)
	if n := b.Next(); n != 10_000_151 { // ceil(11932e9 / 1193182)
		t.Errorf("first tick at %d ns", n)
	}
	for i := 1; i <= 3; i++ {
		b.to(b.Next())
		if b.LAPIC(1).HasEvent() {
			t.Error("CPU 1 has the timer's interrupt")
		}
		b.wantAck(0, 0x30)
		b.out(platform.PortPIC1, 0x60) // specific EOI
	}
	if b.wakes[0] != 3 || b.wakes[1] != 0 {
		t.Errorf("wakes %v", b.wakes)
	}
	b.LAPIC(0).Write(0xf0, 0x1ff)
	b.LAPIC(0).Write(0x350, 0x10700) // LINT0 masked
	b.to(b.Next())
	b.wantAck(0)
	b.LAPIC(0).Write(0x350, 0x700)
	b.wantAck(0, 0x30)
}

// TestTimerThroughIOAPIC is Linux's check_timer: the PIT on input 2.
func TestTimerThroughIOAPIC(t *testing.T) {
	b := newBench(t, 1)
	b.xapic()
	b.LAPIC(0).Write(0x350, 0x10000)
	b.out(platform.PortPIC1+1, 0xff)
	b.redirect(platform.GSITimer, 0x30)
	b.out(platform.PortPITControl, 0x34)
	b.out(platform.PortPIT, 0x9c, 0x12) // 250 Hz
	for range 5 {
		b.to(b.Next())
		b.wantAck(0, 0x30)
		b.LAPIC(0).Write(0xb0, 0)
	}
}
