package soft

import "github.com/vmkit-go/vmkit/vcpu/soft/decode"

// Arithmetic, logic, comparison and shifts of integers (Intel SDM volume 1, sections
// 9.4, 11.4.2, 12.6 and 12.9 to 12.11). What glibc and the kernel use most is written
// out; the rest is made of the functions in swar.go.

// halves makes the operation that does f to each half.
func halves(f func(a, b uint64) uint64) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		d, s := c.x(u.d), c.x(u.s)
		d[0], d[1] = f(d[0], s[0]), f(d[1], s[1])
		return next
	}
}

// packed lists an instruction of MMX and, with 66, of SSE2.
func packed(op byte, fn func(*CPU, *uop) stop, how mmxForm) []vector {
	return []vector{
		{op: op, lower: lowerMMX, fn: fn, mmx: how, size: 8},
		{op: op, pp: pp66, lower: lowerXX, fn: fn},
	}
}

// packedOps lists instructions that do the same to each half.
func packedOps(ops []func(*CPU, *uop) stop) (list []vector) {
	for op, fn := range ops {
		if fn != nil {
			list = append(list, packed(byte(op), fn, mmxPlain)...)
		}
	}
	return list
}

// The instructions of the map 0F.
var vectorInts = [256]func(*CPU, *uop) stop{
	0x64: halves(pcmpgt8), 0x65: halves(pcmpgt16), 0x66: halves(pcmpgt32),
	0x74: pcmpeqB, 0x75: halves(pcmpeq16), 0x76: pcmpeqD,
	0xd1: shiftX(psrl16), 0xd2: shiftX(psrl32), 0xd3: shiftX(psrl64), 0xd4: paddQ,
	0xd5: halves(pmullw), 0xd8: psubusB, 0xd9: halves(psubus16), 0xda: pminuB, 0xdb: pand,
	0xdc: halves(paddus8), 0xdd: halves(paddus16), 0xde: halves(pmaxu8), 0xdf: pandn,
	0xe0: halves(pavg8), 0xe1: shiftX(psra16), 0xe2: shiftX(psra32), 0xe3: halves(pavg16),
	0xe4: halves(pmulhuw), 0xe5: halves(pmulhw), 0xe8: halves(psubs8), 0xe9: halves(psubs16),
	0xea: halves(pmins16), 0xeb: por, 0xec: halves(padds8), 0xed: halves(padds16),
	0xee: halves(pmaxs16), 0xef: pxor,
	0xf1: shiftX(psll16), 0xf2: shiftX(psll32), 0xf3: shiftX(psll64), 0xf4: halves(pmuludq),
	0xf5: halves(pmaddwd), 0xf6: halves(psadbw), 0xf8: psubB, 0xf9: halves(psub16), 0xfa: psubD,
	0xfb: psubQ, 0xfc: paddB, 0xfd: halves(padd16), 0xfe: paddD,
}

// Those of the map 0F 38 that have MMX forms.
var vectorInts38 = [256]func(*CPU, *uop) stop{
	0x04: halves(pmaddubsw), 0x08: halves(psign8), 0x09: halves(psign16), 0x0a: halves(psign32),
	0x0b: halves(pmulhrsw), 0x1c: halves(pabs8), 0x1d: halves(pabs16), 0x1e: halves(pabs32),
}

