// Package ioapic is an 82093AA I/O APIC with 24 inputs (Intel order number
// 290566), version 0x11: without the EOI register, whose place take the EOI
// broadcasts of the local APICs. As in KVM, polarity is ignored: a line that
// is set is active.
//
//	io := ioapic.New(platform.IOAPICBase, func(e uint64) bool {
//		return deliver(e) // whether some local APIC took it
//	})
//	io.Set(16, true)
package ioapic

import (
	"fmt"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Pins is the number of inputs.
const Pins = platform.IOAPICPins

// Bits of a redirection entry (82093AA, section 3.2.4).
const (
	Logical   = 1 << 11 // destination mode
	RemoteIRR = 1 << 14 // read-only: a level was delivered and waits for an EOI
	Level     = 1 << 15 // trigger mode
	Mask      = 1 << 16

	ModeShift = 8 // delivery mode, 3 bits
	DestShift = 56

	writable = 0xff<<DestShift | 0x1afff // all but delivery status and remote IRR
	kept     = writable | RemoteIRR
)

// Registers of the page.
const (
	regSelect = 0x00
	regWindow = 0x10
)

// What the window shows, by the selected index.
const (
	indexID          = 0
	indexVersion     = 1
	indexArbitration = 2
	indexRedirect    = 0x10

	version = (Pins-1)<<16 | 0x11
)

// Chip is an I/O APIC. It is not safe for concurrent use.
type Chip struct {
	deliver  func(entry uint64) bool
	base     uint64
	sel      uint8
	id       uint8 // 4 bits
	levels   uint32
	redirect [Pins]uint64
}

// New returns an I/O APIC as after power-up. deliver sends the message that a
// redirection entry describes to the local APICs, and reports whether one took
// it.
func New(base uint64, deliver func(entry uint64) bool) *Chip {
	c := &Chip{deliver: deliver, base: base}
	for i := range c.redirect {
		c.redirect[i] = Mask
	}
	return c
}

// Set sets the level of an input.
func (c *Chip) Set(pin int, level bool) {
	if pin < 0 || pin >= Pins {
		return
	}
	bit := uint32(1) << pin
	old := c.levels
	if !level {
		c.levels &^= bit
		return
	}
	c.levels |= bit
	e := c.redirect[pin]
	if e&Level != 0 {
		c.serve(pin)
	} else if old&bit == 0 && e&Mask == 0 {
		// An edge on a masked input is lost (82093AA, section 3.2.4).
		c.deliver(e)
	}
}

// serve delivers the level of an input, if it may be.
func (c *Chip) serve(pin int) {
	e := c.redirect[pin]
	if e&(Level|Mask|RemoteIRR) != Level || c.levels>>pin&1 == 0 {
		return
	}
	// Only fixed and lowest-priority interrupts end with an EOI.
	if c.deliver(e) && e>>ModeShift&7 <= 1 {
		c.redirect[pin] |= RemoteIRR
	}
}

// EOI takes the broadcast that a level-triggered interrupt with this vector has
// been served: the inputs that sent it may send again.
func (c *Chip) EOI(vector uint8) {
	for pin, e := range &c.redirect {
		if uint8(e) == vector && e&(Level|RemoteIRR) == Level|RemoteIRR {
			c.redirect[pin] &^= RemoteIRR
			c.serve(pin)
		}
	}
}

// Entry is the redirection entry of an input, 0 to Pins-1.
func (c *Chip) Entry(pin int) uint64 { return c.redirect[pin] }

// Read reads the 32-bit register at an offset into the page.
func (c *Chip) Read(off uint64) uint32 {
	switch off & 0xff {
	case regSelect:
		return uint32(c.sel)
	case regWindow:
		return c.window()
	}
	return 0
}

func (c *Chip) window() uint32 {
	switch c.sel {
	case indexID, indexArbitration:
		return uint32(c.id) << 24
	case indexVersion:
		return version
	}
	if pin, high, ok := c.selected(); ok {
		return uint32(c.redirect[pin] >> high)
	}
	return 0
}

// selected is the redirection entry that is selected, and the shift of the half
// that is.
func (c *Chip) selected() (pin int, high uint, ok bool) {
	i := int(c.sel) - indexRedirect
	return i >> 1, uint(i&1) * 32, i >= 0 && i>>1 < Pins
}

// Write writes the 32-bit register at an offset into the page.
func (c *Chip) Write(off uint64, v uint32) {
	switch off & 0xff {
	case regSelect:
		c.sel = uint8(v)
	case regWindow:
		c.setWindow(v)
	}
}

func (c *Chip) setWindow(v uint32) {
	if c.sel == indexID {
		c.id = uint8(v >> 24 & 0xf)
		return
	}
	pin, shift, ok := c.selected()
	if !ok {
		return
	}
	half := uint64(0xffffffff) << shift & writable
	e := c.redirect[pin]&^half | uint64(v)<<shift&half
	if e&Level == 0 {
		// Systems make an entry edge-triggered for a moment to stand in for
		// the EOI register that this version lacks.
		e &^= RemoteIRR
	}
	c.redirect[pin] = e
	c.serve(pin)
}

// Save returns the state. IRR has the level of each input but of those
// edge-triggered ones below 16: an engine that takes the bit for an edge yet
// to be delivered would deliver it, and the PICs' state tells the level.
func (c *Chip) Save() vcpu.IOAPIC {
	irr := c.levels
	for pin := range 16 {
		if c.redirect[pin]&Level == 0 {
			irr &^= 1 << pin
		}
	}
	return vcpu.IOAPIC{Base: c.base, Select: uint32(c.sel), ID: uint32(c.id), IRR: irr, Redirect: c.redirect}
}

// Load takes a state, which it checks. levels are the inputs known to be active
// beside those of IRR. Nothing is delivered: whoever drives a line sets it
// again.
func (c *Chip) Load(s *vcpu.IOAPIC, levels uint32) error {
	if s.Base != c.base || s.Select > 0xff || s.IRR>>Pins != 0 || s.ID > 0xff {
		return fmt.Errorf("%w: IOAPIC: base %#x (want %#x), select %#x, IRR %#x, ID %#x", vcpu.ErrState, s.Base, c.base, s.Select, s.IRR, s.ID)
	}
	c.sel, c.id = uint8(s.Select), uint8(s.ID&0xf)
	c.levels = s.IRR
	for i, e := range &s.Redirect {
		e &= kept
		if e&Level == 0 {
			e &^= RemoteIRR
			c.levels |= levels & (1 << i)
		}
		c.redirect[i] = e
	}
	return nil
}
