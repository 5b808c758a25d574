package soft

func registerStack() {
	p := &lowerPrimary
	span(p, func(l *lowerer) bool {
		l.push(l.in.Op&7|l.in.REX<<3&8, l.stackSize(), 0)
		return true
	}, 0x50, 0x57)
	span(p, func(l *lowerer) bool {
		l.pop(l.in.Op&7 | l.in.REX<<3&8)
		return true
	}, 0x58, 0x5f)
	each(p, func(l *lowerer) bool {
		l.push(regZero, l.stackSize(), l.in.Imm)
		return true
	}, 0x68, 0x6a)
	p[0x8f] = lowerPopMem
	p[0x60] = func(l *lowerer) bool { return l.legacyCall((*CPU).pusha) }
	p[0x61] = func(l *lowerer) bool { return l.legacyCall((*CPU).popa) }
	p[0xc8] = func(l *lowerer) bool { // ENTER
		u := l.call((*CPU).enterFrame)
		u.size, u.imm, u.cc = l.stackSize(), l.in.Imm, uint8(l.in.Imm2)
		u.ss = true
		return true
	}
	p[0xc9] = func(l *lowerer) bool { // LEAVE
		u := l.call((*CPU).leaveFrame)
		u.size, u.ss = l.stackSize(), true
		return true
	}
}

// legacyCall adds a function for an instruction that 64-bit code does not have.
func (l *lowerer) legacyCall(f func(*CPU, *uop) stop) bool {
	if l.long() {
		return false
	}
	l.call(f).ss = true
	return true
}

// stackSize is the operand size of an instruction that uses the stack.
func (l *lowerer) stackSize() uint8 {
	if l.long() && l.in.OpSize != 2 {
		return 8
	}
	return l.in.OpSize
}

func (l *lowerer) push(s, size uint8, imm uint64) {
	if l.long() && size == 8 {
		u := l.emit(kindPush)
		u.s, u.imm, u.ss = s, imm, true
		return
	}
	u := l.call((*CPU).pushAny)
	u.s, u.size, u.imm, u.ss = s, size, imm, true
}

func (l *lowerer) pop(d uint8) {
	size := l.stackSize()
	if l.long() && size == 8 {
		u := l.emit(kindPop)
		u.d, u.ss = d, true
		return
	}
	u := l.call((*CPU).popAny)
	u.d, u.size, u.ss = d, size, true
}

// stackAt is the linear address of size bytes at off from the stack pointer, if that is
// within the stack segment.
func (c *CPU) stackAt(off uint64, size uint8) (uint64, stop) { return c.stack(c.r[regRSP]+off, size) }

// addSP moves the stack pointer.
func (c *CPU) addSP(n uint64) { c.setRSP(c.r[regRSP] + n) }

// probeStack makes sure that size bytes can be written at off from the stack pointer.
func (c *CPU) probeStack(off uint64, size uint8) stop {
	lin, s := c.stackAt(off, size)
	if s != next {
		return s
	}
	return c.probeIn(c.space, true, lin, size)
}

// pokeStack writes there, after probeStack.
func (c *CPU) pokeStack(off uint64, size uint8, v uint64) stop {
	lin, s := c.stackAt(off, size)
	if s != next {
		return s
	}
	return c.writeIn(c.space, true, lin, size, v)
}

func (c *CPU) pushAny(u *uop) stop { return c.push(u.size, c.r[u.s&31]+u.imm) }

func (c *CPU) popAny(u *uop) stop {
	v, s := c.peek(0, u.size)
	if s != next {
		return s
	}
	c.addSP(uint64(u.size))
	c.set(u.d, u.size, v)
	return next
}

// lowerPopMem is POP r/m. An address that uses the stack pointer is computed with
// its new value.
func lowerPopMem(l *lowerer) bool {
	in := &l.in
	if in.Reg&7 != 0 {
		return false
	}
	if !in.Mem {
		l.pop(in.RM)
		return true
	}
	size := l.stackSize()
	u := l.call((*CPU).peekT0)
	u.size, u.ss = size, true
	more := int64(0)
	if in.Base == regRSP {
		more = int64(size)
	}
	if in.Base == regRSP && !l.long() && in.AddrSize == 2 {
		more = 0 // there is no such address
	}
	l.store(regT0, size, 0, l.memOff(more))
	u = l.call((*CPU).dropTop)
	u.size = size
	return true
}

func (c *CPU) peekT0(u *uop) stop {
	v, s := c.peek(0, u.size)
	c.r[regT0] = v
	return s
}

func (c *CPU) dropTop(u *uop) stop {
	c.addSP(uint64(u.size))
	return next
}

func (c *CPU) pusha(u *uop) stop {
	n := uint64(u.size)
	for i := range uint64(8) {
		if s := c.probeStack(-n*(i+1), u.size); s != next {
			return s
		}
	}
	result := next
	for i := range uint64(8) {
		result = max(result, c.pokeStack(-n*(i+1), u.size, c.r[i]))
	}
	c.addSP(-(8 * n))
	return result
}

func (c *CPU) popa(u *uop) stop {
	n := uint64(u.size)
	var v [8]uint64
	for i := range uint64(8) {
		var s stop
		if v[7-i], s = c.peek(n*i, u.size); s != next {
			return s
		}
	}
	for i := range uint8(8) {
		if i != regRSP {
			c.set(i, u.size, v[i])
		}
	}
	c.addSP(8 * n)
	return next
}

// enterFrame is ENTER with nesting level cc and imm bytes of locals.
func (c *CPU) enterFrame(u *uop) stop {
	n := uint64(u.size)
	level := uint64(u.cc & 31)
	for i := uint64(1); i < level; i++ { // what is read below is there
		lin, s := c.stack(c.r[regRBP]-n*i, u.size)
		if s != next {
			return s
		}
		if _, s = c.readIn(c.space, true, lin, u.size); s != next {
			return s
		}
	}
	pushes := uint64(1)
	if level > 0 {
		pushes = 1 + level
	}
	for i := uint64(1); i <= pushes; i++ {
		if s := c.probeStack(-n*i, u.size); s != next {
			return s
		}
	}
	// The instruction checks that the new top can be written.
	if s := c.probeStack(-n*pushes-u.imm, 1); s != next {
		return s
	}
	result := c.pokeStack(-n, u.size, c.r[regRBP])
	fp := (c.r[regRSP] - n) & c.stackMask()
	for i := uint64(1); i <= level; i++ {
		v := fp
		if i < level { // a frame pointer, which may be among those just pushed
			lin, s := c.stack(c.r[regRBP]-n*i, u.size)
			if s != next {
				return s
			}
			if v, s = c.readIn(c.space, true, lin, u.size); s != next {
				return s
			}
		}
		result = max(result, c.pokeStack(-n*(i+1), u.size, v))
	}
	c.set(regRBP, u.size, fp)
	c.addSP(-n*pushes - u.imm)
	return result
}

func (c *CPU) leaveFrame(u *uop) stop {
	lin, s := c.stack(c.r[regRBP], u.size)
	if s != next {
		return s
	}
	v, s := c.readIn(c.space, true, lin, u.size)
	if s != next {
		return s
	}
	c.setRSP(c.r[regRBP] + uint64(u.size))
	c.set(regRBP, u.size, v)
	return next
}
