package float

// Exception flags: bits of the x87 status word, of MXCSR, and (IE to PE) of the
// masks in the x87 control word.
const (
	IE = 1 << iota // invalid operation
	DE             // denormal operand
	ZE             // division by zero
	OE             // overflow
	UE             // underflow
	PE             // precision: the result is inexact

	exceptions = 0x3F
)

// Condition codes in the x87 status word.
const (
	C0 = 1 << 8
	C1 = 1 << 9
	C2 = 1 << 10
	C3 = 1 << 14
)

// X87 is the part of the x87's environment that computing depends on. Bits 0-5 of
// CW mask exceptions, bits 8-9 are the precision control and 10-11 the
// rounding control. Methods set the flags in bits 0-5 of SW, which stick, and the
// condition codes; they leave the other bits of SW (SF, ES, TOP, B) alone.
type X87 struct {
	CW, SW uint16
}

// Pending reports whether an unmasked exception is flagged in SW, so that ES is
// set and a waiting instruction ends in #MF.
func (e *X87) Pending() bool { return e.SW&^e.CW&exceptions != 0 }

// raise flags exceptions and reports whether all of them are masked.
func (e *X87) raise(f uint16) bool {
	e.SW |= f
	return f&^e.CW == 0
}

func (e *X87) rc() uint8 { return uint8(e.CW >> 10 & 3) }

// prec is the precision that the control word asks for, in bits; the reserved
// encoding 1 is 64, as on hardware.
func (e *X87) prec() uint {
	switch e.CW >> 8 & 3 {
	case 0:
		return 24
	case 2:
		return 53
	}
	return 64
}

func (e *X87) setC1(up bool) {
	if up {
		e.SW |= C1
	} else {
		e.SW &^= C1
	}
}

// unmaskedBias is what an unmasked overflow or underflow takes from, or adds to,
// the exponent (Intel SDM volume 1, sections 4.9.1.4 and 4.9.1.5).
const unmaskedBias = 24576

// round rounds w to prec bits and the range of F80, and raises OE, UE and PE.
func (e *X87) round(w wide, prec uint) F80 {
	rc := e.rc()
	mant, carry, inexact, up := round(w.hi, w.lo, w.neg, prec, rc)
	exp := w.exp
	if carry {
		exp++
	}
	sign := signBit(w.neg)
	if exp > emax80 {
		// FSCALE can leave the range even so (SDM, sections 8.5.4 and 8.5.5).
		if e.CW&OE != 0 || exp-unmaskedBias > emax80 {
			e.SW |= OE | PE
			if e.CW&OE == 0 || rc == toNearest || rc == toNegative && w.neg || rc == toPositive && !w.neg {
				e.SW |= C1
				return inf80(w.neg)
			}
			e.SW &^= C1
			return F80{^uint64(0) << (64 - prec), sign | 0x7FFE}
		}
		e.SW |= OE
		exp -= unmaskedBias
	} else if exp < emin80 {
		if e.CW&UE == 0 && exp+unmaskedBias < emin80 {
			e.SW = e.SW&^C1 | UE | PE
			return zero80(w.neg)
		}
		if e.CW&UE != 0 {
			hi, lo := shiftSticky(w.hi, w.lo, uint32(emin80-w.exp))
			mant, _, inexact, up = round(hi, lo, w.neg, prec, rc)
			if inexact {
				e.SW |= UE | PE
			}
			e.setC1(up)
			return F80{mant, sign | uint16(mant>>63)}
		}
		e.SW |= UE
		exp += unmaskedBias
	}
	if inexact {
		e.SW |= PE
	}
	e.setC1(up)
	return F80{mant, sign | uint16(exp+bias80)}
}
