package float

// F80 is a number in the double extended-precision format (Intel SDM volume 1,
// section 4.2.2): the significand with its explicit integer bit, and the sign
// above the 15-bit exponent, as they lie in memory.
type F80 struct {
	Mant uint64
	SE   uint16
}

const (
	jbit     = 1 << 63 // the integer bit
	quietBit = 1 << 62

	bias80 = 16383
	emax80 = 16383
	emin80 = -16382
)

// Values that instructions produce.
var (
	// DefaultNaN is the "real indefinite", the masked response to IE.
	DefaultNaN = F80{0xC000000000000000, 0xFFFF}
	// One is 1.0.
	One = F80{jbit, bias80}
)

// class says what a number is. The order matters: from nan on there is no value.
type class uint8

const (
	zero class = iota
	normal
	denormal // and pseudo-denormal
	infinity
	nan
	snan
	unsupported // unnormal, pseudo-infinity, pseudo-NaN
)

func (x F80) class() class {
	switch e := x.SE & 0x7FFF; {
	case e == 0:
		if x.Mant == 0 {
			return zero
		}
		return denormal
	case x.Mant&jbit == 0:
		return unsupported
	case e != 0x7FFF:
		return normal
	case x.Mant == jbit:
		return infinity
	case x.Mant&quietBit != 0:
		return nan
	}
	return snan
}

func (x F80) neg() bool { return x.SE&0x8000 != 0 }

// Neg returns x with its sign changed (FCHS).
func (x F80) Neg() F80 { return F80{x.Mant, x.SE ^ 0x8000} }

// Abs returns x with its sign cleared (FABS).
func (x F80) Abs() F80 { return F80{x.Mant, x.SE & 0x7FFF} }

// IsNaN reports whether x is a NaN, quiet or signalling.
func (x F80) IsNaN() bool { c := x.class(); return c == nan || c == snan }

func signBit(neg bool) uint16 {
	if neg {
		return 0x8000
	}
	return 0
}

func zero80(neg bool) F80 { return F80{0, signBit(neg)} }
func inf80(neg bool) F80  { return F80{jbit, signBit(neg) | 0x7FFF} }

// unpack returns the value of a normal or denormal number.
func (x F80) unpack() num {
	n := num{neg: x.neg(), exp: int32(x.SE&0x7FFF) - bias80, mant: x.Mant}
	if n.exp == -bias80 {
		n.exp = emin80
		n.normalize()
	}
	return n
}

// pack is the inverse of unpack for numbers in the normal range.
func (n num) pack() F80 { return F80{n.mant, signBit(n.neg) | uint16(n.exp+bias80)} }
