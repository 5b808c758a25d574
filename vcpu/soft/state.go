package soft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/vmkit-go/vmkit/vcpu"
)

// errPending is what State says while an access to a device is not complete.
var errPending = errors.New("an access to a device is not complete")

// State copies the whole state of the CPU to s. The machine must not run.
func (c *CPU) State(s *vcpu.State) error {
	if err := c.complete(); err != nil {
		return fmt.Errorf("soft: CPU %d: %w", c.id, err)
	}
	c.takeSignals()
	l := c.e.chips.LAPIC(c.id)
	now := c.e.instructions()
	*s = vcpu.State{
		Regs: c.registers(),
		Segments: vcpu.Segments{
			ES: c.seg[segES], CS: c.seg[segCS], SS: c.seg[segSS], DS: c.seg[segDS], FS: c.seg[segFS], GS: c.seg[segGS],
			TR: c.tr, LDT: c.ldtr,
		},
		GDT: c.gdtr, IDT: c.idtr,
		Control: vcpu.Control{
			CR0: c.cr0, CR2: c.cr2, CR3: c.cr3, CR4: c.cr4, CR8: uint64(l.TPR()), EFER: c.efer, APICBase: l.Base(),
		},
		Debug: vcpu.DebugRegisters{DR: c.dr, DR6: c.dr6, DR7: c.dr7},
		XCRs:  []vcpu.XCR{{Index: 0, Value: c.xcr0}},
		XSAVE: c.saveArea(),
		MSRs:  c.saveMSRs(),
		LAPIC: l.SavePage(),
		MP:    c.wait,
		TSC:   c.tscAt(now),
		TSCHz: c.tscHz(),
	}
	if c.protected() {
		s.Segments.SS.DPL = c.cpl // where an engine looks for it
	}
	if c.usesPDPTRs() {
		s.Control.PDPTRs = append([]uint64(nil), c.pdpt[:]...)
	}
	if c.wait == vcpu.MPRunning && c.halted {
		s.MP = vcpu.MPHalted
	}
	s.Events = vcpu.Events{
		Exception:   c.inject.exception,
		Interrupt:   c.inject.interrupt,
		NMI:         vcpu.NMI{Injected: c.inject.nmi, Pending: c.nmiPending, Masked: c.nmiMasked},
		ShadowSTI:   c.shadow && !c.shadowMOVSS,
		ShadowMOVSS: c.shadowMOVSS,
		SIPI:        c.sipiVector,
		TripleFault: c.shutdown || c.inject.triple,
	}
	return nil
}

// usesPDPTRs reports whether paging is on with PAE outside long mode.
func (c *CPU) usesPDPTRs() bool {
	return c.cr0&cr0PG != 0 && c.cr4&cr4PAE != 0 && !c.longMode()
}

// complete runs the instruction to its end that the last exit interrupted.
func (c *CPU) complete() error {
	e := c.e
	if e.served == c {
		e.served = nil
		c.access.served()
	}
	if c.access.known > 0 && !c.access.pending() {
		e.running = c
		c.run(1)
		e.running = nil
		e.count = c.end - c.left
	}
	if c.access.pending() {
		return errPending
	}
	return nil
}

// takeSignals takes what has arrived at the local APIC for the CPU, so that its page is
// the rest.
func (c *CPU) takeSignals() {
	l := c.e.chips.LAPIC(c.id)
	if l.TakeINIT() {
		c.init()
	}
	if v, ok := l.TakeSIPI(); ok && c.wait == vcpu.MPInit {
		c.wait, c.sipiVector = vcpu.MPSIPI, v
	}
	if l.TakeNMI() {
		c.nmiPending = min(c.nmiPending+1, 2)
	}
}

// SetState gives the CPU the state s, which it checks first. What the engine's CPU lacks
// is an error that wraps vcpu.ErrMissing. The machine must not run.
func (c *CPU) SetState(s *vcpu.State) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("soft: CPU %d: %w", c.id, err)
	}
	if err := c.setState(s); err != nil {
		return fmt.Errorf("soft: CPU %d: %w", c.id, err)
	}
	return nil
}

func (c *CPU) setState(s *vcpu.State) error {
	if err := c.supports(s); err != nil {
		return err
	}
	var m msrs
	if len(s.MSRs) > 0 {
		m = c.msr
		if err := c.checkMSRs(&m, s.MSRs); err != nil {
			return err
		}
	}
	pdpt := c.pdpt
	if len(s.Control.PDPTRs) == len(c.pdpt) {
		copy(pdpt[:], s.Control.PDPTRs)
	}
	l := c.e.chips.LAPIC(c.id)
	if err := l.Load(s.Control.APICBase, s.LAPIC); err != nil {
		return err
	}
	c.updateAPICPage()
	l.TakeINIT()
	l.TakeSIPI()
	l.TakeNMI()

	c.access = access{}
	if c.e.served == c {
		c.e.served = nil
	}
	c.setRegisters(&s.Regs)
	c.setRFLAGS(s.Regs.RFLAGS)
	c.setSegments(&s.Segments)
	c.gdtr, c.idtr = s.GDT, s.IDT
	k := &s.Control
	c.cr0, c.cr2, c.cr3, c.cr4, c.efer = k.CR0|cr0ET, k.CR2, k.CR3, k.CR4, k.EFER
	c.pdpt = pdpt
	if c.usesPDPTRs() && len(k.PDPTRs) == 0 {
		c.loadPDPTRs(c.cr3) // a fault leaves the old ones
	}
	l.SetTPR(uint8(k.CR8))
	c.cpl = 0
	if c.protected() {
		c.cpl = s.Segments.SS.DPL
	}
	c.dr, c.dr6, c.dr7 = s.Debug.DR, s.Debug.DR6&dr6Valid|dr6Fixed, s.Debug.DR7&dr7Valid|dr7Fixed
	for _, x := range s.XCRs {
		if x.Index == 0 {
			c.xcr0 = x.Value
		}
	}
	if len(s.XSAVE) > 0 {
		c.loadArea(s.XSAVE)
	}
	c.setTSC(s.TSC, s.TSCHz)
	if len(s.MSRs) > 0 {
		c.loadMSRs(&m, s.MSRs)
	}
	ev := &s.Events
	c.inject = injection{exception: ev.Exception, interrupt: ev.Interrupt, nmi: ev.NMI.Injected, triple: ev.TripleFault}
	c.nmiPending, c.nmiMasked = ev.NMI.Pending, ev.NMI.Masked
	c.shadow, c.shadowMOVSS = ev.ShadowSTI || ev.ShadowMOVSS, ev.ShadowMOVSS
	c.sipiVector = ev.SIPI
	c.halted, c.wait = false, s.MP
	if s.MP == vcpu.MPHalted {
		c.halted, c.wait = true, vcpu.MPRunning
	}
	c.shutdown, c.delivering, c.yield = false, false, false
	c.hits, c.stepping = 0, false
	c.flushTLB()
	c.updateMode()
	c.e.retime()
	return nil
}

