package x86diff

import "encoding/binary"

// emulated is what a processor that QEMU emulates, with KVM on it as in the nested
// host, does otherwise than the manuals say, or where they leave it open. An entry
// reports whether want and got, which comes from a processor that does as they say,
// differ in its one point, and if so makes got equal to want there. It asks for all
// that its reason tells, in that one direction: a processor of silicon differs in
// none of those that are QEMU's.
var emulated = [...]struct {
	reason string
	excuse func(c *SystemCase, want, got *SystemOutcome) bool
}{
	{reason: "QEMU does not set RF in the frame of a fault", excuse: func(_ *SystemCase, want, got *SystemOutcome) bool {
		const rf = 1 << 16
		if got.Vector < 0 || want.Regs.RFLAGS&rf != 0 || got.Regs.RFLAGS&rf == 0 {
			return false
		}
		got.Regs.RFLAGS &^= rf
		return true
	}},
	{reason: "QEMU leaves P out of the error code of a page fault for reserved bits", excuse: func(_ *SystemCase, want, got *SystemOutcome) bool {
		if want.Vector != 14 || got.Vector != 14 || want.ErrorCode&9 != 8 || got.ErrorCode&9 != 9 {
			return false
		}
		got.ErrorCode &^= 1
		return true
	}},
	{reason: "QEMU reads first what an instruction reads and writes: the fault is a read's, and may be the second page's", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		const p, w = 1, 2
		at := c.initial.RBX
		if !c.modifies() || want.Vector != 14 || got.Vector != 14 || want.ErrorCode&w != 0 || got.ErrorCode&w == 0 {
			return false
		}
		got.ErrorCode &^= w
		// The first page cannot be written, but read.
		if got.ErrorCode&p != 0 && got.CR2 == at && want.CR2 == at|4095+1 && want.CR2 < at+8 {
			got.CR2, got.ErrorCode = want.CR2, want.ErrorCode
		}
		return true
	}},
	{reason: "QEMU reads first: after a fault the accessed and dirty bits of the operand's pages are a read's", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		return c.modifies() && want.Vector == 14 && got.Vector == 14 && sameButAccess(want, got)
	}},
	{reason: "QEMU's LAR clears bits 19:16, which are undefined", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		if c.Kind != "lar" || want.Regs.RDX == got.Regs.RDX || want.Regs.RDX != got.Regs.RDX&^0xf0000 {
			return false
		}
		got.Regs.RDX = want.Regs.RDX
		return true
	}},
	{reason: "QEMU's error codes for gates of 64 bits count 16 bytes a gate twice", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		v := uint32(c.Code[1])
		if c.Kind != "interrupt" || got.Vector != want.Vector || got.ErrorCode != v<<3|2 || want.ErrorCode != v<<4|2 {
			return false
		}
		got.ErrorCode = want.ErrorCode
		return true
	}},
	{reason: "QEMU loads a null selector into SS at CPL 0 whatever its RPL", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		ss := c.Kind == "segment" && c.Code[1] == 0xd0
		return ss && c.CPL == 0 && nullSelector(c.initial.RAX) && c.initial.RAX&3 != 0 && passes(want, got)
	}},
	{reason: "QEMU's LTR takes a null selector", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		return c.Kind == "ltr" && nullSelector(c.initial.RAX) && passes(want, got)
	}},
	{reason: "QEMU loads SS with null when an interrupt goes to a stack of the IST without a change of CPL", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		w, g := &want.Segments.SS, &got.Segments.SS
		if c.Kind != "interrupt" || c.CPL != 0 || want.Vector < 32 || !w.Unusable || w.Selector != 0 || g.Selector != selData0 {
			return false
		}
		*g = *w
		return true
	}},
	{reason: "QEMU keeps reserved bits of DR6 and DR7 as they are written", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		w, g := &want.Debug, &got.Debug
		if c.Kind != "mov dr" || *w == *g || w.DR6&^0x1000 != g.DR6 || w.DR7&^0xd800 != g.DR7 {
			return false
		}
		g.DR6, g.DR7 = w.DR6, w.DR7
		return true
	}},
	{reason: "QEMU reads the frame of a far return at CPL 3 as if at CPL 0, against SMAP", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		far := c.Kind == "iret" || c.Kind == "far return"
		if !far || c.CPL != 3 || want.Vector != 14 || want.ErrorCode != 1 || want.Control.CR4>>21&1 == 0 {
			return false
		}
		*got = *want
		return true
	}},
	{reason: "QEMU's LAR and LSL know system segments of 16 bits in long mode", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		const zf = 1 << 6
		t := c.descriptor(c.initial.RAX) >> 40 & 31
		if c.Kind != "lar" && c.Kind != "lsl" || t != 1 && t != 3 && t != 4 && t != 5 {
			return false
		}
		if want.Regs.RFLAGS&zf == 0 || got.Regs.RFLAGS&zf != 0 {
			return false
		}
		got.Regs.RDX, got.Regs.RFLAGS = want.Regs.RDX, got.Regs.RFLAGS|zf
		return true
	}},
	{reason: "QEMU's LAR and LSL do not look at the upper half of a system segment in long mode", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		const zf = 1 << 6
		sel := c.initial.RAX
		t := c.descriptor(sel) >> 40 & 31
		if c.Kind != "lar" && c.Kind != "lsl" || t != 2 && t != 9 && t != 11 && t != 12 {
			return false
		}
		last := sel&^7 == randomSel+8*(randomSels-1) // the limit is before its upper half
		if !last && c.descriptor(sel+8)>>40&31 == 0 || want.Regs.RFLAGS&zf == 0 || got.Regs.RFLAGS&zf != 0 {
			return false
		}
		got.Regs.RDX, got.Regs.RFLAGS = want.Regs.RDX, got.Regs.RFLAGS|zf
		return true
	}},
	{reason: "QEMU's far returns take code segments with both L and D", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		far := c.Kind == "iret" || c.Kind == "far return"
		sel := c.initial.RAX
		if !far || c.descriptor(sel)>>53&3 != 3 || got.Vector != 13 || got.ErrorCode != uint32(sel&0xfffc) || want.Vector == 13 {
			return false
		}
		*got = *want
		return true
	}},
	{reason: "KVM lets CR4.VME and PVI be set for a CPU without virtual-8086 extensions", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		return c.Kind == "mov cr4" && c.initial.RCX&3 != 0 && passes(want, got)
	}},
	{reason: "KVM leaves it to the processor whether MSRs with addresses are canonical, and QEMU does not look", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		v := int64(c.initial.RDX<<32 | c.initial.RAX&0xffffffff)
		switch c.initial.RCX {
		case 0xc0000082, 0xc0000083, 0xc0000100, 0xc0000101, 0xc0000102:
			return c.Kind == "wrmsr" && v<<16>>16 != v && passes(want, got)
		}
		return false
	}},
	{reason: "neither looks at the upper half of SFMASK, which is reserved", excuse: func(c *SystemCase, want, got *SystemOutcome) bool {
		return c.Kind == "wrmsr" && c.initial.RCX == 0xc0000084 && uint32(c.initial.RDX) != 0 && passes(want, got)
	}},
}

