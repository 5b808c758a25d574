package x86diff

import (
	"encoding/binary"
	"math/rand/v2"
)

// maxCode is the most bytes that a case has.
const maxCode = 160

// Generator makes cases. The same seed and forms give the same cases.
type Generator struct {
	r     *rand.Rand
	forms []int // what to choose from
	seq   []int // what sequences are made of
}

// NewGenerator returns a generator of cases made of the forms in groups.
func NewGenerator(seed uint64, groups Groups) *Generator {
	g := &Generator{r: rand.New(rand.NewPCG(seed, 3))}
	for i := range Forms {
		f := &Forms[i]
		if f.Group&groups == 0 {
			continue
		}
		g.forms = append(g.forms, i)
		if !f.alone && !f.fault && !f.approx {
			g.seq = append(g.seq, i)
		}
	}
	return g
}

// Forms returns the forms that the generator chooses from.
func (g *Generator) Forms() []int { return g.forms }

// Single returns a case of one instruction of a form.
func (g *Generator) Single(form int) Case {
	for {
		c := Case{Seed: g.r.Uint64(), Place: g.place(), Forms: []int{form}}
		if Forms[form].fault {
			c.Place &^= PlaceEdge // how much of an invalid opcode is read differs
		}
		in := c.Input()
		b := builder{r: g.r, in: &in, f: &Forms[form]}
		b.g = array(&in.Regs)
		code, ok := b.instruction(&c)
		if ok {
			c.Code, c.Lens = code, []int{len(code)}
			return c
		}
	}
}

// Next returns a case of one instruction of any form.
func (g *Generator) Next() Case { return g.Single(g.forms[g.r.IntN(len(g.forms))]) }

func (g *Generator) place() Place {
	switch g.r.IntN(16) {
	case 0:
		return PlaceBorder
	case 1:
		return PlaceEdge
	}
	return PlaceMiddle
}

// Sequence returns a case of several instructions. No instruction in it reads
// a flag that one before it leaves undefined, and jumps lead forward.
func (g *Generator) Sequence() Case {
	c := Case{Seed: g.r.Uint64(), Place: g.place() &^ PlaceEdge}
	in := c.Input()
	b := builder{r: g.r, in: &in, sequence: true}
	b.g = array(&in.Regs)
	var flags, cc uint16
	type jump struct{ at, size, from int }
	var jumps []jump
	var starts []int
	n := 2 + g.r.IntN(7)
	for try := 0; len(c.Forms) < n && try < 100; try++ {
		i := g.seq[g.r.IntN(len(g.seq))]
		f := &Forms[i]
		if f.readFlags && flags != 0 || f.readCC && cc != 0 {
			continue
		}
		b.f, b.rel = f, 0
		b.at = len(c.Code)
		code, ok := b.instruction(&c)
		if !ok || len(c.Code)+len(code) > maxCode {
			continue
		}
		if b.rel != 0 {
			jumps = append(jumps, jump{len(c.Code) + len(code) - b.rel, b.rel, len(starts) + 1})
		}
		starts = append(starts, len(c.Code))
		c.Code = append(c.Code, code...)
		c.Forms = append(c.Forms, i)
		c.Lens = append(c.Lens, len(code))
		if f.shift {
			flags |= allFlags
		}
		flags |= f.undef
		cc |= f.undefCC
		if f.invalidCC {
			cc |= 0x4700
		}
		if f.Group == X87 {
			cc |= 1 // the instruction pointers
		}
	}
	starts = append(starts, len(c.Code))
	for _, j := range jumps {
		to := starts[j.from+g.r.IntN(len(starts)-j.from)]
		d := to - (j.at + j.size)
		if j.size == 1 {
			if d > 127 {
				d = 0
			}
			c.Code[j.at] = byte(d)
		} else {
			binary.LittleEndian.PutUint32(c.Code[j.at:], uint32(d))
		}
	}
	return c
}

// builder makes one instruction.
type builder struct {
	r        *rand.Rand
	in       *Input
	g        [16]uint64
	f        *Form
	at       int // where in the case's code
	sequence bool

	rel int // size of the relative target at the end, or 0

	opsize byte // 0x66 or 0
	addr32 bool
	seg    byte
	rexW   bool
	rex    byte // without W
	modrm  []byte
	ripAt  int // of the displacement in modrm, if it is relative to RIP
}

func (b *builder) one(n int) bool { return b.r.IntN(n) == 0 }

