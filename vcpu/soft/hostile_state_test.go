package soft

import (
	"encoding/binary"

	"github.com/vmkit-go/vmkit/vcpu"
)

// The hostile machine's memory: tables at fixed places, code everywhere else.
const (
	hostileSize   = 1 << 20
	hostileGDT    = 0x10000
	hostileIDT    = 0x11000
	hostileTSS    = 0x12000
	hostileTables = 0x20000
	hostileLevels = 16 // pages of page tables
)

var hostileModes = []string{"real", "protected 16", "protected 32", "paging 32", "PAE", "compatibility", "long, CPL 0", "long, CPL 3", "compatibility, CPL 3"}

func (h *hostile) descriptor() uint64 {
	switch h.IntN(8) {
	case 0:
		return h.Uint64()
	case 1: // a system segment or gate
		return desc(hostileTSS, 0xfff, uint64(h.IntN(32)|h.IntN(4)<<5|0x80), 0)
	case 2:
		return gate(uint16(h.IntN(32)*8|h.IntN(4)), uint32(h.value()), uint64(h.IntN(16)|h.IntN(4)<<5|0x80), uint64(h.IntN(8)))
	}
	base := uint32(0)
	if h.IntN(4) == 0 {
		base = uint32(h.value())
	}
	return desc(base, 0xfffff, uint64(0x90|h.IntN(16)|h.IntN(4)<<5), uint64(h.IntN(16)))
}

// tables writes descriptor tables and a TSS.
func (h *hostile) tables(long bool) {
	h.put(hostileGDT, 0)
	for i := range uint64(63) {
		h.put(hostileGDT+8+8*i, h.descriptor())
	}
	code := uint64(0xc) // what the handlers' segment is, if it is as it should be
	if long {
		code = 0xa
	}
	good := h.IntN(8) != 0
	if good {
		h.put(hostileGDT+8, desc(0, 0xfffff, 0x9b, code), desc(0, 0xfffff, 0x93, 0xc), desc(0, 0xfffff, 0xfb, 0xc), desc(0, 0xfffff, 0xf3, 0xc), desc(0, 0xfffff, 0xfb, 0xa))
	}
	for v := range uint64(256) {
		g := gate(selCode, uint32(h.IntN(hostileSize)), uint64(h.pick(0x8e, 0x8f, 0xee, 0xef)), uint64(h.IntN(40))/32*3)
		if h.IntN(50) == 0 || !good && h.IntN(4) == 0 {
			g = h.descriptor()
		}
		if long {
			h.put(hostileIDT+16*v, g, uint64(h.IntN(100)/99)*h.Uint64())
		} else {
			h.put(hostileIDT+8*v, g)
		}
	}
	for i := range uint64(0x70 / 8) {
		v := h.value()
		if good {
			v = uint64(h.IntN(hostileSize)) &^ 7
		}
		h.put(hostileTSS+8*i, v)
	}
	if good && !long { // ESP0, SS0
		h.put(hostileTSS, uint64(h.IntN(hostileSize))<<32, selData)
	}
}

// pageTables writes page tables of a random kind: one to one, or all at random.
func (h *hostile) pageTables(mode int) {
	size := uint64(8)
	if hostileModes[mode] == "paging 32" {
		size = 4
	}
	random := h.IntN(6) == 0
	for t := range uint64(hostileLevels) {
		for i := uint64(0); i < pageSize/8; i++ {
			entry := func() uint64 {
				e := uint64(h.IntN(hostileSize/pageSize))<<12 | 7
				switch h.IntN(16) {
				case 0:
					return h.Uint64()
				case 1:
					return h.value()&pageMask | uint64(h.IntN(0x1000))
				case 2:
					e ^= 1 << h.IntN(9)
				case 3:
					e |= 1 << (52 + h.IntN(12))
				}
				if h.IntN(3) > 0 {
					e = hostileTables + uint64(h.IntN(hostileLevels))<<12 | e&0xfff
				}
				return e
			}
			var e uint64
			switch {
			case random && size == 4:
				e = entry()&0xffffffff | entry()<<32
			case random:
				e = entry()
			case t == 0, t == 1 && size == 8, t == 2 && size == 8: // every entry leads to the next level's
				e = hostileTables + (t+1)<<12 | 7
				if mode == 4 && t == 0 { // PDPTEs
					e = hostileTables + 2<<12 | 1
				}
				if size == 4 {
					e |= e << 32
				}
			case size == 4:
				e = (2*i%(hostileSize/pageSize))<<12 | 7 | ((2*i+1)%(hostileSize/pageSize)<<12|7)<<32
			default:
				e = i%(hostileSize/pageSize)<<12 | 7
			}
			if !random && h.IntN(200) == 0 {
				e = entry()
			}
			h.put(hostileTables+t<<12+8*i, e)
		}
	}
}

func (h *hostile) segment(code bool) vcpu.Segment {
	s := flatStack(selData, uint8(h.IntN(4)))
	if code {
		s = flatCode(selCode, 0, false)
	}
	switch h.IntN(6) {
	case 0:
		s.Base = uint64(uint32(h.value()))
	case 1:
		s.Limit = uint32(h.value())
	case 2:
		s.Type = uint8(h.IntN(16))
	case 3:
		s.Big = h.IntN(2) == 0
		s.Unusable = h.IntN(4) == 0 && !code
	}
	return s
}

