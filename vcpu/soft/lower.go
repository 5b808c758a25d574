package soft

import (
	"errors"

	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

// lowerer turns instructions into the micro-operations of a block.
type lowerer struct {
	in         decode.Inst
	m          mode
	ops        []uop
	n          uint8  // instructions so far
	off        uint16 // of the instruction from the block's first byte
	start      uint16 // of the block in its page
	ended      bool   // the instruction ends the block
	local      [2]bool
	first      int   // where the instruction's micro-operations begin
	lastLen    uint8 // of the last instruction that was lowered
	checkedSSE bool  // see lowerer.sse
}

// lowering makes the micro-operations of the instruction l.in, and reports false if
// there is no such instruction (#UD).
type lowering func(l *lowerer) bool

// The tables of instructions by opcode. Files that implement instructions fill them
// from functions listed in tables.go.
var (
	lowerPrimary [256]lowering
	lower0F      [256]lowering
	lower0F38    [256]lowering
	lower0F3A    [256]lowering
	lowerVEX     [4][256]lowering // by decode.Map
)

// build makes the block at lin, whose first byte is in page.
func (l *lowerer) build(c *CPU, page *codePage, lin uint64, m mode) (*block, stop) {
	l.m, l.ops, l.n, l.off, l.ended = m, l.ops[:0], 0, 0, false
	l.start = uint16(lin & (pageSize - 1))
	l.local = [2]bool{}
	l.checkedSSE = false
	limit := uint8(maxInsns)
	if m&modeSingle != 0 {
		limit = 1
	}
	b := &block{page: page, off: l.start, mode: m}
	for l.n < limit && !l.ended {
		at := int(l.start) + int(l.off)
		if at >= pageSize {
			break
		}
		_, err := decode.Decode(page.bytes[at:], m.size(), &l.in)
		if errors.Is(err, decode.ErrShort) {
			if l.n > 0 {
				break // it gets a block of its own
			}
			page2, s := c.fetchPage(c.wrap(lin&pageMask + pageSize))
			if s != next {
				return nil, s
			}
			if page2 == nil {
				return nil, c.raise(excUD)
			}
			var buf [2 * decode.MaxLen]byte
			n := copy(buf[:], page.bytes[at:])
			copy(buf[n:], page2.bytes[:decode.MaxLen])
			_, err = decode.Decode(buf[:n+decode.MaxLen], m.size(), &l.in)
			b.page2 = page2
			l.instruction(err)
			break
		}
		l.instruction(err)
	}
	if !l.ended {
		// The end belongs to the last instruction. l.in may be a later one, which
		// was cut off.
		n := uint16(l.lastLen)
		l.n, l.off, l.in.Len = l.n-1, l.off-n, l.lastLen
		l.end()
		l.n, l.off = l.n+1, l.off+n
	}
	l.dropDeadFlags()
	b.n, b.need = int64(l.n), int64(l.n)
	b.size = l.off
	b.local = l.local
	b.ops = append(make([]uop, 0, len(l.ops)), l.ops...)
	b.uops = len(b.ops) + 4 // what the block itself takes
	return b, next
}

// instruction lowers l.in, which err may say is none.
func (l *lowerer) instruction(err error) {
	l.first = len(l.ops)
	ok := false
	if err == nil {
		if f := l.lookup(); f != nil && l.lockable() {
			ok = f(l)
		}
	}
	if !ok {
		l.ops = l.ops[:l.first]
		u := l.call((*CPU).undefined)
		if errors.Is(err, decode.ErrLong) {
			u.fn = (*CPU).tooLong
		}
		l.ended = true
	}
	l.limits()
	l.lastLen = l.in.Len
	l.n++
	l.off += uint16(l.in.Len)
}

func (l *lowerer) lookup() lowering {
	in := &l.in
	if in.VEX {
		if l.m.size() == decode.Mode16 {
			return nil
		}
		return lowerVEX[in.Map][in.Op]
	}
	switch in.Map {
	case decode.MapPrimary:
		return lowerPrimary[in.Op]
	case decode.Map0F:
		return lower0F[in.Op]
	case decode.Map0F38:
		return lower0F38[in.Op]
	}
	return lower0F3A[in.Op]
}

func (c *CPU) undefined(*uop) stop { return c.raise(excUD) }
func (c *CPU) tooLong(*uop) stop   { return c.gp() }

// lockable reports whether a LOCK prefix, if there is one, is allowed (Intel SDM
// volume 2, "LOCK"). CPUs take turns, so that every instruction is atomic anyway.
func (l *lowerer) lockable() bool {
	in := &l.in
	if !in.Lock {
		return true
	}
	if !in.Mem {
		return false
	}
	switch reg := in.Reg & 7; in.Map {
	case decode.MapPrimary:
		switch op := in.Op; {
		case op < 0x38 && op&7 <= 1, op == 0x86, op == 0x87:
			return true
		case op == 0x80, op == 0x81, op == 0x82, op == 0x83:
			return reg != 7
		case op == 0xf6, op == 0xf7:
			return reg == 2 || reg == 3
		case op == 0xfe, op == 0xff:
			return reg <= 1
		}
	case decode.Map0F:
		switch in.Op {
		case 0xab, 0xb0, 0xb1, 0xb3, 0xbb, 0xc0, 0xc1:
			return true
		case 0xba:
			return reg >= 5
		case 0xc7:
			return reg == 1
		}
	}
	return false
}

// emit adds a micro-operation. What it returns is valid until the next emit.
func (l *lowerer) emit(k kind) *uop {
	l.ops = append(l.ops, uop{
		kind: k, off: l.off, n: l.n, len: l.in.Len,
		d: regZero + 15, s: regZero, b: regZero, x: regZero, seg: regZero, size: l.in.OpSize,
	})
	return &l.ops[len(l.ops)-1]
}

// call adds a micro-operation that is a function.
func (l *lowerer) call(f func(*CPU, *uop) stop) *uop {
	u := l.emit(kindCall)
	u.fn = f
	return u
}

// terminate is call for an instruction after which the block ends: f returns done, event
// or a link, and has set rip.
func (l *lowerer) terminate(f func(*CPU, *uop) stop) *uop {
	l.ended = true
	return l.call(f)
}

// end ends the block after the instruction.
func (l *lowerer) end() {
	l.emit(kindEnd)
	l.ended = true
	l.local[1] = l.within(int64(l.off) + int64(l.in.Len))
}

// within reports whether an offset from the block's first byte lies in its page.
func (l *lowerer) within(off int64) bool {
	at := int64(l.start) + off
	return at >= 0 && at < pageSize && l.m.size() == decode.Mode64
}

// long reports whether the code is 64-bit code.
func (l *lowerer) long() bool { return l.m.size() == decode.Mode64 }

// operand is a memory operand, ready for use by several micro-operations.
type operand struct {
	disp          uint64
	b, x, sh, seg uint8
	ss            bool
}

// at points a micro-operation at o.
func (u *uop) at(o operand) *uop {
	u.disp, u.b, u.x, u.sh, u.seg, u.ss = o.disp, o.b, o.x, o.sh, o.seg, o.ss
	return u
}

// mem returns the memory operand of l.in. Where it takes more than 64-bit
// arithmetic to find the address, a micro-operation of its own computes it: so mem comes
// before the emit of the micro-operation that uses it.
func (l *lowerer) mem() operand { return l.memOff(0) }

// memOff is mem for bytes further on.
func (l *lowerer) memOff(more int64) operand {
	in := &l.in
	o := operand{b: regZero, x: regZero, seg: regZero, sh: in.Scale, disp: uint64(in.Disp + more)}
	if in.Base != decode.NoReg {
		o.b = in.Base
	}
	if in.Index != decode.NoReg {
		o.x = in.Index
	}
	if in.RIPRel {
		o.b = regRIP
		o.disp += uint64(l.off) + uint64(in.Len)
	}
	seg := in.SegOr()
	o.ss = seg == segSS
	if l.long() && in.AddrSize == 8 {
		if seg >= segFS {
			o.seg = regSeg + seg
		}
		return o
	}
	u := l.call((*CPU).legacyAddress).at(o)
	u.disp -= uint64(more)
	u.d = regEA
	u.cc = seg
	u.imm = extent{more: uint16(more)}.pack()
	u.s = isAddress
	u.size = in.AddrSize
	return operand{b: regEA, x: regZero, seg: regZero, ss: o.ss}
}

// offset computes the address of l.in's memory operand without its segment into a
// register, cut to the address size.
func (l *lowerer) offset(d uint8) {
	in := &l.in
	o := operand{b: regZero, x: regZero, seg: regZero, sh: in.Scale, disp: uint64(in.Disp)}
	if in.Base != decode.NoReg {
		o.b = in.Base
	}
	if in.Index != decode.NoReg {
		o.x = in.Index
	}
	if in.RIPRel {
		o.b = regRIP
		o.disp += uint64(l.off) + uint64(in.Len)
	}
	switch in.AddrSize {
	case 8:
		l.emit(kindLea64).at(o).d = d
	case 4:
		l.emit(kindLea32).at(o).d = d
	default:
		u := l.call((*CPU).lea16).at(o)
		u.d = d
	}
}

func (c *CPU) lea16(u *uop) stop {
	c.r[u.d&31] = uint64(uint16(c.r[u.b&31] + c.r[u.x&31] + u.disp))
	return next
}

// legacyAddress computes a linear address of 32 bits, or of 64-bit code with a
// 32-bit offset, and checks what limits has told it to.
func (c *CPU) legacyAddress(u *uop) stop {
	ea := c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp
	switch u.size {
	case 4:
		ea = uint64(uint32(ea))
	case 2:
		ea = uint64(uint16(ea))
	}
	x := unpackExtent(u.imm)
	ea += uint64(x.more)
	if c.is64() {
		if u.cc >= segFS {
			ea += c.seg[u.cc].Base
		}
	} else {
		if x.size != 0 {
			if s := c.checkSegment(u.cc, ea, uint64(x.size), x.write); s != next {
				return s
			}
		}
		ea = uint64(uint32(ea + c.seg[u.cc].Base))
	}
	c.r[u.d&31] = ea
	return next
}

// load adds a load of the operand size, or of size bytes, to a register.
func (l *lowerer) load(d, size uint8, o operand) {
	k := kindLoad64
	switch size {
	case 1:
		k = kindLoad8
	case 2:
		k = kindLoad16
	case 4:
		k = kindLoad32
	}
	if o.x == regZero && o.seg == regZero && size >= 4 {
		k += kindLoad32B - kindLoad32
	}
	u := l.emit(k).at(o)
	u.d, u.size = d, size
}

// store adds a store of a register plus imm.
func (l *lowerer) store(s, size uint8, imm uint64, o operand) {
	k := kindStore64
	switch size {
	case 1:
		k = kindStore8
	case 2:
		k = kindStore16
	case 4:
		k = kindStore32
	}
	if o.x == regZero && o.seg == regZero && size >= 4 {
		k += kindStore32B - kindStore32
	}
	u := l.emit(k).at(o)
	u.s, u.size, u.imm = s, size, imm
}

// probe adds a check that size bytes can be written. A read-modify-write begins
// with one, so that its store cannot fault.
func (l *lowerer) probe(size uint8, o operand) {
	u := l.emit(kindProbe).at(o)
	u.size = size
}
