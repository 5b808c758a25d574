package soft

// String instructions (Intel SDM volume 1, section 7.3.9). With a repeat prefix one
// execution does a bounded number of iterations; if more remain, RIP stays and the
// block ends, so that interrupts come through. A fault in the middle leaves the
// iterations before it done. It counts as one instruction each time.

// repeatLimit is how many iterations one execution does at most.
const repeatLimit = 4096

// What a string instruction does.
const (
	strMovs = iota
	strCmps
	strStos
	strLods
	strScas
)

func registerStrings() {
	for what, op := range []int{strMovs: 0xa4, strCmps: 0xa6, strStos: 0xaa, strLods: 0xac, strScas: 0xae} {
		each(&lowerPrimary, func(l *lowerer) bool { l.str(uint8(what)); return true }, op, op+1)
	}
}

func (l *lowerer) str(what uint8) {
	in := &l.in
	f := (*CPU).stringOnce
	if in.Rep != 0 {
		f = (*CPU).stringRepeat
		l.ended = true
		l.local[1] = l.within(int64(l.off) + int64(in.Len))
	}
	u := l.call(f)
	u.size, u.cc, u.x = l.byteOr(), what, in.AddrSize
	u.seg = segDS
	if in.Seg < 6 {
		u.seg = in.Seg
	}
	u.imm = uint64(in.Rep)
}

// stringAddr is the linear address of an operand of size bytes at index register r, of
// which addrSize bytes count, in segment seg.
func (c *CPU) stringAddr(r, seg, addrSize, size uint8) (uint64, stop) {
	off := c.get(r, addrSize)
	if c.is64() {
		if seg >= segFS {
			off += c.seg[seg].Base
		}
		return off, next
	}
	if g := &c.seg[seg]; g.Unusable || !within(g, off, uint64(size)) {
		if seg == segSS {
			return 0, c.raiseCode(excSS, 0)
		}
		return 0, c.gp()
	}
	return uint64(uint32(off + c.seg[seg].Base)), next
}

// advance moves an index register by n operands.
func (c *CPU) advance(u *uop, r uint8, n uint64) {
	d := n * uint64(u.size)
	if c.flags&flagDF != 0 {
		d = -d
	}
	c.set(r, u.x, c.get(r, u.x)+d)
}

// stringOnce is one iteration. It is leave if a write says so.
func (c *CPU) stringOnce(u *uop) stop {
	var src, dst, v uint64
	var s stop
	if u.cc == strMovs || u.cc == strCmps || u.cc == strLods {
		if src, s = c.stringAddr(regRSI, u.seg, u.x, u.size); s != next {
			return s
		}
	}
	if u.cc != strLods {
		if dst, s = c.stringAddr(regRDI, segES, u.x, u.size); s != next {
			return s
		}
	}
	switch u.cc {
	case strMovs:
		if v, s = c.read(u, src, u.size); s != next {
			return s
		}
		if s = c.write(u, dst, u.size, v); s > leave {
			return s
		}
	case strStos:
		if s = c.write(u, dst, u.size, c.r[regRAX]); s > leave {
			return s
		}
	case strLods:
		if v, s = c.read(u, src, u.size); s != next {
			return s
		}
		c.set(regRAX, u.size, v)
	case strCmps:
		if v, s = c.read(u, src, u.size); s != next {
			return s
		}
		var w uint64
		if w, s = c.read(u, dst, u.size); s != next {
			return s
		}
		c.aluOp(aluCmp, u.size, v, w)
	case strScas:
		if v, s = c.read(u, dst, u.size); s != next {
			return s
		}
		c.aluOp(aluCmp, u.size, c.get(regRAX, u.size), v)
	}
	if u.cc == strMovs || u.cc == strCmps || u.cc == strLods {
		c.advance(u, regRSI, 1)
	}
	if u.cc != strLods {
		c.advance(u, regRDI, 1)
	}
	return s
}

func (c *CPU) stringRepeat(u *uop) stop {
	n := c.get(regRCX, u.x)
	compares := u.cc == strCmps || u.cc == strScas
	s := next
	budget := uint64(repeatLimit)
	if c.mode&modeSingle != 0 || c.access.known > 0 {
		// Each iteration is a step; or it ends with the answer that it has, so that
		// whoever waits for the machine need not wait for all of them.
		budget = 1
	}
	for n > 0 && budget > 0 && s == next {
		if k := c.stringBulk(u, min(n, budget)); k > 0 {
			n -= k
			budget -= k
			c.set(regRCX, u.x, n)
			continue
		}
		if s = c.stringOnce(u); s > leave {
			return s
		}
		c.access.retired() // the next iteration makes accesses of its own
		n--
		budget--
		c.set(regRCX, u.x, n)
		if compares && (c.arith()&flagZF != 0) != (u.imm == 0xf3) {
			n = 0
		}
	}
	if n > 0 {
		c.rip = (c.r[regRIP] + uint64(u.off)) & c.ripMask()
		return event
	}
	c.rip = c.nextRIP(u)
	if s == leave {
		return event
	}
	return link1
}
