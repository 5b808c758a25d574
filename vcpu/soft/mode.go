package soft

import "github.com/vmkit-go/vmkit/vcpu"

// setSegment loads a segment register with its hidden part. The caller calls updateMode
// once it has loaded all that it has to.
func (c *CPU) setSegment(i uint8, s vcpu.Segment) {
	c.seg[i] = s
	c.r[regSeg+i&31] = s.Base
}

// updateMode recomputes what follows from CS, SS, DS, ES, CR0, CR4, EFER, CPL, RFLAGS and
// DR7: how code is decoded, which TLB serves it, and what else has to be looked at.
func (c *CPU) updateMode() {
	m := mode16
	switch cs := &c.seg[segCS]; {
	case cs.Long && c.efer&eferLMA != 0:
		m = mode64
	case cs.Big:
		m = mode32
	}
	if m != mode64 {
		if c.seg[segSS].Big {
			m |= modeStack32
		}
		if c.flat() {
			m |= modeFlat
		}
	}
	some, data := c.breakpoints()
	if c.flags&flagTF != 0 || c.step || some {
		m |= modeSingle
	}
	c.mode = m
	c.aligned = c.cpl == 3 && c.flags&flagAC != 0 && c.cr0&cr0AM != 0
	c.updateSpace()
	c.itlb = &c.itlbs[0]
	if c.cpl == 3 {
		c.itlb = &c.itlbs[1]
	}
	if data != c.watched {
		c.watched = data
		c.flushTLB() // no translation may bypass touch, or need not any more
	}
}

// updateSpace recomputes which TLB serves the guest's own accesses.
func (c *CPU) updateSpace() {
	c.space = c.spaceAt(c.cpl)
	c.tlb = &c.tlbs[c.space]
}

// spaceAt is the space of explicit accesses at a privilege level.
func (c *CPU) spaceAt(cpl uint8) space {
	switch {
	case cpl == 3:
		return spaceUser
	case c.flags&flagAC != 0 && c.cr4&cr4SMAP != 0:
		return spaceAC
	}
	return spaceKernel
}

// flat reports whether no access through the segments of flat code needs a base or a
// check. FS and GS are not among them.
func (c *CPU) flat() bool {
	for _, i := range [...]uint8{segES, segCS, segSS, segDS} {
		s := &c.seg[i]
		if s.Base != 0 || s.Limit != 0xffffffff || s.Unusable {
			return false
		}
		code := s.Type&typeCode != 0
		if code && s.Type&typeReadable == 0 || !code && s.Type&(typeWritable|typeDown) != typeWritable {
			return false
		}
	}
	return true
}

// protected reports whether protected mode is on: CR0.PE.
func (c *CPU) protected() bool { return c.cr0&cr0PE != 0 }

// longMode reports whether long mode is active, be it in 64-bit or compatibility mode.
func (c *CPU) longMode() bool { return c.efer&eferLMA != 0 }

// leaveBlock ends the block after u's instruction, wherever in the block that is, with a
// look at interrupts and at the mode.
func (c *CPU) leaveBlock(u *uop) stop {
	c.left += c.cur.n - int64(u.n) - 1
	c.rip = c.nextRIP(u)
	return event
}

// privileged raises #GP(0) unless CPL is 0.
func (c *CPU) privileged() stop {
	if c.cpl != 0 {
		return c.gp()
	}
	return next
}

// The stack in any mode. An offset in SS is cut to the stack's address size.

func (c *CPU) stackMask() uint64 {
	switch {
	case c.is64():
		return ^uint64(0)
	case c.seg[segSS].Big:
		return 0xffffffff
	}
	return 0xffff
}

func (c *CPU) setRSP(v uint64) {
	if m := c.stackMask(); m == 0xffff {
		c.r[regRSP] = c.r[regRSP]&^m | v&m
	} else {
		c.r[regRSP] = v & m
	}
}

// stack returns the linear address of size bytes at an offset in SS.
func (c *CPU) stack(off uint64, size uint8) (uint64, stop) {
	lin := off
	if !c.is64() {
		off &= c.stackMask()
		if !within(&c.seg[segSS], off, uint64(size)) {
			return 0, c.raiseCode(excSS, 0)
		}
		lin = uint64(uint32(c.seg[segSS].Base + off))
	}
	if c.aligned && lin&uint64(size-1) != 0 {
		if !c.canonicalPair(lin, size) {
			return 0, c.notCanonical(true)
		}
		return 0, c.raiseCode(excAC, 0)
	}
	return lin, next
}

// push pushes size bytes. RSP changes only if nothing faults.
func (c *CPU) push(size uint8, v uint64) stop {
	sp := c.r[regRSP] - uint64(size)
	lin, s := c.stack(sp, size)
	if s != next {
		return s
	}
	if s = c.writeIn(c.space, true, lin, size, v); s <= leave {
		c.setRSP(sp)
	}
	return s
}

// peek reads size bytes at an offset from RSP.
func (c *CPU) peek(off uint64, size uint8) (uint64, stop) {
	lin, s := c.stack(c.r[regRSP]+off, size)
	if s != next {
		return 0, s
	}
	return c.readIn(c.space, true, lin, size)
}

// within reports whether size bytes at off lie in a segment (Intel SDM volume 3,
// section 5.3).
func within(s *vcpu.Segment, off, size uint64) bool {
	last := off + size - 1
	if s.Type&(typeCode|typeDown) == typeDown && !s.System {
		top := uint64(0xffff)
		if s.Big {
			top = 0xffffffff
		}
		return off > uint64(s.Limit) && last <= top
	}
	return last <= uint64(s.Limit)
}
