package kvmcpu

import (
	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
)

// The registers have the same names on both sides; a test fills every field
// and sees it come back.

func fromRegs(k *kvm.Regs) vcpu.Registers { return vcpu.Registers(*k) }
func toRegs(r *vcpu.Registers) kvm.Regs   { return kvm.Regs(*r) }

func bit(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

func fromSegment(k *kvm.Segment) vcpu.Segment {
	return vcpu.Segment{
		Base: k.Base, Limit: k.Limit, Selector: k.Selector, Type: k.Type, DPL: k.DPL,
		System: k.S == 0, Present: k.Present != 0, Available: k.AVL != 0, Long: k.L != 0,
		Big: k.DB != 0, Granularity: k.G != 0, Unusable: k.Unusable != 0,
	}
}

func toSegment(s *vcpu.Segment) kvm.Segment {
	return kvm.Segment{
		Base: s.Base, Limit: s.Limit, Selector: s.Selector, Type: s.Type, DPL: s.DPL,
		S: bit(!s.System), Present: bit(s.Present), AVL: bit(s.Available), L: bit(s.Long),
		DB: bit(s.Big), G: bit(s.Granularity), Unusable: bit(s.Unusable),
	}
}

func fromSregs2(s *vcpu.State, k *kvm.Sregs2) {
	s.Segments = vcpu.Segments{
		CS: fromSegment(&k.CS), DS: fromSegment(&k.DS), ES: fromSegment(&k.ES), FS: fromSegment(&k.FS),
		GS: fromSegment(&k.GS), SS: fromSegment(&k.SS), TR: fromSegment(&k.TR), LDT: fromSegment(&k.LDT),
	}
	s.GDT = vcpu.Table{Base: k.GDT.Base, Limit: k.GDT.Limit}
	s.IDT = vcpu.Table{Base: k.IDT.Base, Limit: k.IDT.Limit}
	s.Control = vcpu.Control{
		CR0: k.CR0, CR2: k.CR2, CR3: k.CR3, CR4: k.CR4, CR8: k.CR8, EFER: k.EFER, APICBase: k.APICBase,
	}
	if k.Flags&kvm.Sregs2PDPTRsValid != 0 {
		s.Control.PDPTRs = append([]uint64(nil), k.PDPTRs[:]...)
	}
}

func toSregs2(s *vcpu.State) kvm.Sregs2 {
	g, c := &s.Segments, &s.Control
	k := kvm.Sregs2{
		CS: toSegment(&g.CS), DS: toSegment(&g.DS), ES: toSegment(&g.ES), FS: toSegment(&g.FS),
		GS: toSegment(&g.GS), SS: toSegment(&g.SS), TR: toSegment(&g.TR), LDT: toSegment(&g.LDT),
		GDT: kvm.DTable{Base: s.GDT.Base, Limit: s.GDT.Limit},
		IDT: kvm.DTable{Base: s.IDT.Base, Limit: s.IDT.Limit},
		CR0: c.CR0, CR2: c.CR2, CR3: c.CR3, CR4: c.CR4, CR8: c.CR8, EFER: c.EFER, APICBase: c.APICBase,
	}
	if len(c.PDPTRs) == len(k.PDPTRs) {
		copy(k.PDPTRs[:], c.PDPTRs)
		k.Flags = kvm.Sregs2PDPTRsValid
	}
	return k
}

func widen(k *kvm.Sregs) kvm.Sregs2 {
	return kvm.Sregs2{
		CS: k.CS, DS: k.DS, ES: k.ES, FS: k.FS, GS: k.GS, SS: k.SS, TR: k.TR, LDT: k.LDT, GDT: k.GDT, IDT: k.IDT,
		CR0: k.CR0, CR2: k.CR2, CR3: k.CR3, CR4: k.CR4, CR8: k.CR8, EFER: k.EFER, APICBase: k.APICBase,
	}
}

func narrow(k *kvm.Sregs2) kvm.Sregs {
	return kvm.Sregs{
		CS: k.CS, DS: k.DS, ES: k.ES, FS: k.FS, GS: k.GS, SS: k.SS, TR: k.TR, LDT: k.LDT, GDT: k.GDT, IDT: k.IDT,
		CR0: k.CR0, CR2: k.CR2, CR3: k.CR3, CR4: k.CR4, CR8: k.CR8, EFER: k.EFER, APICBase: k.APICBase,
	}
}

func fromEvents(k *kvm.VCPUEvents) vcpu.Events {
	e := vcpu.Events{
		Exception: vcpu.Exception{
			Pending: k.Exception.Pending != 0, Injected: k.Exception.Injected != 0, Vector: k.Exception.Nr,
			HasErrorCode: k.Exception.HasErrorCode != 0, ErrorCode: k.Exception.ErrorCode,
			HasPayload: k.ExceptionHasPayload != 0, Payload: k.ExceptionPayload,
		},
		Interrupt:   vcpu.Interrupt{Injected: k.Interrupt.Injected != 0, Soft: k.Interrupt.Soft != 0, Vector: k.Interrupt.Nr},
		NMI:         vcpu.NMI{Injected: k.NMI.Injected != 0, Pending: min(k.NMI.Pending, 2), Masked: k.NMI.Masked != 0},
		SMI:         vcpu.SMI{Active: k.SMI.SMM != 0, Pending: k.SMI.Pending != 0, InsideNMI: k.SMI.SMMInsideNMI != 0, Init: k.SMI.LatchedInit != 0},
		ShadowSTI:   k.Interrupt.Shadow&kvm.ShadowSTI != 0,
		ShadowMOVSS: k.Interrupt.Shadow&kvm.ShadowMovSS != 0,
		SIPI:        uint8(k.SIPIVector),
		TripleFault: k.TripleFault.Pending != 0,
	}
	if e.ShadowSTI { // SVM has one bit for both
		e.ShadowMOVSS = false
	}
	// The kernel leaves the details of the last one behind.
	if !e.Exception.Pending && !e.Exception.Injected {
		e.Exception = vcpu.Exception{}
	}
	if !e.Interrupt.Injected {
		e.Interrupt = vcpu.Interrupt{}
	}
	return e
}

func (c *CPU) toEvents(s *vcpu.State) kvm.VCPUEvents {
	e := &s.Events
	var k kvm.VCPUEvents
	k.Exception.Pending, k.Exception.Injected = bit(e.Exception.Pending), bit(e.Exception.Injected)
	k.Exception.Nr = e.Exception.Vector
	k.Exception.HasErrorCode, k.Exception.ErrorCode = bit(e.Exception.HasErrorCode), e.Exception.ErrorCode
	k.ExceptionHasPayload, k.ExceptionPayload = bit(e.Exception.HasPayload), e.Exception.Payload
	k.Interrupt.Injected, k.Interrupt.Soft, k.Interrupt.Nr = bit(e.Interrupt.Injected), bit(e.Interrupt.Soft), e.Interrupt.Vector
	if e.ShadowSTI {
		k.Interrupt.Shadow |= kvm.ShadowSTI
	}
	if e.ShadowMOVSS {
		k.Interrupt.Shadow |= kvm.ShadowMovSS
	}
	k.NMI.Injected, k.NMI.Pending, k.NMI.Masked = bit(e.NMI.Injected), e.NMI.Pending, bit(e.NMI.Masked)
	k.SMI.SMM, k.SMI.Pending, k.SMI.SMMInsideNMI, k.SMI.LatchedInit = bit(e.SMI.Active), bit(e.SMI.Pending), bit(e.SMI.InsideNMI), bit(e.SMI.Init)
	k.SIPIVector = uint32(e.SIPI)
	k.TripleFault.Pending = bit(e.TripleFault)
	k.Flags = c.eventFlags & (kvm.EventValidNMIPending | kvm.EventValidShadow | kvm.EventValidSMM | kvm.EventValidPayload | kvm.EventValidTripleFault)
	if s.MP == vcpu.MPSIPI {
		k.Flags |= kvm.EventValidSIPIVector
	}
	return k
}
