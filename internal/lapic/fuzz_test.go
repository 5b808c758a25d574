package lapic

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// step does one thing that data says, and reports how many bytes it took.
func (b *bench) step(data []byte) int {
	if len(data) < 6 {
		return len(data)
	}
	v := binary.LittleEndian.Uint32(data[2:])
	reg := uint32(data[1])
	switch data[0] % 14 {
	case 0, 1, 2:
		b.Write(reg<<4, v)
	case 3:
		b.Read(reg << 4)
	case 4:
		b.Write(reg<<2, v>>24)
	case 5, 6:
		b.WriteMSR(0x800+reg, uint64(v))
	case 7:
		b.ReadMSR(0x800 + reg)
	case 8:
		m := Message{Vector: uint8(v), Mode: uint8(v >> 8 & 7), Level: v>>11&1 != 0, Dest: v >> 16, Logical: v>>12&1 != 0, Wide: v>>13&1 != 0}
		b.Match(&m)
		b.Accept(m)
	case 9:
		b.Ack()
	case 10:
		b.SetBase(0xfee00000 | uint64(v&0xf00))
	case 11:
		b.SetDeadline(uint64(v))
		b.SetTPR(uint8(reg))
	case 12:
		b.LINT0()
		switch reg & 7 {
		case 0:
			b.TakeNMI()
		case 1:
			if b.TakeINIT() {
				b.Reset()
			}
		case 2:
			b.TakeSIPI()
		case 3:
			b.Deadline()
		}
	case 13:
		b.to(b.now + int64(v)>>(reg&31))
	}
	return 6
}

// to is bounded: what is due comes no more often than every minPeriod, or was
// set by the guest in a step of its own.
func FuzzAPIC(f *testing.F) {
	f.Add([]byte{0, 0xf, 0xff, 1, 0, 0, 0, 0x32, 0x40, 0, 2, 0, 0, 0x3e, 0xb, 0, 0, 0, 0, 0x38, 1, 0, 0, 0, 13, 4, 0, 0, 0, 1})
	f.Add([]byte{10, 0, 0, 0xc, 0, 0, 5, 0xf, 0xff, 1, 0, 0, 5, 0x32, 0x40, 0, 4, 0, 11, 0, 0, 0, 1, 0, 13, 0, 0, 0, 1, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		b := newBench(t, 1)
		for len(data) > 0 && len(b.sent) < 10_000 {
			data = data[b.step(data):]
			b.check()
		}
	})
}

// check holds what is always true.
func (b *bench) check() {
	b.t.Helper()
	const illegal = 1<<firstVector - 1
	if (b.isr[0]|b.irr[0])&illegal != 0 {
		b.t.Fatal("an illegal vector is pending or in service")
	}
	ppr := b.ppr
	if b.updatePPR(); b.ppr != ppr {
		b.t.Fatalf("PPR is %#x, should be %#x", ppr, b.ppr)
	}
	if !b.on() && (b.Pending() || b.Due() != Never) {
		b.t.Fatal("an APIC that is off has something to do")
	}
	if tm := &b.timer; tm.counting && (tm.initial == 0 || tm.count(b.now) > tm.initial) {
		b.t.Fatalf("timer %+v at %d", *tm, b.now)
	}
	for _, m := range b.sent {
		if m.Mode == SMI || m.Mode == 3 || m.Mode == ExtINT || m.Mode <= LowestPriority && m.Vector < firstVector {
			b.t.Fatalf("sent %+v", m)
		}
	}
}

// FuzzSaveLoad saves at some moment, loads into another APIC, and has both go
// the same way from there.
func FuzzSaveLoad(f *testing.F) {
	f.Add([]byte{0, 0xf, 0xff, 1, 0, 0, 0, 0x32, 0x40, 0, 2, 0, 0, 0x3e, 0xa, 0, 0, 0, 0, 0x38, 99, 1, 0, 0},
		[]byte{13, 4, 0, 0, 0, 1, 9, 0, 0, 0, 0, 0, 13, 4, 0, 0, 0, 1})
	f.Add([]byte{0, 0xf, 0xff, 1, 0, 0, 0, 0x32, 0x40, 0, 0, 0, 0, 0x38, 99, 1, 0, 0, 13, 0, 0, 9, 0, 0, 9, 0, 0, 0, 0, 0},
		[]byte{0, 0x32, 0x40, 0, 2, 0, 13, 4, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, before, after []byte) {
		b := newBench(t, 1)
		for len(before) > 0 && len(b.sent) < 10_000 {
			before = before[b.step(before):]
		}
		// These travel elsewhere.
		b.TakeNMI()
		b.TakeINIT()
		b.TakeSIPI()
		deadline := b.Deadline()
		page := make([]byte, PageSize)
		b.Save(page)
		b.sent, b.eois = nil, nil

		o := newBench(t, 1)
		o.now = b.now
		if !o.LoadBase(b.Base()) {
			t.Fatalf("LoadBase(%#x)", b.Base())
		}
		if err := o.Load(page); err != nil {
			t.Fatal(err)
		}
		o.SetDeadline(deadline)
		o.check()
		o.same(b, page)
		for len(after) > 0 && len(b.sent) < 10_000 {
			n := b.step(after)
			o.step(after)
			after = after[n:]
			if b.Due() != o.Due() || b.Pending() != o.Pending() || b.NMI() != o.NMI() || b.AcceptsExtINT() != o.AcceptsExtINT() {
				t.Fatalf("due at %d and %d, pending %v and %v", b.Due(), o.Due(), b.Pending(), o.Pending())
			}
		}
		b.Save(page)
		o.same(b, page)
	})
}

// same compares o with what b has saved.
func (o *bench) same(b *bench, page []byte) {
	o.t.Helper()
	again := make([]byte, PageSize)
	o.Save(again)
	for i := 0; i < PageSize; i += 4 {
		if !bytes.Equal(page[i:i+4], again[i:i+4]) {
			o.t.Fatalf("register %#x: %x and %x", i, page[i:i+4], again[i:i+4])
		}
	}
	if len(o.sent) != len(b.sent) || len(o.eois) != len(b.eois) || o.Deadline() != b.Deadline() || o.Due() != b.Due() {
		o.t.Fatalf("sent %d and %d, EOIs %d and %d, deadline %d and %d, due %d and %d", len(b.sent), len(o.sent),
			len(b.eois), len(o.eois), b.Deadline(), o.Deadline(), b.Due(), o.Due())
	}
}

// FuzzLoad loads any page.
func FuzzLoad(f *testing.F) {
	b := newBench(f, 1).enable(false)
	page := make([]byte, PageSize)
	b.Save(page)
	f.Add(uint64(0xfee00800), page, []byte{13, 4, 0, 0, 0, 1})
	f.Add(uint64(0xfee00c00), page, []byte{13, 4, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, base uint64, page, after []byte) {
		b := newBench(t, 1)
		if base &= 0xfff | vcpu.APICBaseEnable; !b.LoadBase(base) {
			return
		}
		if len(page) > 64 && len(page) < PageSize {
			page = append(page, make([]byte, PageSize-len(page))...)
		}
		if b.Load(page) != nil {
			return
		}
		b.check()
		for len(after) > 0 && len(b.sent) < 10_000 {
			after = after[b.step(after):]
			b.check()
		}
	})
}
