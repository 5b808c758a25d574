package float

// Op is one of the eight operations that most x87 opcodes come in, by the number
// that the instruction has in the reg field of ModRM.
type Op uint8

// The operations. SubR and DivR have their operands reversed.
const (
	OpAdd Op = iota
	OpMul
	OpCom
	OpComP
	OpSub
	OpSubR
	OpDiv
	OpDivR
)

// Add returns a+b (FADD). ok is false if an unmasked exception leaves the
// destination unwritten; so it is for all operations.
func (e *X87) Add(a, b F80) (r F80, ok bool) { return e.add(a, b, false, false) }

// Sub returns a-b (FSUB).
func (e *X87) Sub(a, b F80) (r F80, ok bool) { return e.add(a, b, true, false) }

// Mul returns a*b (FMUL).
func (e *X87) Mul(a, b F80) (r F80, ok bool) { return e.mul(a, b, false) }

// Div returns a/b (FDIV).
func (e *X87) Div(a, b F80) (r F80, ok bool) { return e.div(a, b, false) }

// Arith does op, which is not a comparison, on a and b: FADD, FSUB, FSUBR, ...
func (e *X87) Arith(op Op, a, b F80) (r F80, ok bool) { return e.arith(op, a, b, false) }

// Arith32 is Arith with the bits of a float32 in memory as the second operand.
func (e *X87) Arith32(op Op, a F80, b uint32) (r F80, ok bool) {
	x, den := widen32(b)
	return e.arith(op, a, x, den)
}

// Arith64 is Arith with the bits of a float64 in memory as the second operand.
func (e *X87) Arith64(op Op, a F80, b uint64) (r F80, ok bool) {
	x, den := widen64(b)
	return e.arith(op, a, x, den)
}

// arith does op. den tells that b was a denormal in its own format.
func (e *X87) arith(op Op, a, b F80, den bool) (F80, bool) {
	switch op {
	case OpAdd:
		return e.add(a, b, false, den)
	case OpMul:
		return e.mul(a, b, den)
	case OpSub:
		return e.add(a, b, true, den)
	case OpSubR:
		return e.add(b, a, true, den)
	case OpDiv:
		return e.div(a, b, den)
	case OpDivR:
		return e.div(b, a, den)
	}
	return a, false
}

// invalid is the response to an invalid operation.
func (e *X87) invalid() (F80, bool) { return DefaultNaN, e.raise(IE) }

// special deals with operands of which one at least has no value, and returns
// the result (Intel SDM volume 1, table 4-7).
func (e *X87) special(a, b F80, ca, cb class) (F80, bool) {
	if ca == unsupported || cb == unsupported {
		return e.invalid()
	}
	ok := true
	if ca == snan || cb == snan {
		ok = e.raise(IE)
	}
	r := a
	switch {
	case ca < nan:
		r = b
	case cb < nan:
	case ca == snan && cb == nan:
		r = b
	case ca == nan && cb == snan:
	case b.Mant > a.Mant, b.Mant == a.Mant && a.neg():
		r = b
	}
	r.Mant |= quietBit
	return r, ok
}

// denormals raises DE if an operand is denormal, and reports whether to go on.
func (e *X87) denormals(ca, cb class, den bool) bool {
	if ca == denormal || cb == denormal || den {
		return e.raise(DE)
	}
	return true
}

func (e *X87) add(a, b F80, negate, den bool) (F80, bool) {
	e.SW &^= C1
	ca, cb := a.class(), b.class()
	if ca >= nan || cb >= nan {
		return e.special(a, b, ca, cb)
	}
	if negate {
		b.SE ^= 0x8000
	}
	if ca == infinity && cb == infinity && a.SE != b.SE {
		return e.invalid()
	}
	if !e.denormals(ca, cb, den) {
		return F80{}, false
	}
	switch {
	case ca == infinity:
		return a, true
	case cb == infinity:
		return b, true
	case ca == zero && cb == zero:
		if a.SE == b.SE {
			return a, true
		}
		return zero80(e.rc() == toNegative), true
	case ca == zero:
		return e.round(b.unpack().wide(), e.prec()), true
	case cb == zero:
		return e.round(a.unpack().wide(), e.prec()), true
	}
	w, nonzero := add(a.unpack(), b.unpack())
	if !nonzero {
		return zero80(e.rc() == toNegative), true
	}
	return e.round(w, e.prec()), true
}

func (e *X87) mul(a, b F80, den bool) (F80, bool) {
	e.SW &^= C1
	ca, cb := a.class(), b.class()
	if ca >= nan || cb >= nan {
		return e.special(a, b, ca, cb)
	}
	if ca == zero && cb == infinity || ca == infinity && cb == zero {
		return e.invalid()
	}
	if !e.denormals(ca, cb, den) {
		return F80{}, false
	}
	neg := a.neg() != b.neg()
	switch {
	case ca == infinity || cb == infinity:
		return inf80(neg), true
	case ca == zero || cb == zero:
		return zero80(neg), true
	}
	return e.round(mul(a.unpack(), b.unpack()), e.prec()), true
}

