package soft

import "github.com/vmkit-go/vmkit/vcpu"

// Bits of a segment's type (Intel SDM volume 3, section 3.4.5.1).
const (
	typeAccessed = 1
	typeWritable = 2 // data
	typeReadable = 2 // code
	typeDown     = 4 // data: expands down
	typeConform  = 4 // code
	typeCode     = 8
)

// Types of system descriptors (section 3.5).
const (
	sysTSS16     = 1
	sysLDT       = 2
	sysTSS16Busy = 3
	sysCall16    = 4
	sysTaskGate  = 5
	sysInt16     = 6
	sysTrap16    = 7
	sysTSS       = 9 // 32-bit, or 64-bit in long mode
	sysTSSBusy   = 11
	sysCall      = 12
	sysInt       = 14
	sysTrap      = 15
)

const (
	descAccessed = 1 << 40
	descBusy     = 1 << 41
)

// segmentOf takes a descriptor apart.
func segmentOf(sel uint16, d uint64) vcpu.Segment {
	s := vcpu.Segment{
		Selector: sel,
		Base:     d>>16&0xffffff | d>>32&0xff000000,
		Limit:    uint32(d&0xffff | d>>32&0xf0000),
		Type:     uint8(d >> 40 & 15), System: d>>44&1 == 0, DPL: uint8(d >> 45 & 3), Present: d>>47&1 != 0,
		Available: d>>52&1 != 0, Long: d>>53&1 != 0, Big: d>>54&1 != 0, Granularity: d>>55&1 != 0,
	}
	if s.Granularity {
		s.Limit = s.Limit<<12 | 0xfff
	}
	return s
}

func null(sel uint16) bool { return sel&^3 == 0 }

// selectorFault raises a fault that names a selector.
func (c *CPU) selectorFault(vector uint8, sel uint16) stop {
	return c.raiseCode(vector, uint32(sel&^3))
}

// systemRead reads for the CPU itself: descriptor tables and task-state segments. While
// an event is delivered, no device is asked: what it would say reads as ones.
func (c *CPU) systemRead(lin uint64, size uint8) (uint64, stop) {
	if !c.longMode() {
		lin = uint64(uint32(lin))
	}
	v, s := c.readIn(spaceKernel, false, lin, size)
	if s == abort && c.delivering {
		c.access.asking = false
		return maskOf(size), next
	}
	return v, s
}

func (c *CPU) systemWrite(lin uint64, size uint8, v uint64) stop {
	if !c.longMode() {
		lin = uint64(uint32(lin))
	}
	return c.writeIn(spaceKernel, false, lin, size, v)
}

// descriptor reads the descriptor of a selector that is not null, and tells where it
// is. Outside the table it raises vector.
func (c *CPU) descriptor(sel uint16, vector uint8) (d, at uint64, s stop) {
	base, limit := c.gdtr.Base, uint32(c.gdtr.Limit)
	if sel&4 != 0 {
		base, limit = c.ldtr.Base, c.ldtr.Limit
		if c.ldtr.Unusable || !c.ldtr.Present {
			return 0, 0, c.selectorFault(vector, sel)
		}
	}
	if uint32(sel|7) > limit {
		return 0, 0, c.selectorFault(vector, sel)
	}
	at = base + uint64(sel&^7)
	d, s = c.systemRead(at, 8)
	return d, at, s
}

// descriptorHigh reads the upper half of a descriptor of 16 bytes, as system segments
// have in long mode.
func (c *CPU) descriptorHigh(sel uint16, at uint64, vector uint8) (uint64, stop) {
	limit := uint32(c.gdtr.Limit)
	if sel&4 != 0 {
		limit = c.ldtr.Limit
	}
	if uint32(sel|7)+8 > limit {
		return 0, c.selectorFault(vector, sel)
	}
	return c.systemRead(at+8, 8)
}

