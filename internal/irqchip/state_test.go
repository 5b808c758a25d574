package irqchip

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
)

// copyOf makes chips with the state of b.
func (b *bench) copyOf() *bench {
	b.t.Helper()
	o := newBench(b.t, len(b.cpus))
	o.now = b.now
	for i := range b.cpus {
		from, to := b.LAPIC(i), o.LAPIC(i)
		deadline := from.Deadline()
		if err := to.Load(from.Base(), from.SavePage()); err != nil {
			b.t.Fatal(err)
		}
		to.SetDeadline(deadline)
	}
	if err := o.Load(b.Save()); err != nil {
		b.t.Fatal(err)
	}
	return o
}

// same compares all that can be seen of o and b.
func (b *bench) same(o *bench) {
	b.t.Helper()
	if d := cmp.Diff(b.Save(), o.Save()); d != "" {
		b.t.Fatal(d)
	}
	for i := range b.cpus {
		l, m := b.LAPIC(i), o.LAPIC(i)
		if d := cmp.Diff(words(l.SavePage()), words(m.SavePage())); d != "" {
			b.t.Fatalf("CPU %d:\n%s", i, d)
		}
		if l.Events() != m.Events() || l.Base() != m.Base() || l.Deadline() != m.Deadline() {
			b.t.Fatalf("CPU %d: events %b and %b, deadline %d and %d", i, l.Events(), m.Events(), l.Deadline(), m.Deadline())
		}
	}
	if b.Next() != o.Next() {
		b.t.Fatalf("next at %d and %d", b.Next(), o.Next())
	}
}

// words are a page's registers that are not 0, by offset.
func words(page []byte) map[int]uint32 {
	m := map[int]uint32{}
	for i := 0; i < len(page); i += 4 {
		if v := binary.LittleEndian.Uint32(page[i:]); v != 0 {
			m[i] = v
		}
	}
	return m
}

var allPorts = []uint16{0x20, 0x21, 0x40, 0x41, 0x42, 0x43, 0x61, 0xa0, 0xa1, 0x4d0, 0x4d1}

// step does one thing that six bytes say and returns what there is to see of it.
func (b *bench) step(p []byte) (seen uint64) {
	l := b.LAPIC(int(p[0]>>4) % len(b.cpus))
	v := binary.LittleEndian.Uint32(p[2:])
	switch p[0] & 15 {
	case 0, 1:
		l.Write(uint32(p[1])<<4, v)
	case 2:
		l.WriteMSR(0x800+uint32(p[1]), uint64(v))
	case 3:
		return uint64(l.Read(uint32(p[1]) << 4))
	case 4:
		b.out(allPorts[int(p[1])%len(allPorts)], byte(v))
	case 5:
		return uint64(b.Ports().ReadPort(allPorts[int(p[1])%len(allPorts)]))
	case 6:
		b.Line(int(p[1] & 31)).Set(v&1 != 0)
	case 7:
		b.Signal(0xfee00000|uint64(p[1])<<12|uint64(v&0xc), v>>16)
	case 8, 9:
		b.redirect(int(p[1])%24, uint64(v&0x1ffff)|uint64(v>>24)<<56)
	case 10:
		vector, ok := l.Ack()
		if ok {
			return uint64(vector) | 1<<32
		}
	case 11:
		l.SetBase(uint64(v&0xd00) | platform.LAPICBase)
	case 12:
		l.SetDeadline(uint64(b.now)*2 + uint64(v>>8))
	case 13:
		switch p[1] & 7 {
		case 0:
			l.Reset()
		case 1:
			l.SetTPR(byte(v))
		case 2:
			return l.Deadline()
		case 3:
			l.TSCChanged()
		}
	case 14:
		b.now += int64(v) << (p[1] & 31)
		b.Advance(b.now)
	case 15:
		b.to(b.now + int64(v>>12))
	}
	return seen
}

// check holds what is always true. Interrupts that travel outside of what is
// saved are taken.
func (b *bench) check() {
	b.t.Helper()
	b.Advance(b.now)
	if b.Next() <= b.now {
		b.t.Fatalf("next at %d, now %d", b.Next(), b.now)
	}
	for i := range b.cpus {
		l := b.LAPIC(i)
		l.TakeNMI()
		l.TakeINIT()
		l.TakeSIPI()
		if l.HasEvent() != l.Pending() || l.Pending() != (l.apic.Pending() || b.pics.Output() && l.apic.AcceptsExtINT()) {
			b.t.Fatalf("CPU %d: events %b", i, l.Events())
		}
	}
}