// descriptor returns a random descriptor, or 0 if the selector is of none.
func (c *SystemCase) descriptor(sel uint64) uint64 {
	i := (sel&0xfff8 - randomSel) / 8
	if sel&4 != 0 || i >= randomSels {
		return 0
	}
	return c.gdt[i]
}

func nullSelector(v uint64) bool { return v&0xfffc == 0 }

// modifies reports whether the case has an instruction that reads and writes.
func (c *SystemCase) modifies() bool {
	return c.Kind == "modify" || c.Kind == "compare"
}

// passes reports whether got has raised #GP(0) where want has got to the end, and
// makes them equal if so.
func passes(want, got *SystemOutcome) bool {
	if want.Vector != 3 || got.Vector != 13 || got.ErrorCode != 0 || got.Regs.RIP != codeBase+0x800 {
		return false
	}
	*got = *want
	return true
}

// sameButAccess reports whether memory differs, and in nothing but accessed and
// dirty bits of page tables, and makes it equal if so.
func sameButAccess(want, got *SystemOutcome) bool {
	left := map[uint64]uint64{}
	for _, m := range got.Memory {
		left[m.Addr] = binary.LittleEndian.Uint64(m.Data)
	}
	differ := false
	other := func(addr uint64) bool { return addr < tableBase || addr >= tablesEnd }
	for _, m := range want.Memory {
		w := binary.LittleEndian.Uint64(m.Data)
		g, ok := left[m.Addr]
		delete(left, m.Addr)
		if ok && g == w {
			continue
		}
		if other(m.Addr) || ok && (g^w)&^(pteA|pteD) != 0 {
			return false
		}
		differ = true
	}
	for addr := range left {
		if other(addr) {
			return false
		}
		differ = true
	}
	if differ {
		got.Memory = want.Memory
	}
	return differ
}
