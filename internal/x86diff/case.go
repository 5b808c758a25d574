package x86diff

import (
	"encoding/binary"
	"math"
	"math/rand/v2"

	"github.com/vmkit-go/vmkit/vcpu"
)

// Case is one experiment: code, and a seed that gives the state it starts in.
// What a seed gives never changes, so that saved cases stay what they are.
type Case struct {
	Seed  uint64
	Place Place
	Code  []byte
	// Forms are the forms that Code is made of, in order; empty if unknown.
	// Compare takes what is undefined from them.
	Forms []int
	// Lens are the lengths of their instructions.
	Lens []int
}

// Place says where the code lies.
type Place uint8

// The places.
const (
	PlaceMiddle Place = iota // inside a page
	PlaceBorder              // across two pages: all but the first byte in the second
	PlaceEdge                // the last byte is the last before an unmapped page
)

// Start returns the address of the first instruction.
func (c *Case) Start() uint64 {
	switch c.Place {
	case PlaceBorder:
		return codeBase + 4096 - 1
	case PlaceEdge:
		return codeLast - uint64(len(c.Code))
	}
	return codeBase + 0x800
}

// End returns the address after the last instruction.
func (c *Case) End() uint64 { return c.Start() + uint64(len(c.Code)) }

// Input is the state that a case starts in.
type Input struct {
	Regs           vcpu.Registers
	FSBase, GSBase uint64
	FX             [512]byte // as FXSAVE64 writes it
}

var ints = [...]uint64{
	0, 1, 2, 3, 0x7f, 0x80, 0x81, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000,
	math.MaxInt64, 1 << 63, math.MaxUint64, math.MaxUint64 - 1, 0xffffffff80000000, 0xffffffff7fffffff, 0xffffffffffff8000,
	0x5555555555555555, 0xaaaaaaaaaaaaaaaa, 0x0123456789abcdef, 0x8080808080808080, 0x7f7f7f7f7f7f7f7f, 0x0f0f0f0f0f0f0f0f,
}

// integer returns a value biased to where carries, signs and borders are.
func integer(r *rand.Rand) uint64 {
	switch r.IntN(8) {
	case 0, 1:
		return ints[r.IntN(len(ints))]
	case 2:
		return uint64(r.IntN(33) - 16)
	case 3:
		return 1<<r.IntN(64) + uint64(r.IntN(3)-1)
	case 4:
		return r.Uint64() >> r.IntN(64)
	case 5:
		return uint64(int64(r.Uint64()) >> r.IntN(64))
	}
	return r.Uint64()
}

// pointer returns an address near the data, often close to a page border.
func pointer(r *rand.Rand) uint64 {
	p := uint64(dataBase)
	switch r.IntN(8) {
	case 0: // about any border
		p += uint64(r.IntN(9))*4096 + uint64(r.IntN(64)) - 32
	case 1: // the border of two good pages
		p += 4096 + uint64(r.IntN(64)) - 32
	case 2:
		p += 4*4096 + uint64(r.IntN(4096))
		if r.IntN(4) == 0 {
			p &^= 511 // an FXSAVE area
		}
	default:
		p += uint64(r.IntN(2 * 4096))
	}
	if r.IntN(2) == 0 {
		p &^= 15
	}
	if r.IntN(4) == 0 {
		p += aliasBase
	}
	return p
}

var singles = [...]uint32{
	0, 0x80000000, 0x3f800000, 0xbf800000, 0x40000000, 0x3f000000, 0x7f800000, 0xff800000, 0x7fc00000, 0xffc00000, 0x7f800001, 0x7fbfffff,
	0x00000001, 0x80000001, 0x007fffff, 0x00800000, 0x80800000, 0x7f7fffff, 0xff7fffff, 0x4effffff, 0x4f000000, 0xcf000000, 0x4b800000, 0x3f7fffff,
	0x5f000000, 0xdf000000, 0x3effffff, 0x3f000001, 0x40490fdb, 0x34000000,
}

