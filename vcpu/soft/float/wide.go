package float

import (
	"math"
	"math/bits"
)

// num is a finite number other than zero: mant / 2^63 * 2^exp, with the highest
// bit of mant set. Every operand of every format fits.
type num struct {
	mant uint64
	exp  int32
	neg  bool
}

func (n *num) normalize() {
	s := bits.LeadingZeros64(n.mant)
	n.mant <<= s
	n.exp -= int32(s)
}

// wide is the result of an operation before rounding: (hi:lo) / 2^127 * 2^exp,
// with the highest bit of hi set. The lowest bit of lo is sticky: it is also
// set if any bit below was.
type wide struct {
	hi, lo uint64
	exp    int32
	neg    bool
}

func (n num) wide() wide { return wide{hi: n.mant, exp: n.exp, neg: n.neg} }

// shiftSticky shifts hi:lo right by s, keeping the sticky bit.
func shiftSticky(hi, lo uint64, s uint32) (uint64, uint64) {
	switch {
	case s == 0:
		return hi, lo
	case s < 64:
		return hi >> s, lo>>s | hi<<(64-s) | sticky(lo<<(64-s))
	case s == 64:
		return 0, hi | sticky(lo)
	case s < 128:
		return 0, hi>>(s-64) | sticky(hi<<(128-s)|lo)
	}
	return 0, sticky(hi | lo)
}

func sticky(x uint64) uint64 {
	if x != 0 {
		return 1
	}
	return 0
}

// add returns a+b, and false if that is zero.
func add(a, b num) (wide, bool) {
	if a.exp < b.exp || a.exp == b.exp && a.mant < b.mant {
		a, b = b, a
	}
	w := wide{exp: a.exp, neg: a.neg}
	hi, lo := shiftSticky(b.mant, 0, uint32(a.exp-b.exp))
	if a.neg == b.neg {
		var c uint64
		w.lo = lo
		w.hi, c = bits.Add64(a.mant, hi, 0)
		if c != 0 {
			w.lo = w.lo>>1 | w.lo&1 | w.hi<<63
			w.hi = w.hi>>1 | jbit
			w.exp++
		}
		return w, true
	}
	var c uint64
	w.lo, c = bits.Sub64(0, lo, 0)
	w.hi, _ = bits.Sub64(a.mant, hi, c)
	if w.hi == 0 {
		if w.lo == 0 {
			return w, false
		}
		// The operands were at most one place apart: lo is exact.
		w.hi, w.lo = w.lo, 0
		w.exp -= 64
	}
	if s := bits.LeadingZeros64(w.hi); s > 0 {
		w.hi = w.hi<<s | w.lo>>(64-s)
		w.lo <<= s
		w.exp -= int32(s)
	}
	return w, true
}

// mul returns a*b.
func mul(a, b num) wide {
	w := wide{exp: a.exp + b.exp + 1, neg: a.neg != b.neg}
	w.hi, w.lo = bits.Mul64(a.mant, b.mant)
	if w.hi&jbit == 0 {
		w.hi = w.hi<<1 | w.lo>>63
		w.lo <<= 1
		w.exp--
	}
	return w
}

// div returns a/b.
func div(a, b num) wide {
	w := wide{exp: a.exp - b.exp, neg: a.neg != b.neg}
	hi, lo := a.mant>>1, a.mant<<63
	if a.mant < b.mant {
		hi, lo = a.mant, 0
		w.exp--
	}
	var r uint64
	w.hi, r = bits.Div64(hi, lo, b.mant)
	if r != 0 {
		w.lo, r = bits.Div64(r, 0, b.mant)
		w.lo |= sticky(r)
	}
	return w
}

// sqrt returns the square root of a, which must be positive.
func sqrt(a num) wide {
	// The radicand as 128 bits in [2^126, 2^128), so that its root has 64 bits.
	hi, lo := a.mant, uint64(0)
	if a.exp&1 == 0 {
		hi, lo = hi>>1, hi<<63
	}
	root, exact, above := isqrt(hi, lo)
	w := wide{hi: root, exp: a.exp >> 1}
	if !exact {
		w.lo = 1
		if above {
			w.lo |= 1 << 63
		}
	}
	return w
}

// isqrt returns the integer square root of hi:lo, which is at least 2^126,
// whether that is exact, and whether the true root is above root + 1/2.
func isqrt(hi, lo uint64) (root uint64, exact, above bool) {
	f := math.Sqrt(float64(hi)) * (1 << 32)
	root = math.MaxUint64
	if f < 1<<64 {
		root = uint64(f)
	}
	// One step of Newton takes the 52 bits to at least 63. The quotient must
	// fit, which it does above hi; the root is not below hi.
	if hi != math.MaxUint64 {
		root = max(root, hi+1)
		q, _ := bits.Div64(hi, lo, root)
		s, c := bits.Add64(root, q, 0)
		root = s>>1 | c<<63
	}
	for {
		ph, pl := bits.Mul64(root, root)
		dl, b := bits.Sub64(lo, pl, 0)
		dh, b := bits.Sub64(hi, ph, b)
		switch {
		case b != 0:
			root--
		case dh > 1 || dh == 1 && dl > root<<1: // remainder > 2 root
			root++
		default:
			// (root + 1/2)^2 = radicand - remainder + root + 1/4
			return root, dh|dl == 0, dh != 0 || dl > root
		}
	}
}

// Rounding modes, as in bits 10-11 of the x87 control word and 13-14 of MXCSR.
const (
	toNearest = iota
	toNegative
	toPositive
	toZero
)

// round rounds hi:lo to the prec highest bits of hi. It returns them in place;
// whether they overflowed, so that mant is 2^63 and the exponent one higher;
// whether the result is inexact; and whether its magnitude went up.
func round(hi, lo uint64, neg bool, prec uint, rc uint8) (mant uint64, carry, inexact, up bool) {
	var half, rest uint64
	unit := uint64(1)
	mant = hi
	if prec == 64 {
		half, rest = lo>>63, lo<<1
	} else {
		drop := 64 - prec
		unit = 1 << drop
		below := hi & (unit - 1)
		mant -= below
		half = below >> (drop - 1)
		rest = below&(unit>>1-1) | lo
	}
	if half == 0 && rest == 0 {
		return mant, false, false, false
	}
	switch rc {
	case toNearest:
		up = half != 0 && (rest != 0 || mant&unit != 0)
	case toNegative:
		up = neg
	case toPositive:
		up = !neg
	}
	if up {
		mant += unit
		if mant == 0 {
			return jbit, true, true, true
		}
	}
	return mant, false, true, up
}