// Those that have not.
var vectorInts41 = []vector{
	{pp: pp66, op: 0x17, lower: lowerXX, fn: ptest},
	{pp: pp66, op: 0x28, lower: lowerXX, fn: halves(pmuldq)},
	{pp: pp66, op: 0x29, lower: lowerXX, fn: halves(pcmpeq64)},
	{pp: pp66, op: 0x2a, lower: lowerLoad, fn: movX}, // MOVNTDQA
	{pp: pp66, op: 0x37, lower: lowerXX, fn: halves(pcmpgt64)},
	{pp: pp66, op: 0x38, lower: lowerXX, fn: halves(pmins8)},
	{pp: pp66, op: 0x39, lower: lowerXX, fn: halves(pmins32)},
	{pp: pp66, op: 0x3a, lower: lowerXX, fn: halves(pminu16)},
	{pp: pp66, op: 0x3b, lower: lowerXX, fn: halves(pminu32)},
	{pp: pp66, op: 0x3c, lower: lowerXX, fn: halves(pmaxs8)},
	{pp: pp66, op: 0x3d, lower: lowerXX, fn: halves(pmaxs32)},
	{pp: pp66, op: 0x3e, lower: lowerXX, fn: halves(pmaxu16)},
	{pp: pp66, op: 0x3f, lower: lowerXX, fn: halves(pmaxu32)},
	{pp: pp66, op: 0x40, lower: lowerXX, fn: halves(pmulld)},
	{pp: pp66, op: 0x41, lower: lowerXX, fn: phminposuw},
}

// The bitwise operations of floating point are those of integers.
var vectorLogic = []vector{
	{op: 0x54, lower: lowerXX, fn: pand}, {op: 0x54, pp: pp66, lower: lowerXX, fn: pand},
	{op: 0x55, lower: lowerXX, fn: pandn}, {op: 0x55, pp: pp66, lower: lowerXX, fn: pandn},
	{op: 0x56, lower: lowerXX, fn: por}, {op: 0x56, pp: pp66, lower: lowerXX, fn: por},
	{op: 0x57, lower: lowerXX, fn: pxor}, {op: 0x57, pp: pp66, lower: lowerXX, fn: pxor},
}

func pxor(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] ^= s[0]
	d[1] ^= s[1]
	return next
}

func por(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] |= s[0]
	d[1] |= s[1]
	return next
}

func pand(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] &= s[0]
	d[1] &= s[1]
	return next
}

func pandn(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = s[0] &^ d[0]
	d[1] = s[1] &^ d[1]
	return next
}

func pcmpeqB(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = equalLanes(d[0], s[0], high8, 7)
	d[1] = equalLanes(d[1], s[1], high8, 7)
	return next
}

func pcmpeqD(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = equalLanes(d[0], s[0], high32, 31)
	d[1] = equalLanes(d[1], s[1], high32, 31)
	return next
}

func pminuB(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = pick(below(d[0], s[0], high8, 7), d[0], s[0])
	d[1] = pick(below(d[1], s[1], high8, 7), d[1], s[1])
	return next
}

func psubusB(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = psubus(d[0], s[0], high8, 7)
	d[1] = psubus(d[1], s[1], high8, 7)
	return next
}

func paddB(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = addLanes(d[0], s[0], high8)
	d[1] = addLanes(d[1], s[1], high8)
	return next
}

func paddD(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = addLanes(d[0], s[0], high32)
	d[1] = addLanes(d[1], s[1], high32)
	return next
}

func paddQ(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] += s[0]
	d[1] += s[1]
	return next
}

func psubB(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = subLanes(d[0], s[0], high8)
	d[1] = subLanes(d[1], s[1], high8)
	return next
}

func psubD(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] = subLanes(d[0], s[0], high32)
	d[1] = subLanes(d[1], s[1], high32)
	return next
}

func psubQ(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	d[0] -= s[0]
	d[1] -= s[1]
	return next
}

// ptest sets ZF and CF by d AND s and by s without d.
func ptest(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	zf := bit(d[0]&s[0]|d[1]&s[1] == 0)
	cf := bit(s[0]&^d[0]|s[1]&^d[1] == 0)
	c.setArith(zf<<6 | cf)
	return next
}

// phminposuw finds the smallest word, and the first place where it is.
func phminposuw(c *CPU, u *uop) stop {
	s := c.x(u.s)
	best := uint64(0xffff)
	at := uint64(0)
	for i := range uint64(8) {
		if w := s[i>>2] >> (16 * (i & 3)) & 0xffff; w < best {
			best, at = w, i
		}
	}
	*c.x(u.d) = xmm{best | at<<16}
	return next
}

