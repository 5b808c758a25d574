package kvmcpu

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
)

// SaveChips returns the state of the interrupt chips and timers. Every CPU is
// to be out of the guest.
func (e *Engine) SaveChips() (vcpu.ChipState, error) {
	var s vcpu.ChipState
	clock, err := e.vm.GetClock()
	if err != nil {
		return s, err
	}
	s.Clock = &vcpu.Clock{Nanoseconds: clock.Clock}
	switch e.chips {
	case ChipsNone:
		return s, nil
	case ChipsUser:
		chips := e.user.Save()
		chips.Clock = s.Clock
		return chips, nil
	}
	s.PICs = new([2]vcpu.PIC)
	for i, chip := range []uint32{kvm.ChipPICMaster, kvm.ChipPICSlave} {
		c, err := e.vm.GetIRQChip(chip)
		if err != nil {
			return s, err
		}
		s.PICs[i] = fromPIC(c.PIC())
	}
	c, err := e.vm.GetIRQChip(kvm.ChipIOAPIC)
	if err != nil {
		return s, err
	}
	a := c.IOAPIC()
	s.IOAPIC = &vcpu.IOAPIC{Base: a.BaseAddress, Select: a.IORegSel, ID: a.ID, IRR: a.IRR, Redirect: a.RedirTbl}
	p, err := e.vm.GetPIT2()
	if err != nil {
		return s, err
	}
	// The kernel counts from the host's monotonic clock.
	now, err := monotonic()
	if err != nil {
		return s, err
	}
	s.PIT = &vcpu.PIT{HPETLegacy: p.Flags&kvm.PITHPETLegacy != 0, SpeakerOn: p.Flags&kvm.PITSpeakerDataOn != 0}
	for i := range p.Channels {
		s.PIT.Channels[i] = fromPIT(&p.Channels[i], now)
	}
	return s, nil
}

// LoadChips gives the interrupt chips and timers the state s. It comes after
// SetState of every CPU, since the I/O APIC passes pending interrupts on to the
// local APICs at once, and right before the CPUs run, since it sets the guest's
// clock going. PIT channels restart their count. The level of each interrupt
// line is the devices' to set again.
func (e *Engine) LoadChips(s vcpu.ChipState) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if e.chips == ChipsNone {
		if s.PICs != nil || s.IOAPIC != nil || s.PIT != nil {
			return fmt.Errorf("%w: state of interrupt chips for a machine without", vcpu.ErrState)
		}
	} else if s.PICs == nil || s.IOAPIC == nil || s.PIT == nil {
		return fmt.Errorf("%w: state of interrupt chips is missing", vcpu.ErrState)
	} else if e.user != nil {
		if err := e.user.Load(s); err != nil {
			return err
		}
		e.user.retime()
	} else if err := e.loadChips(&s); err != nil {
		return err
	}
	if s.Clock != nil {
		return e.vm.SetClock(&kvm.ClockData{Clock: s.Clock.Nanoseconds})
	}
	return nil
}

func (e *Engine) loadChips(s *vcpu.ChipState) error {
	for i, chip := range []uint32{kvm.ChipPICMaster, kvm.ChipPICSlave} {
		c := kvm.IRQChip{ChipID: chip}
		*c.PIC() = toPIC(&s.PICs[i])
		if err := e.vm.SetIRQChip(&c); err != nil {
			return fmt.Errorf("PIC %d: %w", i, err)
		}
	}
	p := kvm.PITState{}
	if s.PIT.HPETLegacy {
		p.Flags |= kvm.PITHPETLegacy
	}
	if s.PIT.SpeakerOn {
		p.Flags |= kvm.PITSpeakerDataOn
	}
	for i := range p.Channels {
		p.Channels[i] = toPIT(&s.PIT.Channels[i])
	}
	if err := e.vm.SetPIT2(&p); err != nil {
		return fmt.Errorf("PIT: %w", err)
	}
	c := kvm.IRQChip{ChipID: kvm.ChipIOAPIC}
	a := c.IOAPIC()
	a.BaseAddress, a.IORegSel, a.ID, a.IRR, a.RedirTbl = s.IOAPIC.Base, s.IOAPIC.Select, s.IOAPIC.ID, s.IOAPIC.IRR, s.IOAPIC.Redirect
	if err := e.vm.SetIRQChip(&c); err != nil {
		return fmt.Errorf("IOAPIC: %w", err)
	}
	return nil
}

func monotonic() (int64, error) {
	var t unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t)
	return t.Nano(), err
}

func fromPIC(k *kvm.PICState) vcpu.PIC {
	return vcpu.PIC{
		LastIRR: k.LastIRR, IRR: k.IRR, ISR: k.ISR, IMR: k.IMR, PriorityAdd: k.PriorityAdd, VectorBase: k.IRQBase,
		ReadISR: k.ReadRegSelect != 0, Poll: k.Poll != 0, SpecialMask: k.SpecialMask != 0, InitState: k.InitState,
		AutoEOI: k.AutoEOI != 0, RotateOnAutoEOI: k.RotateOnAutoEOI != 0, SpecialFullyNested: k.SpecialFullyNestedMode != 0,
		Init4: k.Init4 != 0, ELCR: k.ELCR, ELCRMask: k.ELCRMask,
	}
}

func toPIC(p *vcpu.PIC) kvm.PICState {
	return kvm.PICState{
		LastIRR: p.LastIRR, IRR: p.IRR, ISR: p.ISR, IMR: p.IMR, PriorityAdd: p.PriorityAdd, IRQBase: p.VectorBase,
		ReadRegSelect: bit(p.ReadISR), Poll: bit(p.Poll), SpecialMask: bit(p.SpecialMask), InitState: p.InitState,
		AutoEOI: bit(p.AutoEOI), RotateOnAutoEOI: bit(p.RotateOnAutoEOI), SpecialFullyNestedMode: bit(p.SpecialFullyNested),
		Init4: bit(p.Init4), ELCR: p.ELCR, ELCRMask: p.ELCRMask,
	}
}

func fromPIT(k *kvm.PITChannel, now int64) vcpu.PITChannel {
	c := vcpu.PITChannel{
		Count: k.Count, LatchedCount: k.LatchedCount, CountLatched: k.CountLatched, StatusLatched: k.StatusLatched != 0,
		Status: k.Status, ReadState: k.ReadState, WriteState: k.WriteState, WriteLatch: k.WriteLatch,
		RWMode: k.RWMode, Mode: k.Mode, BCD: k.BCD != 0, Gate: k.Gate != 0,
	}
	if k.CountLoadTime > 0 {
		c.Elapsed = max(now-k.CountLoadTime, 0)
	}
	return c
}

func toPIT(c *vcpu.PITChannel) kvm.PITChannel {
	return kvm.PITChannel{
		Count: c.Count, LatchedCount: c.LatchedCount, CountLatched: c.CountLatched, StatusLatched: bit(c.StatusLatched),
		Status: c.Status, ReadState: c.ReadState, WriteState: c.WriteState, WriteLatch: c.WriteLatch,
		RWMode: c.RWMode, Mode: c.Mode, BCD: bit(c.BCD), Gate: bit(c.Gate),
	}
}
