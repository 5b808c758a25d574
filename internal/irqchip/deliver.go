package irqchip

import (
	"github.com/vmkit-go/vmkit/internal/ioapic"
	"github.com/vmkit-go/vmkit/internal/lapic"
	"github.com/vmkit-go/vmkit/internal/platform"
)

// Signal delivers a message-signalled interrupt: a device's write of data to
// addr (Intel SDM volume 3, section 11.11). The address is the guest's choice;
// one that is no interrupt's is dropped.
func (c *Chips) Signal(addr uint64, data uint32) error {
	if addr-platform.MSIBase >= platform.MSISize {
		return nil
	}
	m := lapic.Message{
		Dest:    uint32(addr >> 12 & 0xff),
		Hint:    addr>>3&1 != 0,
		Logical: addr>>2&1 != 0,
		Vector:  uint8(data),
		Mode:    uint8(data >> 8 & 7),
		Level:   data>>15&1 != 0,
	}
	if m.Mode == lapic.StartUp {
		return nil // reserved in a message
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deliver(nil, &m)
	c.settled()
	return nil
}

// redirected delivers what a redirection entry of the I/O APIC describes.
func (c *Chips) redirected(e uint64) bool {
	m := lapic.Message{
		Dest:    uint32(e >> ioapic.DestShift),
		Logical: e&ioapic.Logical != 0,
		Vector:  uint8(e),
		Mode:    uint8(e >> ioapic.ModeShift & 7),
		Level:   e&ioapic.Level != 0,
	}
	return m.Mode != lapic.StartUp && c.deliver(nil, &m)
}

// bus is what the local APICs send to.
type bus struct{ c *Chips }

// Send delivers an interprocessor interrupt.
func (b bus) Send(from *lapic.APIC, m lapic.Message) { b.c.deliver(from, &m) }

// EOI passes an end of interrupt on to the I/O APIC.
func (b bus) EOI(vector uint8) { b.c.ioapic.EOI(vector) }

// deliver brings a message to the local APICs that it is for and reports
// whether one took it. from is its sender if it has a shorthand.
func (c *Chips) deliver(from *lapic.APIC, m *lapic.Message) bool {
	if m.Shorthand == lapic.Self {
		c.touch(from.Index())
		return from.Accept(*m)
	}
	all := !m.Logical && m.ToAll()
	if (m.Mode == lapic.LowestPriority || m.Hint) && m.Shorthand == lapic.NoShorthand && !all {
		return c.deliverLowest(m)
	}
	taken := false
	for i := range c.cpus {
		a := c.cpus[i].apic
		switch m.Shorthand {
		case lapic.NoShorthand:
			if !a.Match(m) {
				continue
			}
		case lapic.AllExcludingSelf:
			if a == from {
				continue
			}
		}
		taken = a.Accept(*m) || taken
		c.touch(i)
	}
	return taken
}

// deliverLowest gives a message to the one CPU among those that it is for whose
// processor priority is the lowest. Among several the vector decides, so that
// vectors spread over CPUs and the choice depends on nothing else.
func (c *Chips) deliverLowest(m *lapic.Message) bool {
	lowest, n := 0xff+1, 0
	for i := range c.cpus {
		a := c.cpus[i].apic
		if !a.Enabled() || !a.Match(m) {
			continue
		}
		switch p := int(a.PPR()); {
		case p < lowest:
			lowest, n = p, 1
		case p == lowest:
			n++
		}
	}
	if n == 0 {
		return false
	}
	skip := int(m.Vector) % n
	for i := range c.cpus {
		a := c.cpus[i].apic
		if !a.Enabled() || int(a.PPR()) != lowest || !a.Match(m) {
			continue
		}
		if skip == 0 {
			c.touch(i)
			return a.Accept(*m)
		}
		skip--
	}
	return false
}
