package float

import (
	"math/big"
	"testing"
)

// The functions below are evaluated by math/big in places bits, in other ways than
// in the package where there is a choice.
const places = 320

func bf(v float64) *big.Float { return new(big.Float).SetPrec(places).SetFloat64(v) }

func (a wide) big() *big.Float {
	i := new(big.Int).SetUint64(a.hi)
	i.Or(i.Lsh(i, 64), new(big.Int).SetUint64(a.lo))
	f := bf(0).SetInt(i)
	f.SetMantExp(f, int(a.exp)-127)
	if a.neg {
		f.Neg(f)
	}
	return f
}

// series sums terms until they vanish, the next from the last by next.
func series(term *big.Float, next func(t *big.Float, k int64) *big.Float) *big.Float {
	sum := bf(0)
	for k := int64(1); term.Sign() != 0 && (sum.Sign() == 0 || term.MantExp(nil) > sum.MantExp(nil)-places); k++ {
		sum.Add(sum, term)
		term = next(term, k)
	}
	return sum
}

func mulQuo(a, b *big.Float, n int64) *big.Float {
	r := bf(0).Mul(a, b)
	return r.Quo(r, bf(0).SetInt64(n))
}

func bigExpm1(y *big.Float) *big.Float {
	return series(y, func(t *big.Float, k int64) *big.Float { return mulQuo(t, y, k+1) })
}

func bigSin(x *big.Float) *big.Float {
	m := bf(0).Mul(x, x)
	m.Neg(m)
	return series(x, func(t *big.Float, k int64) *big.Float { return mulQuo(t, m, 2*k*(2*k+1)) })
}

func bigCos(x *big.Float) *big.Float {
	m := bf(0).Mul(x, x)
	m.Neg(m)
	return series(bf(1), func(t *big.Float, k int64) *big.Float { return mulQuo(t, m, 2*k*(2*k-1)) })
}

// bigAtan halves the angle three times.
func bigAtan(x *big.Float) *big.Float {
	for range 3 {
		r := bf(0).Mul(x, x)
		r.Sqrt(r.Add(r, bf(1)))
		x = bf(0).Quo(x, r.Add(r, bf(1)))
	}
	m := bf(0).Mul(x, x)
	m.Neg(m)
	p := x
	s := series(x, func(_ *big.Float, k int64) *big.Float {
		p = bf(0).Mul(p, m)
		return bf(0).Quo(p, bf(0).SetInt64(2*k+1))
	})
	return s.Mul(s, bf(8))
}

// bigLog1p is the natural logarithm of 1+x for |x| < 1, of which it takes
// square roots.
func bigLog1p(x *big.Float) *big.Float {
	for range 3 {
		r := bf(0).Add(x, bf(1))
		r.Add(r.Sqrt(r), bf(1))
		x = bf(0).Quo(x, r) // sqrt(1+x) - 1
	}
	m := bf(0).Neg(x)
	p := x
	s := series(x, func(_ *big.Float, k int64) *big.Float {
		p = bf(0).Mul(p, m)
		return bf(0).Quo(p, bf(0).SetInt64(k+1))
	})
	return s.Mul(s, bf(8))
}

var (
	bigLn2 = bf(0).Neg(bigLog1p(bf(-0.5)))
	bigPi  = bf(0).Mul(bigAtan(bf(1)), bf(4))
)

