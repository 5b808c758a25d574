package float

// octants reduces a number below 2^63 to r in [-pi/4, pi/4] and the number of
// quarter turns taken off, modulo 4. Pi has 66 bits, as in the processor, so that
// r is exact, and never zero.
func octants(x num) (r wide, quarter uint) {
	if x.exp < -1 {
		return x.wide(), 0
	}
	// Everything in units of 2^-65: x, and half of pi.
	const piHi, piLo = 3, 0x243F6A8885A308D3
	hi, lo := shiftLeft(0, x.mant, uint(x.exp+2))
	for i := int(x.exp + 1); i >= 0; i-- {
		ph, pl := shiftLeft(piHi, piLo, uint(i))
		if i < 63 && !less(hi, lo, ph, pl) {
			hi, lo = minus(hi, lo, ph, pl)
			quarter |= 1 << (i & 63)
		}
	}
	neg := false
	if h, l := minus(piHi, piLo, hi, lo); less(h, l, hi, lo) {
		hi, lo, neg = h, l, true
		quarter++
	}
	r = wide{hi: hi, lo: lo, exp: 62, neg: neg != x.neg}
	r.normalize()
	if x.neg {
		quarter = -quarter
	}
	return r, quarter & 3
}

// sinSeries returns the sine of r in [-pi/4, pi/4].
func sinSeries(r wide) wide {
	z := r.times(r)
	s := one
	for k := min(15, terms(z)+1); k > 0; k-- {
		s = one.plus(z.times(s).overInt(2 * k * (2*k + 1)).negated())
	}
	return r.times(s)
}

// cosSeries returns the cosine of r in [-pi/4, pi/4].
func cosSeries(r wide) wide {
	z := r.times(r)
	s := one
	for k := min(15, terms(z)+1); k > 0; k-- {
		s = one.plus(z.times(s).overInt(2 * k * (2*k - 1)).negated())
	}
	return s
}

// sine returns the sine of r and a number of quarter turns.
func sine(r wide, quarter uint) wide {
	var s wide
	if quarter&1 == 0 {
		s = sinSeries(r)
	} else {
		s = cosSeries(r)
	}
	s.neg = s.neg != (quarter&2 != 0)
	return s
}

// angle begins FSIN, FCOS, FSINCOS and FPTAN. If done, then r and ok are the
// instruction's result; otherwise a is a number below 2^63 other than zero.
func (e *X87) angle(a F80) (r F80, ok, done bool) {
	e.SW &^= C1 | C2
	switch c := a.class(); {
	case c >= nan:
		r, ok = e.unary(a, c)
		return r, ok, true
	case c == infinity:
		r, ok = e.invalid()
		return r, ok, true
	case c == denormal:
		return r, false, !e.raise(DE)
	case c == normal && a.SE&0x7FFF >= bias80+63:
		e.SW |= C2
		return r, false, true
	}
	return r, false, false
}

// Sin returns the sine of a (FSIN). For |a| >= 2^63 it sets C2 and ok is false.
func (e *X87) Sin(a F80) (r F80, ok bool) {
	if r, ok, done := e.angle(a); done {
		return r, ok
	}
	if a.Mant == 0 {
		return a, true
	}
	return e.finish(sine(octants(a.unpack())), false), true
}

// Cos returns the cosine of a (FCOS). C2 and ok are as for Sin.
func (e *X87) Cos(a F80) (r F80, ok bool) {
	if r, ok, done := e.angle(a); done {
		return r, ok
	}
	if a.Mant == 0 {
		return One, true
	}
	w, quarter := octants(a.unpack())
	return e.finish(sine(w, quarter+1), false), true
}

// SinCos returns the sine, which takes the place of a, and the cosine, which
// FSINCOS pushes. C2 and ok are as for Sin.
func (e *X87) SinCos(a F80) (sin, cos F80, ok bool) {
	if r, ok, done := e.angle(a); done {
		return r, r, ok
	}
	if a.Mant == 0 {
		return a, One, true
	}
	w, quarter := octants(a.unpack())
	sin = e.finish(sine(w, quarter), false)
	return sin, e.finish(sine(w, quarter+1), false), true
}

// Tan returns the tangent, which takes the place of a, and what FPTAN pushes: 1,
// or the same NaN. C2 and ok are as for Sin.
func (e *X87) Tan(a F80) (tan, push F80, ok bool) {
	if r, ok, done := e.angle(a); done {
		return r, r, ok
	}
	if a.Mant == 0 {
		return a, One, true
	}
	w, quarter := octants(a.unpack())
	s, c := sinSeries(w), cosSeries(w)
	if quarter&1 == 0 {
		return e.finish(s.over(c), false), One, true
	}
	return e.finish(c.over(s).negated(), false), One, true
}

// Atan returns the angle of the point (x, y) (FPATAN: y is ST1, x is ST0).
func (e *X87) Atan(y, x F80) (r F80, ok bool) {
	e.SW &^= C1
	cx, cy := x.class(), y.class()
	if cx >= nan || cy >= nan {
		return e.special(x, y, cx, cy)
	}
	if !e.denormals(cx, cy, false) {
		return F80{}, false
	}
	var w wide
	switch {
	case cy == zero || cx == infinity && cy != infinity:
		if !x.neg() {
			return zero80(y.neg()), true
		}
		w = wPi
	case cx == infinity && x.neg():
		w = atanOne.plus(wide{hi: wPi.hi, lo: wPi.lo, exp: 0})
	case cx == infinity:
		w = atanOne
	case cx == zero || cy == infinity:
		w = wPi
		w.exp--
	default:
		w = atan2(y.Abs().unpack(), x.Abs().unpack())
		if x.neg() {
			w = wPi.plus(w.negated())
		}
	}
	w.neg = y.neg()
	return e.finish(w, false), true
}

// atan2 returns the angle of the point (x, y), both positive.
func atan2(y, x num) wide {
	swap := y.exp > x.exp || y.exp == x.exp && y.mant > x.mant
	if swap {
		x, y = y, x
	}
	// q <= 1; take off the angle of 1 or 1/2 if near.
	q := y.wide().over(x.wide())
	var base wide
	switch {
	case q.exp >= 0 || q.exp == -1 && q.hi >= 3<<62: // from 3/4
		base = atanOne
		q = q.plus(one.negated()).over(q.plus(one))
	case q.exp >= -2: // from 1/4
		base = atanHalf
		half := q
		half.exp--
		q = q.plus(wide{hi: jbit, exp: -1, neg: true}).over(half.plus(one))
	}
	r := base.plus(q.times(oddSeries(q.times(q).negated())))
	if swap {
		half := wPi
		half.exp--
		r = half.plus(r.negated())
	}
	return r
}
