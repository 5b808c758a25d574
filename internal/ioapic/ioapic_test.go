package ioapic

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
)

// bench is an I/O APIC that notes what it sends.
type bench struct {
	*Chip
	t      testing.TB
	sent   []uint64
	refuse bool
}

func newBench(t testing.TB) *bench {
	b := &bench{t: t}
	b.Chip = New(platform.IOAPICBase, func(e uint64) bool {
		b.sent = append(b.sent, e)
		return !b.refuse
	})
	return b
}

func (b *bench) reg(i uint32) uint32 {
	b.Write(0, i)
	return b.Read(0x10)
}

func (b *bench) setReg(i, v uint32) {
	b.Write(0, i)
	b.Write(0x10, v)
}

// wantSent compares the vectors sent since the last call.
func (b *bench) wantSent(vectors ...uint8) {
	b.t.Helper()
	var got []uint8
	for _, e := range b.sent {
		got = append(got, uint8(e))
	}
	if !slices.Equal(got, vectors) {
		b.t.Errorf("sent %#x, want %#x", got, vectors)
	}
	b.sent = nil
}

func TestRegisters(t *testing.T) {
	b := newBench(t)
	if v := b.reg(1); v != 0x170011 {
		t.Errorf("version %#x", v)
	}
	b.setReg(1, 0)
	b.setReg(2, 0xffffffff)
	b.setReg(0, 0xffffffff)
	if b.reg(0) != 0x0f000000 || b.reg(2) != 0x0f000000 || b.reg(1) != 0x170011 {
		t.Errorf("ID %#x, arbitration %#x", b.reg(0), b.reg(2))
	}
	for i := range uint32(0x100) {
		want := uint32(0)
		switch {
		case i == 0 || i == 2:
			want = 0x0f000000
		case i == 1:
			want = 0x170011
		case i >= 0x10 && i < 0x40 && i&1 == 0:
			want = Mask
		}
		if got := b.reg(i); got != want {
			t.Errorf("register %#x is %#x, want %#x", i, got, want)
		}
	}
	for i := uint32(3); i < 0x100; i++ {
		b.setReg(i, 0xffffffff)
	}
	if lo, hi := b.reg(0x3e), b.reg(0x3f); lo != 0x1afff || hi != 0xff000000 {
		t.Errorf("entry 23: %#x %#x", hi, lo)
	}
	b.Write(0, 0x1ff)
	if b.Read(0) != 0xff || b.Read(4) != 0 || b.Read(0x40) != 0 {
		t.Error("select register")
	}
	b.Write(0x40, 0x33) // no EOI register in this version
	b.wantSent()
}

func TestEdge(t *testing.T) {
	b := newBench(t)
	b.setReg(0x10+8, 0x41)
	b.Set(4, true)
	b.Set(4, true)
	b.wantSent(0x41)
	b.EOI(0x41)
	b.Set(4, false)
	b.Set(4, true)
	b.wantSent(0x41)
	// An edge on a masked input is lost.
	b.Set(4, false)
	b.setReg(0x10+8, 0x10041)
	b.Set(4, true)
	b.setReg(0x10+8, 0x41)
	b.wantSent()
	if b.reg(0x18)&RemoteIRR != 0 {
		t.Error("remote IRR of an edge")
	}
	b.Set(-1, true)
	b.Set(24, true)
	b.wantSent()
}

func TestLevel(t *testing.T) {
	b := newBench(t)
	b.setReg(0x10+2*16, 0x8051)
	b.Set(16, true)
	b.Set(16, true)
	b.wantSent(0x51)
	if b.reg(0x30) != 0xc051 {
		t.Errorf("entry %#x", b.reg(0x30))
	}
	b.EOI(0x52)
	b.wantSent()
	b.EOI(0x51) // still high
	b.wantSent(0x51)
	b.Set(16, false)
	b.EOI(0x51)
	b.wantSent()
	if b.reg(0x30) != 0x8051 {
		t.Errorf("entry %#x", b.reg(0x30))
	}
	b.Set(16, true)
	b.wantSent(0x51)
	b.setReg(0x30, 0x18051)
	b.EOI(0x51)
	b.wantSent() // masked
	b.setReg(0x30, 0x8051)
	b.wantSent(0x51) // a level waits for the mask
	b.Set(16, false)
	b.EOI(0x51)
	b.setReg(0x30, 0x18051)
	b.Set(16, true)
	b.Set(16, false)
	b.setReg(0x30, 0x8051)
	b.wantSent() // gone before it was unmasked
}

