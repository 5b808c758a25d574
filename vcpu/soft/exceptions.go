package soft

import "github.com/vmkit-go/vmkit/vcpu"

// trap is an interrupt or exception that is delivered through the IDT.
type trap struct {
	exception
	external bool // no instruction caused it: faults meanwhile set EXT
	soft     bool // INT n, INT3 or INTO: the gate's DPL is checked
	irq      bool // an interrupt, whose vector says nothing
	resume   bool // RF is set in the saved flags: a fault that is no debug exception
}

const (
	codeEXT = 1 << 0 // error codes: the event is external
	codeIDT = 1 << 1 // error codes: the index is of the IDT
)

// deliverFault delivers c.exc to the handler in the guest. It never fails: what goes
// wrong meanwhile is delivered in its place, or shuts the CPU down.
func (c *CPU) deliverFault() {
	c.hits = 0 // those of an instruction that has not happened
	c.deliver(trap{exception: c.exc, external: true, resume: c.exc.vector != excDB && c.exc.vector != excDF})
}

// takeInterrupt delivers an external interrupt.
func (c *CPU) takeInterrupt(vector uint8) {
	c.deliver(trap{exception: exception{vector: vector}, external: true, irq: true})
}

// takeNMI delivers a non-maskable interrupt and masks further ones until IRET.
func (c *CPU) takeNMI() {
	c.nmiMasked = true
	c.deliver(trap{exception: exception{vector: 2}, external: true, irq: true})
}

// interruptible reports whether an external interrupt can be taken before the next
// instruction.
func (c *CPU) interruptible() bool { return c.flags&flagIF != 0 && !c.shadow }

// deliver delivers t, or what its delivery leads to (Intel SDM volume 3, table 6-5).
func (c *CPU) deliver(t trap) {
	c.halted, c.shadow, c.shadowMOVSS = false, false, false
	c.delivering = true
	for c.enter(&t, c.rip) != next {
		class, second := classOf(t), classOf(trap{exception: c.exc})
		switch {
		case class == classDouble && second != classBenign:
			c.shutdown = true
			c.delivering = false
			return
		case class == classContributory && second == classContributory,
			class == classPage && second != classBenign:
			t = trap{exception: exception{vector: excDF, hasCode: true}, external: true}
		default:
			t = trap{exception: c.exc, external: true, resume: true}
		}
	}
	c.delivering = false
}

// The classes of exceptions (table 6-4).
type class uint8

const (
	classBenign class = iota
	classContributory
	classPage
	classDouble
)

func classOf(t trap) class {
	if t.soft || t.irq {
		return classBenign
	}
	switch t.vector {
	case excDE, excTS, excNP, excSS, excGP:
		return classContributory
	case excPF:
		return classPage
	case excDF:
		return classDouble
	}
	return classBenign
}

// interrupt is INT n and its like: it calls vector's handler, which returns to rip. A
// fault is the instruction's.
func (c *CPU) interrupt(vector uint8, checked bool, rip uint64) stop {
	t := trap{exception: exception{vector: vector}, soft: checked}
	s := c.enter(&t, rip)
	if s != next {
		return s
	}
	c.shadow, c.shadowMOVSS = false, false
	c.stepping = false // no trap follows: TF is clear in the handler
	return event
}

// enter goes to the handler of t, with rip saved. It changes nothing if it fails.
func (c *CPU) enter(t *trap, rip uint64) (s stop) {
	switch {
	case c.longMode():
		s = c.enterLong(t, rip)
	case c.protected():
		s = c.enterProtected(t, rip)
	default:
		s = c.enterReal(t, rip)
	}
	if s <= leave {
		return next
	}
	if t.external && s == fault && c.exc.hasCode && c.exc.vector != excPF && c.exc.vector != excDF {
		c.exc.code |= codeEXT
	}
	return s
}

// gateFault raises a fault that names the gate of an IDT entry.
func (c *CPU) gateFault(vector, gate uint8) stop {
	return c.raiseCode(vector, uint32(gate)<<3|codeIDT)
}

// savedFlags are the flags as an event saves them.
func (c *CPU) savedFlags(t *trap) uint64 {
	f := c.rflags()
	if t.resume {
		f |= flagRF
	}
	return f
}

