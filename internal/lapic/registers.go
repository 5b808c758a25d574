package lapic

// Registers by offset into the page shifted right by 4, which is also the
// number of the x2APIC MSR less 0x800 (Intel SDM volume 3, tables 11-1, 11-6).
const (
	regID       = 0x02
	regVersion  = 0x03
	regTPR      = 0x08
	regAPR      = 0x09
	regPPR      = 0x0a
	regEOI      = 0x0b
	regRRD      = 0x0c
	regLDR      = 0x0d
	regDFR      = 0x0e
	regSVR      = 0x0f
	regISR      = 0x10 // 8 registers, as TMR and IRR
	regTMR      = 0x18
	regIRR      = 0x20
	regESR      = 0x28
	regICR      = 0x30
	regICRHigh  = 0x31
	regLVT      = 0x32 // lvtEntries registers
	regInitial  = 0x38
	regCurrent  = 0x39
	regDivide   = 0x3e
	regSelfIPI  = 0x3f // x2APIC only
	regCount    = 0x40
	regLastIRR  = regIRR + 7
	msrX2Base   = 0x800
	pageRegStep = 16
)

// Local vectors, in the order of their registers.
const (
	lvtTimer = iota
	lvtThermal
	lvtCounters
	lvtLINT0
	lvtLINT1
	lvtError
	lvtEntries
)

// Bits of local vectors.
const (
	lvtModeShift = 8
	lvtModeMask  = 7 << lvtModeShift
	lvtPolarity  = 1 << 13
	lvtLevel     = 1 << 15
	lvtMask      = 1 << 16
	lvtReadOnly  = 1<<12 | 1<<14 // delivery status, remote IRR

	timerModeShift = 17
	timerModeMask  = 3 << timerModeShift
)

var lvtWritable = [lvtEntries]uint32{
	lvtTimer:    0xff | lvtMask | timerModeMask,
	lvtThermal:  0xff | lvtModeMask | lvtMask,
	lvtCounters: 0xff | lvtModeMask | lvtMask,
	lvtLINT0:    0xff | lvtModeMask | lvtPolarity | lvtLevel | lvtMask,
	lvtLINT1:    0xff | lvtModeMask | lvtPolarity | lvtLevel | lvtMask,
	lvtError:    0xff | lvtMask,
}

const (
	version = (lvtEntries-1)<<16 | 0x14

	svrEnable   = 1 << 8
	svrWritable = 0x3ff // EOI broadcasts cannot be suppressed

	divideWritable = 0xb

	// Errors.
	esrSendVector    = 1 << 5
	esrReceiveVector = 1 << 6
	esrRegister      = 1 << 7

	// The interrupt command register's low half.
	icrLogical        = 1 << 11
	icrBusy           = 1 << 12 // read-only
	icrAssert         = 1 << 14
	icrLevel          = 1 << 15
	icrShorthandShift = 18
	icrWritable       = 0xff | lvtModeMask | icrLogical | icrAssert | icrLevel | 3<<icrShorthandShift
)

// lvtMasked is what may be written to a local vector.
func (a *APIC) lvtMasked(entry int) uint32 {
	m := lvtWritable[entry]
	if entry == lvtTimer && a.cfg.TSCTime == nil {
		m &^= modeDeadline << timerModeShift
	}
	return m
}

// Read reads the 32-bit register at an offset into the xAPIC page. It is all
// ones while the page is not there: off, or in x2APIC mode.
func (a *APIC) Read(off uint32) uint32 {
	if !a.on() || a.x2() {
		return 0xffffffff
	}
	if off%pageRegStep != 0 {
		return 0
	}
	v, ok := a.get(off / pageRegStep)
	if !ok {
		a.fault(esrRegister)
	}
	return v
}

// get is the value of a register that xAPIC mode has.
func (a *APIC) get(reg uint32) (v uint32, ok bool) {
	switch {
	case reg >= regISR && reg < regTMR:
		return a.isr[reg-regISR], true
	case reg >= regTMR && reg < regIRR:
		return a.tmr[reg-regTMR], true
	case reg >= regIRR && reg <= regLastIRR:
		return a.irr[reg-regIRR], true
	case reg >= regLVT && reg < regLVT+lvtEntries:
		return a.lvt[reg-regLVT], true
	}
	switch reg {
	case regID:
		return uint32(a.id) << 24, true
	case regVersion:
		return version, true
	case regTPR:
		return uint32(a.tpr), true
	case regPPR:
		return uint32(a.ppr), true
	case regAPR, regEOI, regRRD:
		return 0, true
	case regLDR:
		return a.ldr, true
	case regDFR:
		return a.dfr, true
	case regSVR:
		return a.svr, true
	case regESR:
		return a.esr, true
	case regICR:
		return a.icr, true
	case regICRHigh:
		return a.icrHigh, true
	case regInitial:
		return a.timer.initial, true
	case regCurrent:
		return a.current(), true
	case regDivide:
		return a.timer.divide, true
	}
	return 0, false
}

