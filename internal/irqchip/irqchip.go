// Package irqchip is the interrupt chips and timers of a PC in user space, for
// an engine without them in the kernel: a local APIC for each CPU, an I/O APIC,
// two PICs and a PIT. They are driven by the machine's own clock; nothing here
// reads the host's, starts a goroutine or sleeps.
//
//	chips, err := irqchip.New(irqchip.Config{CPUs: 2, Now: clock, Wake: kick})
//	...
//	for { // CPU 0's loop
//		if now := clock(); now >= chips.Next() {
//			chips.Advance(now)
//		}
//		if cpu := chips.LAPIC(0); cpu.HasEvent() && interruptsAllowed {
//			if vector, ok := cpu.Ack(); ok {
//				deliver(vector)
//			}
//		}
//		run(until(chips.Next()))
//	}
//
// GSI n leads to the I/O APIC's input n, and below 16 to the PICs' as well. The
// PIT interrupts as a PC's firmware tables say: input 0 of the PICs, input 2 of
// the I/O APIC. As in KVM its interrupt is a pulse, whatever the level of its
// output. The PICs' output is LINT0 of each local APIC.
//
// All methods may be called from any goroutine; one mutex guards all chips. Two
// runs in which the calls come in the same order at the same times go the same.
package irqchip

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/internal/ioapic"
	"github.com/vmkit-go/vmkit/internal/lapic"
	"github.com/vmkit-go/vmkit/internal/pic"
	"github.com/vmkit-go/vmkit/internal/pit"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vm/device"
)

// MaxCPUs is how many local APICs have an ID that xAPIC mode can address.
const MaxCPUs = 255

// Never is a time that does not come.
const Never = math.MaxInt64

// Config says how the chips are wired. Its functions are called with the chips
// locked and must not call them.
type Config struct {
	// CPUs is the number of CPUs, 1 to MaxCPUs. CPU i has the APIC ID i; CPU 0
	// is the bootstrap processor.
	CPUs int
	// Now is the machine's time in nanoseconds. It starts at 0 or above and
	// does not go back.
	Now func() int64
	// TSCTime is when the TSC of a CPU reaches a value: the first time at which
	// it is at least that, now or a time past if it is already, Never if that
	// is too far. Nil: the local APICs have no TSC-deadline timer.
	TSCTime func(cpu int, tsc uint64) int64
	// Reinject has ticks of the PIT wait for each other, as KVM's do: one that
	// comes before the last is served is sent after it, not lost. It is for a
	// clock that goes on while the guest's CPU has to wait for the host's.
	Reinject bool
	// Wake says that there is something new for a CPU to take. It may be nil.
	Wake func(cpu int)
}

// Chips is all of them. It implements [device.MSI].
type Chips struct {
	cfg  Config
	next atomic.Int64

	mu     sync.Mutex
	cpus   []LAPIC
	ioapic *ioapic.Chip
	pics   pic.Pair
	pit    *pit.Chip
	owed   owed
	lines  [ioapic.Pins]line

	picOut  bool      // the PICs' output as it was last passed on
	touched [4]uint64 // CPUs whose events may have changed
	ports   Ports
}

var _ device.MSI = (*Chips)(nil)

// New makes the chips, as after power-up.
func New(cfg Config) (*Chips, error) {
	if cfg.CPUs < 1 || cfg.CPUs > MaxCPUs {
		return nil, fmt.Errorf("irqchip: %d CPUs, want 1 to %d", cfg.CPUs, MaxCPUs)
	}
	if cfg.Now == nil {
		return nil, errors.New("irqchip: no clock")
	}
	c := &Chips{cfg: cfg, cpus: make([]LAPIC, cfg.CPUs), pit: pit.New(), owed: owed{due: Never}}
	c.ports.c = c
	c.ioapic = ioapic.New(platform.IOAPICBase, c.redirected)
	for i := range c.lines {
		c.lines[i] = line{c, i}
	}
	for i := range c.cpus {
		lc := lapic.Config{ID: uint8(i), BSP: i == 0, Bus: bus{c}, Now: cfg.Now}
		if cfg.TSCTime != nil {
			lc.TSCTime = func(tsc uint64) int64 { return cfg.TSCTime(i, tsc) }
		}
		c.cpus[i].c, c.cpus[i].apic = c, lapic.New(lc)
	}
	c.touchAll()
	c.settled()
	return c, nil
}

// Next is when a timer next does something, Never if none is set. It takes no
// lock. It changes with whatever touches the chips.
func (c *Chips) Next() int64 { return c.next.Load() }

// Advance lets everything happen that is due by now.
func (c *Chips) Advance(now int64) {
	if now < c.Next() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.advance(now)
	c.settled()
}

