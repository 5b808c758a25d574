package soft

func init() {
	lowerPrimary[0xdb] = func(l *lowerer) bool {
		if !l.in.Mem && l.in.Reg&7 == 4 && l.in.RM&7 <= 3 {
			l.call(func(c *CPU, u *uop) stop { c.fpu.init(); return next })
			return true
		}
		return false
	}
	lowerPrimary[0xd9] = func(l *lowerer) bool {
		if l.in.Mem && l.in.Reg&7 == 7 {
			l.call(func(c *CPU, u *uop) stop { return c.write(u, c.addr(u), 2, uint64(c.fpu.cw)) }).at(l.mem())
			return true
		}
		if l.in.Mem && l.in.Reg&7 == 5 {
			l.call(func(c *CPU, u *uop) stop {
				v, s := c.read(u, c.addr(u), 2)
				if s == next {
					c.fpu.cw = uint16(v)
				}
				return s
			}).at(l.mem())
			return true
		}
		return false
	}
	lowerPrimary[0xdd] = func(l *lowerer) bool {
		if l.in.Mem && l.in.Reg&7 == 7 {
			l.call(func(c *CPU, u *uop) stop { return c.write(u, c.addr(u), 2, uint64(c.fpu.sw)) }).at(l.mem())
			return true
		}
		return false
	}
	lowerPrimary[0xdf] = func(l *lowerer) bool {
		if !l.in.Mem && l.in.Reg&7 == 4 && l.in.RM == 0 {
			l.call(func(c *CPU, u *uop) stop { c.set(regRAX, 2, uint64(c.fpu.sw)); return next })
			return true
		}
		return false
	}
}
