package soft

import "math/bits"

func registerBits() {
	each(&lower0F, lowerBitTest, 0xa3, 0xab, 0xb3, 0xbb)
	lower0F[0xba] = lowerBitTestImm
	each(&lower0F, lowerScan, 0xbc, 0xbd)
	each(&lower0F, lowerCmpxchg, 0xb0, 0xb1)
	each(&lower0F, lowerXadd, 0xc0, 0xc1)
	lower0F[0xc7] = lowerGroup9
}

// Bit tests, by bits 4 and 3 of the opcode: BT, BTS, BTR, BTC.
func (l *lowerer) bitTest(op, d, s, size uint8, imm uint64) {
	u := l.call((*CPU).bitTest)
	u.d, u.s, u.size, u.imm, u.cc = d, s, size, imm, op
}

func (c *CPU) bitTest(u *uop) stop {
	n := uint(c.r[u.s&31]+u.imm) & (8*uint(u.size) - 1)
	v := c.get(u.d, u.size)
	c.setArith(c.arith()&^flagCF | v>>n&1)
	switch u.cc & 3 {
	case 1:
		v |= 1 << n
	case 2:
		v &^= 1 << n
	case 3:
		v ^= 1 << n
	default:
		return next
	}
	c.set(u.d, u.size, v)
	return next
}

func lowerBitTest(l *lowerer) bool {
	in := &l.in
	op := in.Op >> 3 & 3
	size := in.OpSize
	if !in.Mem {
		l.bitTest(op, in.RM, in.Reg, size, 0)
		return true
	}
	// The bit may lie anywhere: the register counts bits from the operand on.
	var o operand
	if l.long() && in.AddrSize == 4 { // cut to 32 bits once the bit is found
		l.offset(regEA)
		o = operand{b: regEA, x: regZero, seg: regZero, ss: in.SegOr() == segSS}
		u := l.call((*CPU).bitAddress32).at(o)
		u.s, u.size, u.d, u.cc = in.Reg, size, regEA, in.SegOr()
	} else {
		o = l.mem()
		u := l.call((*CPU).bitAddress).at(o)
		u.s, u.size, u.d = in.Reg, size, regEA
		u.cc = uint8(bit(l.long()))
	}
	o = operand{b: regEA, x: regZero, seg: regZero, ss: o.ss}
	if op == 0 {
		l.load(regT0, size, o)
		l.bitTest(op, regT0, in.Reg, size, 0)
		return true
	}
	l.loadW(regT0, size, o)
	l.bitTest(op, regT0, in.Reg, size, 0)
	l.store(regT0, size, 0, o)
	return true
}

func (c *CPU) bitAddress(u *uop) stop {
	n := int64(signExtend(c.r[u.s&31], u.size))
	lin := c.addr(u) + uint64(n>>(3+sizeLog(u.size)))*uint64(u.size)
	c.r[u.d&31] = c.wrap(lin)
	return next
}

// bitAddress32 is bitAddress in 64-bit code with 32-bit addresses.
func (c *CPU) bitAddress32(u *uop) stop {
	n := int64(signExtend(c.r[u.s&31], u.size))
	lin := uint64(uint32(c.r[u.b&31] + uint64(n>>(3+sizeLog(u.size)))*uint64(u.size)))
	if u.cc >= segFS {
		lin = c.wrap(lin + c.seg[u.cc].Base)
	}
	c.r[u.d&31] = lin
	return next
}

func lowerBitTestImm(l *lowerer) bool {
	op := l.in.Reg & 7
	if op < 4 {
		return false
	}
	size := l.in.OpSize
	if op == 4 {
		l.bitTest(0, l.source(size), regZero, size, l.in.Imm)
		return true
	}
	m, store := l.modify(size)
	l.bitTest(op&3, m, regZero, size, l.in.Imm)
	store()
	return true
}

// lowerScan is BSF, BSR, and with F3 TZCNT, LZCNT.
func lowerScan(l *lowerer) bool {
	size := l.in.OpSize
	s := l.source(size)
	f := (*CPU).bsf
	rep := l.in.Rep == 0xf3
	switch {
	case l.in.Op == 0xbd && rep:
		f = (*CPU).lzcnt
	case l.in.Op == 0xbd:
		f = (*CPU).bsr
	case rep:
		f = (*CPU).tzcnt
	}
	u := l.call(f)
	u.d, u.s, u.size = l.in.Reg, s, size
	return true
}

func (c *CPU) bsf(u *uop) stop { return c.scan(u, false) }
func (c *CPU) bsr(u *uop) stop { return c.scan(u, true) }

// scan leaves the destination alone if there is no bit, as processors do.
func (c *CPU) scan(u *uop, reverse bool) stop {
	v := c.get(u.s, u.size)
	f := c.arith() &^ flagZF
	if v == 0 {
		c.setArith(f | flagZF)
		return next
	}
	n := bits.TrailingZeros64(v)
	if reverse {
		n = bits.Len64(v) - 1
	}
	c.setArith(f)
	c.set(u.d, u.size, uint64(n))
	return next
}

func (c *CPU) tzcnt(u *uop) stop {
	v := c.get(u.s, u.size)
	n := uint64(8 * u.size)
	if v != 0 {
		n = uint64(bits.TrailingZeros64(v))
	}
	c.setCount(u, n, v == 0)
	return next
}

