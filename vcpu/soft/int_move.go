package soft

import (
	"math/bits"

	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

func registerMoves() {
	p := &lowerPrimary
	each(p, func(l *lowerer) bool { // MOV r/m, r
		size := l.byteOr()
		r := l.reg(l.in.Reg, size)
		if l.in.Mem {
			l.storeReg(r, size)
			return true
		}
		l.move(l.reg(l.in.RM, size), r, size)
		return true
	}, 0x88, 0x89)
	each(p, func(l *lowerer) bool { // MOV r, r/m
		size := l.byteOr()
		d := l.reg(l.in.Reg, size)
		if l.in.Mem && size >= 4 {
			l.load(d, size, l.mem())
			return true
		}
		l.move(d, l.source(size), size)
		return true
	}, 0x8a, 0x8b)
	each(p, func(l *lowerer) bool { // MOV r/m, imm
		if l.in.Reg&7 != 0 {
			return false
		}
		size := l.byteOr()
		if l.in.Mem {
			l.store(regZero, size, l.in.Imm, l.mem())
			return true
		}
		l.moveImm(l.reg(l.in.RM, size), size, l.in.Imm)
		return true
	}, 0xc6, 0xc7)
	span(p, func(l *lowerer) bool {
		r := l.in.Op&7 | l.in.REX<<3&8
		l.moveImm(l.reg(r, 1), 1, l.in.Imm)
		return true
	}, 0xb0, 0xb7)
	span(p, func(l *lowerer) bool {
		l.moveImm(l.in.Op&7|l.in.REX<<3&8, l.in.OpSize, l.in.Imm)
		return true
	}, 0xb8, 0xbf)
	span(p, lowerMoffs, 0xa0, 0xa3)
	p[0x8d] = func(l *lowerer) bool { // LEA
		if !l.in.Mem {
			return false
		}
		d, size := l.in.Reg, l.in.OpSize
		if size == 8 || size == 4 {
			l.offset(d) // zero-extended from the address size
			if u := &l.ops[len(l.ops)-1]; size == 4 && u.kind == kindLea64 {
				u.kind = kindLea32
			}
			return true
		}
		l.offset(regT0)
		l.move(d, regT0, size)
		return true
	}
	p[0x63] = lowerMovsxd
	each(&lower0F, lowerExtend, 0xb6, 0xb7, 0xbe, 0xbf)
	p[0x98] = func(l *lowerer) bool { // CBW, CWDE, CDQE
		switch l.in.OpSize {
		case 2:
			u := l.emit(kindSx8to32)
			u.d, u.s = regT0, regRAX
			l.move(regRAX, regT0, 2)
		case 4:
			u := l.emit(kindSx16to32)
			u.d, u.s = regRAX, regRAX
		default:
			u := l.emit(kindSx32to64)
			u.d, u.s = regRAX, regRAX
		}
		return true
	}
	p[0x99] = func(l *lowerer) bool { // CWD, CDQ, CQO
		l.call((*CPU).signToDX).size = l.in.OpSize
		return true
	}
	each(p, lowerXchg, 0x86, 0x87)
	span(p, func(l *lowerer) bool { // XCHG with the accumulator
		r := l.in.Op&7 | l.in.REX<<3&8
		if r == 0 {
			if l.in.Rep == 0xf3 {
				l.terminate((*CPU).pause)
			} else {
				l.emit(kindNop)
			}
			return true
		}
		u := l.call((*CPU).xchg)
		u.d, u.s, u.size = r, regRAX, l.in.OpSize
		return true
	}, 0x90, 0x97)
	span(&lower0F, func(l *lowerer) bool { // BSWAP
		u := l.call((*CPU).bswap)
		u.d, u.size = l.in.Op&7|l.in.REX<<3&8, l.in.OpSize
		return true
	}, 0xc8, 0xcf)
	span(&lower0F, func(l *lowerer) bool { // CMOVcc
		size := l.in.OpSize
		s := l.source(size)
		k := kindCmov64
		switch size {
		case 4:
			k = kindCmov32
		case 2:
			u := l.call((*CPU).cmov16)
			u.d, u.s, u.cc = l.in.Reg, s, l.in.Op&15
			return true
		}
		u := l.emit(k)
		u.d, u.s, u.cc = l.in.Reg, s, l.in.Op&15
		return true
	}, 0x40, 0x4f)
	span(&lower0F, func(l *lowerer) bool { // SETcc
		u := l.emit(kindSetcc)
		u.cc = l.in.Op & 15
		if l.in.Mem {
			u.d = regT0
			l.store(regT0, 1, 0, l.mem())
			return true
		}
		u.d = l.reg(l.in.RM, 1)
		if u.d&highByte != 0 {
			d := u.d
			u.d = regT0
			l.move(d, regT0, 1)
		}
		return true
	}, 0x90, 0x9f)
	p[0xd7] = func(l *lowerer) bool { // XLAT
		u := l.call((*CPU).xlatOffset)
		u.size = l.in.AddrSize
		l.in.Base, l.in.Index, l.in.Disp = regT1, decode.NoReg, 0
		o := l.mem()
		o.ss = l.in.Seg == segSS
		l.load(regT0, 1, o)
		l.move(regRAX, regT0, 1)
		return true
	}
	p[0x9e] = func(l *lowerer) bool { l.call((*CPU).sahf); return true }
	p[0x9f] = func(l *lowerer) bool { l.call((*CPU).lahf); return true }
	each(p, func(l *lowerer) bool { // CMC, CLC, STC
		l.call((*CPU).carryFlag).cc = l.in.Op
		return true
	}, 0xf5, 0xf8, 0xf9)
	each(p, func(l *lowerer) bool { // CLD, STD
		l.call((*CPU).directionFlag).imm = uint64(l.in.Op&1) * flagDF
		return true
	}, 0xfc, 0xfd)
	// NOP with an operand, prefetches and hints: 0F 18 to 1F, AMD's 0F 0D.
	nop := func(l *lowerer) bool { l.emit(kindNop); return true }
	span(&lower0F, nop, 0x18, 0x1f)
	lower0F[0x0d] = func(l *lowerer) bool { l.emit(kindNop); return l.in.Mem }
	each(&lower0F38, lowerMovbe, 0xf0, 0xf1)
}

// move adds a move between registers.
func (l *lowerer) move(d, s, size uint8) {
	k := kindMov64
	switch {
	case size == 4:
		k = kindMov32
	case size == 2:
		k = kindMerge16
	case size == 1:
		k = kindMerge8
		if (d|s)&highByte != 0 {
			u := l.call((*CPU).move8)
			u.d, u.s = d, s
			return
		}
	}
	u := l.emit(k)
	u.d, u.s = d, s
}

func (c *CPU) move8(u *uop) stop {
	c.set(u.d, 1, c.get(u.s, 1)+u.imm)
	return next
}

func (l *lowerer) moveImm(d, size uint8, v uint64) {
	if size == 4 {
		v, size = uint64(uint32(v)), 8
	}
	l.move(d, regZero, size)
	l.ops[len(l.ops)-1].imm = v
}

// storeReg stores a register to the memory operand.
func (l *lowerer) storeReg(r, size uint8) {
	o := l.mem()
	if r&highByte != 0 {
		l.move(regT1, r, 1)
		r = regT1
	}
	l.store(r, size, 0, o)
}

func lowerMoffs(l *lowerer) bool {
	size := l.byteOr()
	o := l.mem()
	if l.in.Op&2 != 0 {
		l.store(regRAX, size, 0, o)
		return true
	}
	if size >= 4 {
		l.load(regRAX, size, o)
		return true
	}
	l.load(regT0, size, o)
	l.move(regRAX, regT0, size)
	return true
}

func lowerMovsxd(l *lowerer) bool {
	in := &l.in
	if !l.long() {
		return lowerARPL(l)
	}
	if in.OpSize != 8 { // a plain move, which AMD's processors read 4 bytes for in any case
		l.move(in.Reg, l.source(4), in.OpSize)
		return true
	}
	if in.Mem {
		o := l.mem()
		u := l.emit(kindLoadSx).at(o)
		u.d, u.size, u.cc = in.Reg, 4, 8
		return true
	}
	u := l.emit(kindSx32to64)
	u.d, u.s = in.Reg, in.RM
	return true
}

// lowerExtend is MOVZX and MOVSX.
func lowerExtend(l *lowerer) bool {
	in := &l.in
	from := uint8(1) << (in.Op & 1)
	signed := in.Op&8 != 0
	d, size := in.Reg, in.OpSize
	if size == 2 {
		s := l.source(from)
		u := l.call((*CPU).extend16)
		u.d, u.s, u.size, u.cc = d, s, from, uint8(bit(signed))
		return true
	}
	if in.Mem {
		if !signed {
			l.load(d, from, l.mem())
			return true
		}
		o := l.mem()
		u := l.emit(kindLoadSx).at(o)
		u.d, u.size, u.cc = d, from, size
		return true
	}
	s := l.reg(in.RM, from)
	if s&highByte != 0 {
		l.move(regT0, s, 1)
		s = regT0
	}
	k := kindZx8
	switch {
	case !signed && from == 2:
		k = kindZx16
	case signed && from == 1:
		k = kindSx8to32
	case signed:
		k = kindSx16to32
	}
	if signed && size == 8 {
		k++ // ...to64 follows ...to32
	}
	u := l.emit(k)
	u.d, u.s = d, s
	return true
}

func (c *CPU) extend16(u *uop) stop {
	v := c.get(u.s, u.size)
	if u.cc != 0 {
		v = signExtend(v, u.size)
	}
	c.set(u.d, 2, v)
	return next
}

func (c *CPU) signToDX(u *uop) stop {
	v := uint64(int64(signExtend(c.r[regRAX], u.size)) >> 63)
	c.set(regRDX, u.size, v)
	return next
}

func lowerXchg(l *lowerer) bool {
	size := l.byteOr()
	r := l.reg(l.in.Reg, size)
	m, store := l.modify(size)
	if l.in.Mem {
		// The store comes before the register changes, and cannot fault. It
		// stores T1, since the register takes T0.
		o := l.storeOperand()
		l.move(regT1, r, size)
		l.store(regT1, size, 0, o)
		l.move(r, regT0, size)
		return true
	}
	u := l.call((*CPU).xchg)
	u.d, u.s, u.size = m, r, size
	store()
	return true
}

// storeOperand is the memory operand of the last load.
func (l *lowerer) storeOperand() operand {
	u := &l.ops[len(l.ops)-1]
	return operand{disp: u.disp, b: u.b, x: u.x, sh: u.sh, seg: u.seg, ss: u.ss}
}

func (c *CPU) xchg(u *uop) stop {
	a, b := c.get(u.d, u.size), c.get(u.s, u.size)
	c.set(u.d, u.size, b)
	c.set(u.s, u.size, a)
	return next
}

func (c *CPU) bswap(u *uop) stop {
	if u.size == 8 {
		c.r[u.d&31] = bits.ReverseBytes64(c.r[u.d&31])
	} else if u.size == 4 {
		c.r[u.d&31] = uint64(bits.ReverseBytes32(uint32(c.r[u.d&31])))
	} else {
		c.set(u.d, 2, 0) // undefined; processors clear it
	}
	return next
}

func (c *CPU) cmov16(u *uop) stop {
	if c.cond(u.cc) {
		c.set(u.d, 2, c.r[u.s&31])
	}
	return next
}

func (c *CPU) xlatOffset(u *uop) stop {
	c.r[regT1] = (c.r[regRBX] + c.r[regRAX]&0xff) & maskOf(u.size)
	return next
}

func (c *CPU) sahf(*uop) stop {
	f := c.arith() & flagOF
	c.setArith(f | c.r[regRAX]>>8&(flagSF|flagZF|flagAF|flagPF|flagCF))
	return next
}

func (c *CPU) lahf(*uop) stop {
	c.set(regRAX|highByte, 1, c.arith()&(flagSF|flagZF|flagAF|flagPF|flagCF)|flag1)
	return next
}

func (c *CPU) carryFlag(u *uop) stop {
	f := c.arith()
	switch u.cc {
	case 0xf5:
		f ^= flagCF
	case 0xf8:
		f &^= flagCF
	default:
		f |= flagCF
	}
	c.setArith(f)
	return next
}

func (c *CPU) directionFlag(u *uop) stop {
	c.flags = c.flags&^flagDF | u.imm
	return next
}

// lowerMovbe is MOVBE, or CRC32 with an F2 prefix.
func lowerMovbe(l *lowerer) bool {
	in := &l.in
	if in.Rep == 0xf2 {
		return lowerCRC32(l)
	}
	if in.Rep == 0xf3 || !in.Mem {
		return false
	}
	o := l.mem()
	if in.Op == 0xf0 {
		l.load(regT0, in.OpSize, o)
		u := l.call((*CPU).movbe)
		u.d, u.s, u.size = in.Reg, regT0, in.OpSize
		return true
	}
	u := l.call((*CPU).movbe)
	u.d, u.s, u.size = regT0, in.Reg, in.OpSize
	l.store(regT0, in.OpSize, 0, o)
	return true
}

func (c *CPU) movbe(u *uop) stop {
	c.set(u.d, u.size, bits.ReverseBytes64(c.r[u.s&31])>>(64-8*uint(u.size)))
	return next
}
