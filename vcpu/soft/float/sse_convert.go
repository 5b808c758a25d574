package float

import (
	"math"
	"math/bits"
)

// IntToFloat64 converts a signed integer (CVTSI2SD, CVTDQ2PD, CVTPI2PD).
func (m *MXCSR) IntToFloat64(v int64) uint64 {
	if m.nearest() || int64(int32(v)) == v {
		if *m&PE == 0 && v != 0 {
			u := uint64(max(v, -v)) // 2^63 for the least v
			m.inexact(bits.Len64(u)-bits.TrailingZeros64(u) > 53)
		}
		return math.Float64bits(float64(v))
	}
	return m.fromInt(&binary64, v)
}

// IntToFloat32 converts a signed integer (CVTSI2SS, CVTDQ2PS, CVTPI2PS).
func (m *MXCSR) IntToFloat32(v int64) uint32 {
	if -1<<24 <= v && v <= 1<<24 {
		return math.Float32bits(float32(v))
	}
	return uint32(m.fromInt(&binary32, v))
}

func (m *MXCSR) fromInt(f *format, v int64) uint64 {
	switch {
	case v == 0:
		return 0
	case v < 0:
		return m.round(f, fromUint(-uint64(v), true).wide())
	}
	return m.round(f, fromUint(uint64(v), false).wide())
}

// Float32To64 converts a float32 to a float64 (CVTSS2SD, CVTPS2PD).
func (m *MXCSR) Float32To64(a uint32) uint64 {
	if e := a & exp32; e != 0 && e != exp32 || a<<1 == 0 {
		return math.Float64bits(float64(math.Float32frombits(a)))
	}
	return m.convert(&binary32, &binary64, uint64(a))
}

// Float64To32 converts a float64 to a float32 (CVTSD2SS, CVTPD2PS).
func (m *MXCSR) Float64To32(a uint64) uint32 {
	x := math.Float64frombits(a)
	z := float32(x)
	r := math.Float32bits(z)
	if m.nearest() && within32(r) {
		m.inexact(float64(z) != x)
		return r
	}
	return uint32(m.convert(&binary64, &binary32, a))
}

func (m *MXCSR) convert(from, to *format, a uint64) uint64 {
	_, n, c := m.operand(from, a)
	switch c {
	case zero:
		return to.sign(n.neg)
	case infinity:
		return to.inf(n.neg)
	case snan, nan:
		if c == snan {
			*m |= IE
		}
		return to.inf(n.neg) | (n.mant&^jbit|quietBit)>>(64-to.prec)
	case denormal:
		if !m.raise(DE) {
			return 0
		}
	}
	return m.round(to, n.wide())
}

// Float64ToInt32 converts to an integer by the rounding control (CVTSD2SI,
// CVTPD2DQ), or towards zero if trunc (CVTTSD2SI, CVTTPD2DQ). A number out of
// range gives IE and the integer indefinite, -2^31.
func (m *MXCSR) Float64ToInt32(a uint64, trunc bool) int32 {
	if plain64(a) && (trunc || m.nearest()) {
		x := math.Float64frombits(a)
		z := x
		if !trunc {
			z = math.RoundToEven(x)
		}
		// Go does not say what becomes of numbers out of range, so look first.
		if z > -1<<31-1 && z < 1<<31 {
			v := int32(z)
			m.inexact(float64(v) != x)
			return v
		}
	}
	return int32(m.toInt(&binary64, a, trunc, 32))
}

// Float64ToInt64 is Float64ToInt32 for 64 bits.
func (m *MXCSR) Float64ToInt64(a uint64, trunc bool) int64 {
	if plain64(a) && (trunc || m.nearest()) {
		x := math.Float64frombits(a)
		z := x
		if !trunc {
			z = math.RoundToEven(x)
		}
		if z >= -1<<63 && z < 1<<63 {
			v := int64(z)
			m.inexact(float64(v) != x)
			return v
		}
	}
	return m.toInt(&binary64, a, trunc, 64)
}

// Float32ToInt32 is Float64ToInt32 for float32 (CVTSS2SI, CVTPS2DQ and, if
// trunc, CVTTSS2SI, CVTTPS2DQ).
func (m *MXCSR) Float32ToInt32(a uint32, trunc bool) int32 {
	if plain32(a) {
		return m.Float64ToInt32(widened(a), trunc)
	}
	return int32(m.toInt(&binary32, uint64(a), trunc, 32))
}

