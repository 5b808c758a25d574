package irqchip

import (
	"slices"
	"testing"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
)

// has are the CPUs with an event.
func (b *bench) has(e Event) (cpus []int) {
	for i := range b.cpus {
		if b.LAPIC(i).Events()&e != 0 {
			cpus = append(cpus, i)
		}
	}
	return cpus
}

// drain takes the interrupts of all CPUs and ends them.
func (b *bench) drain() {
	for i := range b.cpus {
		l := b.LAPIC(i)
		for {
			if _, ok := l.Ack(); !ok {
				break
			}
			l.Write(0xb0, 0)
			l.WriteMSR(0x80b, 0)
		}
		l.TakeNMI()
		l.TakeINIT()
		l.TakeSIPI()
	}
}

func TestIPI(t *testing.T) {
	for _, tc := range []struct {
		high, low uint32
		event     Event
		want      []int
	}{
		{2 << 24, 0x40, EventInterrupt, []int{2}},
		{0xff << 24, 0x40, EventInterrupt, []int{0, 1, 2, 3}},
		{9 << 24, 0x40, EventInterrupt, nil},
		{0x0a << 24, 0x840, EventInterrupt, []int{1, 3}},
		{0xff << 24, 0x840, EventInterrupt, []int{0, 1, 2, 3}},
		{0, 0x40040, EventInterrupt, []int{1}},
		{0, 0x80040, EventInterrupt, []int{0, 1, 2, 3}},
		{0, 0xc0040, EventInterrupt, []int{0, 2, 3}},
		{0, 0xc0400, EventNMI, []int{0, 2, 3}},
		{3 << 24, 0x4500, EventINIT, []int{3}},
		{3 << 24, 0x8500, EventINIT, nil},
		{3 << 24, 0x0610, EventSIPI, []int{3}},
	} {
		b := newBench(t, 4)
		b.xapic()
		b.LAPIC(1).Write(0x310, tc.high)
		b.LAPIC(1).Write(0x300, tc.low)
		if got := b.has(tc.event); !slices.Equal(got, tc.want) || !slices.Equal(b.has(^Event(0)), tc.want) {
			t.Errorf("ICR %#x:%#x to CPUs %v, want %v", tc.high, tc.low, got, tc.want)
		}
		for i, n := range b.wakes {
			if want := slices.Contains(tc.want, i); want != (n == 1) {
				t.Errorf("ICR %#x:%#x wakes CPU %d %d times", tc.high, tc.low, i, n)
			}
		}
	}
}

func TestX2APICIPI(t *testing.T) {
	for _, tc := range []struct {
		icr  uint64
		want []int
	}{
		{17<<32 | 0x40, []int{17}},
		{0xffffffff<<32 | 0x40, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}},
		{0xff<<32 | 0x40, nil},
		{0x1_000a<<32 | 0x840, []int{17, 19}}, // cluster 1
		{0x0_8001<<32 | 0x840, []int{0, 15}},
		{0x80040, []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}},
	} {
		b := newBench(t, 20)
		b.x2apic()
		if !b.LAPIC(5).WriteMSR(0x830, tc.icr) {
			t.Fatal("#GP")
		}
		if got := b.has(EventInterrupt); !slices.Equal(got, tc.want) {
			t.Errorf("ICR %#x to CPUs %v, want %v", tc.icr, got, tc.want)
		}
	}
	b := newBench(t, 2)
	b.x2apic()
	b.LAPIC(1).WriteMSR(0x83f, 0x99)
	b.wantAck(0)
	b.wantAck(1, 0x99)
}

// TestStartUp brings a CPU up as Linux does: INIT, de-assert, two start-ups.
func TestStartUp(t *testing.T) {
	b := newBench(t, 2)
	bsp, ap := b.LAPIC(0), b.LAPIC(1)
	bsp.Write(0xf0, 0x1ff)
	bsp.Write(0x310, 1<<24)
	bsp.Write(0x300, 0xc500)
	bsp.Write(0x300, 0x8500)
	bsp.Write(0x300, 0x469a)
	if !ap.TakeINIT() || ap.TakeINIT() {
		t.Error("no INIT, or two")
	}
	ap.Reset() // leaves the start-up interrupt
	if v, ok := ap.TakeSIPI(); !ok || v != 0x9a {
		t.Errorf("start-up %#x, %v", v, ok)
	}
	bsp.Write(0x300, 0x469b)
	if v, ok := ap.TakeSIPI(); !ok || v != 0x9b || ap.HasEvent() {
		t.Errorf("second start-up %#x, %v", v, ok)
	}
	bsp.Write(0x300, 0x469b)
	bsp.Write(0x300, 0x4500)
	if _, ok := ap.TakeSIPI(); ok {
		t.Error("a start-up interrupt outlives the INIT after it")
	}
}

