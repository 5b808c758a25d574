package soft

import "github.com/vmkit-go/vmkit/vcpu"

// lowerGroup6 is 0F 00: the instructions on LDTR and TR, and VERR and VERW.
func lowerGroup6(l *lowerer) bool {
	in := &l.in
	op := in.Reg & 7
	switch {
	case op > 5:
		return false
	case op <= 1: // SLDT, STR
		if in.Mem {
			o := l.mem()
			u := l.call((*CPU).storeSelector)
			u.cc, u.d, u.size = op, regT0, 4
			l.store(regT0, 2, 0, o)
			return true
		}
		u := l.call((*CPU).storeSelector)
		u.cc, u.d = op, in.RM
		return true
	}
	from := in.RM
	if op == 2 || op == 3 { // before the operand is looked at
		l.call((*CPU).systemOnly)
	}
	if in.Mem {
		l.load(regT0, 2, l.mem())
		from = regT0
	}
	u := l.call((*CPU).verify)
	switch op {
	case 2:
		u.fn = (*CPU).lldt
	case 3:
		u.fn = (*CPU).ltr
	}
	u.s, u.cc = from, op
	return true
}

func (c *CPU) storeSelector(u *uop) stop {
	if !c.protected() {
		return c.raise(excUD)
	}
	if c.umip() {
		return c.gp()
	}
	sel := uint64(c.ldtr.Selector)
	if u.cc == 1 {
		sel = uint64(c.tr.Selector)
	}
	if u.size == 2 {
		sel |= c.r[u.d&31] &^ 0xffff
	}
	c.r[u.d&31] = sel
	return next
}

// systemSegment reads the descriptor of a system segment in the GDT for LLDT and LTR.
func (c *CPU) systemSegment(sel uint16, kinds ...uint8) (seg vcpu.Segment, d, at uint64, s stop) {
	if sel&4 != 0 {
		return seg, 0, 0, c.selectorFault(excGP, sel)
	}
	if d, at, s = c.descriptor(sel, excGP); s != next {
		return seg, 0, 0, s
	}
	seg = segmentOf(sel, d)
	ok := false
	for _, k := range kinds {
		ok = ok || seg.Type == k
	}
	if !seg.System || !ok {
		return seg, 0, 0, c.selectorFault(excGP, sel)
	}
	if !seg.Present {
		return seg, 0, 0, c.selectorFault(excNP, sel)
	}
	if c.longMode() {
		high, s := c.descriptorHigh(sel, at, excGP)
		if s != next {
			return seg, 0, 0, s
		}
		seg.Base |= high << 32
		if high>>40&31 != 0 || !canonical(seg.Base) {
			return seg, 0, 0, c.selectorFault(excGP, sel)
		}
	}
	return seg, d, at, next
}

// systemOnly raises #UD outside protected mode and #GP(0) unless CPL is 0.
func (c *CPU) systemOnly(*uop) stop {
	if !c.protected() {
		return c.raise(excUD)
	}
	return c.privileged()
}

func (c *CPU) lldt(u *uop) stop {
	sel := uint16(c.r[u.s&31])
	if null(sel) {
		c.ldtr = vcpu.Segment{Selector: sel, Unusable: true}
		return next
	}
	seg, _, _, s := c.systemSegment(sel, sysLDT)
	if s == next {
		c.ldtr = seg
	}
	return s
}

func (c *CPU) ltr(u *uop) stop {
	sel := uint16(c.r[u.s&31])
	if null(sel) {
		return c.gp()
	}
	small := uint8(sysTSS16)
	if c.longMode() {
		small = sysTSS
	}
	seg, d, at, s := c.systemSegment(sel, small, sysTSS)
	if s != next {
		return s
	}
	s = c.systemWrite(at+5, 1, (d|descBusy)>>40&0xff)
	if s > leave {
		return s
	}
	seg.Type |= 2 // busy
	c.tr = seg
	return s
}