// enterLong delivers through a 64-bit gate (Intel SDM volume 3, section 6.14).
func (c *CPU) enterLong(t *trap, rip uint64) stop {
	at := uint32(t.vector) * 16
	if at+15 > uint32(c.idtr.Limit) {
		return c.gateFault(excGP, t.vector)
	}
	lo, s := c.systemRead(c.idtr.Base+uint64(at), 8)
	if s != next {
		return s
	}
	hi, s := c.systemRead(c.idtr.Base+uint64(at)+8, 8)
	if s != next {
		return s
	}
	kind := lo >> 40 & 31
	if kind != sysInt && kind != sysTrap || t.soft && uint8(lo>>45&3) < c.cpl {
		return c.gateFault(excGP, t.vector)
	}
	if lo>>47&1 == 0 {
		return c.gateFault(excNP, t.vector)
	}
	target := lo&0xffff | lo>>32&0xffff0000 | hi<<32
	cs, cpl, s := c.handlerSegment(uint16(lo >> 16))
	if s != next {
		return s
	}
	if !cs.Long || cs.Big {
		return c.selectorFault(excGP, cs.Selector)
	}
	if !canonical(target) {
		return c.gp()
	}
	sp := c.r[regRSP]
	if ist := lo >> 32 & 7; ist != 0 {
		sp, s = c.tssStack(0x24 + 8*uint32(ist-1))
	} else if cpl < c.cpl {
		sp, s = c.tssStack(4 + 8*uint32(cpl))
	}
	if s != next {
		return s
	}
	frame := [6]uint64{rip, uint64(c.seg[segCS].Selector), c.savedFlags(t), c.r[regRSP], uint64(c.seg[segSS].Selector)}
	n := 5
	sp &^= 15
	if t.hasCode {
		n = 6
		copy(frame[1:], frame[:5])
		frame[0] = uint64(t.code)
	}
	sp -= uint64(n) * 8
	stack := c.spaceAt(cpl)
	if s := c.probeIn(stack, true, sp, uint8(n)*8); s != next {
		return s
	}
	if !canonical(sp) || !canonical(sp+uint64(n)*8-1) {
		return c.raiseCode(excSS, 0)
	}
	for i, v := range frame[:n] {
		if s := c.writeIn(stack, true, sp+uint64(i)*8, 8, v); s > leave {
			return s
		}
	}
	c.flags &^= flagTF | flagNT | flagRF | flagVM
	if kind == sysInt {
		c.flags &^= flagIF
	}
	if cpl != c.cpl {
		c.setSegment(segSS, nullStack(uint16(cpl), cpl))
	}
	c.r[regRSP] = sp
	c.enterCode(cs, cpl, target)
	return next
}

// enterCode goes to another code segment.
func (c *CPU) enterCode(cs vcpu.Segment, cpl uint8, rip uint64) {
	cs.Selector = cs.Selector&^3 | uint16(cpl)
	c.setSegment(segCS, cs)
	c.cpl = cpl
	c.rip = rip
	c.updateMode()
}

// handlerSegment checks the code segment of a gate of the IDT and returns it with the
// privilege level to run at.
func (c *CPU) handlerSegment(sel uint16) (cs vcpu.Segment, cpl uint8, s stop) {
	if null(sel) {
		return cs, 0, c.gp()
	}
	d, at, s := c.descriptor(sel, excGP)
	if s != next {
		return cs, 0, s
	}
	cs = segmentOf(sel, d)
	if cs.System || cs.Type&typeCode == 0 || cs.DPL > c.cpl {
		return cs, 0, c.selectorFault(excGP, sel)
	}
	if !cs.Present {
		return cs, 0, c.selectorFault(excNP, sel)
	}
	if s := c.setAccessed(d, at); s != next {
		return cs, 0, s
	}
	cs.Type |= typeAccessed
	cpl = cs.DPL
	if cs.Type&typeConform != 0 {
		cpl = c.cpl
	}
	return cs, cpl, next
}

// tssStack reads a stack pointer of the 64-bit task-state segment.
func (c *CPU) tssStack(off uint32) (uint64, stop) {
	if off+7 > c.tr.Limit || c.tr.Unusable {
		return 0, c.selectorFault(excTS, c.tr.Selector)
	}
	return c.systemRead(c.tr.Base+uint64(off), 8)
}

// enterProtected delivers through a gate in protected mode without long mode. Task gates
// raise #GP: there is no hardware task switching.
func (c *CPU) enterProtected(t *trap, rip uint64) stop {
	at := uint32(t.vector) * 8
	if at+7 > uint32(c.idtr.Limit) {
		return c.gateFault(excGP, t.vector)
	}
	gate, s := c.systemRead(c.idtr.Base+uint64(at), 8)
	if s != next {
		return s
	}
	size := uint8(4)
	kind := gate >> 40 & 31
	target := gate&0xffff | gate>>32&0xffff0000
	switch kind {
	case sysInt, sysTrap:
	case sysInt16, sysTrap16:
		size = 2
		target &= 0xffff
	default:
		return c.gateFault(excGP, t.vector)
	}
	if t.soft && uint8(gate>>45&3) < c.cpl {
		return c.gateFault(excGP, t.vector)
	}
	if gate>>47&1 == 0 {
		return c.gateFault(excNP, t.vector)
	}
	cs, cpl, s := c.handlerSegment(uint16(gate >> 16))
	if s != next {
		return s
	}
	if target > uint64(cs.Limit) {
		return c.gp()
	}
	var frame [6]uint64
	n := 0
	add := func(v uint64) { frame[n] = v; n++ }
	ss, sp := c.seg[segSS], c.r[regRSP]
	if cpl < c.cpl {
		if ss, sp, s = c.innerStack(cpl); s != next {
			return s
		}
		add(uint64(c.seg[segSS].Selector))
		add(c.r[regRSP])
	}
	add(c.savedFlags(t))
	add(uint64(c.seg[segCS].Selector))
	add(rip)
	if t.hasCode {
		add(uint64(t.code))
	}
	sp, s = c.pushFrame(&ss, cpl, sp, size, frame[:n])
	if s > leave {
		return s
	}
	c.flags &^= flagTF | flagNT | flagRF | flagVM
	if kind == sysInt || kind == sysInt16 {
		c.flags &^= flagIF
	}
	c.setSegment(segSS, ss)
	c.setRSP(sp)
	c.enterCode(cs, cpl, target)
	return next
}