func TestLowestPriority(t *testing.T) {
	b := newBench(t, 4)
	b.xapic()
	b.LAPIC(0).SetTPR(3)
	b.LAPIC(1).SetTPR(2)
	b.LAPIC(2).SetTPR(5)
	b.LAPIC(3).Write(0xf0, 0xff) // takes none
	send := func(dest uint64, data uint32) []int {
		t.Helper()
		b.drain()
		if err := b.Signal(0xfee00000|dest, data); err != nil {
			t.Fatal(err)
		}
		return b.has(EventInterrupt)
	}
	for _, tc := range []struct {
		dest uint64
		data uint32
		want []int
	}{
		{0x0f<<12 | 4, 0x0181, []int{1}},
		{0x0d<<12 | 4, 0x0181, []int{0}},
		{0x0f<<12 | 8 | 4, 0x0081, []int{1}}, // redirection hint
		{0x0f<<12 | 4, 0x0081, []int{0, 1, 2}},
		{0x02<<12 | 8, 0x0081, []int{2}}, // hint, physical
		{0x08<<12 | 4, 0x0181, nil},
		{0xff << 12, 0x0181, []int{0, 1, 2}}, // physical broadcast
	} {
		if got := send(tc.dest, tc.data); !slices.Equal(got, tc.want) {
			t.Errorf("MSI %#x, %#x to CPUs %v, want %v", tc.dest, tc.data, got, tc.want)
		}
	}
	// Equals share by vector.
	b.LAPIC(0).SetTPR(0)
	b.LAPIC(1).SetTPR(0)
	b.LAPIC(2).SetTPR(0)
	count := make([]int, 4)
	for v := uint32(0x40); v < 0x40+90; v++ {
		got := send(0x0f<<12|4, 0x0100|v)
		if len(got) != 1 {
			t.Fatalf("to %v", got)
		}
		count[got[0]]++
	}
	if !slices.Equal(count, []int{30, 30, 30, 0}) {
		t.Errorf("shares %v", count)
	}
}

func TestMSI(t *testing.T) {
	b := newBench(t, 2)
	b.xapic()
	for _, tc := range []struct {
		addr  uint64
		data  uint32
		event Event
		want  []int
	}{
		{0xfee01000, 0x0051, EventInterrupt, []int{1}},
		{0xfee01ff0, 0x0051, EventInterrupt, []int{1}},
		{0xfeeff000, 0x0051, EventInterrupt, []int{0, 1}},
		{0xfee00000, 0x0400, EventNMI, []int{0}},
		{0xfee01000, 0x0500, EventINIT, []int{1}},
		{0xfee01000, 0x0651, EventSIPI, nil},
		{0xfee01000, 0x0251, EventInterrupt, nil}, // SMI
		{0xfee01000, 0x0751, EventInterrupt, nil}, // ExtINT
		{0xfee01000, 0x000f, EventInterrupt, nil}, // illegal vector
		{0xfef00000, 0x0051, EventInterrupt, nil},
		{0xfed00000, 0x0051, EventInterrupt, nil},
		{0x1_fee00000, 0x0051, EventInterrupt, nil},
		{0, 0x0051, EventInterrupt, nil},
		{^uint64(0), ^uint32(0), EventInterrupt, nil},
	} {
		b.drain()
		if err := b.Signal(tc.addr, tc.data); err != nil {
			t.Error(err)
		}
		if got := b.has(tc.event); !slices.Equal(got, tc.want) {
			t.Errorf("MSI %#x, %#x to CPUs %v, want %v", tc.addr, tc.data, got, tc.want)
		}
	}
	x := newBench(t, 2)
	x.x2apic()
	if x.Signal(0xfeeff000, 0x51); len(x.has(EventInterrupt)) != 2 {
		t.Error("the 8-bit broadcast misses CPUs in x2APIC mode")
	}
}