// peekDescriptor reads a descriptor for an instruction that only looks: what would be a
// fault of the selector is a false ok.
func (c *CPU) peekDescriptor(sel uint16) (d, at uint64, ok bool, s stop) {
	if null(sel) {
		return 0, 0, false, next
	}
	exc := c.exc
	d, at, s = c.descriptor(sel, excGP)
	if s == fault && c.exc.vector == excGP {
		c.exc = exc
		return 0, 0, false, next
	}
	return d, at, s == next, s
}

// verify is VERR and VERW.
func (c *CPU) verify(u *uop) stop {
	if !c.protected() {
		return c.raise(excUD)
	}
	sel := uint16(c.r[u.s&31])
	d, _, ok, s := c.peekDescriptor(sel)
	if s != next {
		return s
	}
	if ok {
		seg := segmentOf(sel, d)
		code := seg.Type&typeCode != 0
		conforming := code && seg.Type&typeConform != 0
		ok = !seg.System && (conforming || c.cpl <= seg.DPL && uint8(sel&3) <= seg.DPL)
		if u.cc == 4 {
			ok = ok && (!code || seg.Type&typeReadable != 0)
		} else {
			ok = ok && !code && seg.Type&typeWritable != 0
		}
	}
	c.setZero(ok)
	return next
}

// setZero sets ZF alone.
func (c *CPU) setZero(z bool) { c.setArith(c.arith()&^flagZF | bit(z)<<6) }

// lowerLAR is LAR and LSL.
func lowerLAR(l *lowerer) bool {
	in := &l.in
	from := in.RM
	if in.Mem {
		l.load(regT0, 2, l.mem())
		from = regT0
	}
	u := l.call((*CPU).lar)
	u.s, u.d, u.cc = from, in.Reg, in.Op&1
	return true
}

func (c *CPU) lar(u *uop) stop {
	if !c.protected() {
		return c.raise(excUD)
	}
	sel := uint16(c.r[u.s&31])
	d, at, ok, s := c.peekDescriptor(sel)
	if s != next {
		return s
	}
	seg := segmentOf(sel, d)
	if ok {
		conforming := !seg.System && seg.Type&(typeCode|typeConform) == typeCode|typeConform
		ok = conforming || c.cpl <= seg.DPL && uint8(sel&3) <= seg.DPL
		if seg.System {
			ok = ok && c.hasRights(seg.Type, u.cc == 1)
			if ok && c.longMode() { // its descriptor has 16 bytes
				exc := c.exc
				high, s := c.descriptorHigh(sel, at, excGP)
				if s == fault && c.exc.vector == excGP {
					c.exc, ok = exc, false
				} else if s != next {
					return s
				} else if high>>40&31 != 0 {
					ok = false
				}
			}
		}
	}
	c.setZero(ok)
	if !ok {
		return next
	}
	v := d >> 32 & 0x00ffff00
	if u.cc == 1 {
		v = uint64(seg.Limit)
	}
	if u.size == 2 {
		v = c.r[u.d&31]&^0xffff | v&0xffff
	}
	c.r[u.d&31] = v
	return next
}

// hasRights reports whether LAR or LSL knows a type of system descriptor.
func (c *CPU) hasRights(t uint8, limit bool) bool {
	switch t {
	case sysTSS16, sysTSS16Busy:
		return !c.longMode()
	case sysLDT, sysTSS, sysTSSBusy:
		return true
	case sysCall16, sysTaskGate:
		return !limit && !c.longMode()
	case sysCall:
		return !limit
	}
	return false
}

// lowerARPL is opcode 63 outside 64-bit code.
func lowerARPL(l *lowerer) bool {
	in := &l.in
	if !in.Mem {
		u := l.call((*CPU).arpl)
		u.d, u.s = in.RM, in.Reg
		return true
	}
	o := l.mem()
	l.probe(2, o)
	l.load(regT0, 2, o)
	u := l.call((*CPU).arpl)
	u.d, u.s = regT0, in.Reg
	l.store(regT0, 2, 0, o)
	return true
}

func (c *CPU) arpl(u *uop) stop {
	if !c.protected() {
		return c.raise(excUD)
	}
	d, s := c.r[u.d&31], c.r[u.s&31]
	less := d&3 < s&3
	if less {
		c.r[u.d&31] = d&^3 | s&3
	}
	c.setZero(less)
	return next
}