// Float32ToInt64 is Float32ToInt32 for 64 bits.
func (m *MXCSR) Float32ToInt64(a uint32, trunc bool) int64 {
	if plain32(a) {
		return m.Float64ToInt64(widened(a), trunc)
	}
	return m.toInt(&binary32, uint64(a), trunc, 64)
}

// widened is a as a float64; what becomes of a NaN does not matter.
func widened(a uint32) uint64 { return math.Float64bits(float64(math.Float32frombits(a))) }

func (m *MXCSR) toInt(f *format, a uint64, trunc bool, size uint) int64 {
	indefinite := int64(-1) << (size - 1)
	_, n, c := m.operand(f, a)
	switch {
	case c == zero:
		return 0
	case c >= infinity:
		*m |= IE
		return indefinite
	}
	rc := m.rc()
	if trunc {
		rc = toZero
	}
	v, inexact, _, ok := integer(n, rc)
	limit := uint64(1) << (size - 1)
	if !ok || v > limit || v == limit && !n.neg {
		*m |= IE
		return indefinite
	}
	m.inexact(inexact)
	if n.neg {
		return -int64(v)
	}
	return int64(v)
}

// RoundInt64 rounds to an integer as the immediate byte of ROUNDSD says: bits 0-1
// are the rounding mode, unless bit 2 selects that of MXCSR; bit 3 keeps PE from
// being flagged.
func (m *MXCSR) RoundInt64(a uint64, imm uint8) uint64 {
	if !plain64(a) || a&exp64 == exp64 {
		return m.roundInt(&binary64, a, imm)
	}
	x := math.Float64frombits(a)
	z := m.nearby(x, imm)
	m.inexact(z != x && imm&8 == 0)
	return math.Float64bits(z)
}

// RoundInt32 is RoundInt64 for float32 (ROUNDSS).
func (m *MXCSR) RoundInt32(a uint32, imm uint8) uint32 {
	if !plain32(a) || a&exp32 == exp32 {
		return uint32(m.roundInt(&binary32, uint64(a), imm))
	}
	x := float64(math.Float32frombits(a))
	z := m.nearby(x, imm)
	m.inexact(z != x && imm&8 == 0)
	return math.Float32bits(float32(z))
}

func (m *MXCSR) nearby(x float64, imm uint8) float64 {
	rc := imm & 3
	if imm&4 != 0 {
		rc = m.rc()
	}
	switch rc {
	case toNearest:
		return math.RoundToEven(x)
	case toNegative:
		return math.Floor(x)
	case toPositive:
		return math.Ceil(x)
	}
	return math.Trunc(x)
}

// roundInt rounds denormals, infinities and NaNs.
func (m *MXCSR) roundInt(f *format, a uint64, imm uint8) uint64 {
	a, n, c := m.operand(f, a)
	switch {
	case c >= nan:
		return m.nan(f, a, 0, c, zero)
	case c == zero || c == infinity:
		return a
	}
	rc := imm & 3
	if imm&4 != 0 {
		rc = m.rc()
	}
	m.inexact(imm&8 == 0)
	if rc == toNegative && n.neg || rc == toPositive && !n.neg {
		return f.pack(n.neg, f.bias, jbit)
	}
	return f.sign(n.neg)
}

// Rcp32 approximates 1/a (RCPSS). It raises no exceptions and takes denormals for
// zeros. The relative error is below 2^-12; processors may have up to 1.5 * 2^-12
// and differ from this and from each other.
func Rcp32(a uint32) uint32 {
	return approximate(a, func(x float64) float64 { return 1 / x })
}

// Rsqrt32 approximates 1/sqrt(a) (RSQRTSS), with the same bound as Rcp32.
func Rsqrt32(a uint32) uint32 {
	if int32(a) < 0 && a&exp32 != 0 && a&^(1<<31) <= exp32 {
		return uint32(binary32.defaultNaN())
	}
	return approximate(a, func(x float64) float64 { return 1 / math.Sqrt(x) })
}

// approximate rounds f(a) to 12 bits, and results not above the least normal to zero.
func approximate(a uint32, f func(float64) float64) uint32 {
	sign := a & (1 << 31)
	switch {
	case a&exp32 == 0:
		return sign | exp32
	case a&^(1<<31) == exp32:
		return sign
	case a&exp32 == exp32:
		return a | 1<<22
	}
	x := f(float64(math.Float32frombits(a)))
	if math.Abs(x) <= 0x1p-126 {
		return sign
	}
	return (math.Float32bits(float32(x)) + 1<<11) &^ (1<<12 - 1)
}