// instruction returns an instruction of the form, or false if the dice fell on
// one that is undefined as a whole.
func (b *builder) instruction(c *Case) ([]byte, bool) {
	f, r := b.f, b.r
	b.opsize, b.addr32, b.seg, b.rexW, b.rex, b.modrm, b.ripAt, b.rel = 0, false, 0, false, 0, nil, -1, 0
	branch := false
	for _, i := range f.imm {
		branch = branch || i[0] == 'r'
	}
	branch = branch || f.op[0] == 0xc2 || f.op[0] == 0xc3 || f.op[0] == 0xff && (f.digit == 2 || f.digit == 4)

	switch f.size {
	case 'v':
		switch r.IntN(3) {
		case 0:
			b.opsize = 0x66
		case 1:
			b.rexW = true
		}
		if b.rexW && b.one(16) {
			b.opsize = 0x66 // has no effect
		}
	case 'q':
		// With a branch, vendors disagree on what 66 does.
		if !branch && b.one(4) {
			b.opsize = 0x66
		}
		b.rexW = b.one(8)
	case 'w':
		b.rexW = b.one(2)
	case 'b':
		b.rexW = b.one(16)
		if b.one(16) && f.prefix == 0 && f.op[0] != 0x0f {
			b.opsize = 0x66
		}
	}
	if !f.fault && b.one(12) {
		b.addr32 = true
	}
	if b.one(8) {
		b.seg = []byte{0x64, 0x65, 0x64, 0x65, 0x2e, 0x36, 0x3e, 0x26}[r.IntN(8)]
	}
	hasReg := f.size != 0 || f.modrm
	if hasReg && b.one(2) {
		b.rex = 0x40 | byte(r.IntN(8))
	}
	if f.plus == 'i' || f.Group == X87 && b.one(2) {
		b.rex &= 0x40
	}
	if b.rexW {
		b.rex |= 0x48
	}

	mem := false
	if f.modrm {
		mem = f.mem && (!f.reg || b.one(2))
		if f.fault && f.reg && f.mem {
			mem = b.one(4)
		}
		b.operand(mem)
	} else if f.Group == X87 && f.mem && !f.reg {
		mem = true
	}

	var pre []byte
	if b.opsize != 0 {
		pre = append(pre, b.opsize)
	}
	if b.addr32 {
		pre = append(pre, 0x67)
	}
	if b.seg != 0 {
		pre = append(pre, b.seg)
	}
	lockable := f.lock && mem
	if lockable && b.one(4) || !lockable && !f.vex && !b.sequence && b.one(64) && f.op[0] != 0xf0 {
		pre = append(pre, 0xf0) // elsewhere it faults
	}
	if f.rep && b.one(2) {
		pre = append(pre, 0xf2+byte(r.IntN(2)))
	}
	r.Shuffle(len(pre), func(i, j int) { pre[i], pre[j] = pre[j], pre[i] })
	if f.prefix != 0 && !f.vex {
		at := r.IntN(len(pre) + 1)
		pre = append(pre[:at], append([]byte{f.prefix}, pre[at:]...)...)
	}
	if b.one(256) { // long, and at times too long
		for range r.IntN(8) {
			pre = append(pre, 0x3e)
		}
	}

	op := append([]byte(nil), f.op...)
	if f.plus != 0 {
		op[len(op)-1] += byte(r.IntN(8))
	}
	code := pre
	if f.vex {
		code = append(code, b.vex(op)...)
	} else {
		if b.rex != 0 {
			code = append(code, b.rex)
		}
		code = append(code, op...)
	}
	modrmAt := len(code)
	code = append(code, b.modrm...)
	code = b.immediates(code, c)
	if b.ripAt >= 0 {
		end := c.Start() + uint64(b.at) + uint64(len(code))
		if c.Place == PlaceEdge && !b.sequence {
			end = codeLast
		}
		p := code[modrmAt+b.ripAt:]
		binary.LittleEndian.PutUint32(p, binary.LittleEndian.Uint32(p)-uint32(end))
	}
	return code, !b.undefined(code)
}

// undefined reports whether an instruction's result is undefined, not only
// flags.
func (b *builder) undefined(code []byte) bool {
	f := b.f
	if !f.shift || f.op[0] != 0x0f || b.opsize == 0 || b.rexW {
		return false
	}
	// SHLD and SHRD of 16 bits by more than 16.
	if len(f.imm) > 0 {
		return code[len(code)-1]&31 > 16
	}
	return b.sequence || b.in.Regs.RCX&31 > 16
}

// vex returns the prefix and opcode in VEX form.
func (b *builder) vex(op []byte) []byte {
	pp := map[byte]byte{0: 0, 0x66: 1, 0xf3: 2, 0xf2: 3}[b.f.prefix]
	w := byte(0)
	if b.rexW {
		w = 0x80
	}
	m := byte(2) // 0F 38
	if op[1] == 0x3a {
		m = 3
	}
	vvvv := byte(b.r.IntN(16))
	if op[1] == 0x3a {
		vvvv = 15 // RORX has no second source: others fault
	}
	return []byte{0xc4, ^(b.rex<<5)&^0x1f | m, w | vvvv<<3 | pp, op[2]}
}

