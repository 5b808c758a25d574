package soft

import "math/bits"

// Shifts and rotates, by ModRM.reg.
const (
	shRol = iota
	shRor
	shRcl
	shRcr
	shShl
	shShr
	shSal // as SHL
	shSar
)

func registerShifts() {
	each(&lowerPrimary, func(l *lowerer) bool {
		l.shift(l.in.Imm, false)
		return true
	}, 0xc0, 0xc1)
	each(&lowerPrimary, func(l *lowerer) bool {
		l.shift(1, false)
		return true
	}, 0xd0, 0xd1)
	each(&lowerPrimary, func(l *lowerer) bool {
		l.shift(0, true)
		return true
	}, 0xd2, 0xd3)
	each(&lower0F, lowerDoubleShift, 0xa4, 0xa5, 0xac, 0xad)
}

// countMask is what a shift count is cut to.
func countMask(size uint8) uint64 {
	if size == 8 {
		return 63
	}
	return 31
}

func (l *lowerer) shift(count uint64, byCL bool) {
	size := l.byteOr()
	op := l.in.Reg & 7
	count &= countMask(size)
	m, store := l.modify(size)
	if !byCL && count != 0 && size >= 4 && op >= shShl {
		k := kindShl64
		switch op {
		case shShr:
			k = kindShr64
		case shSar:
			k = kindSar64
		}
		if size == 4 {
			k++
		}
		u := l.emit(k)
		u.d, u.imm = m, count
	} else {
		u := l.call((*CPU).shiftAny)
		u.d, u.imm, u.size, u.cc = m, count, size, op
		if byCL {
			u.s = regRCX
		}
	}
	store()
}

// shiftAny shifts by imm, or by CL if s is RCX.
func (c *CPU) shiftAny(u *uop) stop {
	n := (c.r[u.s&31] + u.imm) & countMask(u.size)
	a := c.get(u.d, u.size)
	r := a
	if n != 0 {
		r = c.shiftOp(u.cc, u.size, a, uint(n))
	}
	c.set(u.d, u.size, r)
	return next
}

// shiftOp shifts or rotates a by n, which is not 0 and has been masked, and sets the
// flags. OF is that of the last single shift, whatever n.
func (c *CPU) shiftOp(op, size uint8, a uint64, n uint) uint64 {
	w := 8 * uint(size)
	top := w - 1
	m := maskOf(size)
	switch op {
	case shRol, shRor:
		k := n % w
		if op == shRor {
			k = w - k
		}
		r := a
		if k%w != 0 {
			r = (a<<k | a>>(w-k)) & m
		}
		f := c.arith() &^ (flagCF | flagOF)
		if op == shRol {
			f |= r&1 | (r>>top^r)&1<<11
		} else {
			f |= r >> top & 1
			f |= (r>>top ^ r>>(top-1)) & 1 << 11
		}
		c.setArith(f)
		return r
	case shRcl, shRcr:
		f := c.arith()
		cf := f & flagCF
		k := n % (w + 1)
		r := a
		if op == shRcl {
			for range k {
				r, cf = (r<<1|cf)&m, r>>top&1
			}
			f = f&^(flagCF|flagOF) | cf | (r>>top^cf)&1<<11
		} else {
			for range k {
				r, cf = r>>1|cf<<top, r&1
			}
			f = f&^(flagCF|flagOF) | cf | (r>>top^r>>(top-1))&1<<11
		}
		c.setArith(f)
		return r
	case shShr:
		r := a >> n
		c.setShift(r, size, a>>(n-1)&1, a>>top&1)
		return r
	case shSar:
		s := int64(signExtend(a, size))
		r := uint64(s>>n) & m
		c.setShift(r, size, uint64(s>>(n-1))&1, 0)
		return r
	}
	r := a << n & m
	var cf uint64
	if n <= w {
		cf = a >> (w - n) & 1
	}
	c.setShift(r, size, cf, (r>>top^cf)&1)
	return r
}

// lowerDoubleShift is SHLD and SHRD.
func lowerDoubleShift(l *lowerer) bool {
	in := &l.in
	size := in.OpSize
	m, store := l.modify(size)
	u := l.call((*CPU).doubleShift)
	u.d, u.x, u.size, u.imm = m, in.Reg, size, in.Imm
	if in.Op&1 != 0 {
		u.imm, u.s = 0, regRCX
	}
	u.cc = in.Op & 8
	store()
	return true
}

func (c *CPU) doubleShift(u *uop) stop {
	n := uint((c.r[u.s&31] + u.imm) & countMask(u.size))
	w := 8 * uint(u.size)
	a, b := c.get(u.d, u.size), c.get(u.x, u.size)
	if n == 0 {
		c.set(u.d, u.size, a)
		return next
	}
	var r, cf uint64
	if w == 16 {
		// Counts above 16 are undefined; processors rotate through both.
		v := uint64(bits.RotateLeft32(uint32(a<<16|b), int(n)))
		if u.cc == 0 {
			if n > 16 {
				v = (a<<32 | b<<16 | a) << (n - 16) >> 16
				r, cf = v>>16&0xffff, b>>(32-n)&1
			} else {
				r, cf = v>>16&0xffff, a>>(16-n)&1
			}
		} else {
			v = (a<<32 | b<<16 | a) >> n
			r = v & 0xffff
			cf = (a<<32 | b<<16 | a) >> (n - 1) & 1
		}
	} else if u.cc == 0 {
		r = (a<<n | b>>(w-n)) & maskOf(u.size)
		cf = a >> (w - n) & 1
	} else {
		r = (a>>n | b<<(w-n)) & maskOf(u.size)
		cf = a >> (n - 1) & 1
	}
	c.setShift(r, u.size, cf, (r^a)>>(w-1)&1)
	c.set(u.d, u.size, r)
	return next
}
