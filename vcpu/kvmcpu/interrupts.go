package kvmcpu

import (
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vm/device"
)

// The PIT in the kernel raises GSI 0. On a PC it is input 0 of the PICs and,
// by the interrupt source override of the firmware tables, input timerGSI of
// the I/O APIC.
const (
	pitGSI   = 0
	timerGSI = 2
	picLines = 16 // of both PICs
)

// routes is where each GSI leads: to the I/O APIC's input of that number, and
// below 16 to the PICs' as well, but for the PIT's. KVM's own table takes GSI 0
// to input 0 of the I/O APIC, where nobody looks for it. Nothing is routed from
// timerGSI: its input of the I/O APIC is taken, for KVM finds the one GSI that
// an end of interrupt is for by the input, and that of the master PIC is the
// slave. Messages (Signal) need no route.
func routes() []kvm.IRQRoutingEntry {
	out := []kvm.IRQRoutingEntry{
		kvm.RouteToChip(pitGSI, kvm.ChipPICMaster, 0),
		kvm.RouteToChip(pitGSI, kvm.ChipIOAPIC, timerGSI),
	}
	for gsi := uint32(1); gsi < kvm.IOAPICPins; gsi++ {
		switch {
		case gsi == timerGSI:
			continue
		case gsi < picLines/2:
			out = append(out, kvm.RouteToChip(gsi, kvm.ChipPICMaster, gsi))
		case gsi < picLines:
			out = append(out, kvm.RouteToChip(gsi, kvm.ChipPICSlave, gsi-picLines/2))
		}
		out = append(out, kvm.RouteToChip(gsi, kvm.ChipIOAPIC, gsi))
	}
	return out
}

// Line returns input gsi of the interrupt chips, 0 to 23. Set on one that does
// not exist or is the PIT's, which are 0 and 2, or without chips, is an error.
func (e *Engine) Line(gsi int) device.Line {
	if e.user != nil {
		return e.user.Line(gsi)
	}
	return line{e, gsi}
}

type line struct {
	e   *Engine
	gsi int
}

func (l line) Set(level bool) error {
	switch {
	case l.gsi < 0 || l.gsi >= kvm.IOAPICPins:
		return fmt.Errorf("kvmcpu: no interrupt line %d: there are %d", l.gsi, kvm.IOAPICPins)
	case l.e.chips == ChipsNone:
		return fmt.Errorf("kvmcpu: interrupt line %d: no chips: %w", l.gsi, errors.ErrUnsupported)
	case l.gsi == pitGSI || l.gsi == timerGSI:
		return fmt.Errorf("kvmcpu: interrupt line %d is the timer's", l.gsi)
	}
	return l.e.vm.IRQLine(uint32(l.gsi), level)
}

// Signal sends a message-signalled interrupt. One that the guest has blocked
// is dropped, as by hardware.
func (e *Engine) Signal(addr uint64, data uint32) error {
	if e.chips == ChipsNone {
		return fmt.Errorf("kvmcpu: MSI: no chips: %w", errors.ErrUnsupported)
	}
	if e.user != nil {
		return e.user.Signal(addr, data)
	}
	_, err := e.vm.SignalMSI(kvm.MSI{AddressLo: uint32(addr), AddressHi: uint32(addr >> 32), Data: data})
	return err
}