func (e *X87) div(a, b F80, den bool) (F80, bool) {
	e.SW &^= C1
	ca, cb := a.class(), b.class()
	if ca >= nan || cb >= nan {
		return e.special(a, b, ca, cb)
	}
	if ca == cb && (ca == zero || ca == infinity) {
		return e.invalid()
	}
	neg := a.neg() != b.neg()
	if cb == zero && ca != infinity {
		return inf80(neg), e.raise(ZE)
	}
	if !e.denormals(ca, cb, den) {
		return F80{}, false
	}
	switch {
	case ca == infinity:
		return inf80(neg), true
	case ca == zero || cb == infinity:
		return zero80(neg), true
	}
	return e.round(div(a.unpack(), b.unpack()), e.prec()), true
}

// unary deals with a single operand that has no value.
func (e *X87) unary(a F80, c class) (F80, bool) {
	if c == unsupported {
		return e.invalid()
	}
	a.Mant |= quietBit
	if c == snan {
		return a, e.raise(IE)
	}
	return a, true
}

// Sqrt returns the square root of a (FSQRT).
func (e *X87) Sqrt(a F80) (r F80, ok bool) {
	e.SW &^= C1
	c := a.class()
	switch {
	case c >= nan:
		return e.unary(a, c)
	case c == zero:
		return a, true
	case a.neg():
		return e.invalid()
	case c == infinity:
		return a, true
	case c == denormal && !e.raise(DE):
		return F80{}, false
	}
	return e.round(sqrt(a.unpack()), e.prec()), true
}

// Comparison is the outcome of comparing two numbers, in the encoding of the
// flags ZF (bit 6), PF (bit 2) and CF (bit 0) of RFLAGS.
type Comparison uint8

// The outcomes.
const (
	Greater   Comparison = 0
	Less      Comparison = 1
	Equal     Comparison = 1 << 6
	Unordered Comparison = 1<<6 | 1<<2 | 1
)

// Compare compares a and b, as FCOMI does, or FUCOMI if quiet: a quiet NaN is then
// no invalid operation. It does not change the condition codes, except C1. ok is
// false if an exception is unmasked: flags are written nevertheless, but nothing is
// popped.
func (e *X87) Compare(a, b F80, quiet bool) (c Comparison, ok bool) {
	return e.compare(a, b, quiet, false)
}

// Com compares a and b into C0, C2 and C3, as FCOM does, or FUCOM if quiet. ok
// is false if an exception is unmasked, so that nothing is popped.
func (e *X87) Com(a, b F80, quiet bool) (ok bool) {
	c, ok := e.compare(a, b, quiet, false)
	e.setCodes(c)
	return ok
}

// Com32 is Com with the bits of a float32 in memory as the second operand (FCOM).
func (e *X87) Com32(a F80, b uint32) (ok bool) {
	x, den := widen32(b)
	c, ok := e.compare(a, x, false, den)
	e.setCodes(c)
	return ok
}

// Com64 is Com with the bits of a float64 in memory as the second operand (FCOM).
func (e *X87) Com64(a F80, b uint64) (ok bool) {
	x, den := widen64(b)
	c, ok := e.compare(a, x, false, den)
	e.setCodes(c)
	return ok
}

// setCodes puts ZF, PF and CF of c into C3, C2 and C0.
func (e *X87) setCodes(c Comparison) {
	e.SW = e.SW&^(C0|C2|C3) | uint16(c)<<8
}

func (e *X87) compare(a, b F80, quiet, den bool) (Comparison, bool) {
	e.SW &^= C1
	ca, cb := a.class(), b.class()
	if ca >= nan || cb >= nan {
		if quiet && ca <= nan && cb <= nan {
			return Unordered, true
		}
		return Unordered, e.raise(IE)
	}
	ok := e.denormals(ca, cb, den)
	return order(a, b, ca, cb), ok
}

// order compares two numbers that have values.
func order(a, b F80, ca, cb class) Comparison {
	switch {
	case ca == zero && cb == zero:
		return Equal
	case ca == zero:
		return lessIf(!b.neg())
	case cb == zero:
		return lessIf(a.neg())
	case a.neg() != b.neg():
		return lessIf(a.neg())
	}
	ea, eb := max(a.SE&0x7FFF, 1), max(b.SE&0x7FFF, 1)
	switch {
	case ea == eb && a.Mant == b.Mant:
		return Equal
	case ea == eb:
		return lessIf(a.Mant < b.Mant != a.neg())
	}
	return lessIf(ea < eb != a.neg())
}

func lessIf(less bool) Comparison {
	if less {
		return Less
	}
	return Greater
}

// Examine sets C3, C2 and C0 to the class of a, and C1 to its sign (FXAM). The
// class "empty" is for the caller to set: C3 and C0.
func (e *X87) Examine(a F80) {
	var codes uint16
	switch a.class() {
	case nan, snan:
		codes = C0
	case normal:
		codes = C2
	case infinity:
		codes = C2 | C0
	case zero:
		codes = C3
	case denormal:
		codes = C3 | C2
	}
	e.SW = e.SW&^(C0|C1|C2|C3) | codes
	e.setC1(a.neg())
}
