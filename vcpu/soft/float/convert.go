package float

import "math/bits"

// format is an IEEE 754 format that has no explicit integer bit.
type format struct {
	prec uint // bits of precision, the integer bit among them
	bias int32
}

var (
	binary32 = format{24, 127}
	binary64 = format{53, 1023}
)

func (f *format) sign(neg bool) uint64 {
	switch {
	case !neg:
		return 0
	case f.prec == 24:
		return 1 << 31
	}
	return 1 << 63
}

func (f *format) inf(neg bool) uint64 {
	return f.sign(neg) | uint64(2*f.bias+1)<<(f.prec-1)
}

// defaultNaN is the indefinite of the format.
func (f *format) defaultNaN() uint64 { return f.inf(true) | 1<<(f.prec-2) }

// pack puts a rounded magnitude into the format. exp is the biased exponent, and
// 0 if mant is a denormal or has just become normal by rounding.
func (f *format) pack(neg bool, exp int32, mant uint64) uint64 {
	m := mant >> (64 - f.prec)
	if exp > 0 {
		exp--
	}
	return f.sign(neg) | (uint64(exp)<<(f.prec-1) + m)
}

// split returns the class of bits in the format and, for a number other than
// zero, its value; for a NaN, the significand is left-justified in mant.
func (f *format) split(v uint64) (num, class) {
	n := num{neg: v&f.sign(true) != 0}
	frac := v & (1<<(f.prec-1) - 1)
	exp := int32(v>>(f.prec-1)) & (2*f.bias + 1)
	n.mant = frac<<(64-f.prec) | jbit
	n.exp = exp - f.bias
	switch {
	case exp == 0 && frac == 0:
		return n, zero
	case exp == 0:
		n.mant &^= jbit
		n.exp++
		n.normalize()
		return n, denormal
	case exp != 2*f.bias+1:
		return n, normal
	case frac == 0:
		return n, infinity
	case n.mant&quietBit != 0:
		return n, nan
	}
	return n, snan
}

// widen returns v as an F80, without exceptions: a signalling NaN stays one. den
// tells that it was a denormal.
func (f *format) widen(v uint64) (x F80, den bool) {
	n, c := f.split(v)
	switch c {
	case zero:
		return zero80(n.neg), false
	case infinity, nan, snan:
		return F80{n.mant, signBit(n.neg) | 0x7FFF}, false
	}
	return n.pack(), c == denormal
}

func widen32(v uint32) (F80, bool) { return binary32.widen(uint64(v)) }
func widen64(v uint64) (F80, bool) { return binary64.widen(v) }

// Load32 converts the bits of a float32 (FLD m32). ok is false if an unmasked
// IE keeps it from being pushed; an unmasked DE does not.
func (e *X87) Load32(v uint32) (x F80, ok bool) {
	x, den := widen32(v)
	return e.load(x, den)
}

// Load64 converts the bits of a float64 (FLD m64). ok is as for Load32.
func (e *X87) Load64(v uint64) (x F80, ok bool) {
	x, den := widen64(v)
	return e.load(x, den)
}

func (e *X87) load(x F80, den bool) (F80, bool) {
	e.SW &^= C1
	if x.class() == snan {
		x.Mant |= quietBit
		return x, e.raise(IE)
	}
	e.denormals(zero, zero, den)
	return x, true
}

// FromInt64 converts an integer, always exactly (FILD of any size; it clears C1,
// which is for the caller to do, as for FLD m80).
func FromInt64(v int64) F80 {
	if v == 0 {
		return F80{}
	}
	n := num{neg: v < 0, exp: 63, mant: uint64(v)}
	if n.neg {
		n.mant = -n.mant
	}
	n.normalize()
	return n.pack()
}

// Store32 converts to the bits of a float32 (FST m32). ok is false if an unmasked
// exception keeps it from being stored.
func (e *X87) Store32(a F80) (v uint32, ok bool) {
	r, ok := e.store(a, &binary32)
	return uint32(r), ok
}

// Store64 converts to the bits of a float64 (FST m64). ok is as for Store32.
func (e *X87) Store64(a F80) (v uint64, ok bool) { return e.store(a, &binary64) }

func (e *X87) store(a F80, f *format) (uint64, bool) {
	e.SW &^= C1
	neg := a.neg()
	switch c := a.class(); c {
	case zero:
		return f.sign(neg), true
	case infinity:
		return f.inf(neg), true
	case unsupported:
		return f.defaultNaN(), e.raise(IE)
	case nan, snan:
		v := f.inf(neg) | (a.Mant&^jbit|quietBit)>>(64-f.prec)
		return v, c == nan || e.raise(IE)
	}
	w := a.unpack().wide()
	rc := e.rc()
	mant, carry, inexact, up := round(w.hi, w.lo, neg, f.prec, rc)
	exp := w.exp
	if carry {
		exp++
	}
	if exp > f.bias {
		if !e.raise(OE) {
			return 0, false
		}
		e.SW |= PE
		if rc == toNearest || rc == toNegative && neg || rc == toPositive && !neg {
			e.SW |= C1
			return f.inf(neg), true
		}
		return f.inf(neg) - 1, true
	}
	biased := exp + f.bias
	if biased <= 0 {
		if e.CW&UE == 0 {
			e.SW |= UE
			return 0, false
		}
		hi, lo := shiftSticky(w.hi, w.lo, uint32(1-f.bias-w.exp))
		mant, _, inexact, up = round(hi, lo, neg, f.prec, rc)
		if inexact {
			e.SW |= UE
		}
		biased = 0
	}
	if inexact {
		e.SW |= PE
	}
	e.setC1(up)
	return f.pack(neg, biased, mant), true
}

