package soft

import (
	"math/bits"

	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

// BMI1 and BMI2, all VEX-encoded.
const (
	bmiANDN = iota
	bmiBEXTR
	bmiBZHI
	bmiPDEP
	bmiPEXT
	bmiSHLX
	bmiSHRX
	bmiSARX
)

func registerBMI() {
	t := &lowerVEX[decode.Map0F38]
	t[0xf2] = func(l *lowerer) bool { return l.in.VexPP == 0 && l.bmi(bmiANDN, false) }
	t[0xf3] = lowerBLS
	t[0xf5] = func(l *lowerer) bool {
		switch l.in.VexPP {
		case 0:
			return l.bmi(bmiBZHI, true)
		case 2:
			return l.bmi(bmiPEXT, false)
		case 3:
			return l.bmi(bmiPDEP, false)
		}
		return false
	}
	t[0xf6] = lowerMULX
	t[0xf7] = func(l *lowerer) bool {
		return l.bmi([...]uint8{bmiBEXTR, bmiSHLX, bmiSARX, bmiSHRX}[l.in.VexPP], true)
	}
	lowerVEX[decode.Map0F3A][0xf0] = lowerRORX
}

func (l *lowerer) vexSize() uint8 {
	if l.in.VexW && l.long() {
		return 8
	}
	return 4
}

// vvvv is the register that the VEX prefix names.
func (l *lowerer) vvvv() uint8 {
	if l.long() {
		return l.in.VexV
	}
	return l.in.VexV & 7
}

// bmi adds an operation of the VEX register and r/m; control says that the VEX
// register is the second operand rather than the first.
func (l *lowerer) bmi(op uint8, control bool) bool {
	if l.in.VexL {
		return false
	}
	size := l.vexSize()
	s := l.source(size)
	u := l.call((*CPU).bmi)
	u.d, u.s, u.x, u.size, u.cc = l.in.Reg, l.vvvv(), s, size, op
	if control {
		u.s, u.x = s, l.vvvv()
	}
	return true
}

func (c *CPU) bmi(u *uop) stop {
	a, b := c.get(u.s, u.size), c.get(u.x, u.size)
	w := 8 * uint64(u.size)
	var r uint64
	switch u.cc {
	case bmiANDN:
		r = ^a & b
		c.setArith(szp(r, u.size) &^ flagPF)
	case bmiBEXTR:
		start, n := b&0xff, b>>8&0xff
		if start < w {
			r = a >> start
		}
		if n < w {
			r &= 1<<n - 1
		}
		c.setArith(bit(r == 0) << 6)
	case bmiBZHI:
		r = a
		n := b & 0xff
		if n < w {
			r &= 1<<n - 1
		}
		c.setArith(szp(r, u.size)&^flagPF | bit(n >= w))
	case bmiPDEP:
		for m := b; m != 0; m &= m - 1 {
			if a&1 != 0 {
				r |= m & -m
			}
			a >>= 1
		}
	case bmiPEXT:
		for i, m := 0, b; m != 0; m &= m - 1 {
			r |= a >> bits.TrailingZeros64(m) & 1 << i
			i++
		}
	case bmiSHLX:
		r = a << (b & (w - 1))
	case bmiSHRX:
		r = a >> (b & (w - 1))
	case bmiSARX:
		r = uint64(int64(signExtend(a, u.size)) >> (b & (w - 1)))
	}
	c.set(u.d, u.size, r)
	return next
}

// lowerBLS is BLSR, BLSMSK and BLSI.
func lowerBLS(l *lowerer) bool {
	op := l.in.Reg & 7
	if l.in.VexPP != 0 || l.in.VexL || op < 1 || op > 3 {
		return false
	}
	size := l.vexSize()
	s := l.source(size)
	u := l.call((*CPU).bls)
	u.d, u.s, u.size, u.cc = l.vvvv(), s, size, op
	return true
}

func (c *CPU) bls(u *uop) stop {
	v := c.get(u.s, u.size)
	var r, f uint64
	switch u.cc {
	case 1:
		r, f = v&(v-1), bit(v == 0)
	case 2:
		r, f = (v^(v-1))&maskOf(u.size), bit(v == 0)
	default:
		r, f = v&-v, bit(v != 0)
	}
	c.setArith(szp(r, u.size)&^flagPF | f)
	c.set(u.d, u.size, r)
	return next
}

func lowerMULX(l *lowerer) bool {
	if l.in.VexPP != 3 || l.in.VexL {
		return false
	}
	size := l.vexSize()
	s := l.source(size)
	u := l.call((*CPU).mulx)
	u.d, u.x, u.s, u.size = l.in.Reg, l.vvvv(), s, size
	return true
}

func (c *CPU) mulx(u *uop) stop {
	hi, lo := bits.Mul64(c.get(regRDX, u.size), c.get(u.s, u.size))
	if u.size == 4 {
		hi, lo = lo>>32, uint64(uint32(lo))
	}
	c.set(u.x, u.size, lo)
	c.set(u.d, u.size, hi)
	return next
}

func lowerRORX(l *lowerer) bool {
	if l.in.VexPP != 3 || l.in.VexL {
		return false
	}
	size := l.vexSize()
	s := l.source(size)
	u := l.call((*CPU).rorx)
	u.d, u.s, u.size, u.imm = l.in.Reg, s, size, l.in.Imm
	return true
}

func (c *CPU) rorx(u *uop) stop {
	v := c.get(u.s, u.size)
	if u.size == 8 {
		v = bits.RotateLeft64(v, -int(u.imm&63))
	} else {
		v = uint64(bits.RotateLeft32(uint32(v), -int(u.imm&31)))
	}
	c.set(u.d, u.size, v)
	return next
}
