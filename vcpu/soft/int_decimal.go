package soft

// Decimal arithmetic, which 64-bit code does not have.
func registerDecimal() {
	p := &lowerPrimary
	each(p, func(l *lowerer) bool { return l.decimal((*CPU).daa) }, 0x27, 0x2f)
	each(p, func(l *lowerer) bool { return l.decimal((*CPU).aaa) }, 0x37, 0x3f)
	p[0xd4] = func(l *lowerer) bool { return l.decimal((*CPU).aam) }
	p[0xd5] = func(l *lowerer) bool { return l.decimal((*CPU).aad) }
	p[0xd6] = func(l *lowerer) bool { // SALC
		return l.decimal((*CPU).salc)
	}
}

func (l *lowerer) decimal(f func(*CPU, *uop) stop) bool {
	if l.long() {
		return false
	}
	u := l.call(f)
	u.imm, u.cc = l.in.Imm&0xff, l.in.Op
	return true
}

// daa is DAA and DAS.
func (c *CPU) daa(u *uop) stop {
	f := c.arith()
	al := c.r[regRAX] & 0xff
	old, cf := al, f&flagCF
	var out uint64
	fix := uint64(0)
	if al&15 > 9 || f&flagAF != 0 {
		fix = 6
		out |= flagAF
	}
	if old > 0x99 || cf != 0 {
		fix += 0x60
		out |= flagCF
	}
	if u.cc == 0x27 {
		al += fix
	} else {
		if out&flagAF != 0 && old < 6 {
			out |= flagCF
		}
		al -= fix
	}
	c.set(regRAX, 1, al)
	c.setArith(out | szp(al, 1))
	return next
}

// aaa is AAA and AAS.
func (c *CPU) aaa(u *uop) stop {
	f := c.arith()
	ax := c.r[regRAX] & 0xffff
	var out uint64
	if ax&15 > 9 || f&flagAF != 0 {
		if u.cc == 0x37 {
			ax += 0x106
		} else {
			ax -= 0x106
		}
		out = flagAF | flagCF
	}
	c.set(regRAX, 2, ax&0xff0f)
	c.setArith(out | szp(ax&15, 1))
	return next
}

func (c *CPU) aam(u *uop) stop {
	if u.imm == 0 {
		return c.raise(excDE)
	}
	al := c.r[regRAX] & 0xff
	c.set(regRAX, 2, al/u.imm<<8|al%u.imm)
	c.setArith(szp(al%u.imm, 1))
	return next
}

func (c *CPU) aad(u *uop) stop {
	ax := c.r[regRAX] & 0xffff
	al := (ax + ax>>8*u.imm) & 0xff
	c.set(regRAX, 2, al)
	c.setArith(szp(al, 1))
	return next
}

func (c *CPU) salc(*uop) stop {
	c.set(regRAX, 1, -c.carry())
	return next
}
