// Package pic is a PC's pair of 8259A interrupt controllers with the edge/level
// control registers that the EISA bus added. The slave's output is the master's
// input 2 and the master's output is the CPU's INTR pin.
//
// It behaves as KVM's does where the two differ from the data sheet (Intel
// 8259A, order number 231468), so that a machine can move between them: an edge
// stays latched when its line falls before the acknowledge, ICW1's LTIM and
// SNGL bits are ignored (ELCR does the first, a PC is always cascaded), and
// MCS-80 mode does not exist.
//
//	var p pic.Pair // as after power-up
//	p.Set(4, true)
//	if p.Output() {
//		vector := p.Ack()
//	}
package pic

import (
	"fmt"
	"math/bits"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Lines is how many inputs the pair has. Input 2 is the cascade.
const Lines = 16

// cascade is the master's input that the slave's output leads to.
const cascade = 2

// levelMask are the lines, of master and slave, that ELCR can make
// level-triggered: not the timer, keyboard, cascade, clock and FPU.
var levelMask = [2]uint8{0xf8, 0xde}

// Pair is the two chips. The zero value is their state after power-up. It is
// not safe for concurrent use.
type Pair struct {
	chips [2]vcpu.PIC
}

// Output is the level of the CPU's INTR pin.
func (p *Pair) Output() bool { return p.request(0) >= 0 }

// Set sets the level of input line 0 to 15. The cascade's is not to be set.
func (p *Pair) Set(line int, level bool) {
	if line == cascade || line < 0 || line >= Lines {
		return
	}
	c := &p.chips[line>>3]
	bit := uint8(1) << (line & 7)
	switch {
	case level:
		if c.ELCR&bit != 0 || c.LastIRR&bit == 0 {
			c.IRR |= bit
		}
		c.LastIRR |= bit
	default:
		c.IRR &^= c.ELCR & bit
		c.LastIRR &^= bit
	}
	p.update()
}

// Level is the level that line was last set to.
func (p *Pair) Level(line int) bool {
	return line >= 0 && line < Lines && p.chips[line>>3].LastIRR>>(line&7)&1 != 0
}

// Busy reports whether line is not masked, and whether a request of it waits or
// is in service.
func (p *Pair) Busy(line int) (open, busy bool) {
	c, bit := &p.chips[line>>3], uint8(1)<<(line&7)
	return c.IMR&bit == 0, (c.IRR|c.ISR)&bit != 0
}

// Ack is the CPU's interrupt acknowledge: it returns the vector of the request
// that has the highest priority, which is now in service. A chip that is asked
// without a request answers with its input 7, and does not note that as in
// service: a spurious interrupt.
func (p *Pair) Ack() (vector uint8) {
	line := p.request(0)
	if line < 0 {
		return p.chips[0].VectorBase + 7
	}
	p.acknowledge(0, line)
	vector = p.chips[0].VectorBase + uint8(line)
	if line == cascade {
		slave := p.request(1)
		if slave < 0 {
			slave = 7
		} else {
			p.acknowledge(1, slave)
		}
		vector = p.chips[1].VectorBase + uint8(slave)
	}
	p.update()
	return vector
}

// acknowledge puts a request in service.
func (p *Pair) acknowledge(chip, line int) {
	c := &p.chips[chip]
	bit := uint8(1) << line
	c.IRR &^= bit &^ c.ELCR // a level stays as long as its line does
	if !c.AutoEOI {
		c.ISR |= bit
	} else if c.RotateOnAutoEOI {
		c.PriorityAdd = uint8(line+1) & 7
	}
}

// request is the input of a chip that may interrupt now, or -1.
func (p *Pair) request(chip int) int {
	c := &p.chips[chip]
	if c.InitState != 0 {
		return -1
	}
	want, ok := first(c.IRR&^c.IMR, c.PriorityAdd)
	if !ok {
		return -1
	}
	service := p.inhibiting(chip)
	if chip == 0 && c.SpecialFullyNested {
		service &^= 1 << cascade // the slave may have a more urgent request
	}
	if served, ok := first(service, c.PriorityAdd); ok && want >= served {
		return -1
	}
	return int(want+c.PriorityAdd) & 7
}

// inhibiting are the inputs in service that hold off lower ones. Special mask
// mode takes out those that are masked.
func (p *Pair) inhibiting(chip int) uint8 {
	c := &p.chips[chip]
	if c.SpecialMask {
		return c.ISR &^ c.IMR
	}
	return c.ISR
}

// first is the priority, 0 the highest, of the most urgent of some inputs when
// input top has the highest.
func first(inputs, top uint8) (priority uint8, ok bool) {
	if inputs == 0 {
		return 0, false
	}
	return uint8(bits.TrailingZeros8(bits.RotateLeft8(inputs, -int(top)))), true
}

// update passes the slave's output on to the master, which latches it as an
// edge.
func (p *Pair) update() {
	if p.request(1) >= 0 {
		p.chips[0].IRR |= 1 << cascade
	}
}

// Save returns the state.
func (p *Pair) Save() [2]vcpu.PIC {
	s := p.chips
	for i := range s {
		s[i].ELCRMask = levelMask[i]
	}
	return s
}

// Load takes a state, which it checks.
func (p *Pair) Load(s *[2]vcpu.PIC) error {
	for i := range s {
		c := &s[i]
		if c.PriorityAdd > 7 || c.InitState > 3 || c.ELCR&^levelMask[i] != 0 {
			return fmt.Errorf("%w: PIC %d: priority %d, initialization state %d, ELCR %#x", vcpu.ErrState, i, c.PriorityAdd, c.InitState, c.ELCR)
		}
	}
	p.chips = *s
	for i := range p.chips {
		p.chips[i].VectorBase &= 0xf8
	}
	return nil
}

// HandlesPort reports whether the pair has a port.
func HandlesPort(port uint16) bool {
	switch port {
	case platform.PortPIC1, platform.PortPIC1 + 1, platform.PortPIC2, platform.PortPIC2 + 1,
		platform.PortELCR1, platform.PortELCR2:
		return true
	}
	return false
}
