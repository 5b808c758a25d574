package soft

// The eight arithmetic and logical operations, by bits 5 to 3 of their opcodes, and
// TEST after them.
const (
	aluAdd = iota
	aluOr
	aluAdc
	aluSbb
	aluAnd
	aluSub
	aluXor
	aluCmp
	aluTest
)

// aluKinds has the 64-bit kind of each operation; the 32-bit one follows it.
var aluKinds = [...]kind{
	aluAdd: kindAdd64, aluOr: kindOr64, aluAnd: kindAnd64, aluSub: kindSub64, aluXor: kindXor64,
	aluCmp: kindCmp64, aluTest: kindTest64,
}

func registerALU() {
	for op := range 8 {
		t := &lowerPrimary
		each(t, lowerALU, op*8, op*8+1, op*8+2, op*8+3)
		each(t, lowerALUAcc, op*8+4, op*8+5)
	}
	each(&lowerPrimary, lowerALUImm, 0x80, 0x81, 0x83)
	lowerPrimary[0x82] = func(l *lowerer) bool { return !l.long() && lowerALUImm(l) }
	each(&lowerPrimary, func(l *lowerer) bool {
		size := l.byteOr()
		l.alu(aluTest, size, l.source(size), l.reg(l.in.Reg, size), 0)
		return true
	}, 0x84, 0x85)
	each(&lowerPrimary, func(l *lowerer) bool {
		l.alu(aluTest, l.byteOr(), regRAX, regZero, l.in.Imm)
		return true
	}, 0xa8, 0xa9)
	each(&lowerPrimary, lowerGroup3, 0xf6, 0xf7)
	lowerPrimary[0xfe] = lowerIncDec
	for op := 0x40; op <= 0x4f; op++ { // REX in 64-bit mode
		lowerPrimary[op] = func(l *lowerer) bool {
			l.incDec(l.in.Op&7, l.in.OpSize, l.in.Op&8 != 0)
			return true
		}
	}
	lower0F38[0xf6] = lowerADX
}

// alu adds an operation on registers: d op= s + imm.
func (l *lowerer) alu(op int, size, d, s uint8, imm uint64) {
	simple := op != aluAdc && op != aluSbb && (d|s)&highByte == 0
	k := aluKinds[op]
	switch {
	case !simple || size < 4 && op < aluCmp:
		u := l.call((*CPU).aluAny)
		u.d, u.s, u.imm, u.size, u.cc = d, s, imm, size, uint8(op)
		return
	case size == 4:
		k++
	case size == 2:
		k += 2
	case size == 1:
		k += 3
	}
	u := l.emit(k)
	u.d, u.s, u.imm = d, s, imm
}

// aluAny does any operation of any size.
func (c *CPU) aluAny(u *uop) stop {
	a := c.get(u.d, u.size)
	b := (c.get(u.s, u.size) + u.imm) & maskOf(u.size)
	r, store := c.aluOp(u.cc, u.size, a, b)
	if store {
		c.set(u.d, u.size, r)
	}
	return next
}

// aluOp computes a op b and the flags. store is false for CMP and TEST.
func (c *CPU) aluOp(op, size uint8, a, b uint64) (r uint64, store bool) {
	m := maskOf(size)
	z := lazyOp(sizeLog(size))
	switch op {
	case aluAdd:
		r = (a + b) & m
		c.lazy, c.la, c.lr = lazyAdd+z, a, r
	case aluSub, aluCmp:
		r = (a - b) & m
		c.lazy, c.la, c.lr = lazySub+z, a, r
		return r, op == aluSub
	case aluAdc:
		r = c.adc(size, a, b)
	case aluSbb:
		r = c.sbb(size, a, b)
	case aluAnd:
		r = a & b
		c.lazy, c.lr = lazyLogic+z, r
	case aluOr:
		r = a | b
		c.lazy, c.lr = lazyLogic+z, r
	case aluXor:
		r = a ^ b
		c.lazy, c.lr = lazyLogic+z, r
	default:
		c.lazy, c.lr = lazyLogic+z, a&b
		return 0, false
	}
	return r, true
}

// adc adds with carry. Operands are zero-extended.
func (c *CPU) adc(size uint8, a, b uint64) uint64 {
	cf := c.carry()
	r := (a + b + cf) & maskOf(size)
	out := bit(r < a || cf != 0 && r == a)
	top := 8*uint(size) - 1
	c.setKeep(r, size, out|(a^b^r)&flagAF|(a^r)&(b^r)>>top&1<<11)
	return r
}

// sbb subtracts with borrow.
func (c *CPU) sbb(size uint8, a, b uint64) uint64 {
	cf := c.carry()
	r := (a - b - cf) & maskOf(size)
	out := bit(a < b || cf != 0 && a == b)
	top := 8*uint(size) - 1
	c.setKeep(r, size, out|(a^b^r)&flagAF|(a^b)&(a^r)>>top&1<<11)
	return r
}

