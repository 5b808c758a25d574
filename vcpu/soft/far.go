package soft

import (
	"github.com/vmkit-go/vmkit/vcpu"
)

// Far control transfers (Intel SDM volume 2, "CALL", "JMP", "RET" and "IRET"). Without
// hardware task switching, a jump or call to a task-state segment or a task gate, and an
// IRET with NT set, raise #GP, as they do in long mode. Virtual-8086 mode cannot be
// entered: an IRET that would raises #GP.

// farSize is the operand size of a far transfer through memory: as on AMD's processors,
// offsets have no 64 bits.
func (l *lowerer) farSize() uint8 { return min(l.in.OpSize, 4) }

// lowerFarDirect is JMP and CALL with a far pointer in the instruction.
func lowerFarDirect(l *lowerer) bool {
	in := &l.in
	if l.long() {
		return false
	}
	u := l.terminate((*CPU).farJump)
	if in.Op == 0x9a {
		u.fn = (*CPU).farCall
	}
	u.imm, u.disp, u.size = in.Imm&maskOf(in.OpSize), in.Imm2, in.OpSize
	u.s, u.x = regZero, regZero
	return true
}

// lowerFarIndirect is JMP and CALL with a far pointer in memory: FF /5 and /3.
func lowerFarIndirect(l *lowerer) bool {
	in := &l.in
	if !in.Mem {
		return false
	}
	size := l.farSize()
	l.load(regT0, size, l.mem())
	l.load(regT1, 2, l.memOff(int64(size)))
	u := l.terminate((*CPU).farJump)
	if in.Reg&7 == 3 {
		u.fn = (*CPU).farCall
	}
	u.s, u.x, u.size = regT0, regT1, size
	return true
}

func (c *CPU) farOperand(u *uop) (sel uint16, off uint64) {
	return uint16(c.r[u.x&31] + u.disp), c.r[u.s&31] + u.imm
}

// realCode loads CS in real mode and goes on at off.
func (c *CPU) realCode(sel uint16, off uint64) {
	cs := c.seg[segCS]
	cs.Selector, cs.Base = sel, uint64(sel)<<4
	c.setSegment(segCS, cs)
	c.rip = off
	c.updateMode()
}

// codeTarget is where a far transfer goes.
type codeTarget struct {
	cs    vcpu.Segment
	cpl   uint8
	rip   uint64
	gate  uint8 // operand size of a call gate, or 0
	words uint8 // parameters that a call gate copies
}

// farTarget finds out where a far jump or call goes.
func (c *CPU) farTarget(sel uint16, off uint64, call bool) (t codeTarget, s stop) {
	if null(sel) {
		return t, c.gp()
	}
	d, at, s := c.descriptor(sel, excGP)
	if s != next {
		return t, s
	}
	t.cs = segmentOf(sel, d)
	t.cpl, t.rip = c.cpl, off
	if t.cs.System {
		return c.gateTarget(sel, d, at, call)
	}
	cs := &t.cs
	switch {
	case cs.Type&typeCode == 0:
		return t, c.selectorFault(excGP, sel)
	case cs.Type&typeConform != 0:
		if cs.DPL > c.cpl {
			return t, c.selectorFault(excGP, sel)
		}
	case uint8(sel&3) > c.cpl || cs.DPL != c.cpl:
		return t, c.selectorFault(excGP, sel)
	}
	if !cs.Present {
		return t, c.selectorFault(excNP, sel)
	}
	if s := c.checkCode(cs, off); s != next {
		return t, s
	}
	s = c.setAccessed(d, at)
	cs.Type |= typeAccessed
	return t, s
}

// checkCode checks a code segment that is to be loaded, and the offset in it.
func (c *CPU) checkCode(cs *vcpu.Segment, off uint64) stop {
	switch {
	case !c.longMode() || !cs.Long:
		if uint64(uint32(off)) > uint64(cs.Limit) {
			return c.gp()
		}
	case cs.Big:
		return c.selectorFault(excGP, cs.Selector)
	case !canonical(off):
		return c.gp()
	}
	return next
}