// setAccessed sets the accessed bit of the descriptor at at.
func (c *CPU) setAccessed(d, at uint64) stop {
	if d&descAccessed != 0 {
		return next
	}
	if s := c.systemWrite(at+5, 1, (d|descAccessed)>>40&0xff); s > leave {
		return s
	}
	return next
}

// loadSegment loads ES, SS, DS, FS or GS with a selector (Intel SDM volume 2, "MOV").
func (c *CPU) loadSegment(i uint8, sel uint16) stop {
	if !c.protected() {
		s := c.seg[i]
		s.Selector, s.Base, s.Unusable, s.Present = sel, uint64(sel)<<4, false, true
		c.setSegment(i, s)
		return next
	}
	if i == segSS {
		seg, s := c.stackSegment(sel, c.cpl, excGP, c.is64())
		if s == next {
			c.setSegment(segSS, seg)
		}
		return s
	}
	if null(sel) {
		c.setSegment(i, vcpu.Segment{Selector: sel, Unusable: true})
		return next
	}
	d, at, s := c.descriptor(sel, excGP)
	if s != next {
		return s
	}
	seg := segmentOf(sel, d)
	if seg.System || seg.Type&(typeCode|typeReadable) == typeCode {
		return c.selectorFault(excGP, sel)
	}
	if seg.Type&(typeCode|typeConform) != typeCode|typeConform && (uint8(sel&3) > seg.DPL || c.cpl > seg.DPL) {
		return c.selectorFault(excGP, sel)
	}
	if !seg.Present {
		return c.selectorFault(excNP, sel)
	}
	if s := c.setAccessed(d, at); s != next {
		return s
	}
	seg.Type |= typeAccessed
	c.setSegment(i, seg)
	return next
}

// stackSegment checks a selector that SS is to be loaded with at privilege level cpl. A
// null selector is valid in 64-bit code below level 3. Faults are #SS if the segment is
// not present, or else vector.
func (c *CPU) stackSegment(sel uint16, cpl, vector uint8, long bool) (vcpu.Segment, stop) {
	if null(sel) {
		if long && cpl < 3 && uint8(sel&3) == cpl {
			return nullStack(sel, cpl), next
		}
		return vcpu.Segment{}, c.raiseCode(vector, 0)
	}
	d, at, s := c.descriptor(sel, vector)
	if s != next {
		return vcpu.Segment{}, s
	}
	seg := segmentOf(sel, d)
	if uint8(sel&3) != cpl || seg.DPL != cpl || seg.System || seg.Type&(typeCode|typeWritable) != typeWritable {
		return seg, c.selectorFault(vector, sel)
	}
	if !seg.Present {
		return seg, c.selectorFault(excSS, sel)
	}
	s = c.setAccessed(d, at)
	seg.Type |= typeAccessed
	return seg, s
}

// nullStack is SS after a change to a lower privilege level in long mode.
func nullStack(sel uint16, cpl uint8) vcpu.Segment {
	return vcpu.Segment{Selector: sel, DPL: cpl, Unusable: true}
}

// moveSegment is MOV Sreg: register s to segment d.
func (c *CPU) moveSegment(u *uop) stop {
	if s := c.loadSegment(u.d, uint16(c.r[u.s&31])); s != next {
		return s
	}
	return c.segmentLoaded(u, u.d)
}

// segmentLoaded ends an instruction that has loaded segment register i.
func (c *CPU) segmentLoaded(u *uop, i uint8) stop {
	if i == segSS {
		c.shadow, c.shadowMOVSS = true, true
		c.updateMode()
		return c.leaveBlock(u)
	}
	if c.is64() {
		return next
	}
	was := c.mode
	if c.updateMode(); c.mode != was {
		return c.leaveBlock(u)
	}
	return next
}

// readSegment puts a selector into a register of u.size bytes.
func (c *CPU) readSegment(u *uop) stop {
	sel := uint64(c.seg[u.s].Selector)
	if u.size == 2 {
		sel |= c.r[u.d&31] &^ 0xffff
	}
	c.r[u.d&31] = sel
	return next
}

