package float

import "math/bits"

// Rem returns the partial remainder of a/b, with the quotient truncated (FPREM)
// or, if nearest, rounded to the nearest even integer (FPREM1). If the exponents
// are 64 or more apart it only reduces a and sets C2; otherwise C2 is clear,
// and C0, C3, C1 are the three lowest bits of the quotient, highest first.
func (e *X87) Rem(a, b F80, nearest bool) (r F80, ok bool) {
	e.SW &^= C0 | C1 | C2 | C3
	ca, cb := a.class(), b.class()
	if ca >= nan || cb >= nan {
		return e.special(a, b, ca, cb)
	}
	if ca == infinity || cb == zero {
		return e.invalid()
	}
	if !e.denormals(ca, cb, false) {
		return F80{}, false
	}
	if ca == zero {
		return a, true
	}
	x := a.unpack()
	if cb == infinity {
		return e.round(x.wide(), 64), true
	}
	y := b.unpack()
	d := x.exp - y.exp
	if d < -1 || d == -1 && !nearest {
		return e.round(x.wide(), 64), true
	}
	var q uint64
	var codes uint16
	switch {
	case d == -1:
		if x.mant > y.mant {
			q = 1
			x.mant = 2*y.mant - x.mant
			x.neg = !x.neg
		}
	case d < 64:
		q, x.mant = remainder(x.mant, y.mant, uint(d))
		x.exp = y.exp
		if r := x.mant; nearest && (r > y.mant-r || r == y.mant-r && q&1 != 0) {
			q++
			x.mant = y.mant - r
			x.neg = !x.neg
		}
	default:
		// Any number of bits from 32 to 63 will do.
		n := d&31 | 32
		_, x.mant = remainder(x.mant, y.mant, uint(n))
		x.exp -= n
		codes = C2
	}
	if x.mant == 0 {
		r = zero80(a.neg())
	} else {
		x.normalize()
		r = e.round(x.wide(), 64)
	}
	e.SW = e.SW&^C1 | codes | uint16(q>>2&1)<<8 | uint16(q>>1&1)<<14 | uint16(q&1)<<9
	return r, true
}

// remainder divides x * 2^d by y, both with their highest bits set, for d < 64.
// The quotient is modulo 2^64.
func remainder(x, y uint64, d uint) (q, r uint64) {
	if x >= y {
		q = 1
		x -= y
	}
	if d == 0 {
		return q, x
	}
	q1, r := bits.Div64(x>>(64-d), x<<d, y)
	return q<<d + q1, r
}

// Scale returns a * 2^trunc(b) (FSCALE).
func (e *X87) Scale(a, b F80) (r F80, ok bool) {
	e.SW &^= C1
	ca, cb := a.class(), b.class()
	if ca >= nan || cb >= nan {
		return e.special(a, b, ca, cb)
	}
	if cb == infinity && (ca == zero && !b.neg() || ca == infinity && b.neg()) {
		return e.invalid()
	}
	if !e.denormals(ca, cb, false) {
		return F80{}, false
	}
	switch {
	case ca == infinity || ca == zero:
		return a, true
	case cb == infinity && b.neg():
		return zero80(a.neg()), true
	case cb == infinity:
		return inf80(a.neg()), true
	}
	w := a.unpack().wide()
	if cb != zero {
		if n := b.unpack(); n.exp >= 0 {
			// 2^17 is beyond every exponent.
			by := int32(1 << 17)
			if n.exp < 17 {
				by = int32(n.mant >> (63 - n.exp))
			}
			if n.neg {
				by = -by
			}
			w.exp += by
		}
	}
	return e.round(w, 64), true
}

// Extract splits a into its significand, which FXTRACT pushes, and its exponent,
// which takes the place of a.
func (e *X87) Extract(a F80) (significand, exponent F80, ok bool) {
	e.SW &^= C1
	c := a.class()
	switch {
	case c >= nan:
		r, ok := e.unary(a, c)
		return r, r, ok
	case c == infinity:
		return a, inf80(false), true
	case c == zero:
		return a, inf80(true), e.raise(ZE)
	case c == denormal && !e.raise(DE):
		return F80{}, F80{}, false
	}
	n := a.unpack()
	exponent = FromInt64(int64(n.exp))
	n.exp = 0
	return n.pack(), exponent, true
}
