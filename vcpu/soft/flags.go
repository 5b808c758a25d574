package soft

import "math/bits"

// The arithmetic flags are computed when somebody asks. An operation leaves its
// kind and size, its first operand and its result, both zero-extended; the second
// operand follows from these.

// lazyOp is the kind and the size of the last operation: op*4 + log2(bytes).
type lazyOp uint8

const (
	lazyNone  lazyOp = 0 // the flags are in fl
	lazyAdd   lazyOp = 4
	lazySub   lazyOp = 8
	lazyLogic lazyOp = 12
	lazyInc   lazyOp = 16 // CF is in fl
	lazyDec   lazyOp = 20 // CF is in fl
	lazyKeep  lazyOp = 24 // CF, AF and OF are in fl, the others follow from the result
)

// sizeLog is log2 of an operand size of 1, 2, 4 or 8 bytes.
func sizeLog(size uint8) uint8 { return uint8(bits.TrailingZeros8(size)) }

// maskOf has the bits of an operand size set.
func maskOf(size uint8) uint64 { return ^uint64(0) >> (64 - 8*uint(size)) }

// signBit is the highest bit of an operand size.
func signBit(size uint8) uint64 { return 1 << (8*uint(size) - 1) }

// parity is PF for a result.
func parity(v uint64) uint64 {
	return uint64(^bits.OnesCount8(uint8(v))&1) << 2
}

// szp are SF, ZF and PF of a result of size bytes.
func szp(v uint64, size uint8) uint64 {
	f := parity(v)
	if v&maskOf(size) == 0 {
		f |= flagZF
	}
	if v&signBit(size) != 0 {
		f |= flagSF
	}
	return f
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// arith returns the arithmetic flags, and leaves them in fl.
func (c *CPU) arith() uint64 {
	if c.lazy == lazyNone {
		return c.fl
	}
	size := uint8(1) << (c.lazy & 3)
	a, r := c.la, c.lr
	f := szp(r, size)
	top := 8*uint(size) - 1
	switch c.lazy &^ 3 {
	case lazyAdd:
		b := (r - a) & maskOf(size)
		f |= bit(r < a) | (a^b^r)&flagAF | (a^r)&(b^r)>>top&1<<11
	case lazySub:
		b := (a - r) & maskOf(size)
		f |= bit(a < b) | (a^b^r)&flagAF | (a^b)&(a^r)>>top&1<<11
	case lazyKeep:
		f |= c.fl & (flagCF | flagAF | flagOF)
	case lazyInc:
		f |= c.fl&flagCF | bit(r&15 == 0)<<4 | bit(r == signBit(size))<<11
	case lazyDec:
		f |= c.fl&flagCF | bit(r&15 == 15)<<4 | bit(r == signBit(size)-1)<<11
	}
	c.fl, c.lazy = f, lazyNone
	return f
}

// setArith sets all arithmetic flags at once.
func (c *CPU) setArith(f uint64) { c.fl, c.lazy = f&flagArith, lazyNone }

// carry is CF.
func (c *CPU) carry() uint64 {
	switch c.lazy &^ 3 {
	case lazyAdd:
		return bit(c.lr < c.la)
	case lazySub:
		return bit(c.lr > c.la) // a borrow wraps upwards
	case lazyLogic:
		return 0
	}
	return c.fl & flagCF
}

// setKeep sets SF, ZF and PF from a result, and the others as f has them.
func (c *CPU) setKeep(r uint64, size uint8, f uint64) {
	c.lazy, c.lr, c.fl = lazyKeep+lazyOp(sizeLog(size)), r, f
}

// rflags is the whole register.
func (c *CPU) rflags() uint64 { return c.flags&^flagArith | c.arith() | flag1 }

// setRFLAGS sets the whole register, whatever the privilege.
func (c *CPU) setRFLAGS(v uint64) {
	c.flags = v&^flagArith | flag1
	c.setArith(v)
}

// cond evaluates a condition code, 0 to 15 (Intel SDM volume 1, appendix B). Most of
// the time the last operation tells without its flags.
func (c *CPU) cond(cc uint8) bool {
	up := 56 - 8*(1<<(c.lazy&3)-1) // shifts the operand up to the highest bit
	switch k := c.lazy &^ 3; {
	case k == lazySub:
		return c.takenSub(cc, c.la<<(up&63), (c.la-c.lr)<<(up&63))
	case k == lazyLogic:
		return c.takenLogic(cc, c.lr<<(up&63))
	case cc>>1 == 2 && k != lazyNone:
		return (c.lr == 0) != (cc&1 != 0)
	}
	return c.condFlags(cc)
}

// condFlags evaluates a condition code by the flags themselves.
func (c *CPU) condFlags(cc uint8) bool {
	f := c.arith()
	var t bool
	switch cc >> 1 {
	case 0:
		t = f&flagOF != 0
	case 1:
		t = f&flagCF != 0
	case 2:
		t = f&flagZF != 0
	case 3:
		t = f&(flagCF|flagZF) != 0
	case 4:
		t = f&flagSF != 0
	case 5:
		t = f&flagPF != 0
	case 6:
		t = f>>7&1 != f>>11&1
	case 7:
		t = f&flagZF != 0 || f>>7&1 != f>>11&1
	}
	return t != (cc&1 != 0)
}
