package soft

import "math/bits"

// The string comparisons of SSE4.2 (Intel SDM volume 1, section 12.13, and volume 2,
// section 4.1). The immediate tells the format of the elements in bits 0 and 1, how
// they are compared in bits 2 and 3, the polarity in bits 4 and 5, and in bit 6 which
// end or which kind of mask is wanted.

var vectorStrings = []vector{
	{pp: pp66, op: 0x60, lower: lowerString, fn: pcmpestrM, size: 16},
	{pp: pp66, op: 0x61, lower: lowerString, fn: pcmpestrI, size: 16},
	{pp: pp66, op: 0x62, lower: lowerString, fn: pcmpistrM, size: 16},
	{pp: pp66, op: 0x63, lower: lowerString, fn: pcmpistrI, size: 16},
}

func lowerString(l *lowerer, v *vector) bool {
	lowerXX(l, v)
	l.ops[len(l.ops)-1].size = l.wide() // of explicit lengths
	return true
}

// strings are the two operands of a comparison.
type stringPair struct {
	a, b   xmm
	na, nb int // elements that are valid
	n      int // elements in a register: 8 or 16
	signed bool
}

// element is number i of a register.
func (p *stringPair) element(x *xmm, i int) int {
	if p.n == 8 {
		v := x[i>>2] >> (i & 3 * 16)
		if p.signed {
			return int(int16(v))
		}
		return int(uint16(v))
	}
	v := x[i>>3] >> (i & 7 * 8)
	if p.signed {
		return int(int8(v))
	}
	return int(uint8(v))
}

// zero is the number of the first element that is zero.
func (p *stringPair) zero(x *xmm) int {
	for i := range p.n {
		if p.element(x, i) == 0 {
			return i
		}
	}
	return p.n
}

// explicit is a length from a general register.
func (p *stringPair) explicit(v uint64, size uint8) int {
	n := int64(signExtend(v, size))
	if n > -16 && n < 0 {
		n = -n
	}
	if n < 0 || n > int64(p.n) {
		return p.n
	}
	return int(n)
}

// any: element j of b is one of a's.
func (p *stringPair) any(j int) bool {
	for i := range p.na {
		if p.element(&p.a, i) == p.element(&p.b, j) {
			return true
		}
	}
	return false
}

// ranges: element j of b is in a range that two elements of a make.
func (p *stringPair) ranges(j int) bool {
	v := p.element(&p.b, j)
	for i := 0; i+1 < p.na; i += 2 {
		if p.element(&p.a, i) <= v && v <= p.element(&p.a, i+1) {
			return true
		}
	}
	return false
}

// each: elements j are equal, or both strings have ended.
func (p *stringPair) each(j int) bool {
	if j >= p.na || j >= p.nb {
		return j >= p.na && j >= p.nb
	}
	return p.element(&p.a, j) == p.element(&p.b, j)
}

// ordered: a is in b from j on, as far as the register goes.
func (p *stringPair) ordered(j int) bool {
	for i := 0; i < p.na && i+j < p.n; i++ {
		if i+j >= p.nb || p.element(&p.a, i) != p.element(&p.b, i+j) {
			return false
		}
	}
	return true
}

// compare returns a bit for each element of b, and sets the flags.
func (c *CPU) compareStrings(p *stringPair, imm uint64) uint32 {
	var r uint32
	for j := range p.n {
		var is bool
		switch imm >> 2 & 3 {
		case 0:
			is = j < p.nb && p.any(j)
		case 1:
			is = j < p.nb && p.ranges(j)
		case 2:
			is = p.each(j)
		case 3:
			is = p.ordered(j)
		}
		r |= uint32(bit(is)) << j
	}
	switch imm >> 4 & 3 {
	case 1:
		r ^= 1<<p.n - 1
	case 3:
		r ^= 1<<p.nb - 1
	}
	c.setArith(bit(r != 0) | bit(p.nb < p.n)<<6 | bit(p.na < p.n)<<7 | uint64(r&1)<<11)
	return r
}

// operands takes the registers apart by the format.
func (c *CPU) stringOperands(u *uop) stringPair {
	p := stringPair{a: *c.x(u.d), b: *c.x(u.s), n: 16, signed: u.imm&2 != 0}
	if u.imm&1 != 0 {
		p.n = 8
	}
	return p
}

// explicitStrings compares strings with lengths in EAX and EDX.
func (c *CPU) explicitStrings(u *uop) (r uint32, n int) {
	p := c.stringOperands(u)
	p.na, p.nb = p.explicit(c.r[regRAX], u.size), p.explicit(c.r[regRDX], u.size)
	return c.compareStrings(&p, u.imm), p.n
}

// implicitStrings compares strings that end with a zero.
func (c *CPU) implicitStrings(u *uop) (r uint32, n int) {
	p := c.stringOperands(u)
	p.na, p.nb = p.zero(&p.a), p.zero(&p.b)
	return c.compareStrings(&p, u.imm), p.n
}

func pcmpestrI(c *CPU, u *uop) stop {
	r, n := c.explicitStrings(u)
	return c.stringIndex(u, r, n)
}

func pcmpistrI(c *CPU, u *uop) stop {
	r, n := c.implicitStrings(u)
	return c.stringIndex(u, r, n)
}

func pcmpestrM(c *CPU, u *uop) stop {
	r, n := c.explicitStrings(u)
	return c.stringMask(u, r, n)
}

func pcmpistrM(c *CPU, u *uop) stop {
	r, n := c.implicitStrings(u)
	return c.stringMask(u, r, n)
}

// stringIndex puts the number of the first or last match in ECX.
func (c *CPU) stringIndex(u *uop, r uint32, n int) stop {
	switch {
	case r == 0:
	case u.imm&0x40 != 0:
		n = bits.Len32(r) - 1
	default:
		n = bits.TrailingZeros32(r)
	}
	c.r[regRCX] = uint64(n)
	return next
}

// stringMask puts the bits, or as many elements, in XMM0.
func (c *CPU) stringMask(u *uop, r uint32, n int) stop {
	m := uint64(r)
	switch {
	case u.imm&0x40 == 0:
		c.xmm[0] = xmm{m}
	case n == 8:
		c.xmm[0] = xmm{words16(m), words16(m >> 4)}
	default:
		c.xmm[0] = xmm{bytes8(m), bytes8(m >> 8)}
	}
	return next
}

// bytes8 fills a byte for each of eight bits.
func bytes8(m uint64) uint64 {
	m = m & 0xff * low8 & 0x8040201008040201
	return ^equalLanes(m, 0, high8, 7)
}