func lowerMovFromSegment(l *lowerer) bool {
	in := &l.in
	seg := in.Reg & 7
	if seg > segGS {
		return false
	}
	if in.Mem {
		o := l.mem()
		u := l.call((*CPU).readSegment)
		u.s, u.d, u.size = seg, regT0, 4
		l.store(regT0, 2, 0, o)
		return true
	}
	u := l.call((*CPU).readSegment)
	u.s, u.d, u.size = seg, in.RM, in.OpSize
	return true
}

func lowerMovToSegment(l *lowerer) bool {
	in := &l.in
	seg := in.Reg & 7
	if seg > segGS || seg == segCS {
		return false
	}
	from := in.RM
	if in.Mem {
		l.load(regT0, 2, l.mem())
		from = regT0
	}
	l.emitSegmentLoad(seg, from)
	return true
}

func (l *lowerer) emitSegmentLoad(seg, from uint8) {
	u := l.call((*CPU).moveSegment)
	u.d, u.s = seg, from
	if seg == segSS {
		l.ended = true
	}
}

// pushSize is the operand size of pushes: never 4 in 64-bit code.
func (l *lowerer) pushSize() uint8 {
	if l.long() && l.in.OpSize == 4 {
		return 8
	}
	return l.in.OpSize
}

func lowerPushSegment(l *lowerer) bool {
	seg := l.in.Op >> 3 & 7
	if l.in.Map == 0 && l.long() {
		return false
	}
	u := l.call((*CPU).pushSegment)
	u.s, u.size = seg, l.pushSize()
	return true
}

func (c *CPU) pushSegment(u *uop) stop { return c.push(u.size, uint64(c.seg[u.s].Selector)) }

func lowerPopSegment(l *lowerer) bool {
	seg := l.in.Op >> 3 & 7
	if l.in.Map == 0 && l.long() {
		return false
	}
	u := l.call((*CPU).popSegment)
	u.d, u.size = seg, l.pushSize()
	if seg == segSS {
		l.ended = true
	}
	return true
}

func (c *CPU) popSegment(u *uop) stop {
	v, s := c.peek(0, 2)
	if s != next {
		return s
	}
	mask := c.stackMask() // of the old stack
	if s := c.loadSegment(u.d, uint16(v)); s != next {
		return s
	}
	sp := c.r[regRSP] + uint64(u.size)
	if mask == 0xffff {
		sp = c.r[regRSP]&^mask | sp&mask
	}
	c.r[regRSP] = sp & max(mask, 0xffffffff)
	return c.segmentLoaded(u, u.d)
}

// lowerLoadFar is LES, LDS, LSS, LFS and LGS. As on AMD's processors the offset has no
// 64 bits.
func lowerLoadFar(l *lowerer) bool {
	in := &l.in
	if !in.Mem {
		return false
	}
	seg := in.Op & 7 // 0F B2, B4, B5
	if in.Map == 0 {
		if l.long() {
			return false
		}
		seg = segES
		if in.Op == 0xc5 {
			seg = segDS
		}
	}
	size := min(in.OpSize, 4)
	l.load(regT0, size, l.mem())
	l.load(regT1, 2, l.memOff(int64(size)))
	u := l.call((*CPU).loadFar)
	u.d, u.cc, u.size = in.Reg, seg, size
	if seg == segSS {
		l.ended = true
	}
	return true
}

func (c *CPU) loadFar(u *uop) stop {
	if s := c.loadSegment(u.cc, uint16(c.r[regT1])); s != next {
		return s
	}
	v := c.r[regT0]
	if u.size == 2 {
		v |= c.r[u.d&31] &^ 0xffff
	}
	c.r[u.d&31] = v
	return c.segmentLoaded(u, u.cc)
}
