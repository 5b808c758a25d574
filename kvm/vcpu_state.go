package kvm

func get[T any](v *VCPU, o *op) (t T, err error) {
	_, err = ioctlPtr(&v.h, o, &t)
	return t, err
}

func set[T any](v *VCPU, o *op, t *T) error {
	_, err := ioctlPtr(&v.h, o, t)
	return err
}

// Regs is KVM_GET_REGS.
func (v *VCPU) Regs() (Regs, error) { return get[Regs](v, &opGetRegs) }

// SetRegs is KVM_SET_REGS. It drops a pending exception.
func (v *VCPU) SetRegs(r *Regs) error { return set(v, &opSetRegs, r) }

// Sregs is KVM_GET_SREGS.
func (v *VCPU) Sregs() (Sregs, error) { return get[Sregs](v, &opGetSregs) }

// SetSregs is KVM_SET_SREGS.
func (v *VCPU) SetSregs(s *Sregs) error { return set(v, &opSetSregs, s) }

// Sregs2 is KVM_GET_SREGS2.
func (v *VCPU) Sregs2() (Sregs2, error) { return get[Sregs2](v, &opGetSregs2) }

// SetSregs2 is KVM_SET_SREGS2.
func (v *VCPU) SetSregs2(s *Sregs2) error { return set(v, &opSetSregs2, s) }

// FPU is KVM_GET_FPU.
func (v *VCPU) FPU() (FPU, error) { return get[FPU](v, &opGetFPU) }

// SetFPU is KVM_SET_FPU.
func (v *VCPU) SetFPU(f *FPU) error { return set(v, &opSetFPU, f) }

// XCRs is KVM_GET_XCRS.
func (v *VCPU) XCRs() (XCRs, error) { return get[XCRs](v, &opGetXCRs) }

// SetXCRs is KVM_SET_XCRS.
func (v *VCPU) SetXCRs(x *XCRs) error { return set(v, &opSetXCRs, x) }

// LAPIC is KVM_GET_LAPIC. With an in-kernel local APIC only (in-kernel or split
// irqchip).
func (v *VCPU) LAPIC() (LAPIC, error) { return get[LAPIC](v, &opGetLAPIC) }

// SetLAPIC is KVM_SET_LAPIC.
func (v *VCPU) SetLAPIC(l *LAPIC) error { return set(v, &opSetLAPIC, l) }

// VCPUEvents is KVM_GET_VCPU_EVENTS.
func (v *VCPU) VCPUEvents() (VCPUEvents, error) { return get[VCPUEvents](v, &opGetVCPUEvents) }

// SetVCPUEvents is KVM_SET_VCPU_EVENTS.
func (v *VCPU) SetVCPUEvents(e *VCPUEvents) error { return set(v, &opSetVCPUEvents, e) }

// DebugRegs is KVM_GET_DEBUGREGS.
func (v *VCPU) DebugRegs() (DebugRegs, error) { return get[DebugRegs](v, &opGetDebugRegs) }

// SetDebugRegs is KVM_SET_DEBUGREGS.
func (v *VCPU) SetDebugRegs(d *DebugRegs) error { return set(v, &opSetDebugRegs, d) }

// MPState is KVM_GET_MP_STATE: one of the MPState values.
func (v *VCPU) MPState() (uint32, error) { return get[uint32](v, &opGetMPState) }

// SetMPState is KVM_SET_MP_STATE. States other than MPStateRunnable need an in-kernel
// local APIC.
func (v *VCPU) SetMPState(state uint32) error { return set(v, &opSetMPState, &state) }

// XSaveSize is the size in bytes of the vCPU's XSAVE area: what XSave2 and SetXSave
// want. It is XSaveMinSize unless the process has been permitted larger state
// (AMX) by arch_prctl.
func (v *VCPU) XSaveSize() (int, error) {
	n, err := v.vm.CheckExtension(CapXSave2)
	return max(n, XSaveMinSize), err
}

// XSave is KVM_GET_XSAVE: the area in the standard format (Intel SDM volume 1, section
// "XSAVE Area"), with components at the host's offsets (CPUID leaf 0xd). The buffer
// has at least XSaveMinSize bytes. It fails if the vCPU's state is larger.
func (v *VCPU) XSave(buf []byte) error { return v.xsave(&opGetXSave, buf, XSaveMinSize) }

// XSave2 is KVM_GET_XSAVE2, as XSave with a buffer of at least XSaveSize bytes.
func (v *VCPU) XSave2(buf []byte) error {
	n, err := v.XSaveSize()
	if err != nil {
		return err
	}
	return v.xsave(&opGetXSave2, buf, n)
}

// SetXSave is KVM_SET_XSAVE. The buffer has at least XSaveSize bytes, as from XSave or
// XSave2.
func (v *VCPU) SetXSave(buf []byte) error {
	n, err := v.XSaveSize()
	if err != nil {
		return err
	}
	return v.xsave(&opSetXSave, buf, n)
}

func (v *VCPU) xsave(o *op, buf []byte, need int) error {
	if len(buf) < need {
		return invalid(o.name, "a buffer of %d bytes for an area of %d", len(buf), need)
	}
	return set(v, o, &buf[0])
}

// TSCKHz is KVM_GET_TSC_KHZ: the frequency of the guest's TSC.
func (v *VCPU) TSCKHz() (int, error) { return v.h.ioctl(&opGetTSCKHz, 0) }

// SetTSCKHz is KVM_SET_TSC_KHZ. A frequency other than the host's needs CapTSCControl.
func (v *VCPU) SetTSCKHz(khz int) error {
	if khz <= 0 {
		return invalid(opSetTSCKHz.name, "%d kHz", khz)
	}
	_, err := v.h.ioctl(&opSetTSCKHz, uintptr(khz))
	return err
}

// KVMClockCtrl is KVM_KVMCLOCK_CTRL: tells the guest that it was paused, so that its
// watchdogs stay quiet. It fails with EINVAL if the guest does not use
// kvmclock.
func (v *VCPU) KVMClockCtrl() error {
	_, err := v.h.ioctl(&opKVMClockCtrl, 0)
	return err
}
