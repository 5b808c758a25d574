package soft

import "github.com/vmkit-go/vmkit/vcpu/soft/decode"

// Moves of vector registers (Intel SDM volume 1, sections 10.4.1, 11.4.1, 12.3.3).
// Non-temporal moves are plain ones: there is no cache.

var vectorMoves = []vector{
	{op: 0x10, lower: lowerMove, fn: movX, size: 16}, // MOVUPS
	{op: 0x10, pp: pp66, lower: lowerMove, fn: movX, size: 16},
	{op: 0x10, pp: ppF3, lower: lowerMove, fn: movSS, size: 4},
	{op: 0x10, pp: ppF2, lower: lowerMove, fn: movSD, size: 8},
	{op: 0x11, lower: lowerMoveTo, fn: movX, size: 16},
	{op: 0x11, pp: pp66, lower: lowerMoveTo, fn: movX, size: 16},
	{op: 0x11, pp: ppF3, lower: lowerMoveTo, fn: movSS, size: 4},
	{op: 0x11, pp: ppF2, lower: lowerMoveTo, fn: movSD, size: 8},
	{op: 0x12, lower: lowerXX, fn: movLow, size: 8}, // MOVLPS, MOVHLPS
	{op: 0x12, pp: pp66, lower: lowerLoad, fn: movLow, size: 8},
	{op: 0x12, pp: ppF3, lower: lowerXX, fn: movSLDup},
	{op: 0x12, pp: ppF2, lower: lowerXX, fn: movDDup, size: 8},
	{op: 0x13, lower: lowerStore, size: 8}, // MOVLPS
	{op: 0x13, pp: pp66, lower: lowerStore, size: 8},
	{op: 0x16, lower: lowerXX, fn: movHigh, size: 8}, // MOVHPS, MOVLHPS
	{op: 0x16, pp: pp66, lower: lowerLoad, fn: movHigh, size: 8},
	{op: 0x16, pp: ppF3, lower: lowerXX, fn: movSHDup},
	{op: 0x17, lower: lowerStore, fn: (*CPU).storeXHigh, size: 8}, // MOVHPS
	{op: 0x17, pp: pp66, lower: lowerStore, fn: (*CPU).storeXHigh, size: 8},
	{op: 0x28, lower: lowerMove, fn: movX}, // MOVAPS
	{op: 0x28, pp: pp66, lower: lowerMove, fn: movX},
	{op: 0x29, lower: lowerMoveTo, fn: movX},
	{op: 0x29, pp: pp66, lower: lowerMoveTo, fn: movX},
	{op: 0x2b, lower: lowerStore}, // MOVNTPS
	{op: 0x2b, pp: pp66, lower: lowerStore},
	{op: 0x50, lower: lowerRX, fn: movMskPS},
	{op: 0x50, pp: pp66, lower: lowerRX, fn: movMskPD},
	{op: 0x6e, pp: pp66, lower: lowerMovD},
	{op: 0x6f, pp: pp66, lower: lowerMove, fn: movX}, // MOVDQA
	{op: 0x6f, pp: ppF3, lower: lowerMove, fn: movX, size: 16},
	{op: 0x7e, pp: pp66, lower: lowerMovDTo},
	{op: 0x7e, pp: ppF3, lower: lowerMove, fn: movQ, size: 8},
	{op: 0x7f, pp: pp66, lower: lowerMoveTo, fn: movX}, // MOVDQA
	{op: 0x7f, pp: ppF3, lower: lowerMoveTo, fn: movX, size: 16},
	{op: 0xd6, pp: pp66, lower: lowerMoveTo, fn: movQ, size: 8},
	{op: 0xd7, pp: pp66, lower: lowerRX, fn: pmovMskB},
	{op: 0xe7, pp: pp66, lower: lowerStore},                    // MOVNTDQ
	{op: 0xf0, pp: ppF2, lower: lowerLoad, fn: movX, size: 16}, // LDDQU
	{op: 0xf7, pp: pp66, lower: lowerMaskMov, size: 16},        // MASKMOVDQU
	{op: 0xc3, lower: lowerMovNTI},
}

// lowerMove is a move from memory, or between registers by v.fn.
func lowerMove(l *lowerer, v *vector) bool {
	if !l.in.Mem {
		return lowerXX(l, v)
	}
	l.sse()
	l.loadVector(l.in.Reg, v.size)
	return true
}

// lowerMoveTo is the reverse.
func lowerMoveTo(l *lowerer, v *vector) bool {
	l.sse()
	if l.in.Mem {
		l.storeVector(l.in.Reg, v.size)
		return true
	}
	u := l.call(v.fn)
	u.d, u.s = l.in.RM, l.in.Reg
	return true
}

// lowerLoad is an operation that has no form with two registers.
func lowerLoad(l *lowerer, v *vector) bool { return l.in.Mem && lowerXX(l, v) }

// lowerStore is a store, by v.fn if there is one.
func lowerStore(l *lowerer, v *vector) bool {
	if !l.in.Mem {
		return false
	}
	l.sse()
	u := l.storeVector(l.in.Reg, v.size)
	if v.fn != nil {
		u.fn = v.fn
	}
	return true
}

