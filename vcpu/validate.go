package vcpu

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrState is wrapped by errors about a state that no CPU can be in.
var ErrState = errors.New("invalid CPU state")

// The bounds of a state's variable parts.
const (
	maxXSAVE = 64 << 10
	minXSAVE = 576 // legacy region and header
	maxXCRs  = 16
	maxMSRs  = 4096
	lapicLen = 4096
)

// Bits that are always zero.
const (
	rflagsReserved = ^uint64(0x3f7fd7)
	eferReserved   = ^uint64(EFERSCE | EFERLME | EFERLMA | EFERNXE | EFERSVME | 1<<13 | EFERFFXSR | 1<<15 | 1<<18 | 1<<20 | 1<<21)
)

// Validate reports the first thing that makes the state one that no CPU can be
// in. It checks what is architectural; what a particular CPU model lacks is
// for the engine to refuse.
func (s *State) Validate() error {
	if err := s.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrState, err)
	}
	return nil
}

func (s *State) validate() error {
	if s.Regs.RFLAGS&rflagsReserved != 0 || s.Regs.RFLAGS&2 == 0 {
		return fmt.Errorf("RFLAGS %#x", s.Regs.RFLAGS)
	}
	if err := s.Control.validate(); err != nil {
		return err
	}
	for _, seg := range []struct {
		name string
		s    *Segment
	}{
		{"CS", &s.Segments.CS}, {"DS", &s.Segments.DS}, {"ES", &s.Segments.ES}, {"FS", &s.Segments.FS},
		{"GS", &s.Segments.GS}, {"SS", &s.Segments.SS}, {"TR", &s.Segments.TR}, {"LDT", &s.Segments.LDT},
	} {
		if seg.s.Type > 15 || seg.s.DPL > 3 {
			return fmt.Errorf("%s: type %d, DPL %d", seg.name, seg.s.Type, seg.s.DPL)
		}
		if !canonical(seg.s.Base) {
			return fmt.Errorf("%s: base %#x is not canonical", seg.name, seg.s.Base)
		}
	}
	if !canonical(s.GDT.Base) || !canonical(s.IDT.Base) {
		return fmt.Errorf("GDT base %#x, IDT base %#x: not canonical", s.GDT.Base, s.IDT.Base)
	}
	if s.Debug.DR6>>32 != 0 || s.Debug.DR7>>32 != 0 {
		return fmt.Errorf("DR6 %#x, DR7 %#x: upper half set", s.Debug.DR6, s.Debug.DR7)
	}
	if err := s.validateExtended(); err != nil {
		return err
	}
	if len(s.MSRs) > maxMSRs {
		return fmt.Errorf("%d MSRs, at most %d", len(s.MSRs), maxMSRs)
	}
	seen := make(map[uint32]struct{}, len(s.MSRs))
	for _, m := range s.MSRs {
		if _, dup := seen[m.Index]; dup {
			return fmt.Errorf("MSR %#x twice", m.Index)
		}
		seen[m.Index] = struct{}{}
	}
	if n := len(s.LAPIC); n != 0 && n != lapicLen {
		return fmt.Errorf("local APIC page of %d bytes, want %d", n, lapicLen)
	}
	if s.MP > MPSIPI {
		return fmt.Errorf("MP state %d", s.MP)
	}
	if e := &s.Events.Exception; e.Vector > 31 {
		return fmt.Errorf("exception vector %d", e.Vector)
	}
	if s.Events.NMI.Pending > 2 {
		return fmt.Errorf("%d pending NMIs", s.Events.NMI.Pending)
	}
	if s.Events.ShadowSTI && s.Events.ShadowMOVSS {
		return errors.New("interrupts held off by both STI and MOV SS")
	}
	if s.TSCHz != 0 && (s.TSCHz < 1e6 || s.TSCHz > 1e12) {
		return fmt.Errorf("TSC frequency %d Hz", s.TSCHz)
	}
	return nil
}