// state is a random state in a mode.
func (h *hostile) state(mode int, bsp bool) vcpu.State {
	s := vcpu.PowerUp(bsp)
	r := &s.Regs
	for _, p := range []*uint64{&r.RAX, &r.RCX, &r.RDX, &r.RBX, &r.RBP, &r.RSI, &r.RDI, &r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15} {
		*p = h.value()
	}
	r.RIP = uint64(h.IntN(hostileSize))
	r.RSP = uint64(h.IntN(hostileSize)) &^ uint64(h.IntN(2)*7)
	r.RFLAGS = h.Uint64()&0x254dd5 | 2
	if h.IntN(8) != 0 {
		r.RFLAGS &^= flagTF
	}
	s.GDT = vcpu.Table{Base: hostileGDT, Limit: uint16(h.pick(0xff, 0x7f, 0xff)) | 0x100}
	s.IDT = vcpu.Table{Base: hostileIDT, Limit: 0xfff}
	k := &s.Control
	k.CR2, k.CR8 = h.Uint64(), uint64(h.IntN(16))
	name := hostileModes[mode]
	if name != "real" {
		k.CR0 |= cr0PE
		s.Segments = vcpu.Segments{
			CS: h.segment(true), SS: h.segment(false), DS: h.segment(false), ES: h.segment(false), FS: h.segment(false), GS: h.segment(false),
			TR:  vcpu.Segment{Selector: selTSS, Base: hostileTSS, Limit: 0xfff, Type: 11, System: true, Present: true},
			LDT: vcpu.Segment{Base: hostileGDT, Limit: 0xff, Type: 2, System: true, Present: true},
		}
		s.Segments.SS.DPL = 0
		if h.IntN(4) == 0 {
			s.Segments.SS.DPL = uint8(h.IntN(4))
		}
	} else {
		s.Segments.CS.Base = uint64(h.IntN(16)) << 16
		s.IDT.Base = 0
		r.RIP &= 0xffff
	}
	k.CR4 = h.Uint64() & h.e.cpus[0].cr4Valid &^ (cr4PAE | cr4SMEP | cr4SMAP)
	if h.IntN(2) == 0 {
		k.CR4 |= cr4OSFXSR | cr4OSXSAVE
	}
	k.CR0 |= uint64(h.IntN(2))<<16 | uint64(h.IntN(64))&0x2e
	if h.IntN(4) != 0 {
		k.CR0 &^= cr0EM | cr0TS
	}
	k.EFER = eferSCE * uint64(h.IntN(2))
	paging := func(pae, long bool) {
		k.CR0 |= cr0PG
		k.CR3 = hostileTables
		if h.IntN(10) == 0 {
			k.CR3 = uint64(h.IntN(hostileSize))
		}
		if pae {
			k.CR4 |= cr4PAE
			k.EFER |= eferNXE * uint64(h.IntN(2))
		}
		if long {
			k.EFER |= eferLME | eferLMA
		}
	}
	switch name {
	case "protected 16":
		s.Segments.CS.Big = false
	case "paging 32":
		paging(false, false)
	case "PAE":
		paging(true, false)
	case "compatibility", "compatibility, CPL 3":
		paging(true, true)
	case "long, CPL 0", "long, CPL 3":
		paging(true, true)
		s.Segments.CS = flatCode(selCode, 0, true)
	}
	if name == "long, CPL 3" || name == "compatibility, CPL 3" {
		s.Segments.CS.Selector, s.Segments.CS.DPL = selUser, 3
		s.Segments.SS.Selector, s.Segments.SS.DPL = selUserSS, 3
	}
	if h.IntN(6) == 0 {
		for i := range s.Debug.DR {
			s.Debug.DR[i] = h.value()
		}
		s.Debug.DR6, s.Debug.DR7 = uint64(h.Uint32()), uint64(h.Uint32())&^0xdc00
	}
	s.XCRs = []vcpu.XCR{{Value: 1 + 2*uint64(h.IntN(2))}}
	if h.IntN(3) == 0 {
		s.XSAVE = h.bytes(xsaveSize)
		s.XSAVE[26], s.XSAVE[27] = 0, 0
		clear(s.XSAVE[512:])
		binary.LittleEndian.PutUint64(s.XSAVE[512:], uint64(h.IntN(4)))
	}
	if h.IntN(8) == 0 {
		s.LAPIC = h.bytes(4096)
	}
	for range h.IntN(4) {
		m := vcpu.MSR{Index: savedMSRs[h.IntN(len(savedMSRs))], Value: h.value()}
		s.MSRs = append(s.MSRs, m)
	}
	if h.IntN(10) == 0 {
		s.Events = vcpu.Events{
			Exception: vcpu.Exception{Pending: h.IntN(2) == 0, Injected: h.IntN(2) == 0, Vector: uint8(h.IntN(32)),
				HasErrorCode: h.IntN(2) == 0, ErrorCode: h.Uint32(), HasPayload: h.IntN(2) == 0, Payload: h.Uint64()},
			Interrupt: vcpu.Interrupt{Injected: h.IntN(2) == 0, Soft: h.IntN(2) == 0, Vector: uint8(h.Uint32())},
			NMI:       vcpu.NMI{Injected: h.IntN(4) == 0, Pending: uint8(h.IntN(3)), Masked: h.IntN(2) == 0},
			ShadowSTI: h.IntN(2) == 0, SIPI: uint8(h.IntN(256)),
		}
		s.MP = vcpu.MPState(h.IntN(5))
	}
	if h.IntN(6) == 0 {
		k.APICBase |= vcpu.APICBaseX2APIC
	}
	s.TSC = h.value()
	if h.IntN(6) == 0 {
		s.TSCHz = 1e6 + h.Uint64N(1e12-1e6)
	}
	return s
}
