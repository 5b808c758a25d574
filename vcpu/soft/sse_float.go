package soft

import "github.com/vmkit-go/vmkit/vcpu/soft/float"

// Floating-point arithmetic (Intel SDM volume 1, sections 10.4, 11.4, 12.3 and 12.8).
// Package float has the numbers; here are the elements and the exceptions.

type (
	op32 func(m *float.MXCSR, a, b uint32) uint32
	op64 func(m *float.MXCSR, a, b uint64) uint64
)

var vectorFloats = join(
	arithmetic(0x51, sqrt32, sqrt64),
	arithmetic(0x58, (*float.MXCSR).Add32, (*float.MXCSR).Add64),
	arithmetic(0x59, (*float.MXCSR).Mul32, (*float.MXCSR).Mul64),
	arithmetic(0x5c, (*float.MXCSR).Sub32, (*float.MXCSR).Sub64),
	arithmetic(0x5d, (*float.MXCSR).Min32, (*float.MXCSR).Min64),
	arithmetic(0x5e, (*float.MXCSR).Div32, (*float.MXCSR).Div64),
	arithmetic(0x5f, (*float.MXCSR).Max32, (*float.MXCSR).Max64),
	[]vector{
		{op: 0x2e, lower: lowerXX, fn: ucomiSS, size: 4},
		{op: 0x2e, pp: pp66, lower: lowerXX, fn: ucomiSD, size: 8},
		{op: 0x2f, lower: lowerXX, fn: comiSS, size: 4},
		{op: 0x2f, pp: pp66, lower: lowerXX, fn: comiSD, size: 8},
		{op: 0x52, lower: lowerXX, fn: packedSingle(rsqrt32)},
		{op: 0x52, pp: ppF3, lower: lowerXX, fn: scalarSingle(rsqrt32), size: 4},
		{op: 0x53, lower: lowerXX, fn: packedSingle(rcp32)},
		{op: 0x53, pp: ppF3, lower: lowerXX, fn: scalarSingle(rcp32), size: 4},
		{op: 0x7c, pp: pp66, lower: lowerXX, fn: horizontalDouble((*float.MXCSR).Add64)},
		{op: 0x7c, pp: ppF2, lower: lowerXX, fn: horizontalSingle((*float.MXCSR).Add32)},
		{op: 0x7d, pp: pp66, lower: lowerXX, fn: horizontalDouble((*float.MXCSR).Sub64)},
		{op: 0x7d, pp: ppF2, lower: lowerXX, fn: horizontalSingle((*float.MXCSR).Sub32)},
		{op: 0xc2, lower: lowerXX, fn: cmpPS},
		{op: 0xc2, pp: pp66, lower: lowerXX, fn: cmpPD},
		{op: 0xc2, pp: ppF3, lower: lowerXX, fn: cmpSS, size: 4},
		{op: 0xc2, pp: ppF2, lower: lowerXX, fn: cmpSD, size: 8},
		{op: 0xd0, pp: pp66, lower: lowerXX, fn: addSubPD},
		{op: 0xd0, pp: ppF2, lower: lowerXX, fn: addSubPS},
	})

var vectorFloats3A = []vector{
	{pp: pp66, op: 0x08, lower: lowerXX, fn: roundPS},
	{pp: pp66, op: 0x09, lower: lowerXX, fn: roundPD},
	{pp: pp66, op: 0x0a, lower: lowerXX, fn: roundSS, size: 4},
	{pp: pp66, op: 0x0b, lower: lowerXX, fn: roundSD, size: 8},
	{pp: pp66, op: 0x40, lower: lowerXX, fn: dpPS},
	{pp: pp66, op: 0x41, lower: lowerXX, fn: dpPD},
}

// arithmetic lists the four forms of an operation.
func arithmetic(op byte, f32 op32, f64 op64) []vector {
	return []vector{
		{op: op, lower: lowerXX, fn: packedSingle(f32)},
		{op: op, pp: pp66, lower: lowerXX, fn: packedDouble(f64)},
		{op: op, pp: ppF3, lower: lowerXX, fn: scalarSingle(f32), size: 4},
		{op: op, pp: ppF2, lower: lowerXX, fn: scalarDouble(f64), size: 8},
	}
}

// floatBegin returns MXCSR for the elements of one instruction.
func (c *CPU) floatBegin() *float.MXCSR {
	c.fm = float.MXCSR(c.mxcsr)
	if !c.fm.AllMasked() {
		c.fm = c.fm.Begin()
	}
	return &c.fm
}

