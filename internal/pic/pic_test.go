package pic

import (
	"errors"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// Ports.
const (
	cmd1, data1 = 0x20, 0x21
	cmd2, data2 = 0xa0, 0xa1
)

func (p *Pair) write(port uint16, values ...byte) {
	for _, v := range values {
		p.Write(port, v)
	}
}

// linux initializes the chips as Linux does: vectors 0x30 and 0x38, all masked
// but the given lines.
func linux(unmasked uint16) *Pair {
	p := new(Pair)
	p.write(cmd1, 0x11)
	p.write(data1, 0x30, 0x04, 0x01)
	p.write(cmd2, 0x11)
	p.write(data2, 0x38, 0x02, 0x01)
	p.write(data1, ^byte(unmasked))
	p.write(data2, ^byte(unmasked>>8))
	return p
}

func (p *Pair) edge(line int) {
	p.Set(line, false)
	p.Set(line, true)
}

func wantAck(t *testing.T, p *Pair, vectors ...uint8) {
	t.Helper()
	for _, want := range vectors {
		if !p.Output() {
			t.Errorf("no interrupt, want %#x", want)
		}
		if v := p.Ack(); v != want {
			t.Errorf("vector %#x, want %#x", v, want)
		}
	}
	if p.Output() {
		t.Errorf("one more interrupt: %#x", p.Ack())
	}
}

func TestPriority(t *testing.T) {
	p := linux(0xffff)
	p.edge(7)
	p.edge(3)
	wantAck(t, p, 0x33)
	p.edge(4) // lower than what is in service
	wantAck(t, p)
	p.edge(1)
	wantAck(t, p, 0x31)
	p.write(cmd1, 0x20) // ends the highest, 1
	wantAck(t, p)
	p.write(cmd1, 0x20)
	wantAck(t, p, 0x34)
	p.write(cmd1, 0x64)
	wantAck(t, p, 0x37)
	p.write(cmd1, 0x67)
	wantAck(t, p)
}

// TestEdge: one interrupt per rising edge, kept while masked, one at a time.
func TestEdge(t *testing.T) {
	p := linux(0)
	p.edge(5)
	p.Set(5, true)
	wantAck(t, p)
	p.write(data1, 0)
	wantAck(t, p, 0x35)
	p.write(cmd1, 0x20)
	p.Set(5, true)
	wantAck(t, p)
	p.edge(5)
	p.Set(5, false) // latched, as in KVM
	wantAck(t, p, 0x35)
}

func TestLevel(t *testing.T) {
	p := linux(0xffff)
	p.write(0x4d0, 0xff)
	p.write(0x4d1, 0xff)
	if p.Read(0x4d0) != 0xf8 || p.Read(0x4d1) != 0xde {
		t.Errorf("ELCR %#x %#x", p.Read(0x4d0), p.Read(0x4d1))
	}
	p.Set(5, true)
	wantAck(t, p, 0x35)
	p.write(cmd1, 0x20)
	wantAck(t, p, 0x35) // still high
	p.Set(5, false)
	p.write(cmd1, 0x20)
	wantAck(t, p)
	p.Set(5, true)
	p.Set(5, false) // gone before the acknowledge
	wantAck(t, p)
	// A line that is high when it becomes level-triggered requests.
	p.write(0x4d0, 0)
	p.edge(6)
	wantAck(t, p, 0x36)
	p.write(cmd1, 0x20)
	p.write(0x4d0, 0x40)
	wantAck(t, p, 0x36)
}

func TestCascade(t *testing.T) {
	p := linux(0xffff)
	p.edge(8)
	wantAck(t, p, 0x38)
	p.edge(4)
	p.edge(12)
	wantAck(t, p) // both lower than input 2 and 8
	p.write(cmd2, 0x20)
	wantAck(t, p) // the master still serves input 2
	p.write(cmd1, 0x62)
	wantAck(t, p, 0x3c)
	p.write(cmd2, 0x64)
	p.write(cmd1, 0x62)
	wantAck(t, p, 0x34)
	p.write(cmd1, 0x64)
	// Input 2 cannot be set from outside.
	p.Set(2, true)
	p.Set(-1, true)
	p.Set(16, true)
	wantAck(t, p)
	// The slave is cut off by the master's mask.
	p.write(data1, 0x04)
	p.edge(9)
	wantAck(t, p)
}

// TestSpurious: an acknowledge without a request gives input 7 and leaves
// nothing in service.
func TestSpurious(t *testing.T) {
	p := linux(0xffff)
	if v := p.Ack(); v != 0x37 {
		t.Errorf("vector %#x", v)
	}
	p.write(cmd1, 0x0b)
	if p.Read(cmd1) != 0 {
		t.Error("a spurious interrupt is in service")
	}
	// The slave's request goes away after the master has latched it.
	p.write(0x4d1, 0x02)
	p.Set(9, true)
	p.Set(9, false)
	wantAck(t, p, 0x3f)
	p.write(cmd2, 0x0b)
	if s, m := p.Read(cmd2), p.Read(cmd1); s != 0 || m != 0x04 {
		t.Errorf("in service: slave %#x, master %#x", s, m)
	}
}

func TestInitialization(t *testing.T) {
	p := linux(0xffff)
	p.write(0x4d0, 0x20)
	p.Set(5, true)
	p.edge(3)
	wantAck(t, p, 0x33)
	p.write(cmd1, 0xc2, 0x6b) // priorities rotated, special mask mode, read ISR
	p.write(cmd1, 0x11)
	if p.Output() {
		t.Error("an interrupt amid the initialization")
	}
	p.write(data1, 0x43, 0x04, 0x01)
	if p.Read(data1) != 0 || p.Read(cmd1) != 0x20 {
		t.Errorf("IMR %#x, IRR %#x", p.Read(data1), p.Read(cmd1))
	}
	wantAck(t, p, 0x45) // a level stays; the vector's low bits do not count
	p.Set(3, true)      // it was high: no edge
	p.write(cmd1, 0x20)
	p.Set(5, false)
	wantAck(t, p)
	p.edge(3)
	wantAck(t, p, 0x43)
	// Without ICW4 its modes are off.
	p.write(cmd1, 0x11)
	p.write(data1, 0x30, 0x04, 0x13)
	s := p.Save()
	if !s[0].AutoEOI || !s[0].SpecialFullyNested || s[0].InitState != 0 {
		t.Errorf("%+v", s[0])
	}
	p.write(cmd1, 0x10)
	p.write(data1, 0x30, 0x04)
	if s := p.Save(); s[0].AutoEOI || s[0].SpecialFullyNested || s[0].InitState != 0 {
		t.Errorf("%+v", s[0])
	}
}

func TestAutoEOI(t *testing.T) {
	p := linux(0xffff)
	p.write(cmd1, 0x11)
	p.write(data1, 0x30, 0x04, 0x03)
	p.edge(3)
	wantAck(t, p, 0x33)
	p.edge(4)
	wantAck(t, p, 0x34)
	p.write(cmd1, 0x80) // rotate
	p.edge(1)
	p.edge(4)
	wantAck(t, p, 0x31, 0x34) // 5 has the highest priority, then 6, 7, 0
	p.edge(6)
	p.edge(4)
	wantAck(t, p, 0x36, 0x34)
	p.write(cmd1, 0)
	p.edge(4)
	p.edge(6)
	wantAck(t, p, 0x36, 0x34) // 5 stays the highest
}

func TestRotation(t *testing.T) {
	p := linux(0xffff)
	p.write(cmd1, 0xc3) // 3 is the lowest
	p.edge(3)
	p.edge(4)
	p.edge(0)
	wantAck(t, p, 0x34)
	p.write(cmd1, 0xa0) // rotate on non-specific EOI: 4 is the lowest
	wantAck(t, p, 0x30)
	p.write(cmd1, 0xe0) // specific: 0 is the lowest
	p.edge(1)
	wantAck(t, p, 0x31)
	p.write(cmd1, 0x61)
	wantAck(t, p, 0x33)
	p.write(cmd1, 0x63, 0x20, 0xa0, 0x40) // nothing in service; no operation
	wantAck(t, p)
}

func TestSpecialMask(t *testing.T) {
	p := linux(0xffff)
	p.edge(1)
	wantAck(t, p, 0x31)
	p.edge(4)
	wantAck(t, p)
	p.write(data1, 0x02)
	p.write(cmd1, 0x68)
	wantAck(t, p, 0x34)
	p.write(cmd1, 0x20) // ends 4: what is masked stays in service
	p.write(cmd1, 0x0b)
	if p.Read(cmd1) != 0x02 {
		t.Errorf("ISR %#x", p.Read(cmd1))
	}
	p.edge(4)
	p.write(cmd1, 0x48) // back
	wantAck(t, p)
	p.write(cmd1, 0x61)
	wantAck(t, p, 0x34)
}

func TestSpecialFullyNested(t *testing.T) {
	p := linux(0xffff)
	p.write(cmd1, 0x11)
	p.write(data1, 0x30, 0x04, 0x11)
	p.edge(12)
	wantAck(t, p, 0x3c)
	p.edge(9) // higher on the slave
	wantAck(t, p, 0x39)
	p.edge(13)
	wantAck(t, p)
}

func TestPoll(t *testing.T) {
	p := linux(0xffff)
	p.write(cmd1, 0x0c)
	if v := p.Read(cmd1); v&0x80 != 0 {
		t.Errorf("poll %#x", v)
	}
	p.edge(4)
	p.write(cmd1, 0x0c)
	if v := p.Read(data1); v != 0x84 {
		t.Errorf("poll %#x", v)
	}
	wantAck(t, p) // in service
	p.write(cmd1, 0x0b)
	if p.Read(cmd1) != 0x10 {
		t.Error("a poll is an acknowledge")
	}
	p.write(cmd1, 0x64)
	p.edge(10)
	p.write(cmd2, 0x0c)
	if v := p.Read(cmd2); v != 0x82 {
		t.Errorf("poll %#x", v)
	}
	wantAck(t, p)
}

func TestLoadErrors(t *testing.T) {
	p := linux(0xffff)
	for _, f := range []func(s *[2]vcpu.PIC){
		func(s *[2]vcpu.PIC) { s[0].PriorityAdd = 8 },
		func(s *[2]vcpu.PIC) { s[1].InitState = 4 },
		func(s *[2]vcpu.PIC) { s[0].ELCR = 1 },
		func(s *[2]vcpu.PIC) { s[1].ELCR = 0x20 },
	} {
		s := p.Save()
		f(&s)
		if err := p.Load(&s); !errors.Is(err, vcpu.ErrState) {
			t.Errorf("%+v: %v", s, err)
		}
	}
}

func TestHandlesPort(t *testing.T) {
	n := 0
	for port := range 0x10000 {
		if HandlesPort(uint16(port)) {
			n++
		}
	}
	if n != 6 {
		t.Errorf("%d ports", n)
	}
}

var ports = []uint16{cmd1, data1, cmd2, data2, 0x4d0, 0x4d1}

// step does what two bytes say and returns what there is to see.
func (p *Pair) step(op, v byte) (seen uint16) {
	port := ports[int(op>>4)%len(ports)]
	switch op & 7 {
	case 0, 1:
		p.Write(port, v)
	case 2:
		return uint16(p.Read(port))
	case 3:
		return uint16(p.Ack())
	default:
		p.Set(int(v&15), v&16 != 0)
	}
	if p.Output() {
		return 0x100
	}
	return 0
}

func FuzzPIC(f *testing.F) {
	f.Add([]byte{0, 0x11, 0x10, 0x30, 0x10, 4, 0x10, 1, 4, 0x13, 3, 0, 0, 0x20}, uint8(5))
	f.Add([]byte{0x40, 0xff, 4, 0x13, 4, 0x1f, 3, 0, 3, 0, 0, 0x0c, 2, 0, 0, 0xa0}, uint8(3))
	f.Fuzz(func(t *testing.T, data []byte, save uint8) {
		p := new(Pair)
		var o *Pair // loaded from p after save steps
		for i := 0; i+1 < len(data); i += 2 {
			if i/2 == int(save) {
				s := p.Save()
				o = new(Pair)
				if err := o.Load(&s); err != nil {
					t.Fatal(err)
				}
			}
			seen := p.step(data[i], data[i+1])
			if o != nil {
				if got := o.step(data[i], data[i+1]); got != seen {
					t.Fatalf("step %d: %#x, and after a load %#x", i/2, seen, got)
				}
			}
			s := p.Save()
			for c := range s {
				// A level-triggered request is its line, but for the cascade.
				if e := s[c].ELCR; s[c].IRR&e != s[c].LastIRR&e || e&^levelMask[c] != 0 {
					t.Fatalf("%+v", s[c])
				}
				if (&vcpu.ChipState{PICs: &s}).Validate() != nil {
					t.Fatalf("%+v", s[c])
				}
			}
			if o != nil && o.Save() != s {
				t.Fatalf("step %d: %+v, and after a load %+v", i/2, s, o.Save())
			}
		}
	})
}
