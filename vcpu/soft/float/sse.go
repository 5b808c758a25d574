package float

import "math"

// The methods below take the machine's own arithmetic where that is certain to
// give x86's result: round to nearest, operands that are normal or zero, and a
// normal result away from the ends of the range (or a sum of zero). What then remains to be found
// out is PE, unless it is flagged already. Everything else is done in integers.
//
// No expression below multiplies and adds, so that no compiler may fuse it.

const (
	exp64 = 0x7FF << 52
	exp32 = 0xFF << 23
)

// plain64 reports whether v is not a denormal.
func plain64(v uint64) bool { return v&exp64 != 0 || v<<1 == 0 }

// plain32 reports whether v is not a denormal.
func plain32(v uint32) bool { return v&exp32 != 0 || v<<1 == 0 }

// within64 reports whether the exponent of v is far enough from both ends of the
// range that error terms of v are exact and no exception but PE can be due.
func within64(v uint64) bool { return v>>52&0x7FF-64 < 0x7FE-64 }

// within32 is within64 for a float32. Error terms of products and quotients are
// found in float64 and need no distance; sums do not either.
func within32(v uint32) bool { return v>>23&0xFF-2 < 0xFE-2 }

// inexact flags PE if x is not zero.
func (m *MXCSR) inexact(x bool) {
	if x {
		*m |= PE
	}
}

// Add64 returns a+b (ADDSD).
func (m *MXCSR) Add64(a, b uint64) uint64 {
	x, y := math.Float64frombits(a), math.Float64frombits(b)
	z := x + y
	r := math.Float64bits(z)
	if m.nearest() && (within64(r) || r<<1 == 0) && plain64(a) && plain64(b) {
		if *m&PE == 0 {
			t := z - x
			m.inexact(x-(z-t) != t-y)
		}
		return r
	}
	return m.slow(&binary64, OpAdd, a, b)
}

// Sub64 returns a-b (SUBSD).
func (m *MXCSR) Sub64(a, b uint64) uint64 {
	x, y := math.Float64frombits(a), math.Float64frombits(b)
	z := x - y
	r := math.Float64bits(z)
	if m.nearest() && (within64(r) || r<<1 == 0) && plain64(a) && plain64(b) {
		if *m&PE == 0 {
			t := z - x
			m.inexact(x-(z-t) != t+y)
		}
		return r
	}
	return m.slow(&binary64, OpSub, a, b)
}

// Mul64 returns a*b (MULSD).
func (m *MXCSR) Mul64(a, b uint64) uint64 {
	x, y := math.Float64frombits(a), math.Float64frombits(b)
	z := x * y
	r := math.Float64bits(z)
	if m.nearest() && within64(r) && plain64(a) && plain64(b) {
		if *m&PE == 0 {
			m.inexact(math.FMA(x, y, -z) != 0)
		}
		return r
	}
	return m.slow(&binary64, OpMul, a, b)
}

// Div64 returns a/b (DIVSD).
func (m *MXCSR) Div64(a, b uint64) uint64 {
	x, y := math.Float64frombits(a), math.Float64frombits(b)
	z := x / y
	r := math.Float64bits(z)
	if m.nearest() && within64(r) && within64(a) && plain64(b) {
		if *m&PE == 0 {
			m.inexact(math.FMA(z, y, -x) != 0)
		}
		return r
	}
	return m.slow(&binary64, OpDiv, a, b)
}

// Sqrt64 returns the square root of a (SQRTSD).
func (m *MXCSR) Sqrt64(a uint64) uint64 {
	if m.nearest() && within64(a) && int64(a) > 0 {
		x := math.Float64frombits(a)
		z := math.Sqrt(x)
		if *m&PE == 0 {
			m.inexact(math.FMA(z, z, -x) != 0)
		}
		return math.Float64bits(z)
	}
	return m.slowSqrt(&binary64, a)
}