// floatEnd takes the flags over, or raises the exception that keeps the result from
// being written.
func (c *CPU) floatEnd() stop {
	if c.fm.AllMasked() {
		c.mxcsr = uint32(c.fm)
		return next
	}
	m := float.MXCSR(c.mxcsr)
	due := m.End(c.fm)
	c.mxcsr = uint32(m)
	if due {
		return c.floatFault()
	}
	return next
}

// floatFault raises the exception of an unmasked flag.
func (c *CPU) floatFault() stop {
	if c.cr4&cr4OSXMMEXCPT == 0 {
		return c.raise(excUD)
	}
	return c.raise(excXM)
}

// floatSet is floatEnd, and writes d.
func (c *CPU) floatSet(d *xmm, r xmm) stop {
	s := c.floatEnd()
	if s == next {
		*d = r
	}
	return s
}

// floatSet64 and floatSet32 write the lowest element.
func (c *CPU) floatSet64(d *xmm, r uint64) stop { return c.floatSet(d, xmm{r, d[1]}) }

func (c *CPU) floatSet32(d *xmm, r uint32) stop {
	return c.floatSet(d, xmm{d[0]&^0xffffffff | uint64(r), d[1]})
}

func both32(lo, hi uint32) uint64 { return uint64(lo) | uint64(hi)<<32 }

func packedSingle(f op32) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		m, d, s := c.floatBegin(), c.x(u.d), c.x(u.s)
		var r xmm
		for i := range r {
			a, b := d[i], s[i]
			r[i] = both32(f(m, uint32(a), uint32(b)), f(m, uint32(a>>32), uint32(b>>32)))
		}
		return c.floatSet(d, r)
	}
}

func packedDouble(f op64) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		m, d, s := c.floatBegin(), c.x(u.d), c.x(u.s)
		r := xmm{f(m, d[0], s[0]), f(m, d[1], s[1])}
		return c.floatSet(d, r)
	}
}

func scalarSingle(f op32) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		d := c.x(u.d)
		return c.floatSet32(d, f(c.floatBegin(), uint32(d[0]), uint32(c.x(u.s)[0])))
	}
}

func scalarDouble(f op64) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		d := c.x(u.d)
		return c.floatSet64(d, f(c.floatBegin(), d[0], c.x(u.s)[0]))
	}
}

// horizontalSingle and horizontalDouble combine neighbours.
func horizontalSingle(f op32) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		m, d, s := c.floatBegin(), c.x(u.d), c.x(u.s)
		pair := func(v uint64) uint32 { return f(m, uint32(v), uint32(v>>32)) }
		r := xmm{both32(pair(d[0]), pair(d[1])), both32(pair(s[0]), pair(s[1]))}
		return c.floatSet(d, r)
	}
}

func horizontalDouble(f op64) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		m, d, s := c.floatBegin(), c.x(u.d), c.x(u.s)
		r := xmm{f(m, d[0], d[1]), f(m, s[0], s[1])}
		return c.floatSet(d, r)
	}
}

// Operations on the source alone.

func sqrt32(m *float.MXCSR, _, b uint32) uint32 { return m.Sqrt32(b) }
func sqrt64(m *float.MXCSR, _, b uint64) uint64 { return m.Sqrt64(b) }
func rcp32(_ *float.MXCSR, _, b uint32) uint32  { return float.Rcp32(b) }

func rsqrt32(_ *float.MXCSR, _, b uint32) uint32 { return float.Rsqrt32(b) }

// addSubPS subtracts elements with even numbers and adds the others.
func addSubPS(c *CPU, u *uop) stop {
	m, d, s := c.floatBegin(), c.x(u.d), c.x(u.s)
	var r xmm
	for i := range r {
		a, b := d[i], s[i]
		r[i] = both32(m.Sub32(uint32(a), uint32(b)), m.Add32(uint32(a>>32), uint32(b>>32)))
	}
	return c.floatSet(d, r)
}

func addSubPD(c *CPU, u *uop) stop {
	m, d, s := c.floatBegin(), c.x(u.d), c.x(u.s)
	r := xmm{m.Sub64(d[0], s[0]), m.Add64(d[1], s[1])}
	return c.floatSet(d, r)
}

// Comparisons make a mask by the predicate in the immediate.

func mask32(b bool) uint32 { return uint32(-bit(b)) }

