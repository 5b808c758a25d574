package float

import "math/bits"

// Arithmetic on wide numbers, for the transcendental instructions. It truncates,
// with an error of a few units in the last of 128 places. A zero has hi == 0.

var (
	one     = wide{hi: jbit}
	wPi     = wide{hi: 0xC90FDAA22168C234, lo: 0xC4C6628B80DC1CD1, exp: 1}
	wLn2    = wide{hi: 0xB17217F7D1CF79AB, lo: 0xC9E3B39803F2F6AF, exp: -1}
	wLog2e  = wide{hi: 0xB8AA3B295C17F0BB, lo: 0xBE87FED0691D3E88}
	atanOne = wide{hi: 0xC90FDAA22168C234, lo: 0xC4C6628B80DC1CD1, exp: -1}
	// atanHalf is atan(1/2).
	atanHalf = wide{hi: 0xED63382B0DDA7B45, lo: 0x6FE445ECBC3A8D03, exp: -2}
)

func (a wide) negated() wide { a.neg = !a.neg; return a }

// normalize shifts out leading zeros, if a is not zero.
func (a *wide) normalize() {
	if a.hi == 0 {
		if a.lo == 0 {
			return
		}
		a.hi, a.lo = a.lo, 0
		a.exp -= 64
	}
	if s := bits.LeadingZeros64(a.hi); s > 0 {
		a.hi = a.hi<<s | a.lo>>(64-s)
		a.lo <<= s
		a.exp -= int32(s)
	}
}

// plus returns a+b. What falls off the end stays as a sticky bit, so that
// 1 - tiny is below 1.
func (a wide) plus(b wide) wide {
	if a.hi == 0 {
		return b
	}
	if b.hi == 0 {
		return a
	}
	if a.exp < b.exp || a.exp == b.exp && (a.hi < b.hi || a.hi == b.hi && a.lo < b.lo) {
		a, b = b, a
	}
	hi, lo := shiftSticky(b.hi, b.lo, uint32(a.exp-b.exp))
	var c uint64
	if a.neg != b.neg {
		a.lo, c = bits.Sub64(a.lo, lo, 0)
		a.hi, _ = bits.Sub64(a.hi, hi, c)
		a.normalize()
		return a
	}
	a.lo, c = bits.Add64(a.lo, lo, 0)
	a.hi, c = bits.Add64(a.hi, hi, c)
	if c != 0 {
		a.lo = a.lo>>1 | a.hi<<63 | a.lo&1
		a.hi = a.hi>>1 | jbit
		a.exp++
	}
	return a
}

// times returns a*b.
func (a wide) times(b wide) wide {
	if a.hi == 0 || b.hi == 0 {
		return wide{}
	}
	r := wide{exp: a.exp + b.exp + 1, neg: a.neg != b.neg}
	h1, l1 := bits.Mul64(a.hi, b.lo)
	h2, l2 := bits.Mul64(a.lo, b.hi)
	h3, _ := bits.Mul64(a.lo, b.lo)
	low, c1 := bits.Add64(l1, l2, 0)
	_, c2 := bits.Add64(low, h3, 0)
	hi, lo := bits.Mul64(a.hi, b.hi)
	lo, c := bits.Add64(lo, h1, c1)
	hi += c
	lo, c = bits.Add64(lo, h2, c2)
	r.hi, r.lo = hi+c, lo
	r.normalize()
	return r
}

// over returns a/b for b other than zero.
func (a wide) over(b wide) wide {
	// A reciprocal of 64 bits, and one step of Newton: r += r * (1 - b*r).
	r := div(num{mant: jbit}, num{mant: b.hi, exp: b.exp, neg: b.neg})
	r = r.plus(r.times(one.plus(b.times(r).negated())))
	return a.times(r)
}

// overInt returns a/n for n other than zero.
func (a wide) overInt(n uint64) wide {
	s := bits.LeadingZeros64(n)
	n <<= s
	a.exp -= 63 - int32(s)
	hi, mid, lo := a.hi>>1, a.hi<<63|a.lo>>1, a.lo<<63
	if a.hi < n {
		hi, mid, lo = a.hi, a.lo, 0
		a.exp--
	}
	var r uint64
	a.hi, r = bits.Div64(hi, mid, n)
	a.lo, _ = bits.Div64(r, lo, n)
	return a
}

// terms returns how many terms of a power series in z are worth adding if
// its coefficients are at most one.
func terms(z wide) uint64 {
	if z.hi == 0 || z.exp < -130 {
		return 1
	}
	return uint64(130/max(-z.exp-1, 1)) + 1
}

// oddSeries returns 1 + z/3 + z^2/5 + ..., for |z| < 1/4: it is that of atanh,
// and with a negative z that of atan.
func oddSeries(z wide) wide {
	n := terms(z)
	s := one.overInt(2*n + 1)
	for k := n; k > 0; k-- {
		s = one.overInt(2*k - 1).plus(z.times(s))
	}
	return s
}

// finish rounds a result. PE, and UE for a denormal, are flagged even if it is
// exact, which the processor does not find out.
func (e *X87) finish(w wide, exact bool) F80 {
	if w.hi == 0 {
		return zero80(w.neg)
	}
	if !exact {
		w.lo |= 1
	}
	r := e.round(w, 64)
	e.SW |= PE
	if r.class() == denormal {
		e.SW |= UE
	}
	return r
}

// Integers of 128 bits.

func shiftLeft(hi, lo uint64, s uint) (uint64, uint64) {
	if s >= 64 {
		return lo << (s - 64), 0
	}
	return hi<<s | lo>>(64-s), lo << s
}

func less(ah, al, bh, bl uint64) bool { return ah < bh || ah == bh && al < bl }

func minus(ah, al, bh, bl uint64) (hi, lo uint64) {
	lo, b := bits.Sub64(al, bl, 0)
	hi, _ = bits.Sub64(ah, bh, b)
	return hi, lo
}