// Write writes the 32-bit register at an offset into the xAPIC page. Reserved
// bits are dropped.
func (a *APIC) Write(off, v uint32) {
	if !a.on() || a.x2() || off%pageRegStep != 0 {
		return
	}
	switch reg := off / pageRegStep; reg {
	case regID:
		a.id = uint8(v >> 24)
	case regLDR:
		a.ldr = v & 0xff000000
	case regDFR:
		a.dfr = v | 0x0fffffff
	case regICR:
		a.icr = v & icrWritable
		a.command(Message{Dest: a.icrHigh >> 24})
	case regICRHigh:
		a.icrHigh = v & 0xff000000
	default:
		if !a.set(reg, v) {
			a.fault(esrRegister)
		}
	}
}

// set writes a register that both modes have, and reports whether it is one
// that can be written.
func (a *APIC) set(reg, v uint32) bool {
	if reg >= regLVT && reg < regLVT+lvtEntries {
		a.setLVT(int(reg-regLVT), v)
		return true
	}
	switch reg {
	case regTPR:
		a.tpr = uint8(v)
		a.updatePPR()
	case regEOI:
		a.eoi()
	case regSVR:
		a.setSVR(v)
	case regESR:
		a.esr, a.errs = a.errs, 0
	case regInitial:
		a.setInitial(v)
	case regDivide:
		a.setDivide(v)
	default:
		return false
	}
	return true
}

func (a *APIC) setSVR(v uint32) {
	a.svr = v & svrWritable
	if a.svr&svrEnable == 0 {
		for i := range a.lvt {
			if i == lvtTimer {
				a.setLVT(i, a.lvt[i]|lvtMask)
			} else {
				a.lvt[i] |= lvtMask
			}
		}
	}
}

func (a *APIC) setLVT(entry int, v uint32) {
	v &= a.lvtMasked(entry)
	if a.svr&svrEnable == 0 {
		v |= lvtMask
	}
	if entry == lvtTimer {
		a.setTimer(v)
		return
	}
	a.lvt[entry] = v
}

// command sends what the interrupt command register says. m has the
// destination.
func (a *APIC) command(m Message) {
	m.Vector = uint8(a.icr)
	m.Mode = uint8(a.icr >> lvtModeShift & 7)
	m.Logical = a.icr&icrLogical != 0
	m.Shorthand = Shorthand(a.icr >> icrShorthandShift & 3)
	switch m.Mode {
	case Fixed, LowestPriority:
		if m.Vector < firstVector {
			a.fault(esrSendVector)
			return
		}
	case INIT:
		if a.icr&icrLevel != 0 && a.icr&icrAssert == 0 {
			return // de-assert only synchronizes arbitration IDs
		}
	case NMI, StartUp:
	default:
		return
	}
	a.cfg.Bus.Send(a, m)
}

// ReadMSR reads an x2APIC MSR, 0x800 to 0x83f and beyond; false is #GP.
func (a *APIC) ReadMSR(index uint32) (v uint64, ok bool) {
	reg := index - msrX2Base
	if !a.x2() || reg >= regCount {
		return 0, false
	}
	switch reg {
	case regAPR, regEOI, regRRD, regDFR, regICRHigh:
		return 0, false
	case regID:
		return uint64(a.cfg.ID), true
	case regICR:
		return uint64(a.icrHigh)<<32 | uint64(a.icr), true
	}
	r, ok := a.get(reg)
	return uint64(r), ok
}

// WriteMSR writes an x2APIC MSR; false is #GP: there is no such register, it
// cannot be written, or a reserved bit is set.
func (a *APIC) WriteMSR(index uint32, v uint64) bool {
	reg := index - msrX2Base
	if !a.x2() || reg >= regCount {
		return false
	}
	var allowed uint64
	switch {
	case reg == regICR:
		allowed = 0xffffffff<<32 | icrWritable | icrBusy
	case reg >= regLVT && reg < regLVT+lvtEntries:
		allowed = uint64(a.lvtMasked(int(reg-regLVT)) | lvtReadOnly)
	default:
		switch reg {
		case regTPR, regSelfIPI:
			allowed = 0xff
		case regSVR:
			allowed = svrWritable
		case regInitial:
			allowed = 0xffffffff
		case regDivide:
			allowed = divideWritable
		}
	}
	if v&^allowed != 0 {
		return false
	}
	switch reg {
	case regICR:
		a.icr, a.icrHigh = uint32(v)&icrWritable, uint32(v>>32)
		a.command(Message{Dest: a.icrHigh, Wide: true})
	case regSelfIPI:
		if v < firstVector {
			a.fault(esrSendVector)
		} else {
			a.cfg.Bus.Send(a, Message{Vector: uint8(v), Shorthand: Self})
		}
	case regEOI, regESR, regTPR, regSVR, regInitial, regDivide:
		a.set(reg, uint32(v))
	default:
		if allowed == 0 {
			return false
		}
		a.set(reg, uint32(v))
	}
	return true
}