func cmpPS(c *CPU, u *uop) stop {
	m, d, s, p := c.floatBegin(), c.x(u.d), c.x(u.s), uint8(u.imm)
	var r xmm
	for i := range r {
		a, b := d[i], s[i]
		r[i] = both32(mask32(m.Cmp32(uint32(a), uint32(b), p)), mask32(m.Cmp32(uint32(a>>32), uint32(b>>32), p)))
	}
	return c.floatSet(d, r)
}

func cmpPD(c *CPU, u *uop) stop {
	m, d, s, p := c.floatBegin(), c.x(u.d), c.x(u.s), uint8(u.imm)
	r := xmm{-bit(m.Cmp64(d[0], s[0], p)), -bit(m.Cmp64(d[1], s[1], p))}
	return c.floatSet(d, r)
}

func cmpSS(c *CPU, u *uop) stop {
	m, d := c.floatBegin(), c.x(u.d)
	return c.floatSet32(d, mask32(m.Cmp32(uint32(d[0]), uint32(c.x(u.s)[0]), uint8(u.imm))))
}

func cmpSD(c *CPU, u *uop) stop {
	m, d := c.floatBegin(), c.x(u.d)
	return c.floatSet64(d, -bit(m.Cmp64(d[0], c.x(u.s)[0], uint8(u.imm))))
}

// setComparison puts an outcome, which is in the places of flags, into RFLAGS.
func (c *CPU) setComparison(r float.Comparison) stop {
	s := c.floatEnd()
	if s == next {
		c.setArith(uint64(r))
	}
	return s
}

func ucomiSS(c *CPU, u *uop) stop {
	return c.setComparison(c.floatBegin().Ucomi32(uint32(c.x(u.d)[0]), uint32(c.x(u.s)[0])))
}

func ucomiSD(c *CPU, u *uop) stop {
	return c.setComparison(c.floatBegin().Ucomi64(c.x(u.d)[0], c.x(u.s)[0]))
}

func comiSS(c *CPU, u *uop) stop {
	return c.setComparison(c.floatBegin().Comi32(uint32(c.x(u.d)[0]), uint32(c.x(u.s)[0])))
}

func comiSD(c *CPU, u *uop) stop {
	return c.setComparison(c.floatBegin().Comi64(c.x(u.d)[0], c.x(u.s)[0]))
}

// Rounding to integers.

func roundPS(c *CPU, u *uop) stop {
	m, s, how := c.floatBegin(), c.x(u.s), uint8(u.imm)
	var r xmm
	for i, v := range s {
		r[i] = both32(m.RoundInt32(uint32(v), how), m.RoundInt32(uint32(v>>32), how))
	}
	return c.floatSet(c.x(u.d), r)
}

func roundPD(c *CPU, u *uop) stop {
	m, s, how := c.floatBegin(), c.x(u.s), uint8(u.imm)
	return c.floatSet(c.x(u.d), xmm{m.RoundInt64(s[0], how), m.RoundInt64(s[1], how)})
}

func roundSS(c *CPU, u *uop) stop {
	return c.floatSet32(c.x(u.d), c.floatBegin().RoundInt32(uint32(c.x(u.s)[0]), uint8(u.imm)))
}

func roundSD(c *CPU, u *uop) stop {
	return c.floatSet64(c.x(u.d), c.floatBegin().RoundInt64(c.x(u.s)[0], uint8(u.imm)))
}

// Dot products.

func (x *xmm) singles() [4]uint32 {
	return [4]uint32{uint32(x[0]), uint32(x[0] >> 32), uint32(x[1]), uint32(x[1] >> 32)}
}

func dpPS(c *CPU, u *uop) stop {
	m, d, s := float.MXCSR(c.mxcsr), c.x(u.d), c.x(u.s)
	r, due := m.Dot32(d.singles(), s.singles(), uint8(u.imm))
	c.mxcsr = uint32(m)
	if due {
		return c.floatFault()
	}
	*d = xmm{both32(r[0], r[1]), both32(r[2], r[3])}
	return next
}

func dpPD(c *CPU, u *uop) stop {
	m, d, s := float.MXCSR(c.mxcsr), c.x(u.d), c.x(u.s)
	r, due := m.Dot64(*d, *s, uint8(u.imm))
	c.mxcsr = uint32(m)
	if due {
		return c.floatFault()
	}
	*d = r
	return next
}