// gateTarget follows a call gate.
func (c *CPU) gateTarget(sel uint16, gate, at uint64, call bool) (t codeTarget, s stop) {
	kind := gate >> 40 & 15
	if kind != sysCall && (kind != sysCall16 || c.longMode()) {
		return t, c.selectorFault(excGP, sel)
	}
	if dpl := uint8(gate >> 45 & 3); dpl < c.cpl || dpl < uint8(sel&3) {
		return t, c.selectorFault(excGP, sel)
	}
	t.gate, t.words = 4, uint8(gate>>32&31)
	t.rip = gate&0xffff | gate>>32&0xffff0000
	if kind == sysCall16 {
		t.gate, t.rip = 2, t.rip&0xffff
	}
	if c.longMode() {
		high, s := c.descriptorHigh(sel, at, excGP)
		if s != next {
			return t, s
		}
		if high>>40&31 != 0 {
			return t, c.selectorFault(excGP, sel)
		}
		t.gate, t.words = 8, 0
		t.rip |= high << 32
	}
	if gate>>47&1 == 0 {
		return t, c.selectorFault(excNP, sel)
	}
	cs := uint16(gate >> 16)
	if null(cs) {
		return t, c.gp()
	}
	d, at, s := c.descriptor(cs, excGP)
	if s != next {
		return t, s
	}
	t.cs = segmentOf(cs, d)
	conforming := t.cs.Type&typeConform != 0
	if t.cs.System || t.cs.Type&typeCode == 0 || t.cs.DPL > c.cpl || !call && !conforming && t.cs.DPL != c.cpl {
		return t, c.selectorFault(excGP, cs)
	}
	if c.longMode() && (!t.cs.Long || t.cs.Big) {
		return t, c.selectorFault(excGP, cs)
	}
	if !t.cs.Present {
		return t, c.selectorFault(excNP, cs)
	}
	if s := c.checkCode(&t.cs, t.rip); s != next {
		return t, s
	}
	t.cpl = c.cpl
	if !conforming {
		t.cpl = t.cs.DPL
	}
	s = c.setAccessed(d, at)
	t.cs.Type |= typeAccessed
	return t, s
}

func (c *CPU) farJump(u *uop) stop {
	sel, off := c.farOperand(u)
	if !c.protected() {
		if off > uint64(c.seg[segCS].Limit) {
			return c.gp()
		}
		c.realCode(sel, off)
		return event
	}
	t, s := c.farTarget(sel, off, false)
	if s != next {
		return s
	}
	c.enterCode(t.cs, t.cpl, t.rip)
	return event
}

func (c *CPU) farCall(u *uop) stop {
	sel, off := c.farOperand(u)
	ret := [2]uint64{uint64(c.seg[segCS].Selector), c.nextRIP(u)}
	if !c.protected() {
		if off > uint64(c.seg[segCS].Limit) {
			return c.gp()
		}
		if s := c.pushPair(u.size, ret); s != next {
			return s
		}
		c.realCode(sel, off)
		return event
	}
	t, s := c.farTarget(sel, off, true)
	if s != next {
		return s
	}
	size := u.size
	if t.gate != 0 {
		size = t.gate
	}
	if t.cpl < c.cpl {
		return c.callInner(&t, ret)
	}
	if s := c.pushPair(size, ret); s != next {
		return s
	}
	c.enterCode(t.cs, t.cpl, t.rip)
	return event
}

// pushPair pushes two words on the current stack, the first of them first.
func (c *CPU) pushPair(size uint8, v [2]uint64) stop {
	if c.is64() {
		sp := c.r[regRSP] - 2*uint64(size)
		if s := c.probeIn(c.space, true, sp, 2*size); s != next {
			return s
		}
		for i, v := range [2]uint64{v[1], v[0]} {
			if s := c.writeIn(c.space, true, sp+uint64(i)*uint64(size), size, v&maskOf(size)); s > leave {
				return s
			}
		}
		c.r[regRSP] = sp
		return next
	}
	sp, s := c.pushFrame(&c.seg[segSS], c.cpl, c.r[regRSP], size, v[:])
	if s <= leave {
		c.setRSP(sp)
		s = next
	}
	return s
}

