package irqchip

import (
	"github.com/vmkit-go/vmkit/internal/ioapic"
	"github.com/vmkit-go/vmkit/internal/platform"
)

const (
	// maxOwed is how many ticks are kept for a guest that does not serve them. One
	// that has missed more looks for the time elsewhere.
	maxOwed = 1000
	// retry is the time in nanoseconds after which the chips look whether the
	// last tick is served.
	retry = 500_000
)

// owed are the PIT's ticks that the guest has yet to get.
type owed struct {
	ticks int
	due   int64 // when to look again, or Never
}

// reinject sends one of the ticks that are due, if the last one has been served.
func (c *Chips) reinject(now int64) {
	for c.owed.ticks < maxOwed && c.pit.Expire(min(now, c.pit.Due())) {
		c.owed.ticks++
	}
	c.pit.Expire(now)
	if c.owed.ticks == 0 || now < c.owed.due && c.owed.due != Never {
		return
	}
	c.owed.due = now + retry
	if waits, heard := c.tickWaits(); waits {
		return
	} else if !heard {
		c.owed.ticks = 1 // KVM as well forgets them
	}
	c.tick()
	if c.owed.ticks--; c.owed.ticks == 0 {
		c.owed.due = Never
	}
}

// tickWaits reports whether the PIT's last interrupt is yet to be served, and
// whether anything listens to the PIT.
func (c *Chips) tickWaits() (waits, heard bool) {
	if open, busy := c.pics.Busy(0); open {
		waits, heard = busy, true
	}
	if e := c.ioapic.Entry(platform.GSITimer); e&ioapic.Mask == 0 {
		heard = true
		for i := range c.cpus {
			waits = waits || c.cpus[i].apic.Holds(uint8(e))
		}
	}
	return waits, heard
}