func (c *Chips) advance(now int64) {
	if now < c.Next() {
		return
	}
	for i := range c.cpus {
		if a := c.cpus[i].apic; now >= a.Due() {
			a.Expire(now)
			c.touch(i)
		}
	}
	if c.cfg.Reinject {
		c.reinject(now)
	} else if c.pit.Expire(now) {
		c.tick()
	}
}

// tick is the PIT's interrupt.
func (c *Chips) tick() {
	c.pics.Set(0, true)
	c.ioapic.Set(platform.GSITimer, true)
	c.pics.Set(0, false)
	c.ioapic.Set(platform.GSITimer, false)
}

// touch notes that a CPU's events may have changed.
func (c *Chips) touch(cpu int) { c.touched[cpu>>6] |= 1 << (cpu & 63) }

// settled ends every change: it passes the PICs' output on, recomputes what has
// changed and wakes CPUs.
func (c *Chips) settled() {
	if out := c.pics.Output(); out != c.picOut {
		c.picOut = out
		for i := range c.cpus {
			if out {
				c.cpus[i].apic.LINT0()
			}
			c.touch(i)
		}
	}
	retime := false
	for w := range c.touched {
		for m := c.touched[w]; m != 0; m &= m - 1 {
			cpu := &c.cpus[w<<6+bits.TrailingZeros64(m)]
			if due := cpu.apic.Due(); due != cpu.due {
				cpu.due = due
				retime = true
			}
			cpu.update()
		}
		c.touched[w] = 0
	}
	if retime || min(c.pit.Due(), c.owed.due) != c.ports.pitDue {
		c.retime()
	}
}

// retime computes Next.
func (c *Chips) retime() {
	c.ports.pitDue = min(c.pit.Due(), c.owed.due)
	next := c.ports.pitDue
	for i := range c.cpus {
		next = min(next, c.cpus[i].due)
	}
	c.next.Store(next)
}

// touchAll has settled look at everything.
func (c *Chips) touchAll() {
	for i := range c.cpus {
		c.touch(i)
	}
}

// line is one interrupt input.
type line struct {
	c   *Chips
	gsi int
}

// Set sets the level.
func (l *line) Set(level bool) error {
	switch {
	case l.c == nil:
		return fmt.Errorf("irqchip: no interrupt line %d", l.gsi)
	case l.gsi == 0 || l.gsi == platform.GSITimer:
		return fmt.Errorf("irqchip: interrupt line %d is the timer's", l.gsi)
	}
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.c.pics.Set(l.gsi, level)
	l.c.ioapic.Set(l.gsi, level)
	l.c.settled()
	return nil
}

// Line is global system interrupt gsi, 0 to 23. Setting it is an error where it
// does not exist or belongs to the PIT, which are 0 and platform.GSITimer.
func (c *Chips) Line(gsi int) device.Line {
	if gsi < 0 || gsi >= len(c.lines) {
		return &line{nil, gsi}
	}
	return &c.lines[gsi]
}

// ReadIOAPIC reads the 32-bit register at an offset into the page at
// platform.IOAPICBase.
func (c *Chips) ReadIOAPIC(off uint64) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ioapic.Read(off)
}

// WriteIOAPIC writes the 32-bit register at an offset into the page at
// platform.IOAPICBase.
func (c *Chips) WriteIOAPIC(off uint64, v uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ioapic.Write(off, v)
	c.settled()
}

// Ports are the I/O ports of the PICs and the PIT, and port 0x61.
type Ports struct {
	c      *Chips
	pitDue int64 // as Next has it
}

// Ports returns the chips' I/O ports. Accesses are of one byte.
func (c *Chips) Ports() *Ports { return &c.ports }

// HandlesPort reports whether a port is one of them.
func (p *Ports) HandlesPort(port uint16) bool {
	return pic.HandlesPort(port) || pit.HandlesPort(port)
}

// ReadPort reads a port; one that HandlesPort does not have reads as 0xff.
func (p *Ports) ReadPort(port uint16) byte {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case pit.HandlesPort(port):
		return c.pit.Read(port, c.cfg.Now())
	case pic.HandlesPort(port):
		c.catchUp()
		v := c.pics.Read(port)
		c.settled() // a poll acknowledges
		return v
	}
	return 0xff
}

// WritePort writes a port; one that HandlesPort does not have takes nothing.
func (p *Ports) WritePort(port uint16, v byte) {
	c := p.c
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case pit.HandlesPort(port):
		c.pit.Write(port, v, c.catchUp())
	case pic.HandlesPort(port):
		c.catchUp()
		c.pics.Write(port, v)
	default:
		return
	}
	c.settled()
}

// catchUp lets happen what is due by the clock and returns its time. The caller
// goes on to settled.
func (c *Chips) catchUp() int64 {
	now := c.cfg.Now()
	c.advance(now)
	return now
}