// callInner calls a more privileged segment through a gate, on its stack.
func (c *CPU) callInner(t *codeTarget, ret [2]uint64) stop {
	oldSS, oldSP := uint64(c.seg[segSS].Selector), c.r[regRSP]
	if c.longMode() {
		sp, s := c.tssStack(4 + 8*uint32(t.cpl))
		if s != next {
			return s
		}
		sp -= 32
		if !canonical(sp) || !canonical(sp+31) {
			return c.raiseCode(excSS, 0)
		}
		stack := c.spaceAt(t.cpl)
		if s := c.probeIn(stack, true, sp, 32); s != next {
			return s
		}
		for i, v := range [4]uint64{ret[1], ret[0], oldSP, oldSS} {
			if s := c.writeIn(stack, true, sp+uint64(i)*8, 8, v); s > leave {
				return s
			}
		}
		c.setSegment(segSS, nullStack(uint16(t.cpl), t.cpl))
		c.r[regRSP] = sp
		c.enterCode(t.cs, t.cpl, t.rip)
		return event
	}
	ss, sp, s := c.innerStack(t.cpl)
	if s != next {
		return s
	}
	var frame [4 + 31]uint64
	frame[0], frame[1] = oldSS, oldSP
	n := 2
	for i := int(t.words) - 1; i >= 0; i-- {
		v, s := c.peek(uint64(i)*uint64(t.gate), t.gate)
		if s != next {
			return s
		}
		frame[n] = v
		n++
	}
	frame[n], frame[n+1] = ret[0], ret[1]
	sp, s = c.pushFrame(&ss, t.cpl, sp, t.gate, frame[:n+2])
	if s > leave {
		return s
	}
	c.setSegment(segSS, ss)
	c.setRSP(sp)
	c.enterCode(t.cs, t.cpl, t.rip)
	return event
}

func lowerRetFar(l *lowerer) bool {
	u := l.terminate((*CPU).retFar)
	u.size, u.imm = l.in.OpSize, 0
	if l.in.Op == 0xca {
		u.imm = l.in.Imm & 0xffff
	}
	return true
}

func (c *CPU) retFar(u *uop) stop {
	size := uint64(u.size)
	rip, s := c.peek(0, u.size)
	if s != next {
		return s
	}
	sel, s := c.peek(size, u.size)
	if s != next {
		return s
	}
	sp := c.r[regRSP] + 2*size + u.imm
	if !c.protected() {
		if rip > uint64(c.seg[segCS].Limit) {
			return c.gp()
		}
		c.setRSP(sp)
		c.realCode(uint16(sel), rip)
		return event
	}
	r := farReturn{rip: rip, sel: uint16(sel), sp: sp}
	if r.outer = uint8(sel&3) > c.cpl; r.outer {
		if r.sp, s = c.peek(2*size+u.imm, u.size); s != next {
			return s
		}
		if sel, s = c.peek(3*size+u.imm, u.size); s != next {
			return s
		}
		r.ss = uint16(sel)
		r.pop = u.imm
	}
	if s := c.checkReturn(&r); s != next {
		return s
	}
	c.commitReturn(&r)
	return event
}

// farReturn is what RET and IRET take from the stack.
type farReturn struct {
	rip     uint64
	sel, ss uint16
	sp      uint64
	outer   bool   // SS and RSP are loaded
	pop     uint64 // parameters on the outer stack

	cs, stack vcpu.Segment
}