// TestSharedVector: one EOI ends all inputs with the vector, and only those
// that wait for it.
func TestSharedVector(t *testing.T) {
	b := newBench(t)
	b.setReg(0x30, 0x8051)
	b.setReg(0x32, 0x8051)
	b.setReg(0x34, 0x0051)
	b.Set(16, true)
	b.Set(17, true)
	b.Set(18, true)
	b.wantSent(0x51, 0x51, 0x51)
	b.Set(16, false)
	b.EOI(0x51)
	b.wantSent(0x51)
}

// TestRemoteIRRClear is how Linux ends a stuck interrupt without an EOI
// register: to edge and back, masked.
func TestRemoteIRRClear(t *testing.T) {
	b := newBench(t)
	b.setReg(0x30, 0x8051)
	b.Set(16, true)
	b.wantSent(0x51)
	b.setReg(0x30, 0xffffffff)
	if b.reg(0x30)&RemoteIRR == 0 {
		t.Error("remote IRR is writable")
	}
	b.setReg(0x30, 0x10051)
	if b.reg(0x30) != 0x10051 {
		t.Errorf("entry %#x", b.reg(0x30))
	}
	b.setReg(0x30, 0x18051)
	b.setReg(0x30, 0x8051)
	b.wantSent(0x51)
}

// TestRefused: what no local APIC takes is tried again.
func TestRefused(t *testing.T) {
	b := newBench(t)
	b.refuse = true
	b.setReg(0x30, 0x8051)
	b.Set(16, true)
	b.wantSent(0x51)
	b.refuse = false
	b.setReg(0x31, 0x01000000)
	if b.wantSent(0x51); b.reg(0x30) != 0xc051 {
		t.Errorf("entry %#x", b.reg(0x30))
	}
}

func TestNMIHasNoEOI(t *testing.T) {
	b := newBench(t)
	b.setReg(0x30, 0x8400)
	b.Set(16, true)
	if b.reg(0x30)&RemoteIRR != 0 {
		t.Error("an NMI waits for an EOI")
	}
}

func TestLoadErrors(t *testing.T) {
	b := newBench(t)
	for _, f := range []func(s *vcpu.IOAPIC){
		func(s *vcpu.IOAPIC) { s.Base++ },
		func(s *vcpu.IOAPIC) { s.Select = 0x100 },
		func(s *vcpu.IOAPIC) { s.IRR = 1 << 24 },
		func(s *vcpu.IOAPIC) { s.ID = 0x100 },
	} {
		s := b.Save()
		f(&s)
		if err := b.Load(&s, 0); !errors.Is(err, vcpu.ErrState) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

// step does what six bytes say.
func (b *bench) step(p []byte) {
	v := binary.LittleEndian.Uint32(p[2:])
	switch p[0] % 6 {
	case 0, 1:
		b.setReg(uint32(p[1]), v)
	case 2:
		b.reg(uint32(p[1]))
	case 3, 4:
		b.Set(int(p[1]), v&1 != 0)
	case 5:
		b.EOI(p[1])
	}
	b.refuse = p[0]&0x80 != 0
}

func FuzzIOAPIC(f *testing.F) {
	f.Add([]byte{0, 0x30, 0x51, 0x80, 0, 0, 3, 16, 1, 0, 0, 0, 5, 0x51, 0, 0, 0, 0}, uint8(2))
	f.Fuzz(func(t *testing.T, data []byte, save uint8) {
		b := newBench(t)
		var o *bench
		for i := 0; len(data) >= 6; i, data = i+1, data[6:] {
			if i == int(save) {
				s := b.Save()
				o = newBench(t)
				if err := o.Load(&s, b.levels&0xffff); err != nil {
					t.Fatal(err)
				}
				o.refuse = b.refuse
			}
			b.sent = b.sent[:0]
			b.step(data)
			if len(b.sent) > Pins {
				t.Fatalf("one access sends %d interrupts", len(b.sent))
			}
			for pin, e := range b.redirect {
				if e&^kept != 0 || e&(RemoteIRR|Level) == RemoteIRR {
					t.Fatalf("entry %d: %#x", pin, e)
				}
			}
			if o != nil {
				o.sent = o.sent[:0]
				o.step(data)
				if !slices.Equal(o.sent, b.sent) || o.Save() != b.Save() {
					t.Fatalf("after a load: sends %#x and %#x", b.sent, o.sent)
				}
			}
		}
	})
}