// A result has 128 bits before it is rounded, and the documentation promises an
// error below 2^-50 units of the 64th, which is 2^-114 of the result at most.
func TestAccuracy(t *testing.T) {
	s := newSource(t)
	// number draws one with an exponent in [lo, hi].
	number := func(lo, hi int) num {
		m := s.Uint64()
		if s.IntN(3) == 0 {
			m = s.mant(64)
		}
		return num{mant: m | jbit, exp: int32(lo + s.IntN(hi-lo+1)), neg: s.IntN(2) == 0}
	}
	// piHalf66 is half of the pi that arguments are reduced by.
	piHalf66 := bf(0).SetInt(new(big.Int).Add(new(big.Int).Lsh(big.NewInt(3), 64), big.NewInt(0x243F6A8885A308D3)))
	piHalf66.SetMantExp(piHalf66, -65)
	for _, c := range []struct {
		name string
		f    func() (wide, *big.Float, any)
	}{
		{"exp2m1", func() (wide, *big.Float, any) {
			x := number(-80, -1)
			return exp2m1(x.wide()), bigExpm1(bf(0).Mul(x.wide().big(), bigLn2)), x
		}},
		{"log2", func() (wide, *big.Float, any) {
			x := number(-70, 70)
			x.neg = false
			if s.IntN(2) == 0 { // close to 1
				x.exp = -int32(s.IntN(2))
				x.mant = jbit + s.Uint64()>>(1+s.IntN(62))
				if x.exp < 0 {
					x.mant = -(x.mant << 1) | jbit
				}
			}
			w, _ := log2(x.wide())
			m := x
			k := float64(m.exp)
			m.exp = 0
			if m.mant>>62 == 3 {
				m.exp = -1
				k++
			}
			l := bigLog1p(bf(0).Sub(m.wide().big(), bf(1)))
			return w, l.Add(l.Quo(l, bigLn2), bf(k)), x
		}},
		{"log2p1", func() (wide, *big.Float, any) {
			x := number(-100, -2)
			w := x.wide()
			l := bigLog1p(w.big())
			return atanh2(w.over(wide{hi: jbit, exp: 1}.plus(w))), l.Quo(l, bigLn2), x
		}},
		{"atan2", func() (wide, *big.Float, any) {
			y, x := number(-40, 40), number(-40, 40)
			y.neg, x.neg = false, false
			if s.IntN(2) == 0 {
				y.exp = x.exp + int32(s.IntN(5)) - 2
			}
			return atan2(y, x), bigAtan(bf(0).Quo(y.wide().big(), x.wide().big())), [2]num{y, x}
		}},
		{"sincos", func() (wide, *big.Float, any) {
			x := number(-70, 62)
			r, quarter := octants(x)
			q := bf(0).Quo(x.wide().big(), piHalf66)
			q.Add(q, bf(0).SetFloat64(0.5*float64(q.Sign())))
			n, _ := q.Int(nil)
			ref := bf(0).Sub(x.wide().big(), bf(0).Mul(bf(0).SetInt(n), piHalf66))
			if ref.Cmp(r.big()) != 0 || new(big.Int).Mod(n, big.NewInt(4)).Int64() != int64(quarter) {
				t.Fatalf("%+v reduced to %v, quarter %d; want %v, %v", x, r.big(), quarter, ref, n)
			}
			if s.IntN(2) == 0 {
				return sinSeries(r), bigSin(ref), x
			}
			return cosSeries(r), bigCos(ref), x
		}},
		{"tan", func() (wide, *big.Float, any) {
			r, _ := octants(number(-70, 62))
			return sinSeries(r).over(cosSeries(r)), bf(0).Quo(bigSin(r.big()), bigCos(r.big())), r
		}},
	} {
		least := 200
		for range rounds(t, 300) {
			got, want, x := c.f()
			if want.Sign() == 0 {
				if got.hi != 0 {
					t.Errorf("%s: %+v gave %v, want 0", c.name, x, got.big())
				}
				continue
			}
			d := bf(0).Sub(got.big(), want)
			if d.Sign() == 0 {
				continue
			}
			least = min(least, want.MantExp(nil)-d.MantExp(nil))
			if want.MantExp(nil)-d.MantExp(nil) < 115 {
				t.Errorf("%s: %+v gave %v, want %v", c.name, x, got.big(), want)
			}
		}
		t.Logf("%s: the error is below 2^-%d of the result", c.name, least-1)
	}
	// The constants.
	for _, c := range []struct {
		got  wide
		want *big.Float
	}{
		{wPi, bigPi}, {wLn2, bigLn2}, {wLog2e, bf(0).Quo(bf(1), bigLn2)},
		{atanOne, bigAtan(bf(1))}, {atanHalf, bigAtan(bf(0.5))},
	} {
		d := bf(0).Sub(c.want, c.got.big())
		if d.Sign() < 0 || d.MantExp(nil) > c.want.MantExp(nil)-127 {
			t.Errorf("%v is not %v", c.got.big(), c.want)
		}
	}
}