// checkReturn checks the segments that a far return loads.
func (c *CPU) checkReturn(r *farReturn) stop {
	if null(r.sel) {
		return c.gp()
	}
	d, at, s := c.descriptor(r.sel, excGP)
	if s != next {
		return s
	}
	r.cs = segmentOf(r.sel, d)
	cs, rpl := &r.cs, uint8(r.sel&3)
	switch {
	case cs.System || cs.Type&typeCode == 0 || rpl < c.cpl,
		cs.Type&typeConform != 0 && cs.DPL > rpl,
		cs.Type&typeConform == 0 && cs.DPL != rpl:
		return c.selectorFault(excGP, r.sel)
	case !cs.Present:
		return c.selectorFault(excNP, r.sel)
	}
	long := c.longMode() && cs.Long
	if s := c.checkCode(cs, r.rip); s != next {
		return s
	}
	if r.outer {
		if r.stack, s = c.stackSegment(r.ss, rpl, excGP, long); s != next {
			return s
		}
	}
	s = c.setAccessed(d, at)
	cs.Type |= typeAccessed
	return s
}

// commitReturn loads the segments of a far return that checkReturn has passed.
func (c *CPU) commitReturn(r *farReturn) {
	cpl := uint8(r.sel & 3)
	if cpl > c.cpl {
		// Data segments that the outer level may not use are taken away.
		for _, i := range [...]uint8{segES, segDS, segFS, segGS} {
			s := &c.seg[i]
			if !s.Unusable && s.DPL < cpl && s.Type&(typeCode|typeConform) != typeCode|typeConform {
				c.setSegment(i, vcpu.Segment{Unusable: true})
			}
		}
	}
	if r.outer {
		c.setSegment(segSS, r.stack)
	}
	if !c.longMode() || !r.cs.Long {
		r.rip = uint64(uint32(r.rip))
	}
	c.setSegment(segCS, r.cs)
	c.cpl = cpl
	c.rip = r.rip
	c.updateMode()
	c.setRSP(r.sp + r.pop)
}

func lowerIRET(l *lowerer) bool {
	u := l.terminate((*CPU).iret)
	u.size = l.in.OpSize
	return true
}

func (c *CPU) iret(u *uop) stop {
	if c.flags&flagNT != 0 && c.protected() {
		return c.gp()
	}
	size := uint64(u.size)
	var v [5]uint64
	n := 3
	if c.is64() {
		n = 5
	}
	for i := range n {
		var s stop
		if v[i], s = c.peek(uint64(i)*size, u.size); s != next {
			return s
		}
	}
	r := farReturn{rip: v[0], sel: uint16(v[1]), sp: c.r[regRSP] + 3*size}
	if !c.protected() {
		if r.rip > uint64(c.seg[segCS].Limit) {
			return c.gp()
		}
		c.setRSP(r.sp)
		c.loadFlags(v[2], u.size, flagArith|flagTF|flagDF|flagIF|flagIOPL|flagNT|flagRF|flagAC|flagID)
		c.nmiMasked = false
		c.realCode(r.sel, r.rip)
		return event
	}
	if v[2]&flagVM != 0 && u.size >= 4 && c.cpl == 0 && !c.longMode() {
		return c.gp()
	}
	if r.outer = c.is64() || uint8(r.sel&3) > c.cpl; r.outer {
		for i := 3; i < 5; i++ {
			var s stop
			if v[i], s = c.peek(uint64(i)*size, u.size); s != next {
				return s
			}
		}
		r.sp, r.ss = v[3], uint16(v[4])
	}
	if s := c.checkReturn(&r); s != next {
		return s
	}
	mask := uint64(flagArith | flagTF | flagDF | flagNT | flagRF | flagAC | flagID)
	if c.cpl == 0 {
		mask |= flagIOPL | flagVIF | flagVIP
	}
	if c.cpl <= c.iopl() {
		mask |= flagIF
	}
	c.loadFlags(v[2], u.size, mask)
	if c.dr7&0xff == 0 {
		c.flags &^= flagRF // nothing would look at it
	}
	c.resuming = false // RF is for the next instruction
	c.nmiMasked = false
	c.commitReturn(&r)
	return event
}

// loadFlags loads the flags in mask from an image of size bytes.
func (c *CPU) loadFlags(v uint64, size uint8, mask uint64) {
	mask &= maskOf(min(size, 4))
	c.setRFLAGS(c.rflags()&^mask | v&mask)
}

func (c *CPU) iopl() uint8 { return uint8(c.flags >> 12 & 3) }