// Add32 returns a+b (ADDSS).
func (m *MXCSR) Add32(a, b uint32) uint32 {
	x, y := math.Float32frombits(a), math.Float32frombits(b)
	z := x + y
	r := math.Float32bits(z)
	if m.nearest() && (within32(r) || r<<1 == 0) && plain32(a) && plain32(b) {
		if *m&PE == 0 {
			t := z - x
			m.inexact(x-(z-t) != t-y)
		}
		return r
	}
	return uint32(m.slow(&binary32, OpAdd, uint64(a), uint64(b)))
}

// Sub32 returns a-b (SUBSS).
func (m *MXCSR) Sub32(a, b uint32) uint32 {
	x, y := math.Float32frombits(a), math.Float32frombits(b)
	z := x - y
	r := math.Float32bits(z)
	if m.nearest() && (within32(r) || r<<1 == 0) && plain32(a) && plain32(b) {
		if *m&PE == 0 {
			t := z - x
			m.inexact(x-(z-t) != t+y)
		}
		return r
	}
	return uint32(m.slow(&binary32, OpSub, uint64(a), uint64(b)))
}

// Mul32 returns a*b (MULSS).
func (m *MXCSR) Mul32(a, b uint32) uint32 {
	// The product of two float32 is a float64.
	p := float64(math.Float32frombits(a)) * float64(math.Float32frombits(b))
	z := float32(p)
	r := math.Float32bits(z)
	if m.nearest() && within32(r) && plain32(a) && plain32(b) {
		m.inexact(float64(z) != p)
		return r
	}
	return uint32(m.slow(&binary32, OpMul, uint64(a), uint64(b)))
}

// Div32 returns a/b (DIVSS).
func (m *MXCSR) Div32(a, b uint32) uint32 {
	x, y := math.Float32frombits(a), math.Float32frombits(b)
	z := x / y
	r := math.Float32bits(z)
	if m.nearest() && within32(r) && plain32(a) && plain32(b) {
		if *m&PE == 0 {
			m.inexact(float64(z)*float64(y) != float64(x))
		}
		return r
	}
	return uint32(m.slow(&binary32, OpDiv, uint64(a), uint64(b)))
}

// Sqrt32 returns the square root of a (SQRTSS).
func (m *MXCSR) Sqrt32(a uint32) uint32 {
	if m.nearest() && within32(a) && int32(a) > 0 {
		x := math.Float32frombits(a)
		z := float32(math.Sqrt(float64(x)))
		if *m&PE == 0 {
			m.inexact(float64(z)*float64(z) != float64(x))
		}
		return math.Float32bits(z)
	}
	return uint32(m.slowSqrt(&binary32, uint64(a)))
}

// Min64 returns the lesser of a and b (MINSD): b if either is a NaN, and if
// both are zeros.
func (m *MXCSR) Min64(a, b uint64) uint64 { return m.choose64(a, b, Less) }

// Max64 returns the greater of a and b (MAXSD), with the same rules.
func (m *MXCSR) Max64(a, b uint64) uint64 { return m.choose64(a, b, Greater) }

// Min32 is Min64 for float32 (MINSS).
func (m *MXCSR) Min32(a, b uint32) uint32 { return m.choose32(a, b, Less) }

// Max32 is Max64 for float32 (MAXSS).
func (m *MXCSR) Max32(a, b uint32) uint32 { return m.choose32(a, b, Greater) }

// choose64 returns a if it compares to b as wanted, else b.
func (m *MXCSR) choose64(a, b uint64, want Comparison) uint64 {
	r := b
	if m.compare64(a, b, false) == want {
		r = a
	}
	if *m&daz != 0 && !plain64(r) {
		r &= 1 << 63
	}
	return r
}

func (m *MXCSR) choose32(a, b uint32, want Comparison) uint32 {
	r := b
	if m.compare32(a, b, false) == want {
		r = a
	}
	if *m&daz != 0 && !plain32(r) {
		r &= 1 << 31
	}
	return r
}

// Comi64 compares a and b (COMISD).
func (m *MXCSR) Comi64(a, b uint64) Comparison { return m.compare64(a, b, false) }

// Ucomi64 compares a and b (UCOMISD): a quiet NaN does not raise IE.
func (m *MXCSR) Ucomi64(a, b uint64) Comparison { return m.compare64(a, b, true) }

