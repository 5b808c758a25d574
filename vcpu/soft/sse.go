package soft

import "github.com/vmkit-go/vmkit/vcpu/soft/decode"

// The vector instructions, SSE to SSE4.2 and MMX (Intel SDM volume 1, chapters 9 to
// 12). Which one an opcode is depends on its mandatory prefix. An operation takes its
// operands from vector registers; a micro-operation before it has brought an operand
// in memory, or MMX registers, into a temporary one.

// prefix is a mandatory prefix. F2 and F3 count before 66.
type prefix uint8

const (
	ppNone prefix = iota
	pp66
	ppF3
	ppF2
)

func (l *lowerer) prefix() prefix {
	switch {
	case l.in.Rep == 0xf3:
		return ppF3
	case l.in.Rep == 0xf2:
		return ppF2
	case l.in.Op66:
		return pp66
	}
	return ppNone
}

// vector is one instruction: how it is lowered, and the operation.
type vector struct {
	pp    prefix
	op    byte
	lower func(l *lowerer, v *vector) bool
	fn    func(*CPU, *uop) stop
	// size is that of a source operand in memory: 1, 2, 4 or 8 bytes, or 16
	// that need not be aligned. 0 stands for 16 that must be.
	size uint8
	mmx  mmxForm // of MMX instructions
}

// vectors holds the instructions of the maps 0F, 0F 38 and 0F 3A.
var vectors [3][4][256]vector

// registerVectors enters instructions of a map.
func registerVectors(m decode.Map, list []vector) {
	t := [...]*[256]lowering{decode.Map0F: &lower0F, decode.Map0F38: &lower0F38, decode.Map0F3A: &lower0F3A}[m]
	seen := [256]bool{}
	for _, v := range list {
		vectors[m-decode.Map0F][v.pp][v.op] = v
		seen[v.op] = true
	}
	for op, ok := range seen {
		if ok {
			also(&t[op], lowerVector)
		}
	}
}

// also adds a lowering for an opcode that may have another one, which is tried first.
func also(at *lowering, f lowering) {
	first := *at
	if first == nil {
		*at = f
		return
	}
	*at = func(l *lowerer) bool {
		n := len(l.ops)
		if first(l) {
			return true
		}
		l.ops = l.ops[:n]
		return f(l)
	}
}

func lowerVector(l *lowerer) bool {
	v := &vectors[l.in.Map-decode.Map0F][l.prefix()][l.in.Op]
	return v.lower != nil && v.lower(l, v)
}

// sse makes sure that SSE is there. Nothing within a block changes CR0 or CR4, so
// that the first SSE instruction of a block is the only one to ask.
func (l *lowerer) sse() {
	if !l.checkedSSE {
		l.checkedSSE = true
		l.call((*CPU).checkSSE)
	}
}

func (c *CPU) checkSSE(*uop) stop {
	switch {
	case c.cr0&(cr0EM|cr0TS)|c.cr4&cr4OSFXSR == cr4OSFXSR:
		return next
	case c.cr0&cr0EM != 0 || c.cr4&cr4OSFXSR == 0:
		return c.raise(excUD)
	}
	return c.raise(excNM)
}

// vectorSource makes the operand in ModRM.rm a vector register.
func (l *lowerer) vectorSource(size uint8) uint8 {
	if !l.in.Mem {
		return l.in.RM
	}
	l.loadVector(xmmT0, size)
	return xmmT0
}

// loadVector loads the memory operand of vector.size.
func (l *lowerer) loadVector(d, size uint8) {
	o := l.mem()
	f := (*CPU).loadXSmall
	switch size {
	case 0:
		f = (*CPU).loadXA
	case 4:
		f = (*CPU).loadX32
	case 8:
		f = (*CPU).loadX64
	case 16:
		f = (*CPU).loadX
	}
	u := l.call(f).at(o)
	u.d, u.size = d, size
}

// lowerXX is for operations on xmm and xmm or memory.
func lowerXX(l *lowerer, v *vector) bool {
	l.sse()
	s := l.vectorSource(v.size)
	u := l.call(v.fn)
	u.d, u.s, u.imm = l.in.Reg, s, l.in.Imm
	return true
}

// lowerRX is for operations that have no form with memory: on a general register and
// xmm, mostly.
func lowerRX(l *lowerer, v *vector) bool { return !l.in.Mem && lowerXX(l, v) }

func (c *CPU) loadXSlow(u *uop, lin uint64) stop {
	var v xmm
	s := c.readX(u, lin, &v)
	if s == next {
		*c.x(u.d) = v
	}
	return s
}

// readX reads 16 bytes.
func (c *CPU) readX(u *uop, lin uint64, v *xmm) stop {
	lo, s := c.read(u, lin, 8)
	if s != next {
		return s
	}
	hi, s := c.read(u, c.wrap(lin+8), 8)
	v[0], v[1] = lo, hi
	return s
}

func (c *CPU) storeXSlow(u *uop, lin uint64) stop {
	if s := c.probe(u, lin, 16); s != next {
		return s
	}
	v := *c.x(u.s)
	s := c.write(u, lin, 8, v[0])
	if s > leave {
		return s
	}
	return max(s, c.write(u, c.wrap(lin+8), 8, v[1]))
}

// loadXPart loads size bytes and clears the rest.
func (c *CPU) loadXPart(u *uop, lin uint64, size uint8) stop {
	v, s := c.read(u, lin, size)
	if s == next {
		*c.x(u.d) = xmm{v}
	}
	return s
}

func (c *CPU) loadXSmall(u *uop) stop { return c.loadXPart(u, c.addr(u), u.size) }

// storeXSmall stores the low u.size bytes.
func (c *CPU) storeXSmall(u *uop) stop { return c.write(u, c.addr(u), u.size, c.x(u.s)[0]) }

// storeXHigh stores the high half.
func (c *CPU) storeXHigh(u *uop) stop { return c.write(u, c.addr(u), 8, c.x(u.s)[1]) }

// misaligned16 is the fault of an operand that must be aligned to 16 bytes and is not.
func (c *CPU) misaligned16(u *uop, lin uint64) stop {
	if !c.canonicalPair(lin, 16) {
		return c.notCanonical(u.ss)
	}
	return c.gp()
}
