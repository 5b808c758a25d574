package soft

// Outside 64-bit mode each access is checked against its segment (Intel SDM volume 3,
// chapter 5). The micro-operation that computes an address does it, for all that the
// instruction accesses there; flat segments need none.

// isAddress is uop.s of legacyAddress.
const isAddress = 0xff

// extent is what of a segment an instruction accesses from an address on, as in uop.imm
// of legacyAddress.
type extent struct {
	more  uint16 // distance of the address from the operand's
	size  uint16 // bytes accessed; 0 means that nothing is to be checked
	write bool
}

func (x extent) pack() uint64 {
	return uint64(x.more) | uint64(x.size)<<16 | bit(x.write)<<32
}

func unpackExtent(v uint64) extent {
	return extent{more: uint16(v), size: uint16(v >> 16), write: v>>32&1 != 0}
}

// limits tells the address computations of the last instruction what is accessed at
// them.
func (l *lowerer) limits() {
	if l.long() {
		return
	}
	at := -1
	for i := l.first; i < len(l.ops); i++ {
		u := &l.ops[i]
		if u.kind == kindCall && u.s == isAddress {
			at = i
			continue
		}
		if at < 0 || u.b != regEA || u.kind != kindCall && (u.kind < kindLoad8 || u.kind > kindProbe) {
			continue
		}
		a := &l.ops[at]
		if l.m&modeFlat != 0 && a.cc < segFS && a.cc != segCS { // code cannot be written
			continue
		}
		x := unpackExtent(a.imm)
		x.size = max(x.size, uint16(u.disp)+max(uint16(u.size), 1))
		switch u.kind {
		case kindLoadW32, kindLoadW64, kindStore8, kindStore16, kindStore32, kindStore64, kindStore32B, kindStore64B, kindProbe:
			x.write = true
		}
		a.imm = x.pack()
	}
}

// checkSegment makes sure that size bytes at off of a segment may be accessed.
func (c *CPU) checkSegment(i uint8, off, size uint64, write bool) stop {
	s := &c.seg[i]
	ok := !s.Unusable && within(s, off, size)
	if ok && c.protected() {
		if s.Type&typeCode != 0 {
			ok = !write && s.Type&typeReadable != 0
		} else {
			ok = !write || s.Type&typeWritable != 0
		}
	}
	switch {
	case ok:
		return next
	case i == segSS:
		return c.raiseCode(excSS, 0)
	}
	return c.gp()
}