var doubles = [...]uint64{
	0, 1 << 63, 0x3ff0000000000000, 0xbff0000000000000, 0x4000000000000000, 0x3fe0000000000000, 0x7ff0000000000000, 0xfff0000000000000,
	0x7ff8000000000000, 0xfff8000000000000, 0x7ff0000000000001, 0x7ff7ffffffffffff, 1, 1<<63 + 1, 0x000fffffffffffff, 0x0010000000000000,
	0x7fefffffffffffff, 0xffefffffffffffff, 0x41dfffffffc00000, 0x41e0000000000000, 0xc1e0000000000000, 0xc1e0000000200000, 0x43e0000000000000, 0xc3e0000000000000,
	0x3fefffffffffffff, 0x36a0000000000000, 0x380fffffffffffff, 0x47efffffe0000000, 0x47effffff0000000, 0x3810000000000000, 0x400921fb54442d18, 0x4330000000000001,
}

func single(r *rand.Rand) uint32 {
	switch r.IntN(4) {
	case 0:
		return singles[r.IntN(len(singles))]
	case 1: // of middling size
		return r.Uint32()&0x807fffff | uint32(127+r.IntN(49)-24)<<23
	case 2: // few bits
		return math.Float32bits(float32(r.IntN(2001) - 1000))
	}
	return r.Uint32()
}

func double(r *rand.Rand) uint64 {
	switch r.IntN(4) {
	case 0:
		return doubles[r.IntN(len(doubles))]
	case 1:
		return r.Uint64()&0x800fffffffffffff | uint64(1023+r.IntN(129)-64)<<52
	case 2:
		return math.Float64bits(float64(r.IntN(2001)-1000) / 4)
	}
	return r.Uint64()
}

// extended returns the significand, and the sign and exponent.
func extended(r *rand.Rand) (uint64, uint16) {
	sign := uint16(r.IntN(2)) << 15
	switch r.IntN(8) {
	case 0:
		return 0, sign // zero
	case 1:
		return 1 << 63, sign | 0x7fff // infinity
	case 2: // NaNs, and what is none but pretends to be
		return r.Uint64() | uint64(r.IntN(8))<<61, sign | 0x7fff
	case 3: // denormal, pseudo-denormal
		return r.Uint64() >> r.IntN(64), sign
	case 4: // unnormal: invalid
		return r.Uint64() >> (1 + r.IntN(63)), sign | uint16(1+r.IntN(0x7ffe))
	case 5: // small integers
		return 1<<63 | r.Uint64()<<(40+r.IntN(24)), sign | uint16(16383+r.IntN(70))
	case 6:
		return 1<<63 | r.Uint64(), sign | uint16(16383+r.IntN(129)-64)
	}
	return 1<<63 | r.Uint64(), sign | uint16(r.IntN(0x7fff))
}

// vector fills 16 bytes with numbers of one kind.
func vector(r *rand.Rand, b []byte) {
	le := binary.LittleEndian
	switch r.IntN(6) {
	case 0, 1:
		for i := 0; i < 16; i += 4 {
			le.PutUint32(b[i:], single(r))
		}
	case 2, 3:
		le.PutUint64(b, double(r))
		le.PutUint64(b[8:], double(r))
	case 4:
		le.PutUint64(b, integer(r))
		le.PutUint64(b[8:], integer(r))
	default: // few different bytes, so that compares find some equal
		for i := range 16 {
			b[i] = "\x00\x01\x7f\x80\xffabc"[r.IntN(8)]
		}
	}
}

