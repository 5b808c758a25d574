package soft

// Instructions on RFLAGS as a whole.

// cli and sti follow IOPL; CR4.PVI is not offered.
func (c *CPU) cli(*uop) stop {
	if c.protected() && c.cpl > c.iopl() {
		return c.gp()
	}
	c.flags &^= flagIF
	return next
}

func (c *CPU) sti(u *uop) stop {
	if c.protected() && c.cpl > c.iopl() {
		return c.gp()
	}
	if c.flags&flagIF == 0 {
		c.flags |= flagIF
		c.shadow = true
	}
	c.rip = c.nextRIP(u)
	return event
}

func lowerPushFlags(l *lowerer) bool {
	l.call((*CPU).pushFlags).size = l.pushSize()
	return true
}

func (c *CPU) pushFlags(u *uop) stop {
	return c.push(u.size, c.rflags()&^(flagVM|flagRF))
}

func lowerPopFlags(l *lowerer) bool {
	l.call((*CPU).popFlags).size = l.pushSize()
	return true
}

func (c *CPU) popFlags(u *uop) stop {
	v, s := c.peek(0, u.size)
	if s != next {
		return s
	}
	c.setRSP(c.r[regRSP] + uint64(u.size))
	mask := uint64(flagArith | flagTF | flagDF | flagNT | flagAC | flagID)
	if c.cpl == 0 || !c.protected() {
		mask |= flagIOPL
	}
	if c.cpl <= c.iopl() || !c.protected() {
		mask |= flagIF
	}
	was := c.flags
	c.loadFlags(v, u.size, mask)
	c.flags &^= flagRF
	switch changed := was ^ c.flags; {
	case changed&(flagTF|flagAC) != 0:
		c.updateMode()
	case changed&c.flags&flagIF == 0:
		return next
	}
	return c.leaveBlock(u)
}
