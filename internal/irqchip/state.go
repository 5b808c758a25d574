package irqchip

import (
	"fmt"

	"github.com/vmkit-go/vmkit/internal/lapic"
	"github.com/vmkit-go/vmkit/internal/pic"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Save returns the state of the chips that the CPUs share. Clock is nil: it is
// the engine's. Every CPU is to be stopped.
func (c *Chips) Save() vcpu.ChipState {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.catchUp()
	c.settled()
	pics, io, timer := c.pics.Save(), c.ioapic.Save(), c.pit.Save(now)
	return vcpu.ChipState{PICs: &pics, IOAPIC: &io, PIT: &timer}
}

// Load gives the chips that the CPUs share a state, which it checks; Clock is
// left to the engine. Timers go on from now. Of the interrupt lines, devices are
// to set those that are active again; that sends no edge twice where the state
// says that the line was high.
func (c *Chips) Load(s vcpu.ChipState) error {
	if s.PICs == nil || s.IOAPIC == nil || s.PIT == nil {
		return fmt.Errorf("%w: state of interrupt chips is missing", vcpu.ErrState)
	}
	if err := s.Validate(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// All or nothing: load into new chips first.
	var pics pic.Pair
	if err := pics.Load(s.PICs); err != nil {
		return err
	}
	var levels uint32
	for i := range pic.Lines {
		if pics.Level(i) {
			levels |= 1 << i
		}
	}
	io := *c.ioapic
	if err := io.Load(s.IOAPIC, levels); err != nil {
		return err
	}
	if err := c.pit.Load(s.PIT, c.cfg.Now()); err != nil {
		return err
	}
	c.pics, *c.ioapic = pics, io
	c.owed = owed{due: Never}
	c.picOut = pics.Output() // no edge of LINT0
	c.touchAll()
	c.settled()
	return nil
}

// PageSize is the length of a local APIC's register page.
const PageSize = lapic.PageSize

// SavePage returns the registers as vcpu.State.LAPIC has them. IA32_APIC_BASE and
// IA32_TSC_DEADLINE travel elsewhere, and so do NMIs, INITs and start-up
// interrupts that have arrived: take them first.
func (l *LAPIC) SavePage() []byte {
	page := make([]byte, PageSize)
	l.lock()
	defer l.unlock()
	l.apic.Save(page)
	return page
}

// Load takes the registers from a page of SavePage or KVM_GET_LAPIC, and
// IA32_APIC_BASE of the same state: unlike SetBase, from any mode to any other.
// Without a page the registers stay. It checks both, and changes nothing if it
// refuses one. SetDeadline comes after it.
func (l *LAPIC) Load(base uint64, page []byte) error {
	l.lock()
	defer l.unlock()
	old := *l.apic
	if !l.apic.LoadBase(base) {
		return fmt.Errorf("%w: CPU %d: IA32_APIC_BASE %#x", vcpu.ErrState, l.apic.Index(), base)
	}
	if len(page) == 0 {
		return nil
	}
	if err := l.apic.Load(page); err != nil {
		*l.apic = old
		return fmt.Errorf("CPU %d: %w", l.apic.Index(), err)
	}
	return nil
}