// Input returns the state that the case starts in.
func (c *Case) Input() Input {
	r := rand.New(rand.NewPCG(c.Seed, 1))
	var in Input
	var g [16]uint64
	for i := range g {
		switch r.IntN(16) {
		case 0:
			g[i] = codeBase + uint64(r.IntN(0x700)) // among HLTs
		case 1:
			g[i] = r.Uint64()>>17 | 1<<uint(47+r.IntN(16)) // rarely canonical
		case 2, 3, 4, 5, 6, 7, 8:
			g[i] = pointer(r)
		default:
			g[i] = integer(r)
		}
	}
	if r.IntN(2) == 0 {
		g[1] = uint64(r.IntN(40)) // RCX: counts
	}
	if r.IntN(8) != 0 {
		g[4] = pointer(r) &^ 7 // RSP
	}
	g[4] = uint64(int64(g[4]<<16) >> 16) // canonical: with another, some KVMs emulate
	if r.IntN(2) == 0 {
		g[6], g[7] = pointer(r), pointer(r) // RSI, RDI
	}
	in.Regs = registers(&g)
	in.Regs.RIP = c.Start()
	in.Regs.RFLAGS = 0x202 | r.Uint64()&0x8d5
	if r.IntN(4) == 0 {
		in.Regs.RFLAGS |= 1 << 10 // DF
	}
	if r.IntN(16) == 0 {
		in.Regs.RFLAGS |= 1 << 18 // AC
	}
	in.FSBase, in.GSBase = pointer(r)&^0xfff, pointer(r)
	if r.IntN(2) == 0 {
		in.FSBase, in.GSBase = uint64(r.IntN(256)), 0
	}

	le := binary.LittleEndian
	fcw, fsw := uint16(0x37f), uint16(r.IntN(8))<<11|uint16(r.Uint32())&0x4700
	if r.IntN(3) == 0 {
		fcw = 0x40 | uint16(r.Uint32())&0xf00 | 0x3f // precision and rounding
		if r.IntN(4) == 0 {
			fcw &^= uint16(r.IntN(64)) // unmask some
		}
	}
	if r.IntN(4) == 0 {
		fsw |= uint16(r.IntN(128))
	}
	if fsw&0x3f&^fcw != 0 { // ES and B follow from the rest
		fsw |= 0x8080
	} else {
		fsw &^= 0x8080
	}
	tags := uint8(0xff)
	switch r.IntN(4) {
	case 0:
		tags = uint8(r.Uint32())
	case 1:
		tags = 0
	case 2:
		tags = ^(1 << r.IntN(8))
	}
	le.PutUint16(in.FX[0:], fcw)
	le.PutUint16(in.FX[2:], fsw)
	in.FX[4] = tags
	mxcsr := uint32(0x1f80)
	if r.IntN(3) == 0 {
		mxcsr |= r.Uint32() & 0xe07f // rounding, FTZ, DAZ, flags
		if r.IntN(4) == 0 {
			mxcsr &^= r.Uint32() & 0x1f80
		}
	}
	le.PutUint32(in.FX[24:], mxcsr)
	le.PutUint32(in.FX[28:], 0xffff)
	mmx := r.IntN(3) == 0 // as after MMX instructions
	for i := range 8 {
		m, se := extended(r)
		if mmx {
			m, se = integer(r), 0xffff
		}
		le.PutUint64(in.FX[32+16*i:], m)
		le.PutUint16(in.FX[40+16*i:], se)
	}
	for i := range 16 {
		vector(r, in.FX[160+16*i:])
	}
	return in
}

// fxPage is full of FXSAVE areas that FXRSTOR takes.
const fxPage = dataBase + 4*4096

// pattern fills a page of data with what the seed of cases would give; it depends
// on the page alone.
func pattern(page uint64, b []byte) {
	r := rand.New(rand.NewPCG(page, 2))
	le := binary.LittleEndian
	for i := 0; i < len(b); i += 16 {
		switch r.IntN(16) {
		case 0:
			le.PutUint64(b[i:], codeBase+uint64(r.IntN(0x700))) // to return to
			le.PutUint64(b[i+8:], uint64(r.IntN(100)))
		case 1, 2, 3:
			le.PutUint64(b[i:], integer(r))
			le.PutUint64(b[i+8:], integer(r))
		case 4, 5, 6, 7:
			m, se := extended(r)
			le.PutUint64(b[i:], m)
			le.PutUint16(b[i+8:], se)
			le.PutUint32(b[i+10:], r.Uint32())
			le.PutUint16(b[i+14:], uint16(r.Uint32()))
		default:
			vector(r, b[i:])
		}
	}
	if page != fxPage {
		return
	}
	for i := 0; i < len(b); i += 512 {
		c := Case{Seed: uint64(i)}
		in := c.Input()
		copy(b[i:], in.FX[:])
		le.PutUint64(b[i+256:], codeBase+uint64(r.IntN(0x700))) // in XMM6
	}
}

func registers(g *[16]uint64) vcpu.Registers {
	return vcpu.Registers{
		RAX: g[0], RCX: g[1], RDX: g[2], RBX: g[3], RSP: g[4], RBP: g[5], RSI: g[6], RDI: g[7],
		R8: g[8], R9: g[9], R10: g[10], R11: g[11], R12: g[12], R13: g[13], R14: g[14], R15: g[15],
	}
}

// array returns the general registers in the order of their encoding.
func array(r *vcpu.Registers) [16]uint64 {
	return [16]uint64{
		r.RAX, r.RCX, r.RDX, r.RBX, r.RSP, r.RBP, r.RSI, r.RDI,
		r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15,
	}
}
