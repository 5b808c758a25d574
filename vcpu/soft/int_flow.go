package soft

func registerFlow() {
	p := &lowerPrimary
	span(p, func(l *lowerer) bool { l.jcc(l.in.Op & 15); return true }, 0x70, 0x7f)
	span(&lower0F, func(l *lowerer) bool { l.jcc(l.in.Op & 15); return true }, 0x80, 0x8f)
	each(p, func(l *lowerer) bool { // JMP rel
		if !l.simpleBranch() {
			u := l.terminate((*CPU).jumpNear)
			u.imm = l.in.Imm
			return true
		}
		u := l.emit(kindJmp)
		u.disp = l.target()
		l.branchEnds()
		return true
	}, 0xe9, 0xeb)
	p[0xe8] = func(l *lowerer) bool { // CALL rel
		if !l.simpleBranch() {
			u := l.terminate((*CPU).callNear)
			u.imm = l.in.Imm
			return true
		}
		u := l.emit(kindCallRel)
		u.disp, u.ss = l.target(), true
		l.branchEnds()
		return true
	}
	each(p, func(l *lowerer) bool { // RET
		n := l.in.Imm // 0 without an operand
		if !l.simpleBranch() {
			u := l.terminate((*CPU).retNear)
			u.imm = n
			return true
		}
		u := l.emit(kindRet)
		u.imm, u.ss = n, true
		l.ended = true
		return true
	}, 0xc2, 0xc3)
	span(p, func(l *lowerer) bool { // LOOPNE, LOOPE, LOOP, JrCXZ
		u := l.terminate((*CPU).loop)
		u.imm, u.cc, u.x = l.in.Imm, l.in.Op&3, l.in.AddrSize
		return true
	}, 0xe0, 0xe3)
	p[0xff] = lowerGroup5
	lower0F[0x0b] = func(*lowerer) bool { return false } // UD2
}

// simpleBranch reports whether a near branch is one of 64-bit code with a 64-bit
// target.
func (l *lowerer) simpleBranch() bool { return l.long() && (l.in.OpSize == 8 || !l.in.Op66) }

// target is where a relative branch goes, counted from the block's first byte.
func (l *lowerer) target() uint64 {
	return uint64(l.off) + uint64(l.in.Len) + l.in.Imm
}

// branchEnds ends the block with a direct branch.
func (l *lowerer) branchEnds() {
	l.ended = true
	l.local[0] = l.within(int64(l.target()))
	l.local[1] = l.within(int64(l.off) + int64(l.in.Len))
}

func (l *lowerer) jcc(cc uint8) {
	if !l.simpleBranch() {
		u := l.terminate((*CPU).jccNear)
		u.imm, u.cc = l.in.Imm, cc
		return
	}
	l.branchEnds()
	// A comparison right before becomes one micro-operation with the branch.
	if i := len(l.ops) - 1; i >= 0 && l.ops[i].kind >= kindCmp64 && l.ops[i].kind <= kindTest8 {
		u := &l.ops[i]
		u.kind += kindCmpJ64 - kindCmp64
		u.disp, u.cc = l.target(), cc
		u.off, u.len, u.n = l.off, l.in.Len, l.n
		l.first = i
		return
	}
	u := l.emit(kindJcc)
	u.disp, u.cc = l.target(), cc
}

// nearSize is the operand size of a near branch that is not simple.
func (c *CPU) nearSize(u *uop) uint8 {
	if c.is64() && u.size != 2 {
		return 8
	}
	return u.size
}

// jumpTo ends the block at an offset in the code segment, cut to the operand size.
func (c *CPU) jumpTo(u *uop, rip uint64) stop {
	rip &= maskOf(c.nearSize(u))
	if s := c.checkRIP(rip); s != next {
		return s
	}
	c.rip = rip
	return done
}

// checkRIP refuses a branch target outside the code segment.
func (c *CPU) checkRIP(rip uint64) stop {
	if c.is64() {
		if !canonical(rip) {
			return c.gp()
		}
		return next
	}
	if rip > uint64(c.seg[segCS].Limit) {
		return c.gp()
	}
	return next
}

func (c *CPU) jumpNear(u *uop) stop { return c.jumpTo(u, c.nextRIP(u)+u.imm) }

func (c *CPU) jccNear(u *uop) stop {
	if c.cond(u.cc) {
		return c.jumpTo(u, c.nextRIP(u)+u.imm)
	}
	c.rip = c.nextRIP(u)
	return done
}

func (c *CPU) callNear(u *uop) stop { return c.callTo(u, c.nextRIP(u)+u.imm) }

func (c *CPU) callTo(u *uop, rip uint64) stop {
	size := c.nearSize(u)
	rip &= maskOf(size)
	if s := c.checkRIP(rip); s != next {
		return s
	}
	s := c.push(size, c.nextRIP(u))
	if s > leave {
		return s
	}
	c.rip = rip
	return max(s, done)
}

func (c *CPU) retNear(u *uop) stop {
	size := c.nearSize(u)
	rip, s := c.peek(0, size)
	if s != next {
		return s
	}
	if s := c.checkRIP(rip); s != next {
		return s
	}
	c.addSP(uint64(size) + u.imm)
	c.rip = rip
	return done
}

// loop is LOOPNE, LOOPE, LOOP and JCXZ, by the opcode's low bits. x is the address
// size, which is the counter's.
func (c *CPU) loop(u *uop) stop {
	n := c.get(regRCX, u.x)
	var taken bool
	if u.cc == 3 {
		taken = n == 0
	} else {
		n = (n - 1) & maskOf(u.x)
		zf := c.arith()&flagZF != 0
		taken = n != 0 && (u.cc == 2 || zf == (u.cc == 1))
	}
	to := c.nextRIP(u)
	if taken {
		to = (to + u.imm) & maskOf(c.nearSize(u))
		if s := c.checkRIP(to); s != next {
			return s
		}
	}
	if u.cc != 3 {
		c.set(regRCX, u.x, n)
	}
	c.rip = to
	return done
}

// lowerGroup5 is INC, DEC, CALL, JMP and PUSH of r/m.
func lowerGroup5(l *lowerer) bool {
	in := &l.in
	switch in.Reg & 7 {
	case 0, 1:
		return lowerIncDec(l)
	case 2, 4:
		size := in.OpSize
		if l.long() && !(in.Op66 && size == 2) {
			size = 8
		}
		s := l.source(size)
		call := in.Reg&7 == 2
		if l.simpleBranch() {
			k := kindJmpR
			if call {
				k = kindCallR
			}
			u := l.emit(k)
			u.s, u.ss = s, true
			l.ended = true
			return true
		}
		f := (*CPU).jumpReg
		if call {
			f = (*CPU).callReg
		}
		u := l.terminate(f)
		u.s = s
		return true
	case 3, 5:
		return lowerFarIndirect(l)
	case 6:
		size := l.stackSize()
		l.push(l.source(size), size, 0)
		return true
	}
	return false
}

func (c *CPU) jumpReg(u *uop) stop { return c.jumpTo(u, c.r[u.s&31]) }
func (c *CPU) callReg(u *uop) stop { return c.callTo(u, c.r[u.s&31]) }