func (c *CPU) lzcnt(u *uop) stop {
	v := c.get(u.s, u.size)
	n := uint64(8*int(u.size) - bits.Len64(v))
	c.setCount(u, n, v == 0)
	return next
}

func (c *CPU) setCount(u *uop, n uint64, zero bool) {
	f := c.arith() &^ (flagCF | flagZF)
	if zero {
		f |= flagCF
	}
	if n == 0 {
		f |= flagZF
	}
	c.setArith(f)
	c.set(u.d, u.size, n)
}

func lowerCmpxchg(l *lowerer) bool {
	size := l.byteOr()
	r := l.reg(l.in.Reg, size)
	m, store := l.modify(size)
	if l.in.Mem {
		// T0 is memory; T1 becomes what is stored, always, as processors do.
		o := l.storeOperand()
		u := l.call((*CPU).cmpxchgMem)
		u.d, u.s, u.size = regT1, r, size
		l.store(regT1, size, 0, o)
		u = l.call((*CPU).cmpxchgAcc)
		u.size = size
		return true
	}
	u := l.call((*CPU).cmpxchgReg)
	u.d, u.s, u.size = m, r, size
	store()
	return true
}

// cmpxchgMem sets T1 to what CMPXCHG leaves in memory, of which T0 is the old value.
func (c *CPU) cmpxchgMem(u *uop) stop {
	old := c.get(regT0, u.size)
	if old == c.get(regRAX, u.size) {
		c.r[u.d&31] = c.get(u.s, u.size)
	} else {
		c.r[u.d&31] = old
	}
	return next
}

// cmpxchgAcc sets flags and the accumulator once the store is done.
func (c *CPU) cmpxchgAcc(u *uop) stop {
	old, acc := c.get(regT0, u.size), c.get(regRAX, u.size)
	c.aluOp(aluCmp, u.size, acc, old)
	if old != acc {
		c.set(regRAX, u.size, old)
	}
	return next
}

func (c *CPU) cmpxchgReg(u *uop) stop {
	old, acc := c.get(u.d, u.size), c.get(regRAX, u.size)
	c.aluOp(aluCmp, u.size, acc, old)
	if old == acc {
		c.set(u.d, u.size, c.get(u.s, u.size))
	} else {
		c.set(regRAX, u.size, old)
	}
	return next
}

func lowerXadd(l *lowerer) bool {
	size := l.byteOr()
	r := l.reg(l.in.Reg, size)
	m, store := l.modify(size)
	if l.in.Mem {
		o := l.storeOperand()
		u := l.call((*CPU).xaddMem)
		u.d, u.s, u.size = regT1, r, size
		l.store(regT1, size, 0, o)
		u = l.call((*CPU).xaddReg)
		u.d, u.s, u.size = regT0, r, size
		return true
	}
	u := l.call((*CPU).xaddReg)
	u.d, u.s, u.size = m, r, size
	store()
	return true
}

func (c *CPU) xaddMem(u *uop) stop {
	c.r[u.d&31] = c.get(regT0, u.size) + c.get(u.s, u.size)
	return next
}

// xaddReg adds s to d and leaves d's old value in s.
func (c *CPU) xaddReg(u *uop) stop {
	a, b := c.get(u.d, u.size), c.get(u.s, u.size)
	r, _ := c.aluOp(aluAdd, u.size, a, b)
	c.set(u.s, u.size, a)
	c.set(u.d, u.size, r)
	return next
}

// lowerGroup9 is CMPXCHG8B and CMPXCHG16B.
func lowerGroup9(l *lowerer) bool {
	if l.in.Reg&7 != 1 || !l.in.Mem {
		return lowerGroup9Reg(l)
	}
	o := l.mem()
	u := l.call((*CPU).cmpxchgPair).at(o)
	u.size = 4
	if l.in.VexW {
		u.size = 8
	}
	return true
}

// lowerGroup9Reg is RDRAND, RDSEED and RDPID, which this CPU does not have.
func lowerGroup9Reg(*lowerer) bool { return false }

func (c *CPU) cmpxchgPair(u *uop) stop {
	lin := c.addr(u)
	n := u.size
	if n == 8 && lin&15 != 0 {
		if !canonical(lin) {
			return c.notCanonical(u.ss)
		}
		return c.gp()
	}
	if s := c.probe(u, lin, 2*n); s != next {
		return s
	}
	lo, s := c.read(u, lin, n)
	if s != next {
		return s
	}
	hi, s := c.read(u, c.wrap(lin+uint64(n)), n)
	if s != next {
		return s
	}
	f := c.arith() &^ flagZF
	if lo == c.get(regRAX, n) && hi == c.get(regRDX, n) {
		s := c.write(u, lin, n, c.r[regRBX])
		t := c.write(u, c.wrap(lin+uint64(n)), n, c.r[regRCX])
		c.setArith(f | flagZF)
		return max(s, t)
	}
	s = c.write(u, lin, n, lo)
	t := c.write(u, c.wrap(lin+uint64(n)), n, hi)
	c.set(regRAX, n, lo)
	c.set(regRDX, n, hi)
	c.setArith(f)
	return max(s, t)
}