// A shift moves each lane of a half by n bits, of which there may be any number.

func psrl16(v, n uint64) uint64 {
	if n > 15 {
		return 0
	}
	return v >> n & (0xffff >> n * 0x0001000100010001)
}

func psrl32(v, n uint64) uint64 {
	if n > 31 {
		return 0
	}
	return v >> n & (0xffffffff >> n * 0x0000000100000001)
}

func psrl64(v, n uint64) uint64 { return v >> n }

func psll16(v, n uint64) uint64 {
	if n > 15 {
		return 0
	}
	return v << n & (0xffff << n & 0xffff * 0x0001000100010001)
}

func psll32(v, n uint64) uint64 {
	if n > 31 {
		return 0
	}
	return v << n & (0xffffffff << n & 0xffffffff * 0x0000000100000001)
}

func psll64(v, n uint64) uint64 { return v << n }

func psra16(v, n uint64) (r uint64) {
	n = min(n, 15)
	for i := 0; i < 64; i += 16 {
		r |= uint64(uint16(int16(v>>i)>>n)) << i
	}
	return r
}

func psra32(v, n uint64) uint64 {
	n = min(n, 31)
	return uint64(uint32(int32(v)>>n)) | uint64(int64(v)>>32>>n)<<32
}

// shiftX makes the shift by the low half of the source.
func shiftX(f func(v, n uint64) uint64) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		d, n := c.x(u.d), c.x(u.s)[0]
		d[0], d[1] = f(d[0], n), f(d[1], n)
		return next
	}
}

// shiftI makes the shift by an immediate.
func shiftI(f func(v, n uint64) uint64) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		d := c.x(u.d)
		d[0], d[1] = f(d[0], u.imm), f(d[1], u.imm)
		return next
	}
}

// The shifts of the opcodes 71, 72 and 73 by ModRM.reg.
var shiftGroups = [3][8]func(*CPU, *uop) stop{
	{2: shiftI(psrl16), 4: shiftI(psra16), 6: shiftI(psll16)},
	{2: shiftI(psrl32), 4: shiftI(psra32), 6: shiftI(psll32)},
	{2: shiftI(psrl64), 3: psrlDQ, 6: shiftI(psll64), 7: pslLDQ},
}

var vectorShifts = []vector{
	{op: 0x71, lower: lowerShift}, {op: 0x71, pp: pp66, lower: lowerShift},
	{op: 0x72, lower: lowerShift}, {op: 0x72, pp: pp66, lower: lowerShift},
	{op: 0x73, lower: lowerShift}, {op: 0x73, pp: pp66, lower: lowerShift},
}

// lowerShift is a shift by an immediate, of xmm or of MMX registers.
func lowerShift(l *lowerer, v *vector) bool {
	in := &l.in
	reg := in.Reg & 7
	fn := shiftGroups[in.Op-0x71][reg]
	if in.Mem || fn == nil || v.pp == ppNone && reg&1 != 0 {
		return false
	}
	if v.pp == ppNone {
		l.mmxCheck()
		l.mmxGet(in.RM&7, decode.NoReg, false)
		u := l.call(fn)
		u.d, u.imm = xmmT0, in.Imm&0xff
		l.mmxPut(in.RM&7, 0)
		return true
	}
	l.sse()
	u := l.call(fn)
	u.d, u.imm = in.RM, in.Imm&0xff
	return true
}

func psrlDQ(c *CPU, u *uop) stop {
	d := c.x(u.d)
	if n := u.imm * 8; n < 64 {
		d[0], d[1] = d[0]>>n|d[1]<<(64-n), d[1]>>n
	} else {
		d[0], d[1] = d[1]>>(n-64), 0
	}
	return next
}

func pslLDQ(c *CPU, u *uop) stop {
	d := c.x(u.d)
	if n := u.imm * 8; n < 64 {
		d[0], d[1] = d[0]<<n, d[1]<<n|d[0]>>(64-n)
	} else {
		d[0], d[1] = 0, d[0]<<(n-64)
	}
	return next
}
