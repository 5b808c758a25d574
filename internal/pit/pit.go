// Package pit is an 8254 programmable interval timer (Intel order number
// 231164) as a PC has it: counter 0 interrupts, counter 2's gate and output are
// in system control port B.
//
// A counter's value and output are computed from the time since its count was
// loaded, so a counter that nobody looks at costs nothing, and nothing drifts:
// clock pulse k comes at ceil(k * 1e9 / 1193182) ns.
//
//	t := pit.New()
//	t.Write(platform.PortPITControl, 0x34, now) // counter 0, mode 2
//	t.Write(platform.PortPIT, 0xff, now)
//	t.Write(platform.PortPIT, 0xff, now)
//	...
//	if now >= t.Due() && t.Expire(now) {
//		// IRQ 0
//	}
//
// The chip behaves as KVM's where that differs from the data sheet and the state
// has no place for the difference: a count written in modes 2 and 3 takes effect
// at once, not at the end of the period, and counting begins with the write.
package pit

import (
	"math"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Never is a time that does not come.
const Never = math.MaxInt64

// minPeriod is the least time in nanoseconds between two interrupts of a
// periodic counter. Those in between fall together, as in KVM.
const minPeriod = 50_000

// Bits of system control port B.
const (
	systemGate2   = 1 << 0
	systemSpeaker = 1 << 1
	systemRefresh = 1 << 4 // toggles with each memory refresh
	systemOut2    = 1 << 5

	refreshPulses = 18 // clock pulses between refreshes
)

// Chip is an 8254. It is not safe for concurrent use. Times are in nanoseconds
// and do not go back.
type Chip struct {
	counters   [3]counter
	speaker    bool
	hpetLegacy bool
	due        int64
}

// New returns a chip as after power-up.
func New() *Chip {
	c := &Chip{due: Never}
	for i := range c.counters {
		c.counters[i].s = vcpu.PITChannel{Count: 1 << 16, Mode: vcpu.PITUnset, Gate: i != 2}
	}
	return c
}

// Due is when the chip next interrupts, Never if it does not.
func (c *Chip) Due() int64 { return c.due }

// Expire lets happen what is due, and reports whether there was an interrupt
// since the last call: IRQ 0 went up.
func (c *Chip) Expire(now int64) bool {
	if c.due == Never || now < c.due {
		return false
	}
	c.schedule(now)
	return true
}

// schedule finds the first interrupt after now.
func (c *Chip) schedule(now int64) {
	c.due = Never
	if !c.hpetLegacy {
		c.due = c.counters[0].next(now)
	}
}

// HandlesPort reports whether the chip has a port.
func HandlesPort(port uint16) bool {
	return port >= platform.PortPIT && port <= platform.PortPITControl || port == platform.PortSystemB
}

// Read reads a port that HandlesPort has.
func (c *Chip) Read(port uint16, now int64) byte {
	switch {
	case port == platform.PortSystemB:
		return c.system(now)
	case port >= platform.PortPITControl:
		return 0 // write-only
	}
	return c.counters[port-platform.PortPIT].read(now)
}

func (c *Chip) system(now int64) byte {
	t := &c.counters[2]
	var v byte
	if t.s.Gate {
		v |= systemGate2
	}
	if c.speaker {
		v |= systemSpeaker
	}
	if pulses(now)/refreshPulses&1 != 0 {
		v |= systemRefresh
	}
	if t.out(now) {
		v |= systemOut2
	}
	return v
}

// Write writes a port that HandlesPort has. What is due by now must have
// happened.
func (c *Chip) Write(port uint16, v byte, now int64) {
	switch {
	case port == platform.PortSystemB:
		c.speaker = v&systemSpeaker != 0
		c.counters[2].setGate(v&systemGate2 != 0, now)
	case port >= platform.PortPITControl:
		c.control(v, now)
	default:
		c.counters[port-platform.PortPIT].write(v, now)
	}
	if port == platform.PortPIT || port == platform.PortPITControl {
		c.schedule(now)
	}
}

// control takes a control word.
func (c *Chip) control(v byte, now int64) {
	which := int(v >> 6)
	if which == len(c.counters) {
		c.readBack(v, now)
		return
	}
	t := &c.counters[which]
	access := v >> 4 & 3
	if access == 0 {
		t.latchCount(now)
		return
	}
	t.program(access, v>>1&7, v&1 != 0, now)
}

// readBack takes a read-back command.
func (c *Chip) readBack(v byte, now int64) {
	for i := range c.counters {
		if v>>(i+1)&1 == 0 {
			continue
		}
		if v&0x20 == 0 {
			c.counters[i].latchCount(now)
		}
		if v&0x10 == 0 {
			c.counters[i].latchStatus(now)
		}
	}
}

// Save returns the state. What is due by now must have happened.
func (c *Chip) Save(now int64) vcpu.PIT {
	s := vcpu.PIT{SpeakerOn: c.speaker, HPETLegacy: c.hpetLegacy}
	for i := range c.counters {
		s.Channels[i] = c.counters[i].s
		s.Channels[i].Elapsed = c.counters[i].elapsed(now)
	}
	return s
}

// Load takes a state, which it checks. Interrupts that the saved time includes
// have been sent.
func (c *Chip) Load(s *vcpu.PIT, now int64) error {
	if err := (&vcpu.ChipState{PIT: s}).Validate(); err != nil {
		return err
	}
	c.speaker, c.hpetLegacy = s.SpeakerOn, s.HPETLegacy
	for i := range s.Channels {
		t := &c.counters[i]
		t.s = s.Channels[i]
		t.start = now - t.s.Elapsed
	}
	c.schedule(now)
	return nil
}