// TestLevelLine follows a level-triggered line, such as a virtio-mmio device's,
// through both chips and back by the EOI.
func TestLevelLine(t *testing.T) {
	for _, x2 := range []bool{false, true} {
		b := newBench(t, 2)
		eoi := func() { b.LAPIC(1).Write(0xb0, 0) }
		if b.xapic(); x2 {
			b.x2apic()
			eoi = func() { b.LAPIC(1).WriteMSR(0x80b, 0) }
		}
		b.redirect(16, 1<<56|0x8061)
		line := b.Line(16)
		for range 2 {
			if err := line.Set(true); err != nil {
				t.Fatal(err)
			}
			b.wantAck(0)
			b.wantAck(1, 0x61)
			eoi()
			b.wantAck(1, 0x61)
			line.Set(false)
			eoi()
			b.wantAck(1)
		}
	}
}

// TestISALine: lines below 16 lead to both kinds of chips.
func TestISALine(t *testing.T) {
	b := newBench(t, 1)
	b.out(platform.PortPIC1, 0x11)
	b.out(platform.PortPIC1+1, 0x30, 4, 1, 0)
	b.Line(4).Set(true)
	b.wantAck(0, 0x34)
	b.xapic()
	b.redirect(4, 0x41)
	b.Line(4).Set(false)
	b.Line(4).Set(true)
	b.wantAck(0, 0x41)
	for _, gsi := range []int{-1, 0, 2, 24, 1 << 40} {
		if err := b.Line(gsi).Set(true); err == nil {
			t.Errorf("line %d: no error", gsi)
		}
	}
}

// TestWakeOnce: a CPU that knows of an interrupt is not woken for another, but
// for an NMI; lowering the priority brings up what waits.
func TestWakeOnce(t *testing.T) {
	b := newBench(t, 1)
	b.xapic()
	l := b.LAPIC(0)
	l.SetTPR(8)
	b.Signal(0xfee00000, 0x51)
	if l.HasEvent() || b.wakes[0] != 0 {
		t.Error("woken below the task priority")
	}
	l.SetTPR(0)
	b.Signal(0xfee00000, 0x52)
	if b.wakes[0] != 1 {
		t.Errorf("%d wakes", b.wakes[0])
	}
	b.Signal(0xfee00000, 0x400)
	if b.wakes[0] != 2 || l.Events() != EventInterrupt|EventNMI {
		t.Errorf("%d wakes, events %b", b.wakes[0], l.Events())
	}
}

// TestLINT0Fixed: Linux's fallback, the PICs' output as a fixed interrupt.
func TestLINT0Fixed(t *testing.T) {
	b := newBench(t, 1)
	b.xapic()
	b.out(platform.PortPIC1, 0x11)
	b.out(platform.PortPIC1+1, 0x30, 4, 1, 0)
	b.LAPIC(0).Write(0x350, 0x77)
	b.Line(5).Set(true)
	b.wantAck(0, 0x77)
	b.LAPIC(0).Write(0xb0, 0)
	b.LAPIC(0).Write(0x350, 0x400)
	b.out(platform.PortPIC1+1, 0x20, 0)
	if !b.LAPIC(0).TakeNMI() {
		t.Error("no NMI by LINT0")
	}
}

func TestTimers(t *testing.T) {
	b := newBench(t, 3)
	b.xapic()
	b.LAPIC(0).Write(0x3e0, 0xb)
	b.LAPIC(0).Write(0x320, 0x20050)
	b.LAPIC(0).Write(0x380, 3_000_000)
	b.LAPIC(1).Write(0x320, 0x40051)
	b.LAPIC(1).SetDeadline(10_000_000) // at 5 ms
	b.LAPIC(2).Write(0x3e0, 0xb)
	b.LAPIC(2).Write(0x320, 0x52)
	b.LAPIC(2).Write(0x380, 4_000_000)
	for _, step := range []struct {
		at     int64
		cpu, v int
	}{{3_000_000, 0, 0x50}, {4_000_000, 2, 0x52}, {5_000_000, 1, 0x51}, {6_000_000, 0, 0x50}, {9_000_000, 0, 0x50}} {
		if b.Next() != step.at {
			t.Fatalf("next at %d, want %d", b.Next(), step.at)
		}
		b.to(step.at)
		b.wantAck(step.cpu, step.v)
		b.LAPIC(step.cpu).Write(0xb0, 0)
	}
	b.LAPIC(0).Write(0x380, 0)
	if b.Next() != Never {
		t.Errorf("next at %d", b.Next())
	}
	b.LAPIC(1).SetDeadline(30_000_000)
	b.LAPIC(1).TSCChanged()
	if b.Next() != 15_000_000 || b.LAPIC(1).Deadline() != 30_000_000 {
		t.Errorf("next at %d", b.Next())
	}
	b.Advance(Never) // the end of time is no reason to fire what is not set
	b.wantAck(0)
	b.wantAck(1, 0x51)
	if b.LAPIC(1).TPR() != 0 || b.LAPIC(1).Read(0xa0) != 0x50 {
		t.Error("priorities")
	}
}

