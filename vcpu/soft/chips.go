package soft

import (
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm/device"
)

// Line returns input gsi of the interrupt chips, 0 to 23. Setting it is an error where
// the chips have no such input or the PIT drives it. A run that is to repeat itself needs
// its lines set where accesses are served and functions interjected, and nowhere else.
func (e *Engine) Line(gsi int) device.Line { return e.chips.Line(gsi) }

// Signal sends a message-signalled interrupt (Intel SDM volume 3, section 11.11): a write
// of data to addr. One to an address that is no interrupt's is dropped. For runs that are
// to repeat themselves see Line.
func (e *Engine) Signal(addr uint64, data uint32) error { return e.chips.Signal(addr, data) }

// SaveChips returns the state of the interrupt chips and timers, while the machine does
// not run.
func (e *Engine) SaveChips() (vcpu.ChipState, error) {
	s := e.chips.Save()
	s.Clock = &vcpu.Clock{Nanoseconds: uint64(e.clock.Now())}
	return s, nil
}

// LoadChips gives the interrupt chips and timers the state s, which it checks, after
// SetState of every CPU. The machine's clock goes on as it is: s.Clock is not used.
func (e *Engine) LoadChips(s vcpu.ChipState) error {
	if err := s.Validate(); err != nil {
		return err
	}
	return e.chips.Load(s)
}

// readChip reads a register of the interrupt chips for c, if there is one at gpa.
// Registers have 32 bits, at multiples of 16; narrower reads give a part.
func (e *Engine) readChip(c *CPU, gpa uint64, size uint8) (uint64, bool) {
	off := uint32(gpa & (pageSize - 1))
	switch gpa & pageMask {
	case platform.IOAPICBase:
		return uint64(e.chips.ReadIOAPIC(uint64(off&^3))) >> (8 * (off & 3)) & maskOf(size), true
	case c.apicPage:
		return uint64(e.chips.LAPIC(c.id).Read(off&^3)) >> (8 * (off & 3)) & maskOf(size), true
	}
	return 0, false
}

// writeChip is readChip for writes. Only aligned ones of 32 bits or more count.
func (e *Engine) writeChip(c *CPU, gpa uint64, size uint8, v uint64) bool {
	off := uint32(gpa & (pageSize - 1))
	whole := off&3 == 0 && size >= 4
	switch gpa & pageMask {
	case platform.IOAPICBase:
		if whole {
			e.chips.WriteIOAPIC(uint64(off), uint32(v))
		}
	case c.apicPage:
		if whole {
			e.chips.LAPIC(c.id).Write(off, uint32(v))
		}
	default:
		return false
	}
	e.retime()
	return true
}

// noPage is an address that no page has.
const noPage = 1

// updateAPICPage recomputes where c's local APIC has its registers in memory.
func (c *CPU) updateAPICPage() {
	c.apicPage = noPage
	if page, ok := c.e.chips.LAPIC(c.id).Page(); ok {
		c.apicPage = page
	}
}

// tscAt is the value of the machine's clock, which the TSCs count, when it has executed
// count instructions.
func (e *Engine) tscAt(count int64) uint64 { return uint64(e.clock.at(count)) }

// tscTime is the time at which a CPU's TSC reaches a value: 0 if it has already.
func (e *Engine) tscTime(cpu int, tsc uint64) int64 {
	c := e.cpus[cpu]
	ticks := c.ticks(e.instructions())
	now := ticks + c.tscOffset
	if tsc <= now {
		return 0
	}
	// The offset is negative if the TSC was set back, so count from now.
	if at := ticks + (tsc - now); at > ticks {
		if t := c.clockOf(at); t < never {
			return int64(t)
		}
	}
	return never
}

// tscChanged says that c's TSC has jumped, on which its deadline timer depends.
func (e *Engine) tscChanged(c *CPU) {
	e.chips.LAPIC(c.id).TSCChanged()
	e.retime()
}

// readAPIC and writeAPIC access the local APIC through MSRs: IA32_APIC_BASE,
// IA32_TSC_DEADLINE and those of x2APIC mode. They report false for #GP.
func (e *Engine) readAPIC(c *CPU, index uint32) (uint64, bool) {
	return e.chips.LAPIC(c.id).ReadMSR(index)
}

func (e *Engine) writeAPIC(c *CPU, index uint32, v uint64) bool {
	base := index == msrAPICBase
	e.retime()
	if base && v&c.physReserved() != 0 || !e.chips.LAPIC(c.id).WriteMSR(index, v) {
		return false
	}
	if base {
		c.updateAPICPage()
		c.flushTLB()
	}
	return true
}

// taskPriority and setTaskPriority are CR8.
func (e *Engine) taskPriority(c *CPU) uint8 { return e.chips.LAPIC(c.id).TPR() }

func (e *Engine) setTaskPriority(c *CPU, v uint8) { e.chips.LAPIC(c.id).SetTPR(v) }

// portIn and portOut serve the ports of the interrupt chips. They report false for any
// other port.
func (e *Engine) portIn(port uint16, size uint8) (v uint64, ok bool) {
	p := e.chips.Ports()
	if !p.HandlesPort(port) {
		return 0, false
	}
	for i := range size {
		v |= uint64(p.ReadPort(port+uint16(i))) << (8 * i)
	}
	e.retime()
	return v, true
}

func (e *Engine) portOut(port uint16, size uint8, v uint64) bool {
	p := e.chips.Ports()
	if !p.HandlesPort(port) {
		return false
	}
	for i := range size {
		p.WritePort(port+uint16(i), byte(v>>(8*i)))
	}
	e.retime()
	return true
}
