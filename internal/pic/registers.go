package pic

import (
	"github.com/vmkit-go/vmkit/internal/platform"
)

// Command words by the bits of a write to the command port.
const (
	icw1     = 0x10 // begins the initialization
	icw1ICW4 = 0x01 // ICW4 will come
	ocw3     = 0x08
	ocw3Poll = 0x04
	ocw3RR   = 0x02 // select the register to read: ISR if bit 0, else IRR
	ocw3ESMM = 0x40 // set special mask mode to bit 5

	icw4AutoEOI = 0x02
	icw4Nested  = 0x10 // special fully nested mode
)

// Commands of OCW2, its bits 7 to 5.
const (
	clearRotateAuto   = 0
	eoi               = 1
	specificEOI       = 3
	setRotateAuto     = 4
	rotateEOI         = 5
	setPriority       = 6
	rotateSpecificEOI = 7
)

// The initialization words still due: InitState.
const (
	initDone = iota
	initICW2
	initICW3
	initICW4
)

// Read reads a port that HandlesPort has.
func (p *Pair) Read(port uint16) byte {
	switch port {
	case platform.PortELCR1:
		return p.chips[0].ELCR
	case platform.PortELCR2:
		return p.chips[1].ELCR
	}
	chip := chipOf(port)
	c := &p.chips[chip]
	switch {
	case c.Poll:
		c.Poll = false
		return p.poll(chip)
	case port&1 != 0:
		return c.IMR
	case c.ReadISR:
		return c.ISR
	default:
		return c.IRR
	}
}

// Write writes a port that HandlesPort has.
func (p *Pair) Write(port uint16, v byte) {
	switch port {
	case platform.PortELCR1:
		p.setELCR(0, v)
	case platform.PortELCR2:
		p.setELCR(1, v)
	default:
		chip := chipOf(port)
		if port&1 == 0 {
			p.command(chip, v)
		} else {
			p.data(chip, v)
		}
	}
	p.update()
}

func chipOf(port uint16) int { return int(port >> 7 & 1) }

// setELCR makes lines level-triggered. The request of such a line is its level.
func (p *Pair) setELCR(chip int, v uint8) {
	c := &p.chips[chip]
	v &= levelMask[chip]
	now := v &^ c.ELCR
	c.IRR = c.IRR&^now | c.LastIRR&now
	c.ELCR = v
}

// poll answers the read after a poll command, which is an acknowledge as well.
func (p *Pair) poll(chip int) byte {
	line := p.request(chip)
	if line < 0 {
		return 7
	}
	if chip == 1 {
		// The request to the master is answered by this.
		p.chips[0].IRR &^= 1 << cascade
	}
	p.acknowledge(chip, line)
	p.update()
	return 0x80 | byte(line)
}

func (p *Pair) command(chip int, v byte) {
	c := &p.chips[chip]
	switch {
	case v&icw1 != 0:
		// The edge sense circuit is reset: a line that is high must fall
		// before it can interrupt. LastIRR goes on telling its level.
		c.IRR = c.LastIRR & c.ELCR
		c.ISR, c.IMR, c.PriorityAdd = 0, 0, 0
		c.SpecialMask, c.ReadISR, c.Poll, c.RotateOnAutoEOI = false, false, false, false
		c.Init4 = v&icw1ICW4 != 0
		if !c.Init4 {
			c.AutoEOI, c.SpecialFullyNested = false, false
		}
		c.InitState = initICW2
		if chip == 1 {
			p.chips[0].IRR &^= 1 << cascade
		}
	case v&ocw3 != 0:
		if v&ocw3Poll != 0 {
			c.Poll = true
		} else if v&ocw3RR != 0 {
			c.ReadISR = v&1 != 0
		}
		if v&ocw3ESMM != 0 {
			c.SpecialMask = v&0x20 != 0
		}
	default:
		p.ocw2(chip, v)
	}
}

func (p *Pair) ocw2(chip int, v byte) {
	c := &p.chips[chip]
	line := v & 7
	switch v >> 5 {
	case clearRotateAuto:
		c.RotateOnAutoEOI = false
	case setRotateAuto:
		c.RotateOnAutoEOI = true
	case eoi, rotateEOI:
		priority, ok := first(p.inhibiting(chip), c.PriorityAdd)
		if !ok {
			return
		}
		line = (priority + c.PriorityAdd) & 7
		c.ISR &^= 1 << line
		if v>>5 == rotateEOI {
			c.PriorityAdd = (line + 1) & 7
		}
	case specificEOI:
		c.ISR &^= 1 << line
	case setPriority:
		c.PriorityAdd = (line + 1) & 7
	case rotateSpecificEOI:
		c.ISR &^= 1 << line
		c.PriorityAdd = (line + 1) & 7
	}
}

func (p *Pair) data(chip int, v byte) {
	c := &p.chips[chip]
	switch c.InitState {
	case initICW2:
		c.VectorBase = v & 0xf8
		c.InitState = initICW3
	case initICW3: // the cascade is wired, whatever it says
		c.InitState = initDone
		if c.Init4 {
			c.InitState = initICW4
		}
	case initICW4:
		c.SpecialFullyNested = v&icw4Nested != 0
		c.AutoEOI = v&icw4AutoEOI != 0
		c.InitState = initDone
	default:
		c.IMR = v
	}
}