// innerStack reads the stack of a lower privilege level from a task-state segment of
// 32 or 16 bits.
func (c *CPU) innerStack(cpl uint8) (ss vcpu.Segment, sp uint64, s stop) {
	var sel uint64
	wide := c.tr.Type&8 != 0
	off, size := uint32(2+4*uint32(cpl)), uint8(2)
	if wide {
		off, size = uint32(4+8*uint32(cpl)), 4
	}
	if off+2*uint32(size)-1 > c.tr.Limit || c.tr.Unusable {
		return ss, 0, c.selectorFault(excTS, c.tr.Selector)
	}
	if sp, s = c.systemRead(c.tr.Base+uint64(off), size); s != next {
		return ss, 0, s
	}
	if sel, s = c.systemRead(c.tr.Base+uint64(off)+uint64(size), 2); s != next {
		return ss, 0, s
	}
	ss, s = c.stackSegment(uint16(sel), cpl, excTS, false)
	return ss, sp, s
}

// pushFrame pushes words of size bytes on a stack that need not be the current one, the
// first of them first, and returns the stack pointer. It makes sure of all before it
// changes any.
func (c *CPU) pushFrame(ss *vcpu.Segment, cpl uint8, sp uint64, size uint8, frame []uint64) (uint64, stop) {
	mask := uint64(0xffff)
	if ss.Big {
		mask = 0xffffffff
	}
	sp0 := sp
	stack := c.spaceAt(cpl)
	for range frame {
		sp = (sp - uint64(size)) & mask
		if !within(ss, sp, uint64(size)) {
			return 0, c.raiseCode(excSS, uint32(ss.Selector&^3)*uint32(bit(cpl != c.cpl)))
		}
		if s := c.probeIn(stack, true, uint64(uint32(ss.Base+sp)), size); s != next {
			return 0, s
		}
	}
	sp = sp0
	for _, v := range frame {
		sp = (sp - uint64(size)) & mask
		if s := c.writeIn(stack, true, uint64(uint32(ss.Base+sp)), size, v&maskOf(size)); s > leave {
			return 0, s
		}
	}
	return sp, next
}

// enterReal delivers through the interrupt vector table of real mode.
func (c *CPU) enterReal(t *trap, rip uint64) stop {
	at := uint32(t.vector) * 4
	if at+3 > uint32(c.idtr.Limit) {
		return c.gp()
	}
	v, s := c.systemRead(c.idtr.Base+uint64(at), 4)
	if s != next {
		return s
	}
	frame := [3]uint64{c.rflags(), uint64(c.seg[segCS].Selector), rip}
	ss := c.seg[segSS]
	sp, s := c.pushFrame(&ss, 0, c.r[regRSP], 2, frame[:])
	if s > leave {
		return s
	}
	c.setRSP(sp)
	c.flags &^= flagTF | flagIF | flagRF | flagAC
	cs := c.seg[segCS]
	cs.Selector, cs.Base = uint16(v>>16), v>>16<<4
	c.setSegment(segCS, cs)
	c.rip = v & 0xffff
	c.updateMode()
	return next
}

// The instructions that call handlers.

func lowerInt(l *lowerer) bool {
	u := l.terminate((*CPU).intN)
	u.cc, u.d = uint8(l.in.Imm), 1
	switch l.in.Op {
	case 0xcc:
		u.cc = excBP
	case 0xf1:
		u.fn = (*CPU).icebp
	case 0xce:
		if l.long() {
			return false
		}
		u.fn = (*CPU).into
	}
	return true
}

func (c *CPU) intN(u *uop) stop { return c.interrupt(u.cc, true, c.nextRIP(u)) }

func (c *CPU) into(u *uop) stop {
	if c.arith()&flagOF == 0 {
		c.rip = c.nextRIP(u)
		return done
	}
	return c.interrupt(excOF, true, c.nextRIP(u))
}

// icebp is INT1: a debug exception without any bit in DR6.
func (c *CPU) icebp(u *uop) stop { return c.interrupt(excDB, false, c.nextRIP(u)) }

// lowerBound is BOUND, which is EVEX in 64-bit code.
func lowerBound(l *lowerer) bool {
	in := &l.in
	if !in.Mem || l.long() {
		return false
	}
	l.load(regT0, in.OpSize, l.mem())
	l.load(regT1, in.OpSize, l.memOff(int64(in.OpSize)))
	u := l.call((*CPU).bound)
	u.s = in.Reg
	return true
}

func (c *CPU) bound(u *uop) stop {
	v := int64(signExtend(c.r[u.s&31], u.size))
	if v < int64(signExtend(c.r[regT0], u.size)) || v > int64(signExtend(c.r[regT1], u.size)) {
		return c.raise(excBR)
	}
	return next
}
