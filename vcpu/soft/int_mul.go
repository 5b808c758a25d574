package soft

import "math/bits"

func registerMultiply() {
	lower0F[0xaf] = func(l *lowerer) bool { // IMUL r, r/m
		size := l.in.OpSize
		l.imul(size, l.in.Reg, l.source(size), 0, false)
		return true
	}
	each(&lowerPrimary, func(l *lowerer) bool { // IMUL r, r/m, imm
		size := l.in.OpSize
		l.imul(size, l.in.Reg, l.source(size), l.in.Imm, true)
		return true
	}, 0x69, 0x6b)
}

func (l *lowerer) imul(size, d, s uint8, imm uint64, three bool) {
	k := kindIMul64
	switch size {
	case 4:
		k = kindIMul32
	case 2:
		u := l.call((*CPU).imul16)
		u.d, u.s, u.imm, u.cc = d, s, imm, uint8(bit(three))
		return
	}
	u := l.emit(k)
	u.d, u.s, u.imm, u.b = d, s, imm, uint8(bit(three))
}

func (c *CPU) imul16(u *uop) stop {
	m := int32(int16(u.imm))
	if u.cc == 0 {
		m = int32(int16(c.r[u.d&31]))
	}
	p := int32(int16(c.r[u.s&31])) * m
	over := bit(p != int32(int16(p)))
	c.setArith(szp(uint64(uint16(p)), 2) | over | over<<11)
	c.set(u.d, 2, uint64(p))
	return next
}

// group3 adds MUL, IMUL, DIV or IDIV of the accumulator by r/m.
func (l *lowerer) group3(size uint8) *uop {
	s := l.source(size)
	f := [...]func(*CPU, *uop) stop{(*CPU).mul, (*CPU).imul, (*CPU).div, (*CPU).idiv}[l.in.Reg&3]
	u := l.call(f)
	u.s = s
	return u
}

// setProduct stores a double-width product; over says that the upper half matters.
func (c *CPU) setProduct(size uint8, hi, lo uint64, over bool) {
	if size == 1 {
		c.set(regRAX, 2, hi<<8|lo&0xff)
	} else {
		c.set(regRAX, size, lo)
		c.set(regRDX, size, hi)
	}
	o := bit(over)
	c.setArith(szp(lo, size) | o | o<<11)
}

func (c *CPU) mul(u *uop) stop {
	a, b := c.get(regRAX, u.size), c.get(u.s, u.size)
	hi, lo := bits.Mul64(a, b)
	if w := 8 * uint(u.size); w < 64 {
		hi, lo = lo>>w, lo&maskOf(u.size)
	}
	c.setProduct(u.size, hi, lo, hi != 0)
	return next
}

func (c *CPU) imul(u *uop) stop {
	a, b := signExtend(c.r[regRAX], u.size), signExtend(c.get(u.s, u.size), u.size)
	hi, lo := bits.Mul64(a, b)
	hi -= uint64(int64(a)>>63)&b + uint64(int64(b)>>63)&a
	if w := 8 * uint(u.size); w < 64 {
		over := lo != signExtend(lo, u.size)
		c.setProduct(u.size, lo>>w&maskOf(u.size), lo&maskOf(u.size), over)
		return next
	}
	c.setProduct(8, hi, lo, hi != uint64(int64(lo)>>63))
	return next
}

// dividend is the double-width operand of a division.
func (c *CPU) dividend(size uint8) (hi, lo uint64) {
	if size == 1 {
		return c.r[regRAX] >> 8 & 0xff, c.r[regRAX] & 0xff
	}
	return c.get(regRDX, size), c.get(regRAX, size)
}

func (c *CPU) setQuotient(size uint8, q, r uint64) {
	if size == 1 {
		c.set(regRAX, 2, q&0xff|r&0xff<<8)
		return
	}
	c.set(regRAX, size, q)
	c.set(regRDX, size, r)
}

func (c *CPU) div(u *uop) stop {
	d := c.get(u.s, u.size)
	hi, lo := c.dividend(u.size)
	if hi >= d { // also d == 0
		return c.raise(excDE)
	}
	if w := 8 * uint(u.size); w < 64 {
		n := hi<<w | lo
		c.setQuotient(u.size, n/d, n%d)
		return next
	}
	q, r := bits.Div64(hi, lo, d)
	c.setQuotient(8, q, r)
	return next
}

func (c *CPU) idiv(u *uop) stop {
	d := int64(signExtend(c.get(u.s, u.size), u.size))
	hi, lo := c.dividend(u.size)
	if d == 0 {
		return c.raise(excDE)
	}
	if w := 8 * uint(u.size); w < 64 {
		n := int64(signExtend(hi<<w|lo, 2*u.size))
		if d == -1 && n == -n && n != 0 {
			return c.raise(excDE)
		}
		q, r := n/d, n%d
		if q != int64(signExtend(uint64(q), u.size)) {
			return c.raise(excDE)
		}
		c.setQuotient(u.size, uint64(q), uint64(r))
		return next
	}
	neg := int64(hi) < 0
	if neg {
		var borrow uint64
		lo, borrow = bits.Sub64(0, lo, 0)
		hi, _ = bits.Sub64(0, hi, borrow)
	}
	m := uint64(d)
	if d < 0 {
		m = -m
	}
	if hi >= m {
		return c.raise(excDE)
	}
	q, r := bits.Div64(hi, lo, m)
	limit := uint64(1)<<63 - 1
	if neg != (d < 0) {
		if q > limit+1 {
			return c.raise(excDE)
		}
		q = -q
	} else if q > limit {
		return c.raise(excDE)
	}
	if neg {
		r = -r
	}
	c.setQuotient(8, q, r)
	return next
}