// Comi32 compares a and b (COMISS).
func (m *MXCSR) Comi32(a, b uint32) Comparison { return m.compare32(a, b, false) }

// Ucomi32 compares a and b (UCOMISS): a quiet NaN does not raise IE.
func (m *MXCSR) Ucomi32(a, b uint32) Comparison { return m.compare32(a, b, true) }

func (m *MXCSR) compare64(a, b uint64, quiet bool) Comparison {
	if plain64(a) && plain64(b) {
		x, y := math.Float64frombits(a), math.Float64frombits(b)
		switch {
		case x < y:
			return Less
		case x > y:
			return Greater
		case x == y:
			return Equal
		}
	}
	return m.compare(&binary64, a, b, quiet)
}

func (m *MXCSR) compare32(a, b uint32, quiet bool) Comparison {
	if plain32(a) && plain32(b) {
		x, y := math.Float32frombits(a), math.Float32frombits(b)
		switch {
		case x < y:
			return Less
		case x > y:
			return Greater
		case x == y:
			return Equal
		}
	}
	return m.compare(&binary32, uint64(a), uint64(b), quiet)
}

// Cmp64 reports whether a predicate holds, by its number in CMPSD: EQ, LT, LE,
// UNORD, NEQ, NLT, NLE, ORD. Only the lowest three bits of pred count.
func (m *MXCSR) Cmp64(a, b uint64, pred uint8) bool {
	return holds(m.compare64(a, b, quietPredicate(pred)), pred)
}

// Cmp32 is Cmp64 for float32 (CMPSS).
func (m *MXCSR) Cmp32(a, b uint32, pred uint8) bool {
	return holds(m.compare32(a, b, quietPredicate(pred)), pred)
}

// quietPredicate reports whether quiet NaNs are no invalid operands: EQ, UNORD,
// NEQ, ORD.
func quietPredicate(pred uint8) bool { return pred&3 == 0 || pred&3 == 3 }

func holds(c Comparison, pred uint8) bool {
	var r bool
	switch pred & 3 {
	case 0:
		r = c == Equal
	case 1:
		r = c == Less
	case 2:
		r = c == Less || c == Equal
	case 3:
		r = c == Unordered
	}
	return r != (pred&4 != 0)
}

// Dot32 returns the dot product of those elements that bits 4-7 of imm select, in
// the elements that bits 0-3 select, and zeros elsewhere (DPPS). Sums are rounded in
// pairs. Products, the sums of pairs and the last sum are an instruction each to
// the flags: Begin and End are not for m, and due reports whether #XM is.
func (m *MXCSR) Dot32(a, b [4]uint32, imm uint8) (r [4]uint32, due bool) {
	var p [4]uint32
	t := m.Begin()
	for i := range p {
		if imm>>(4+i)&1 != 0 {
			p[i] = t.Mul32(a[i], b[i])
		}
	}
	if m.End(t) {
		return r, true
	}
	t = m.Begin()
	lo, hi := t.Add32(p[0], p[1]), t.Add32(p[2], p[3])
	if m.End(t) {
		return r, true
	}
	t = m.Begin()
	sum := t.Add32(lo, hi)
	if m.End(t) {
		return r, true
	}
	for i := range r {
		if imm>>i&1 != 0 {
			r[i] = sum
		}
	}
	return r, false
}

// Dot64 is Dot32 for two float64, selected by bits 4-5 and 0-1 of imm (DPPD).
func (m *MXCSR) Dot64(a, b [2]uint64, imm uint8) (r [2]uint64, due bool) {
	var p [2]uint64
	t := m.Begin()
	for i := range p {
		if imm>>(4+i)&1 != 0 {
			p[i] = t.Mul64(a[i], b[i])
		}
	}
	if m.End(t) {
		return r, true
	}
	t = m.Begin()
	sum := t.Add64(p[0], p[1])
	if m.End(t) {
		return r, true
	}
	for i := range r {
		if imm>>i&1 != 0 {
			r[i] = sum
		}
	}
	return r, false
}
