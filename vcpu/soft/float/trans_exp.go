package float

// Exp2m1 returns 2^a - 1 (F2XM1). For |a| > 1 the result is undefined; it is a.
func (e *X87) Exp2m1(a F80) (r F80, ok bool) {
	e.SW &^= C1
	c := a.class()
	switch {
	case c >= nan:
		return e.unary(a, c)
	case c == zero:
		return a, true
	case c == infinity && a.neg():
		return One.Neg(), true
	case c == infinity:
		return a, true
	case c == denormal && !e.raise(DE):
		return F80{}, false
	}
	x := a.unpack()
	switch {
	case x.exp > 0 || x.exp == 0 && x.mant != jbit:
		e.SW |= PE
		return a, true
	case x.exp == 0 && x.neg:
		return e.finish(wide{hi: jbit, exp: -1, neg: true}, true), true
	case x.exp == 0:
		return e.finish(one, true), true
	}
	return e.finish(exp2m1(x.wide()), false), true
}

// exp2m1 returns 2^x - 1 for |x| < 1.
func exp2m1(x wide) wide {
	y := x.times(wLn2)
	// exp(y) - 1 = y (1 + y/2 (1 + y/3 (...))); y^30/31! is below 2^-128.
	s := one
	for k := min(30, terms(y)+2); k >= 2; k-- {
		s = one.plus(y.times(s).overInt(k))
	}
	return y.times(s)
}

// log2 returns the binary logarithm of a positive number, and whether that is an
// integer, and so exact.
func log2(x wide) (wide, bool) {
	k := x.exp
	x.exp = 0
	const sqrt2 = 0xB504F333F9DE6484
	if x.hi > sqrt2 {
		x.exp = -1
		k++
	}
	var w wide
	if k != 0 {
		w = fromUint(uint64(max(k, -k)), k < 0).wide()
	}
	d := x.plus(one.negated())
	if d.hi == 0 {
		return w, true
	}
	return w.plus(atanh2(d.over(x.plus(one)))), false
}

// atanh2 returns the binary logarithm of (1+z)/(1-z), which is 2 atanh(z) / ln(2).
func atanh2(z wide) wide {
	z2 := z.times(z)
	r := z.times(oddSeries(z2)).times(wLog2e)
	r.exp++
	return r
}

// YLog2X returns y * log2(x) (FYL2X: y is ST1, x is ST0).
func (e *X87) YLog2X(y, x F80) (r F80, ok bool) {
	e.SW &^= C1
	cx, cy := x.class(), y.class()
	isOne := x == One
	switch {
	case cx >= nan || cy >= nan:
		return e.special(x, y, cx, cy)
	case cx != zero && x.neg(),
		cy == zero && (cx == zero || cx == infinity),
		cy == infinity && isOne:
		return e.invalid()
	case cx == zero && cy != infinity:
		return inf80(!y.neg()), e.raise(ZE)
	case !e.denormals(cx, cy, false):
		return F80{}, false
	}
	// The sign of log2(x), with that of 1 positive.
	neg := y.neg() != (x.SE&0x7FFF < bias80)
	switch {
	case cx == infinity || cx == zero || cy == infinity:
		return inf80(neg), true
	case cy == zero || isOne:
		return zero80(neg), true
	}
	l, exact := log2(x.unpack().wide())
	return e.finish(l.times(y.unpack().wide()), exact), true
}

// YLog2XP1 returns y * log2(x+1) (FYL2XP1: y is ST1, x is ST0). For |x| above
// 1 - sqrt(2)/2 processors need not be exact, and for x <= -1 the result is
// undefined; it is x.
func (e *X87) YLog2XP1(y, x F80) (r F80, ok bool) {
	e.SW &^= C1
	cx, cy := x.class(), y.class()
	switch {
	case cx >= nan || cy >= nan:
		return e.special(x, y, cx, cy)
	case cx == infinity && (x.neg() || cy == zero),
		cx == zero && cy == infinity:
		return e.invalid()
	case !e.denormals(cx, cy, false):
		return F80{}, false
	}
	neg := y.neg() != x.neg()
	switch {
	case cx == infinity || cy == infinity:
		return inf80(neg), true
	case cx == zero || cy == zero:
		return zero80(neg), true
	}
	n := x.unpack()
	var l wide
	var exact bool
	switch {
	case n.neg && n.exp >= 0:
		e.SW |= PE
		return x, true
	case n.exp < -1:
		w := n.wide()
		l = atanh2(w.over(wide{hi: jbit, exp: 1}.plus(w)))
	default:
		l, exact = log2(n.wide().plus(one))
	}
	return e.finish(l.times(y.unpack().wide()), exact), true
}
