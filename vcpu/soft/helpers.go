package soft

// loadSlow is a load that the TLB has no answer for.
func (c *CPU) loadSlow(u *uop, lin uint64, size uint8) stop {
	v, s := c.read(u, lin, size)
	if s == next {
		c.r[u.d&31] = v
	}
	return s
}

// loadToModify is loadSlow for an operand that will be stored again.
func (c *CPU) loadToModify(u *uop, lin uint64, size uint8) stop {
	if s := c.probe(u, lin, size); s != next {
		return s
	}
	return c.loadSlow(u, lin, size)
}

// signExtend extends the sign of a value of size bytes.
func signExtend(v uint64, size uint8) uint64 {
	n := 64 - 8*uint(size)
	return uint64(int64(v<<n) >> n)
}

// loadSigned loads size bytes with their sign into a register of cc bytes, of
// which 4 clear the upper half.
func (c *CPU) loadSigned(u *uop) stop {
	v, s := c.read(u, c.addr(u), u.size)
	if s == next {
		c.r[u.d&31] = signExtend(v, u.size) & maskOf(u.cc)
	}
	return s
}

// push64 pushes v in 64-bit mode.
func (c *CPU) push64(u *uop, v uint64) stop {
	lin := c.r[regRSP] - 8
	s := c.write(u, lin, 8, v)
	if s <= leave {
		c.r[regRSP] = lin
	}
	return s
}

// setShift sets the flags of a shift.
func (c *CPU) setShift(v uint64, size uint8, cf, of uint64) {
	c.setKeep(v, size, cf|of<<11)
}

// finish runs what is left of the instruction of u, which has to leave the block
// after it, and ends with event.
func (c *CPU) finish(u *uop) stop {
	b := c.cur
	if u.kind == kindCallRel || u.kind == kindCallR || int(u.n)+1 == int(b.n) && u == &b.ops[len(b.ops)-1] {
		return event // it was the last, and has set rip
	}
	// A block of its own, with the rest, that ends after it. Its length is b's, so
	// that CPU.now stays right.
	t := &c.tail
	t.ops = c.tailOps[:0]
	rest := false
	for i := range b.ops {
		o := &b.ops[i]
		if rest && o.n == u.n && o.kind != kindEnd {
			t.ops = append(t.ops, *o)
		}
		rest = rest || o == u
	}
	t.n, t.need, t.mode = b.n, b.n, b.mode
	end := *u
	end.kind, end.fn = kindCall, (*CPU).leaveBlock
	t.ops = append(t.ops, end)
	c.rip = c.r[regRIP]
	c.left += b.n
	return c.execute(t)
}