func FuzzChips(f *testing.F) {
	f.Add([]byte{
		0, 0xf, 0xff, 1, 0, 0, 16, 0xf, 0xff, 1, 0, 0, 0, 0x32, 0x40, 0, 2, 0, 0, 0x38, 1, 0, 0, 0, 8, 16, 0x61, 0x80, 0, 1,
		6, 16, 1, 0, 0, 0, 15, 0, 0, 0, 0, 1, 26, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0xb, 0, 0, 0, 0,
	}, uint8(6))
	f.Add([]byte{
		4, 5, 0x34, 0, 0, 0, 4, 2, 1, 0, 0, 0, 4, 2, 0, 0, 0, 0, 4, 0, 0x11, 0, 0, 0, 4, 1, 0x30, 0, 0, 0, 4, 1, 4, 0, 0, 0,
		4, 1, 1, 0, 0, 0, 15, 0, 0, 0, 0, 255, 10, 0, 0, 0, 0, 0, 11, 0, 0, 0xc, 0, 0,
	}, uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, save uint8) {
		b := newBench(t, 2)
		var o *bench
		for i := 0; len(data) >= 6 && i < 1000; i, data = i+1, data[6:] {
			if i == int(save) {
				o = b.copyOf()
				b.same(o)
			}
			seen := b.step(data)
			b.check()
			if o == nil {
				continue
			}
			if again := o.step(data); again != seen {
				t.Fatalf("step %d: %#x, after a load %#x", i, seen, again)
			}
			o.check()
			if b.Next() != o.Next() {
				t.Fatalf("step %d: next at %d, after a load at %d", i, b.Next(), o.Next())
			}
		}
		if o != nil {
			b.same(o)
		}
	})
}

// TestExpiredOneShot: a one-shot timer that has expired does not interrupt again
// after a load; one of KVM's, which may owe the interrupt, does.
func TestExpiredOneShot(t *testing.T) {
	b := newBench(t, 1)
	b.xapic()
	l := b.LAPIC(0)
	l.Write(0x320, 0x40)
	l.Write(0x380, 100)
	b.to(b.Next())
	b.wantAck(0, 0x40)
	l.Write(0xb0, 0)
	o := b.copyOf()
	if o.LAPIC(0).HasEvent() || o.Next() != Never {
		t.Error("the timer interrupts again")
	}
	page := l.SavePage()
	binary.LittleEndian.PutUint32(page[0x30:], 0x50014) // as KVM has it
	if err := o.LAPIC(0).Load(o.LAPIC(0).Base(), page); err != nil {
		t.Fatal(err)
	}
	o.wantAck(0, 0x40)
}

// TestLoadGoesOn: a count goes on from where it was, on whatever clock.
func TestLoadGoesOn(t *testing.T) {
	b := newBench(t, 1)
	b.xapic()
	l := b.LAPIC(0)
	l.Write(0x3e0, 0xb)
	l.Write(0x320, 0x20040)
	l.Write(0x380, 1_000_000)
	b.to(2_300_000)
	page := l.SavePage()
	o := newBench(t, 1)
	o.now = 77
	if err := o.LAPIC(0).Load(o.LAPIC(0).Base(), page); err != nil {
		t.Fatal(err)
	}
	o.wantAck(0, 0x40)
	if o.Next() != 77+700_000 {
		t.Errorf("next at %d", o.Next())
	}
	o.to(o.Next())
	if o.Next() != 77+1_700_000 {
		t.Errorf("next at %d", o.Next())
	}
}

func TestLoadRefused(t *testing.T) {
	b := newBench(t, 2)
	b.xapic()
	b.Line(5).Set(true)
	good := b.Save()
	for i, f := range []func(s *vcpu.ChipState){
		func(s *vcpu.ChipState) { s.PICs = nil },
		func(s *vcpu.ChipState) { s.IOAPIC = nil },
		func(s *vcpu.ChipState) { s.PIT = nil },
		func(s *vcpu.ChipState) { s.PICs[1].PriorityAdd = 8 },
		func(s *vcpu.ChipState) { s.PICs[0].ELCR = 7 },
		func(s *vcpu.ChipState) { s.IOAPIC.Base = 0 },
		func(s *vcpu.ChipState) { s.IOAPIC.IRR = 1 << 24 },
		func(s *vcpu.ChipState) { s.PIT.Channels[2].Mode = 9 },
		func(s *vcpu.ChipState) { s.PIT.Channels[2].Elapsed = -1 },
	} {
		s := b.Save()
		f(&s)
		if err := b.Load(s); !errors.Is(err, vcpu.ErrState) {
			t.Errorf("state %d: %v", i, err)
		}
		if d := cmp.Diff(good, b.Save()); d != "" {
			t.Errorf("state %d is half loaded:\n%s", i, d)
		}
	}
	l := b.LAPIC(1)
	page := l.SavePage()
	was := words(page)
	if err := l.Load(0xfee00000|vcpu.APICBaseEnable|vcpu.APICBaseX2APIC, page[1:]); !errors.Is(err, vcpu.ErrState) {
		t.Error(err)
	}
	if err := l.Load(0xfee00400, page); !errors.Is(err, vcpu.ErrState) {
		t.Error(err)
	}
	if d := cmp.Diff(was, words(l.SavePage())); d != "" || l.Base() != 0xfee00000|vcpu.APICBaseEnable {
		t.Errorf("base %#x; the local APIC is half loaded:\n%s", l.Base(), d)
	}
}