// integer rounds a number to an integer below 2^64. The result is false if the
// number is not below.
func integer(n num, rc uint8) (v uint64, inexact, up, ok bool) {
	if n.exp > 63 {
		return 0, false, false, false
	}
	hi, lo := shiftSticky(n.mant, 0, uint32(63-n.exp))
	v, carry, inexact, up := round(hi, lo, n.neg, 64, rc)
	return v, inexact, up, !carry
}

// RoundInt rounds to an integer by the rounding control (FRNDINT).
func (e *X87) RoundInt(a F80) (r F80, ok bool) {
	e.SW &^= C1
	c := a.class()
	switch {
	case c >= nan:
		return e.unary(a, c)
	case c == zero || c == infinity:
		return a, true
	case c == denormal && !e.raise(DE):
		return F80{}, false
	}
	n := a.unpack()
	if n.exp >= 63 {
		return a, true
	}
	v, inexact, up, _ := integer(n, e.rc())
	if inexact {
		e.SW |= PE
	}
	e.setC1(up)
	if v == 0 {
		return zero80(n.neg), true
	}
	n.mant, n.exp = v, 63
	n.normalize()
	return n.pack(), true
}

// Int16 converts to an integer by the rounding control (FIST m16), or towards
// zero if trunc (FISTTP). An unmasked IE makes ok false: nothing is stored.
func (e *X87) Int16(a F80, trunc bool) (v int16, ok bool) {
	r, ok := e.toInt(a, trunc, 16)
	return int16(r), ok
}

// Int32 is Int16 for 32 bits.
func (e *X87) Int32(a F80, trunc bool) (v int32, ok bool) {
	r, ok := e.toInt(a, trunc, 32)
	return int32(r), ok
}

// Int64 is Int16 for 64 bits.
func (e *X87) Int64(a F80, trunc bool) (v int64, ok bool) { return e.toInt(a, trunc, 64) }

func (e *X87) toInt(a F80, trunc bool, size uint) (int64, bool) {
	rc := e.rc()
	if trunc {
		rc = toZero
	}
	e.SW &^= C1
	indefinite := int64(-1) << (size - 1)
	switch c := a.class(); {
	case c == zero:
		return 0, true
	case c >= infinity:
		return indefinite, e.raise(IE)
	}
	n := a.unpack()
	v, inexact, up, ok := integer(n, rc)
	limit := uint64(1) << (size - 1)
	if !ok || v > limit || v == limit && !n.neg {
		return indefinite, e.raise(IE)
	}
	if inexact {
		e.SW |= PE
	}
	e.setC1(up)
	if n.neg {
		return -int64(v), true
	}
	return int64(v), true
}

// LoadBCD converts 18 packed decimal digits (FBLD). Nibbles above 9, whose
// meaning is undefined, count as their value.
func LoadBCD(b [10]byte) F80 {
	var v uint64
	for i := 8; i >= 0; i-- {
		v = v*100 + uint64(b[i]>>4)*10 + uint64(b[i]&15)
	}
	if v == 0 {
		return zero80(b[9]&0x80 != 0)
	}
	n := num{neg: b[9]&0x80 != 0, exp: 63, mant: v}
	n.normalize()
	return n.pack()
}

// StoreBCD converts to 18 packed decimal digits (FBSTP). ok is as for Int16.
func (e *X87) StoreBCD(a F80) (b [10]byte, ok bool) {
	e.SW &^= C1
	c := a.class()
	var v uint64
	if c == normal || c == denormal {
		var inexact, up bool
		v, inexact, up, ok = integer(a.unpack(), e.rc())
		if ok && v < 1e18 {
			if inexact {
				e.SW |= PE
			}
			e.setC1(up)
		} else {
			c = infinity
		}
	}
	if c >= infinity {
		b[7], b[8], b[9] = 0xC0, 0xFF, 0xFF
		return b, e.raise(IE)
	}
	for i := range 9 {
		d := v % 100
		v /= 100
		b[i] = byte(d/10<<4 | d%10)
	}
	if a.neg() {
		b[9] = 0x80
	}
	return b, true
}

// Constant returns the constant that the instruction D9 E8+i loads: 1, log2(10),
// log2(e), pi, log10(2), ln(2), 0. It is rounded by the rounding control.
func (e *X87) Constant(i uint8) F80 {
	e.SW &^= C1
	c := &constants[i%uint8(len(constants))]
	x := c.down
	if rc := e.rc(); c.inexact && (rc == toPositive || rc == toNearest && c.nearestUp) {
		x.Mant++
	}
	return x
}

var constants = [...]struct {
	down               F80 // rounded down
	inexact, nearestUp bool
}{
	{down: One},
	{F80{0xD49A784BCD1B8AFE, 0x4000}, true, false},
	{F80{0xB8AA3B295C17F0BB, 0x3FFF}, true, true},
	{F80{0xC90FDAA22168C234, 0x4000}, true, true},
	{F80{0x9A209A84FBCFF798, 0x3FFD}, true, true},
	{F80{0xB17217F7D1CF79AB, 0x3FFE}, true, true},
	{},
}

// fromUint returns an integer other than zero as a num.
func fromUint(v uint64, neg bool) num {
	s := bits.LeadingZeros64(v)
	return num{neg: neg, exp: 63 - int32(s), mant: v << s}
}