// supports checks that the engine's CPU can have the state.
func (c *CPU) supports(s *vcpu.State) error {
	missing := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s", vcpu.ErrMissing, fmt.Sprintf(format, a...))
	}
	k := &s.Control
	switch {
	case s.Regs.RFLAGS&flagVM != 0:
		return missing("virtual-8086 mode")
	case s.Events.SMI != vcpu.SMI{}:
		return missing("system-management mode")
	case k.CR0&^cr0Defined != 0:
		return missing("CR0 %#x: reserved bits", k.CR0)
	case k.CR4&^c.cr4Valid != 0:
		return missing("CR4 %#x: bits %#x", k.CR4, k.CR4&^c.cr4Valid)
	case k.EFER&^(c.eferValid|eferLMA) != 0:
		return missing("EFER %#x: bits %#x", k.EFER, k.EFER&^(c.eferValid|eferLMA))
	case k.APICBase&c.physReserved() != 0:
		return missing("IA32_APIC_BASE %#x: physical addresses of more than %d bits", k.APICBase, physBits)
	case k.CR3&c.physReserved() != 0:
		return missing("CR3 %#x: physical addresses of more than %d bits", k.CR3, physBits)
	}
	for _, x := range s.XCRs {
		if x.Index != 0 && x.Value != 0 {
			return missing("XCR%d", x.Index)
		}
		if x.Index == 0 && x.Value&^xcr0Valid != 0 {
			return missing("XCR0 %#x: %s", x.Value, componentNames(x.Value&^xcr0Valid))
		}
	}
	if len(s.XSAVE) > xsaveSize {
		more := binary.LittleEndian.Uint64(s.XSAVE[fxsaveSize:]) &^ xcr0Valid
		for _, b := range s.XSAVE[xsaveSize:] {
			if b != 0 && more != 0 {
				return missing("extended state in use: %s", componentNames(more))
			}
		}
	}
	return nil
}

// componentNames names state components (Intel SDM volume 1, section 13.1).
func componentNames(set uint64) string {
	names := [...]string{
		2: "AVX", 3: "MPX bounds", 4: "MPX configuration", 5: "AVX-512 masks", 6: "AVX-512 upper halves", 7: "AVX-512 upper registers",
		9: "PKRU", 17: "AMX configuration", 18: "AMX tiles",
	}
	var out []string
	for i := range 64 {
		if set>>i&1 == 0 {
			continue
		}
		if i < len(names) && names[i] != "" {
			out = append(out, names[i])
		} else {
			out = append(out, fmt.Sprintf("component %d", i))
		}
	}
	return strings.Join(out, ", ")
}

func (c *CPU) registers() vcpu.Registers {
	r := &c.r
	return vcpu.Registers{
		RAX: r[regRAX], RCX: r[regRCX], RDX: r[regRDX], RBX: r[regRBX],
		RSP: r[regRSP], RBP: r[regRBP], RSI: r[regRSI], RDI: r[regRDI],
		R8: r[regR8], R9: r[regR9], R10: r[regR10], R11: r[regR11],
		R12: r[regR12], R13: r[regR13], R14: r[regR14], R15: r[regR15],
		RIP: c.rip, RFLAGS: c.rflags(),
	}
}

// saveArea is the XSAVE area in the form with pointers of 64 bits, or, outside 64-bit
// code, in the one with selectors.
func (c *CPU) saveArea() []byte {
	p := make([]byte, xsaveSize)
	c.putX87(p, c.is64())
	putMXCSR(p, c.mxcsr)
	c.putXMM(p, len(c.xmm))
	binary.LittleEndian.PutUint64(p[fxsaveSize:], xcr0Valid)
	return p
}

// loadArea takes x87 and SSE state from an XSAVE area that supports has passed. The
// segments must be loaded.
func (c *CPU) loadArea(p []byte) {
	bv := binary.LittleEndian.Uint64(p[fxsaveSize:])
	c.fpu = fpu{}
	c.fpu.init()
	if bv&xcr0X87 != 0 {
		c.getX87(p, c.efer&eferLMA != 0 && c.seg[segCS].Long)
	}
	c.xmm, c.mxcsr = [16]xmm{}, mxcsrInit
	if bv&xcr0SSE != 0 {
		c.getXMM(p, len(c.xmm))
		c.mxcsr = binary.LittleEndian.Uint32(p[offMXCSR:])
	}
}