// TestAllocs holds everything that a running guest does to zero allocations.
func TestAllocs(t *testing.T) {
	b := newBench(t, 4)
	b.xapic()
	b.out(platform.PortPITControl, 0x34)
	b.out(platform.PortPIT, 0x9c, 0x12)
	b.out(platform.PortPIC1, 0x11)
	b.out(platform.PortPIC1+1, 0x30, 4, 1, 0)
	b.redirect(16, 0x8061)
	l, line := b.LAPIC(0), b.Line(16)
	l.Write(0x3e0, 0xb)
	l.Write(0x320, 0x20050)
	l.Write(0x380, 100_000)
	x := newBench(t, 2)
	x.x2apic()
	x.LAPIC(1).WriteMSR(0x832, 0x40070)
	if n := testing.AllocsPerRun(1000, func() {
		b.now = b.Next()
		b.Advance(b.now)
		if l.HasEvent() {
			l.Ack()
			l.Write(0xb0, 0)
		}
		line.Set(true)
		b.Line(16).Set(false)
		b.Signal(0xfee0100c, 0x151)
		l.Write(0x300, 0xc0041)
		l.Read(0x390)
		l.SetTPR(l.TPR())
		b.Ports().ReadPort(0x61)
		b.Ports().WritePort(0x20, 0x20)
		b.WriteIOAPIC(0, 0x30)
		b.WriteIOAPIC(0x10, 0x8061)
		b.ReadIOAPIC(0x10)
		x.LAPIC(1).SetDeadline(uint64(b.now))
		x.LAPIC(1).WriteMSR(0x830, 0x40)
		x.LAPIC(0).Ack()
		x.LAPIC(0).WriteMSR(0x80b, 0)
		x.LAPIC(0).ReadMSR(0x802)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestOff: a CPU whose APIC is off takes interrupts of the PICs alone.
func TestOff(t *testing.T) {
	b := newBench(t, 2)
	b.xapic()
	l := b.LAPIC(1)
	if !l.SetBase(platform.LAPICBase) || l.SetBase(platform.LAPICBase|vcpu.APICBaseX2APIC) || l.Base() != platform.LAPICBase {
		t.Error("IA32_APIC_BASE")
	}
	b.Signal(0xfeeff000, 0x51)
	b.Signal(0xfeeff000, 0x400)
	b.wantAck(0, 0x51)
	if l.HasEvent() || l.Read(0x30) != 0xffffffff {
		t.Error("an APIC that is off takes interrupts")
	}
	b.out(platform.PortPIC1, 0x11)
	b.out(platform.PortPIC1+1, 0x30, 4, 1, 0)
	b.Line(4).Set(true)
	b.LAPIC(0).Write(0x350, 0x10700)
	b.wantAck(0)
	b.wantAck(1, 0x34)
}

func TestPorts(t *testing.T) {
	b := newBench(t, 1)
	var got []uint16
	for port := range 0x10000 {
		if b.Ports().HandlesPort(uint16(port)) {
			got = append(got, uint16(port))
		}
	}
	if want := []uint16{0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x61, 0xa0, 0xa1, 0x4d0, 0x4d1}; !slices.Equal(got, want) {
		t.Errorf("ports %#x", got)
	}
	b.out(0x80, 1)
	if b.Ports().ReadPort(0x80) != 0xff {
		t.Error("a port that is not there")
	}
}

// TestConcurrent has everything called at once, for the race detector.
func TestConcurrent(t *testing.T) {
	c, err := New(Config{CPUs: 2, Now: func() int64 { return 0 }})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	for i := range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			l, line := c.LAPIC(i%2), c.Line(16+i)
			for n := range 1000 {
				line.Set(n&1 == 0)
				c.Signal(0xfeeff000, uint32(n))
				l.Write(0xf0, 0x1ff)
				l.Write(0x300, 0xc0041)
				c.WriteIOAPIC(0, uint32(0x30+2*i))
				c.WriteIOAPIC(0x10, 0x8061)
				if l.HasEvent() {
					l.Ack()
					l.Write(0xb0, 0)
				}
				c.Next()
				c.Ports().WritePort(0x43, 0x34)
				c.Ports().ReadPort(0x20)
			}
		}()
	}
	for range 4 {
		<-done
	}
}
