package soft

import "github.com/vmkit-go/vmkit/vcpu/soft/decode"

// MMX registers are the mantissas of the x87's physical registers (Intel SDM volume 1,
// section 9.2). An instruction brings its operands into temporary vector registers,
// has the operation of SSE done there, and takes what it needs from the result.

// mmxForm says how a result of 8 bytes follows from an operation on 16.
type mmxForm uint8

const (
	mmxPlain mmxForm = iota // the low half
	mmxHigh                 // the high half
	mmxPair                 // the low half, if both operands are in one register
)

var mmxMoves = []vector{
	{op: 0x6e, lower: lowerMovDMMX},
	{op: 0x6f, lower: lowerMMX, fn: movX, size: 8}, // MOVQ
	{op: 0x77, lower: lowerEMMS},
	{op: 0x7e, lower: lowerMovDMMXTo},
	{op: 0x7f, lower: lowerMovQMMXTo},
	{op: 0xc5, lower: lowerMMXToR, fn: pextrW},
	{op: 0xd6, pp: ppF3, lower: lowerFromMMX, fn: movQ},
	{op: 0xd6, pp: ppF2, lower: lowerToMMX, fn: movQ},
	{op: 0xd7, lower: lowerMMXToR, fn: pmovMskBLow},
	{op: 0xe7, lower: lowerMovNTQ},
	{op: 0xf7, lower: lowerMaskMovMMX, size: 8},
}

// mmxCheck makes sure that MMX is there, and that no fault of the x87 is due.
func (l *lowerer) mmxCheck() { l.call((*CPU).checkMMX) }

func (c *CPU) checkMMX(*uop) stop {
	switch {
	case c.cr0&cr0EM != 0:
		return c.raise(excUD)
	case c.cr0&cr0TS != 0:
		return c.raise(excNM)
	case c.fpu.pending():
		return c.raise(excMF)
	}
	return next
}

// lowerMMX is for operations on MMX registers and memory.
func lowerMMX(l *lowerer, v *vector) bool {
	l.mmxCheck()
	s := uint8(decode.NoReg)
	if l.in.Mem {
		l.loadVector(xmmT1, v.size)
	} else {
		s = l.in.RM & 7
	}
	l.mmxGet(l.in.Reg&7, s, v.mmx == mmxPair)
	u := l.call(v.fn)
	u.d, u.s, u.imm = xmmT0, xmmT1, l.in.Imm
	l.mmxPut(l.in.Reg&7, uint8(v.mmx)&uint8(mmxHigh))
	return true
}

// mmxGet brings register d to xmmT0 and register s, if there is one, to xmmT1. The
// upper half of xmmT0 is the source operand for a pair, else that of d once more.
func (l *lowerer) mmxGet(d, s uint8, pair bool) {
	u := l.call(mmxGet)
	u.d, u.s, u.cc = d, s, uint8(bit(pair))
}

func mmxGet(c *CPU, u *uop) stop {
	a, b := &c.xmmT[0], &c.xmmT[1]
	if u.s != decode.NoReg {
		*b = xmm{c.fpu.mm[u.s&7]}
	}
	v := c.fpu.mm[u.d&7]
	*a = xmm{v, v}
	if u.cc != 0 {
		a[1] = b[0]
	}
	return next
}

// mmxPut writes a half of xmmT0 to register d.
func (l *lowerer) mmxPut(d, half uint8) {
	u := l.call(mmxPut)
	u.d, u.cc = d, half
}

func mmxPut(c *CPU, u *uop) stop {
	c.fpu.enterMMX()
	c.fpu.mm[u.d&7] = c.xmmT[0][u.cc&1]
	c.fpu.se[u.d&7] = 0xffff
	return next
}

func mmxEnter(c *CPU, _ *uop) stop {
	c.fpu.enterMMX()
	return next
}

func lowerMovDMMX(l *lowerer, _ *vector) bool {
	l.mmxCheck()
	size := l.wide()
	if l.in.Mem {
		l.loadVector(xmmT0, size)
	} else {
		u := l.call(movXR)
		u.d, u.s, u.imm = xmmT0, l.in.RM, maskOf(size)
	}
	l.mmxPut(l.in.Reg&7, 0)
	return true
}

func lowerMovDMMXTo(l *lowerer, _ *vector) bool {
	l.mmxCheck()
	l.mmxGet(l.in.Reg&7, decode.NoReg, false)
	size := l.wide()
	if l.in.Mem {
		l.storeVector(xmmT0, size)
	} else {
		u := l.call(movRX)
		u.d, u.s, u.imm = l.in.RM, xmmT0, maskOf(size)
	}
	l.call(mmxEnter)
	return true
}

func lowerMovQMMXTo(l *lowerer, v *vector) bool {
	l.mmxCheck()
	l.mmxGet(l.in.Reg&7, decode.NoReg, false)
	if !l.in.Mem {
		l.mmxPut(l.in.RM&7, 0)
		return true
	}
	l.storeVector(xmmT0, 8)
	l.call(mmxEnter)
	return true
}

func lowerMovNTQ(l *lowerer, v *vector) bool { return l.in.Mem && lowerMovQMMXTo(l, v) }

// lowerMMXToR is for operations on a general and an MMX register.
func lowerMMXToR(l *lowerer, v *vector) bool {
	if l.in.Mem {
		return false
	}
	l.mmxCheck()
	l.mmxGet(l.in.RM&7, decode.NoReg, false)
	u := l.call(v.fn)
	u.d, u.s, u.imm = l.in.Reg, xmmT0, l.in.Imm&3
	l.call(mmxEnter)
	return true
}

func pmovMskBLow(c *CPU, u *uop) stop {
	c.r[u.d&31] = signs(c.x(u.s)[0])
	return next
}

func lowerInsertMMX(l *lowerer, v *vector) bool {
	l.mmxCheck()
	l.mmxGet(l.in.Reg&7, decode.NoReg, false)
	l.in.Imm &= 3
	l.insert(v, xmmT0)
	l.mmxPut(l.in.Reg&7, 0)
	return true
}

// lowerFromMMX is an operation on xmm and an MMX register, such as MOVQ2DQ.
func lowerFromMMX(l *lowerer, v *vector) bool {
	if l.in.Mem {
		return false
	}
	l.sse()
	l.mmxCheck()
	l.mmxGet(l.in.RM&7, decode.NoReg, false)
	u := l.call(v.fn)
	u.d, u.s = l.in.Reg, xmmT0
	l.call(mmxEnter)
	return true
}

// lowerToMMX is the reverse, such as MOVDQ2Q.
func lowerToMMX(l *lowerer, v *vector) bool {
	if l.in.Mem {
		return false
	}
	l.sse()
	l.mmxCheck()
	u := l.call(v.fn)
	u.d, u.s = xmmT0, l.in.RM
	l.mmxPut(l.in.Reg&7, 0)
	return true
}

func lowerMaskMovMMX(l *lowerer, v *vector) bool {
	if l.in.Mem {
		return false
	}
	l.mmxCheck()
	l.mmxGet(l.in.Reg&7, l.in.RM&7, false)
	l.maskMov(xmmT0, xmmT1, v.size)
	l.call(mmxEnter)
	return true
}

func lowerEMMS(l *lowerer, _ *vector) bool {
	l.mmxCheck()
	l.call(emms)
	return true
}

func emms(c *CPU, _ *uop) stop {
	c.fpu.leaveMMX()
	return next
}