func (b *builder) immediates(code []byte, c *Case) []byte {
	le := binary.LittleEndian
	r := b.r
	for _, i := range b.f.imm {
		v := integer(r)
		switch i {
		case "ib":
			if b.one(2) {
				v = uint64(r.IntN(256))
			}
			code = append(code, byte(v))
		case "iw":
			if b.f.op[0] == 0xc8 || b.f.op[0] == 0xc2 {
				v = uint64(r.IntN(128)) // ENTER, RET: bytes on the stack
			}
			code = le.AppendUint16(code, uint16(v))
		case "iz":
			if b.opsize != 0 && !b.rexW {
				code = le.AppendUint16(code, uint16(v))
			} else {
				code = le.AppendUint32(code, uint32(v))
			}
		case "io":
			switch {
			case b.rexW:
				code = le.AppendUint64(code, v)
			case b.opsize != 0:
				code = le.AppendUint16(code, uint16(v))
			default:
				code = le.AppendUint32(code, uint32(v))
			}
		case "moffs":
			p := pointer(r)
			if b.addr32 {
				code = le.AppendUint32(code, uint32(p))
			} else {
				code = le.AppendUint64(code, p)
			}
		case "rel8":
			b.rel = 1
			n := len(code) + 1
			d := r.IntN(256) - 128
			for d < 0 && d >= -n {
				d = r.IntN(256) - 128
			}
			code = append(code, byte(d))
		case "rel32":
			b.rel = 4
			n := len(code) + 4
			d := r.IntN(1024) - 512
			for d < 0 && d >= -n {
				d = r.IntN(1024) - 512
			}
			if b.one(8) {
				d = int(int32(r.Uint32())) | 0x1000
			}
			code = le.AppendUint32(code, uint32(d))
		}
	}
	return code
}

// operand makes ModRM, SIB and displacement.
func (b *builder) operand(mem bool) {
	r := b.r
	reg := byte(r.IntN(8))
	if b.f.digit >= 0 {
		reg = byte(b.f.digit)
	}
	if !mem {
		b.modrm = []byte{0xc0 | reg<<3 | byte(r.IntN(8))}
		return
	}
	le := binary.LittleEndian
	b.ripAt = -1
	if b.one(12) { // relative to RIP
		b.modrm = []byte{reg<<3 | 5, 0, 0, 0, 0}
		// The caller subtracts the address of the next instruction.
		le.PutUint32(b.modrm[1:], uint32(b.aim(pointer(r)&^aliasBase)))
		b.ripAt = 1
		return
	}
	if b.one(16) { // no register
		b.modrm = []byte{reg<<3 | 4, 0x25, 0, 0, 0, 0}
		b.rex &^= 2 // X
		le.PutUint32(b.modrm[2:], uint32(b.aim(pointer(r)&^aliasBase)))
		return
	}
	base := b.base()
	ea := b.g[base]
	hasREX := b.f.size != 0 || b.f.modrm
	if base >= 8 && !hasREX {
		base, ea = 3, b.g[3]
	}
	var sib []byte
	if base&7 == 4 || b.one(4) {
		index, scale := 4, 0
		if b.one(2) || base&7 != 4 {
			index, scale = b.index(), r.IntN(4)
			ea += b.g[index] << scale
		}
		sib = []byte{byte(scale<<6 | index&7<<3 | base&7)}
		b.setREX(2, index >= 8)
	}
	b.setREX(1, base >= 8)
	rm := byte(base & 7)
	if sib != nil {
		rm = 4
	}
	disp := 0
	mod := byte(r.IntN(3))
	if base&7 == 5 && mod == 0 {
		mod = 1
	}
	switch mod {
	case 1:
		disp = r.IntN(256) - 128
	case 2:
		disp = r.IntN(1024) - 512
		if b.one(16) {
			disp = int(int32(r.Uint32()))
		}
	}
	if b.f.align && mod != 0 && !b.one(8) {
		off := int((ea + uint64(int64(disp))) & 15)
		disp -= off
		if mod == 1 && disp < -128 {
			disp += 16
		}
	}
	b.modrm = append([]byte{mod<<6 | reg<<3 | rm}, sib...)
	switch mod {
	case 1:
		b.modrm = append(b.modrm, byte(disp))
	case 2:
		b.modrm = le.AppendUint32(b.modrm, uint32(disp))
	}
}

// aim aligns most addresses of instructions that want it.
func (b *builder) aim(p uint64) uint64 {
	if b.f.align && !b.one(8) {
		p &^= 15
	}
	return p
}

func (b *builder) setREX(bit byte, on bool) {
	if on {
		b.rex |= 0x40 | bit
	} else {
		b.rex &^= bit
	}
}

// base picks a register that is most likely a pointer.
func (b *builder) base() int {
	n := b.r.IntN(16)
	for range 16 {
		if p := b.g[n] &^ aliasBase; p >= dataBase-256 && p < dataLast+256 || b.one(16) {
			return n
		}
		n = b.r.IntN(16)
	}
	return n
}

// index picks a register that is most likely small; 4 is none.
func (b *builder) index() int {
	n := b.r.IntN(16)
	for range 16 {
		if v := int64(b.g[n]); n != 4 && (v > -4096 && v < 4096 || b.one(16)) {
			return n
		}
		n = b.r.IntN(16)
	}
	return 4
}
