package soft

import (
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm/device"
)

// Line returns input gsi of the interrupt chips, 0 to 23.
func (e *Engine) Line(gsi int) device.Line { return e.chips.Line(gsi) }

// Signal sends a message-signalled interrupt.
func (e *Engine) Signal(addr uint64, data uint32) error { return e.chips.Signal(addr, data) }

// SaveChips returns the state of the interrupt chips and timers, while the machine does
// not run.
func (e *Engine) SaveChips() (vcpu.ChipState, error) {
	s := e.chips.Save()
	s.Clock = &vcpu.Clock{Nanoseconds: uint64(e.clock.Now())}
	return s, nil
}

// LoadChips gives the interrupt chips and timers the state s, after SetState of every
// CPU.
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