// storeVector stores a vector register to the memory operand of vector.size.
func (l *lowerer) storeVector(s, size uint8) *uop {
	o := l.mem()
	f := (*CPU).storeXSmall
	switch size {
	case 0:
		f = (*CPU).storeXA
	case 8:
		f = (*CPU).storeX64
	case 16:
		f = (*CPU).storeX
	}
	u := l.call(f).at(o)
	u.s, u.size = s, size
	return u
}

// wide is the size of general registers that REX.W selects.
func (l *lowerer) wide() uint8 {
	if l.in.VexW {
		return 8
	}
	return 4
}

// lowerMovD is MOVD and MOVQ to xmm from a general register or memory.
func lowerMovD(l *lowerer, _ *vector) bool {
	l.sse()
	size := l.wide()
	if l.in.Mem {
		l.loadVector(l.in.Reg, size)
		return true
	}
	u := l.call(movXR)
	u.d, u.s, u.imm = l.in.Reg, l.in.RM, maskOf(size)
	return true
}

func lowerMovDTo(l *lowerer, _ *vector) bool {
	l.sse()
	size := l.wide()
	if l.in.Mem {
		l.storeVector(l.in.Reg, size)
		return true
	}
	u := l.call(movRX)
	u.d, u.s, u.imm = l.in.RM, l.in.Reg, maskOf(size)
	return true
}

func movXR(c *CPU, u *uop) stop {
	*c.x(u.d) = xmm{c.r[u.s&31] & u.imm}
	return next
}

func movRX(c *CPU, u *uop) stop {
	c.r[u.d&31] = c.x(u.s)[0] & u.imm
	return next
}

// lowerMovNTI is MOVNTI, which is of SSE2 but does without its registers.
func lowerMovNTI(l *lowerer, _ *vector) bool {
	if !l.in.Mem {
		return false
	}
	l.store(l.in.Reg, l.wide(), 0, l.mem())
	return true
}

func movX(c *CPU, u *uop) stop {
	*c.x(u.d) = *c.x(u.s)
	return next
}

func movSS(c *CPU, u *uop) stop {
	d := c.x(u.d)
	d[0] = d[0]&^0xffffffff | c.x(u.s)[0]&0xffffffff
	return next
}

func movSD(c *CPU, u *uop) stop {
	c.x(u.d)[0] = c.x(u.s)[0]
	return next
}

func movQ(c *CPU, u *uop) stop {
	*c.x(u.d) = xmm{c.x(u.s)[0]}
	return next
}

// movLow is MOVLPS and MOVLPD from memory, and MOVHLPS between registers.
func movLow(c *CPU, u *uop) stop {
	s := c.x(u.s)
	v := s[1]
	if u.s == xmmT0 {
		v = s[0]
	}
	c.x(u.d)[0] = v
	return next
}

// movHigh is MOVHPS, MOVHPD and MOVLHPS.
func movHigh(c *CPU, u *uop) stop {
	c.x(u.d)[1] = c.x(u.s)[0]
	return next
}

func movDDup(c *CPU, u *uop) stop {
	v := c.x(u.s)[0]
	*c.x(u.d) = xmm{v, v}
	return next
}

func movSLDup(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	for i, v := range s {
		d[i] = v&0xffffffff | v<<32
	}
	return next
}

func movSHDup(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	for i, v := range s {
		d[i] = v&^0xffffffff | v>>32
	}
	return next
}

func movMskPS(c *CPU, u *uop) stop {
	s := c.x(u.s)
	c.r[u.d&31] = s[0]>>31&1 | s[0]>>63<<1 | s[1]>>31&1<<2 | s[1]>>63<<3
	return next
}

func movMskPD(c *CPU, u *uop) stop {
	s := c.x(u.s)
	c.r[u.d&31] = s[0]>>63 | s[1]>>63<<1
	return next
}

// signs gathers the highest bits of 8 bytes.
func signs(v uint64) uint64 { return v & high8 * 0x0002040810204081 >> 56 }

func pmovMskB(c *CPU, u *uop) stop {
	s := c.x(u.s)
	c.r[u.d&31] = signs(s[0]) | signs(s[1])<<8
	return next
}

// lowerMaskMov is MASKMOVDQU.
func lowerMaskMov(l *lowerer, v *vector) bool {
	if l.in.Mem {
		return false
	}
	l.sse()
	l.maskMov(l.in.Reg, l.in.RM, v.size)
	return true
}

// maskMov adds a store of the bytes of register s that mask selects, at rDI.
func (l *lowerer) maskMov(s, mask, size uint8) {
	l.in.Base, l.in.Index, l.in.Disp = regRDI, decode.NoReg, 0
	o := l.mem()
	u := l.call(maskMov).at(o)
	u.s, u.d, u.size = s, mask, size
}

func maskMov(c *CPU, u *uop) stop {
	lin := c.addr(u)
	v, mask := c.x(u.s), c.x(u.d)
	for i := range uint64(u.size) {
		if mask[i>>3]>>(i&7*8)&0x80 != 0 {
			if s := c.probe(u, c.wrap(lin+i), 1); s != next {
				return s
			}
		}
	}
	result := next
	for i := range uint64(u.size) {
		if mask[i>>3]>>(i&7*8)&0x80 != 0 {
			s := c.write(u, c.wrap(lin+i), 1, v[i>>3]>>(i&7*8)&0xff)
			if s > leave {
				return s
			}
			result = max(result, s)
		}
	}
	return result
}
