package float

// MXCSR is the control and status register of SSE (Intel SDM volume 1, section
// 10.2.3): sticky flags in bits 0-5, DAZ in bit 6, the masks of IE to PE in bits
// 7-12, the rounding control in bits 13-14 and FTZ in bit 15. Its methods take and
// return the bits of float32 and float64 numbers.
type MXCSR uint32

// DefaultMXCSR is the register after reset: everything masked, round to nearest.
const DefaultMXCSR MXCSR = 0x1F80

const (
	daz       = 1 << 6
	maskShift = 7
	rcShift   = 13
	ftz       = 1 << 15

	precomputation = IE | DE | ZE // flagged before there is a result
)

func (m MXCSR) rc() uint8 { return uint8(m >> rcShift & 3) }

// nearest reports whether the mode is round to nearest, which is Go's own.
func (m MXCSR) nearest() bool { return m&(3<<rcShift) == 0 }

// masked reports whether the exception f is masked.
func (m MXCSR) masked(f MXCSR) bool { return m>>maskShift&f != 0 }

// AllMasked reports whether no exception can reach the program, so that Begin
// and End are not needed.
func (m MXCSR) AllMasked() bool { return m>>maskShift&exceptions == exceptions }

// Begin returns a copy without flags, for the elements of one instruction.
func (m MXCSR) Begin() MXCSR { return m &^ exceptions }

// End takes over the flags that an instruction has raised in a copy made by
// Begin. It reports whether #XM is due: no result is written then. An unmasked
// exception before the computation (IE, DE, ZE) in any element keeps all
// elements from being computed, and hence OE, UE and PE from being flagged.
func (m *MXCSR) End(t MXCSR) (exception bool) {
	raised := t & exceptions
	unmasked := raised &^ (*m >> maskShift)
	if unmasked&precomputation != 0 {
		raised &= precomputation
	}
	*m |= raised
	return unmasked != 0
}

// raise flags exceptions and reports whether all of them are masked.
func (m *MXCSR) raise(f MXCSR) bool {
	*m |= f
	return f&^(*m>>maskShift) == 0
}

// operand splits v, and makes it a zero if it is a denormal under DAZ.
func (m *MXCSR) operand(f *format, v uint64) (uint64, num, class) {
	n, c := f.split(v)
	if c == denormal && *m&daz != 0 {
		return f.sign(n.neg), n, zero
	}
	return v, n, c
}

// denormals raises DE if an operand is denormal, and reports whether to go on.
func (m *MXCSR) denormals(ca, cb class) bool {
	return ca != denormal && cb != denormal || m.raise(DE)
}

// invalid is the response to an invalid operation.
func (m *MXCSR) invalid(f *format) uint64 {
	*m |= IE
	return f.defaultNaN()
}

// nan returns the first operand if it is a NaN, else the second, made quiet.
func (m *MXCSR) nan(f *format, a, b uint64, ca, cb class) uint64 {
	if ca == snan || cb == snan {
		*m |= IE
	}
	if ca < nan {
		a = b
	}
	return a | 1<<(f.prec-2)
}

// round rounds w to the format and raises OE, UE and PE.
func (m *MXCSR) round(f *format, w wide) uint64 {
	rc := m.rc()
	mant, carry, inexact, _ := round(w.hi, w.lo, w.neg, f.prec, rc)
	exp := w.exp + f.bias
	if carry {
		exp++
	}
	if exp > 2*f.bias {
		*m |= OE
		if inexact || m.masked(OE) {
			*m |= PE
		}
		if rc == toNearest || rc == toNegative && w.neg || rc == toPositive && !w.neg {
			return f.inf(w.neg)
		}
		return f.inf(w.neg) - 1
	}
	if exp <= 0 {
		switch {
		case !m.masked(UE):
			*m |= UE
		case *m&ftz != 0:
			*m |= UE | PE
			return f.sign(w.neg)
		default:
			hi, lo := shiftSticky(w.hi, w.lo, uint32(1-f.bias-w.exp))
			mant, _, inexact, _ = round(hi, lo, w.neg, f.prec, rc)
			if inexact {
				*m |= UE
			}
		}
		exp = 0
	}
	if inexact {
		*m |= PE
	}
	return f.pack(w.neg, exp, mant)
}

// slow does OpAdd, OpSub, OpMul or OpDiv in integers, for all operands.
func (m *MXCSR) slow(f *format, op Op, a, b uint64) uint64 {
	a, x, ca := m.operand(f, a)
	b, y, cb := m.operand(f, b)
	if ca >= nan || cb >= nan {
		return m.nan(f, a, b, ca, cb)
	}
	if op == OpSub {
		y.neg = !y.neg
		b ^= f.sign(true)
		op = OpAdd
	}
	neg := x.neg != y.neg
	switch op {
	case OpAdd:
		if ca == infinity && cb == infinity && neg {
			return m.invalid(f)
		}
	case OpMul:
		if ca == zero && cb == infinity || ca == infinity && cb == zero {
			return m.invalid(f)
		}
	case OpDiv:
		if ca == cb && (ca == zero || ca == infinity) {
			return m.invalid(f)
		}
		if cb == zero && ca != infinity {
			*m |= ZE
			return f.inf(neg)
		}
	}
	if !m.denormals(ca, cb) {
		return 0
	}
	var w wide
	switch op {
	case OpAdd:
		switch {
		case ca == infinity:
			return a
		case cb == infinity:
			return b
		case ca == zero && cb == zero:
			if !neg {
				return a
			}
			return f.sign(m.rc() == toNegative)
		case ca == zero:
			w = y.wide()
		case cb == zero:
			w = x.wide()
		default:
			var nonzero bool
			if w, nonzero = add(x, y); !nonzero {
				return f.sign(m.rc() == toNegative)
			}
		}
	case OpMul:
		switch {
		case ca == infinity || cb == infinity:
			return f.inf(neg)
		case ca == zero || cb == zero:
			return f.sign(neg)
		}
		w = mul(x, y)
	case OpDiv:
		switch {
		case ca == infinity:
			return f.inf(neg)
		case ca == zero || cb == infinity:
			return f.sign(neg)
		}
		w = div(x, y)
	}
	return m.round(f, w)
}

// slowSqrt is the square root in integers.
func (m *MXCSR) slowSqrt(f *format, a uint64) uint64 {
	a, x, c := m.operand(f, a)
	switch {
	case c >= nan:
		return m.nan(f, a, 0, c, zero)
	case c == zero:
		return a
	case x.neg:
		return m.invalid(f)
	case c == infinity:
		return a
	case c == denormal && !m.raise(DE):
		return 0
	}
	return m.round(f, sqrt(x))
}

// compare compares two numbers. A quiet NaN raises IE unless quiet.
func (m *MXCSR) compare(f *format, a, b uint64, quiet bool) Comparison {
	_, x, ca := m.operand(f, a)
	_, y, cb := m.operand(f, b)
	if ca >= nan || cb >= nan {
		if !quiet || ca == snan || cb == snan {
			*m |= IE
		}
		return Unordered
	}
	if ca == denormal || cb == denormal {
		*m |= DE
	}
	switch {
	case ca == zero && cb == zero:
		return Equal
	case ca == zero:
		return lessIf(!y.neg)
	case cb == zero || x.neg != y.neg:
		return lessIf(x.neg)
	case a == b:
		return Equal
	}
	return lessIf(a < b != x.neg)
}