func lowerALU(l *lowerer) bool {
	in := &l.in
	op := int(in.Op >> 3)
	size := l.byteOr()
	r := l.reg(in.Reg, size)
	if in.Op&2 != 0 || op == aluCmp {
		m := l.source(size)
		if in.Op&2 != 0 {
			l.alu(op, size, r, m, 0)
		} else {
			l.alu(op, size, m, r, 0)
		}
		return true
	}
	if op == aluXor && !in.Mem && in.RM == in.Reg && size >= 4 {
		// The usual way to clear a register.
		l.alu(op, size, r, r, 0)
		return true
	}
	m, store := l.modify(size)
	l.alu(op, size, m, r, 0)
	store()
	return true
}

func lowerALUAcc(l *lowerer) bool {
	l.alu(int(l.in.Op>>3), l.byteOr(), regRAX, regZero, l.in.Imm)
	return true
}

func lowerALUImm(l *lowerer) bool {
	op := int(l.in.Reg & 7)
	size := l.byteOr()
	if op == aluCmp {
		l.alu(op, size, l.source(size), regZero, l.in.Imm)
		return true
	}
	m, store := l.modify(size)
	l.alu(op, size, m, regZero, l.in.Imm)
	store()
	return true
}

// lowerGroup3 is TEST, NOT, NEG, MUL, IMUL, DIV, IDIV.
func lowerGroup3(l *lowerer) bool {
	size := l.byteOr()
	switch l.in.Reg & 7 {
	case 0, 1:
		l.alu(aluTest, size, l.source(size), regZero, l.in.Imm)
	case 2:
		m, store := l.modify(size)
		switch {
		case size == 8:
			l.emit(kindNot64).d = m
		case size == 4:
			l.emit(kindNot32).d = m
		default:
			u := l.call((*CPU).notAny)
			u.d, u.size = m, size
		}
		store()
	case 3:
		m, store := l.modify(size)
		u := l.call((*CPU).neg)
		u.d, u.size = m, size
		store()
	default:
		u := l.group3(size)
		u.size = size
	}
	return true
}

func (c *CPU) notAny(u *uop) stop {
	c.set(u.d, u.size, ^c.get(u.d, u.size))
	return next
}

func (c *CPU) neg(u *uop) stop {
	b := c.get(u.d, u.size)
	r := -b & maskOf(u.size)
	c.lazy, c.la, c.lr = lazySub+lazyOp(sizeLog(u.size)), 0, r
	c.set(u.d, u.size, r)
	return next
}

// lowerIncDec is INC and DEC of opcodes FE and FF.
func lowerIncDec(l *lowerer) bool {
	reg := l.in.Reg & 7
	if reg > 1 {
		return false
	}
	size := l.byteOr()
	m, store := l.modify(size)
	l.incDec(m, size, reg == 1)
	store()
	return true
}

func (l *lowerer) incDec(d, size uint8, dec bool) {
	if size < 4 {
		u := l.call((*CPU).incDecAny)
		u.d, u.size, u.cc = d, size, uint8(bit(dec))
		return
	}
	k := kindInc64
	if dec {
		k = kindDec64
	}
	if size == 4 {
		k++
	}
	l.emit(k).d = d
}

func (c *CPU) incDecAny(u *uop) stop {
	v := c.get(u.d, u.size)
	c.fl = c.carry()
	z := lazyOp(sizeLog(u.size))
	if u.cc == 0 {
		v = (v + 1) & maskOf(u.size)
		c.lazy, c.lr = lazyInc+z, v
	} else {
		v = (v - 1) & maskOf(u.size)
		c.lazy, c.lr = lazyDec+z, v
	}
	c.set(u.d, u.size, v)
	return next
}

// lowerADX is ADCX (66) and ADOX (F3).
func lowerADX(l *lowerer) bool {
	in := &l.in
	if in.Rep == 0xf2 || in.Op66 == (in.Rep == 0xf3) {
		return false
	}
	size := uint8(4)
	if in.VexW {
		size = 8
	}
	s := l.source(size)
	u := l.call((*CPU).adx)
	u.d, u.s, u.size, u.cc = in.Reg, s, size, uint8(bit(in.Rep == 0xf3))
	return true
}

func (c *CPU) adx(u *uop) stop {
	f := c.arith()
	flag := uint64(flagCF)
	if u.cc != 0 {
		flag = flagOF
	}
	a, b := c.get(u.d, u.size), c.get(u.s, u.size)
	in := bit(f&flag != 0)
	r := (a + b + in) & maskOf(u.size)
	f &^= flag
	if r < a || in != 0 && r == a {
		f |= flag
	}
	c.setArith(f)
	c.set(u.d, u.size, r)
	return next
}
