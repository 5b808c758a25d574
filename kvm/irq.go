package kvm

import "fmt"

// maxRoutes is KVM_MAX_IRQ_ROUTES.
const maxRoutes = 4096

// CreateIRQChip is KVM_CREATE_IRQCHIP: two PICs, an IOAPIC, and a local APIC in each
// vCPU made later.
func (vm *VM) CreateIRQChip() error {
	_, err := vm.h.ioctl(&opCreateIRQChip, 0)
	return err
}

// SplitIRQChip is CapSplitIRQChip: local APICs in the kernel, PICs and an IOAPIC with the
// given number of pins in user space. Before the first vCPU.
func (vm *VM) SplitIRQChip(ioapicPins int) error {
	if ioapicPins < 0 {
		return invalid(opEnableCap.name, "%d IOAPIC pins", ioapicPins)
	}
	return vm.EnableCap(CapSplitIRQChip, uint64(ioapicPins))
}

// CreatePIT2 is KVM_CREATE_PIT2: an 8254, after CreateIRQChip. Flags are 0 or
// PITSpeakerDummy.
func (vm *VM) CreatePIT2(flags uint32) error {
	_, err := ioctlPtr(&vm.h, &opCreatePIT2, &pitConfig{flags: flags})
	return err
}

// ReinjectControl is KVM_REINJECT_CONTROL: whether the PIT makes up for ticks that the
// guest missed. On by default.
func (vm *VM) ReinjectControl(on bool) error {
	k := reinjectControl{}
	if on {
		k.pitReinject = 1
	}
	_, err := ioctlPtr(&vm.h, &opReinjectControl, &k)
	return err
}

type reinjectControl struct {
	pitReinject uint8
	_           [31]uint8
}

// IRQLine is KVM_IRQ_LINE: it sets the level of a GSI. Without other routing, GSIs
// below 16 lead to both the PICs and the IOAPIC, those to 23 to the IOAPIC. An
// edge is true, then false.
func (vm *VM) IRQLine(gsi uint32, level bool) error {
	k := irqLevel{irqOrStatus: gsi}
	if level {
		k.level = 1
	}
	_, err := ioctlPtr(&vm.h, &opIRQLine, &k)
	return err
}

// IRQLineStatus is KVM_IRQ_LINE_STATUS: IRQLine that tells what became of it: 0 coalesced
// with one that is pending, negative ignored because masked, positive delivered
// to that many vCPUs.
func (vm *VM) IRQLineStatus(gsi uint32, level bool) (int, error) {
	k := irqLevel{irqOrStatus: gsi}
	if level {
		k.level = 1
	}
	_, err := ioctlPtr(&vm.h, &opIRQLineStatus, &k)
	return int(int32(k.irqOrStatus)), err
}

// SignalMSI is KVM_SIGNAL_MSI: it delivers m. It returns whether the guest got it: false
// means that it blocked it. It allocates nothing.
//
//go:noinline
func (vm *VM) SignalMSI(m MSI) (bool, error) {
	// Inlined into another package, the compiler no longer knows that
	// ioctlPtr keeps nothing and moves m to the heap.
	n, err := ioctlPtr(&vm.h, &opSignalMSI, &m)
	return n > 0, err
}

// SetGSIRouting is KVM_SET_GSI_ROUTING: entries replace the whole table.
func (vm *VM) SetGSIRouting(entries []IRQRoutingEntry) error {
	if len(entries) > maxRoutes {
		return invalid(opSetGSIRouting.name, "%d entries, of at most %d", len(entries), maxRoutes)
	}
	f := newFlex[routingHeader, IRQRoutingEntry](len(entries))
	f.hdr.count = uint32(len(entries))
	copy(f.entries, entries)
	_, err := ioctlPtr(&vm.h, &opSetGSIRouting, f.hdr)
	return err
}

// IRQFD is KVM_IRQFD: it connects an eventfd to a GSI, or with IRQFDDeassign disconnects
// it. The kernel keeps its own reference to the eventfd.
func (vm *VM) IRQFD(f IRQFD) error {
	_, err := ioctlPtr(&vm.h, &opIRQFD, &f)
	return detail(err, func() string { return fmt.Sprintf("fd %d, GSI %d, flags %#x", int32(f.FD), f.GSI, f.Flags) })
}

// IOEventFD is KVM_IOEVENTFD: it has a guest write signal an eventfd, or with
// IOEventFDDeassign and the same other fields no longer so. The kernel keeps its own
// reference to the eventfd.
func (vm *VM) IOEventFD(f IOEventFD) error {
	k := ioEventFD{datamatch: f.Datamatch, addr: f.Addr, length: f.Len, fd: int32(f.FD), flags: f.Flags}
	_, err := ioctlPtr(&vm.h, &opIOEventFD, &k)
	return detail(err, func() string {
		return fmt.Sprintf("fd %d, %d bytes at %#x, flags %#x", f.FD, f.Len, f.Addr, f.Flags)
	})
}

// GetIRQChip is KVM_GET_IRQCHIP for ChipPICMaster, ChipPICSlave or ChipIOAPIC.
func (vm *VM) GetIRQChip(chip uint32) (IRQChip, error) {
	c := IRQChip{ChipID: chip}
	_, err := ioctlPtr(&vm.h, &opGetIRQChip, &c)
	return c, err
}

// SetIRQChip is KVM_SET_IRQCHIP.
func (vm *VM) SetIRQChip(c *IRQChip) error {
	_, err := ioctlPtr(&vm.h, &opSetIRQChip, c)
	return err
}

// GetPIT2 is KVM_GET_PIT2.
func (vm *VM) GetPIT2() (PITState, error) {
	var p PITState
	_, err := ioctlPtr(&vm.h, &opGetPIT2, &p)
	return p, err
}

// SetPIT2 is KVM_SET_PIT2.
func (vm *VM) SetPIT2(p *PITState) error {
	_, err := ioctlPtr(&vm.h, &opSetPIT2, p)
	return err
}