func (c *Control) validate() error {
	switch {
	case c.CR0>>32 != 0:
		return fmt.Errorf("CR0 %#x: upper half set", c.CR0)
	case c.CR0&CR0PG != 0 && c.CR0&CR0PE == 0:
		return fmt.Errorf("CR0 %#x: paging without protection", c.CR0)
	case c.CR0&CR0NW != 0 && c.CR0&CR0CD == 0:
		return fmt.Errorf("CR0 %#x: NW without CD", c.CR0)
	case c.CR4>>32 != 0:
		return fmt.Errorf("CR4 %#x: upper half set", c.CR4)
	case c.CR8 > 15:
		return fmt.Errorf("CR8 %#x", c.CR8)
	case c.EFER&eferReserved != 0:
		return fmt.Errorf("EFER %#x: reserved bits", c.EFER)
	case (c.EFER&EFERLMA != 0) != (c.EFER&EFERLME != 0 && c.CR0&CR0PG != 0):
		return fmt.Errorf("EFER %#x, CR0 %#x: LMA disagrees with LME and PG", c.EFER, c.CR0)
	case c.EFER&EFERLMA != 0 && c.CR4&CR4PAE == 0:
		return fmt.Errorf("EFER %#x, CR4 %#x: long mode without PAE", c.EFER, c.CR4)
	case c.APICBase&APICBaseX2APIC != 0 && c.APICBase&APICBaseEnable == 0:
		return fmt.Errorf("IA32_APIC_BASE %#x: x2APIC mode of a disabled APIC", c.APICBase)
	case c.APICBase>>52 != 0 || c.APICBase&0x2ff != 0:
		return fmt.Errorf("IA32_APIC_BASE %#x: reserved bits", c.APICBase)
	case len(c.PDPTRs) != 0 && len(c.PDPTRs) != 4:
		return fmt.Errorf("%d PDPTRs, want 4", len(c.PDPTRs))
	}
	return nil
}

func (s *State) validateExtended() error {
	if len(s.XCRs) > maxXCRs {
		return fmt.Errorf("%d XCRs, at most %d", len(s.XCRs), maxXCRs)
	}
	for i, x := range s.XCRs {
		for _, y := range s.XCRs[:i] {
			if x.Index == y.Index {
				return fmt.Errorf("XCR%d twice", x.Index)
			}
		}
		if x.Index == 0 && !validXCR0(x.Value) {
			return fmt.Errorf("XCR0 %#x", x.Value)
		}
	}
	n := len(s.XSAVE)
	if n == 0 {
		return nil
	}
	if n < minXSAVE || n > maxXSAVE {
		return fmt.Errorf("XSAVE area of %d bytes, want %d to %d", n, minXSAVE, maxXSAVE)
	}
	if mxcsr := binary.LittleEndian.Uint32(s.XSAVE[24:]); mxcsr>>16 != 0 {
		return fmt.Errorf("MXCSR %#x", mxcsr)
	}
	if bv := binary.LittleEndian.Uint64(s.XSAVE[520:]); bv != 0 {
		return fmt.Errorf("XSAVE area: XCOMP_BV %#x, want the standard form", bv)
	}
	return nil
}

// validXCR0 applies the rules of Intel SDM volume 1, section 13.3.
func validXCR0(v uint64) bool {
	const (
		x87, sse, avx = 1 << 0, 1 << 1, 1 << 2
		mpx           = 3 << 3
		avx512        = 7 << 5
		amx           = 3 << 17
	)
	all := func(set uint64) bool { return v&set == 0 || v&set == set }
	return v&x87 != 0 && (v&avx == 0 || v&sse != 0) && all(mpx) && all(avx512) &&
		(v&avx512 == 0 || v&avx != 0) && all(amx)
}

// canonical allows for 57-bit linear addresses.
func canonical(a uint64) bool {
	return int64(a<<7)>>7 == int64(a)
}
