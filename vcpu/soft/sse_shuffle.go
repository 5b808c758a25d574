package soft

// Shuffles, unpacks, packs, horizontal arithmetic, insertions, extractions and blends
// (Intel SDM volume 1, sections 9.4.4, 10.4.4, 11.4.1, 12.6, 12.10).

var vectorShuffles = join(
	packed(0x63, packSSWB, mmxPair), packed(0x67, packUSWB, mmxPair), packed(0x6b, packSSDW, mmxPair),
	unpack(0x60, punpckLBW, 4), unpack(0x61, punpckLWD, 4), unpack(0x62, punpckLDQ, 4),
	unpack(0x68, punpckHBW, 8), unpack(0x69, punpckHWD, 8), unpack(0x6a, punpckHDQ, 8),
	[]vector{
		{op: 0x14, lower: lowerXX, fn: punpckLDQ}, // UNPCKLPS
		{op: 0x14, pp: pp66, lower: lowerXX, fn: punpckLQDQ},
		{op: 0x15, lower: lowerXX, fn: punpckHDQ}, // UNPCKHPS
		{op: 0x15, pp: pp66, lower: lowerXX, fn: punpckHQDQ},
		{op: 0x6c, pp: pp66, lower: lowerXX, fn: punpckLQDQ},
		{op: 0x6d, pp: pp66, lower: lowerXX, fn: punpckHQDQ},
		{op: 0x70, lower: lowerMMX, fn: pshufLW, mmx: mmxPlain, size: 8}, // PSHUFW
		{op: 0x70, pp: pp66, lower: lowerXX, fn: pshufD},
		{op: 0x70, pp: ppF3, lower: lowerXX, fn: pshufHW},
		{op: 0x70, pp: ppF2, lower: lowerXX, fn: pshufLW},
		{op: 0xc4, pp: pp66, lower: lowerInsert, fn: pinsrW, size: 2},
		{op: 0xc4, lower: lowerInsertMMX, fn: pinsrW, size: 2},
		{op: 0xc5, pp: pp66, lower: lowerRX, fn: pextrW},
		{op: 0xc6, lower: lowerXX, fn: shufPS},
		{op: 0xc6, pp: pp66, lower: lowerXX, fn: shufPD},
	})

var vectorShuffles38 = join(
	packed(0x00, pshufB, mmxPlain),
	packed(0x01, phaddW, mmxPair), packed(0x02, phaddD, mmxPair), packed(0x03, phaddSW, mmxPair),
	packed(0x05, phsubW, mmxPair), packed(0x06, phsubD, mmxPair), packed(0x07, phsubSW, mmxPair),
	[]vector{
		{pp: pp66, op: 0x10, lower: lowerXX, fn: pblendVB},
		{pp: pp66, op: 0x14, lower: lowerXX, fn: blendVPS},
		{pp: pp66, op: 0x15, lower: lowerXX, fn: blendVPD},
		{pp: pp66, op: 0x20, lower: lowerXX, fn: extend(1, 2, true), size: 8}, // PMOVSX
		{pp: pp66, op: 0x21, lower: lowerXX, fn: extend(1, 4, true), size: 4},
		{pp: pp66, op: 0x22, lower: lowerXX, fn: extend(1, 8, true), size: 2},
		{pp: pp66, op: 0x23, lower: lowerXX, fn: extend(2, 4, true), size: 8},
		{pp: pp66, op: 0x24, lower: lowerXX, fn: extend(2, 8, true), size: 4},
		{pp: pp66, op: 0x25, lower: lowerXX, fn: extend(4, 8, true), size: 8},
		{pp: pp66, op: 0x2b, lower: lowerXX, fn: packUSDW},
		{pp: pp66, op: 0x30, lower: lowerXX, fn: extend(1, 2, false), size: 8}, // PMOVZX
		{pp: pp66, op: 0x31, lower: lowerXX, fn: extend(1, 4, false), size: 4},
		{pp: pp66, op: 0x32, lower: lowerXX, fn: extend(1, 8, false), size: 2},
		{pp: pp66, op: 0x33, lower: lowerXX, fn: extend(2, 4, false), size: 8},
		{pp: pp66, op: 0x34, lower: lowerXX, fn: extend(2, 8, false), size: 4},
		{pp: pp66, op: 0x35, lower: lowerXX, fn: extend(4, 8, false), size: 8},
	})

var vectorShuffles3A = []vector{
	{pp: pp66, op: 0x0c, lower: lowerXX, fn: blendPS},
	{pp: pp66, op: 0x0d, lower: lowerXX, fn: blendPD},
	{pp: pp66, op: 0x0e, lower: lowerXX, fn: pblendW},
	{pp: pp66, op: 0x0f, lower: lowerXX, fn: palignR},
	{op: 0x0f, lower: lowerMMX, fn: palignRMMX, mmx: mmxPlain, size: 8},
	{pp: pp66, op: 0x14, lower: lowerExtract, size: 1},
	{pp: pp66, op: 0x15, lower: lowerExtract, size: 2},
	{pp: pp66, op: 0x16, lower: lowerExtract}, // PEXTRD, PEXTRQ
	{pp: pp66, op: 0x17, lower: lowerExtract, size: 4},
	{pp: pp66, op: 0x20, lower: lowerInsert, fn: pinsrB, size: 1},
	{pp: pp66, op: 0x21, lower: lowerXX, fn: insertPS, size: 4},
	{pp: pp66, op: 0x22, lower: lowerInsert}, // PINSRD, PINSRQ
	{pp: pp66, op: 0x42, lower: lowerXX, fn: mpsadbw},
}

func join(lists ...[]vector) (all []vector) {
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// unpack lists an unpacking instruction. The MMX form is one half of the other's
// result, and reads but size bytes of memory.
func unpack(op byte, fn func(*CPU, *uop) stop, size uint8) []vector {
	v := packed(op, fn, mmxPlain)
	v[0].size = size
	if size == 8 {
		v[0].mmx, v[0].fn = mmxHigh, punpckLow[op-0x68]
	}
	return v
}

// The bytes 4 to 7 of an operand make the upper half of the result of these.
var punpckLow = [3]func(*CPU, *uop) stop{punpckLBW, punpckLWD, punpckLDQ}

// spread8 moves the low four bytes of v apart, spread16 the low two words.
func spread8(v uint64) uint64 {
	v = v&0xffff | v&0xffff0000<<16
	return v&0x000000ff000000ff | v&0x0000ff000000ff00<<8
}

func spread16(v uint64) uint64 { return v&0xffff | v&0xffff0000<<16 }

func interleave8(a, b uint64) xmm {
	return xmm{spread8(a) | spread8(b)<<8, spread8(a>>32) | spread8(b>>32)<<8}
}

func interleave16(a, b uint64) xmm {
	return xmm{spread16(a) | spread16(b)<<16, spread16(a>>32) | spread16(b>>32)<<16}
}

func interleave32(a, b uint64) xmm { return xmm{a&0xffffffff | b<<32, a>>32 | b&^0xffffffff} }

func punpckLBW(c *CPU, u *uop) stop {
	d := c.x(u.d)
	*d = interleave8(d[0], c.x(u.s)[0])
	return next
}

func punpckLWD(c *CPU, u *uop) stop {
	d := c.x(u.d)
	*d = interleave16(d[0], c.x(u.s)[0])
	return next
}

func punpckLDQ(c *CPU, u *uop) stop {
	d := c.x(u.d)
	*d = interleave32(d[0], c.x(u.s)[0])
	return next
}

func punpckLQDQ(c *CPU, u *uop) stop {
	c.x(u.d)[1] = c.x(u.s)[0]
	return next
}

func punpckHBW(c *CPU, u *uop) stop {
	d := c.x(u.d)
	*d = interleave8(d[1], c.x(u.s)[1])
	return next
}

func punpckHWD(c *CPU, u *uop) stop {
	d := c.x(u.d)
	*d = interleave16(d[1], c.x(u.s)[1])
	return next
}

func punpckHDQ(c *CPU, u *uop) stop {
	d := c.x(u.d)
	*d = interleave32(d[1], c.x(u.s)[1])
	return next
}

func punpckHQDQ(c *CPU, u *uop) stop {
	d := c.x(u.d)
	*d = xmm{d[1], c.x(u.s)[1]}
	return next
}

// Packing cuts words or doublewords to a range and puts them side by side.

func narrow16(v uint64, lo, hi int32) (r uint64) {
	for i := 0; i < 64; i += 16 {
		r |= clamp(int32(int16(v>>i)), lo, hi) & 0xff << (i / 2)
	}
	return r
}

func narrow32(v uint64, lo, hi int32) uint64 {
	return clamp(int32(v), lo, hi)&0xffff | clamp(int32(v>>32), lo, hi)&0xffff<<16
}

// pack makes the packing by a function for one half.
func pack(f func(v uint64, lo, hi int32) uint64, lo, hi int32) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		d, s := c.x(u.d), c.x(u.s)
		*d = xmm{f(d[0], lo, hi) | f(d[1], lo, hi)<<32, f(s[0], lo, hi) | f(s[1], lo, hi)<<32}
		return next
	}
}

var (
	packSSWB = pack(narrow16, -1<<7, 1<<7-1)
	packUSWB = pack(narrow16, 0, 1<<8-1)
	packSSDW = pack(narrow32, -1<<15, 1<<15-1)
	packUSDW = pack(narrow32, 0, 1<<16-1)
)

// horizontal makes an operation on neighbours: f gets the lanes with even numbers, and
// those with odd ones.
func horizontal(split func(lo, hi uint64) (even, odd uint64), f func(a, b uint64) uint64) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		d, s := c.x(u.d), c.x(u.s)
		lo := f(split(d[0], d[1]))
		hi := f(split(s[0], s[1]))
		*d = xmm{lo, hi}
		return next
	}
}

// gather16 puts the words 0 and 2 of v side by side.
func gather16(v uint64) uint64 { return v&0xffff | v>>16&0xffff0000 }

func split16(lo, hi uint64) (even, odd uint64) {
	return gather16(lo) | gather16(hi)<<32, gather16(lo>>16) | gather16(hi>>16)<<32
}

func split32(lo, hi uint64) (even, odd uint64) {
	return lo&0xffffffff | hi<<32, lo>>32 | hi&^0xffffffff
}

var (
	phaddW  = horizontal(split16, padd16)
	phaddD  = horizontal(split32, padd32)
	phaddSW = horizontal(split16, padds16)
	phsubW  = horizontal(split16, psub16)
	phsubD  = horizontal(split32, psub32)
	phsubSW = horizontal(split16, psubs16)
)

// shuffle16 picks four words of v by four pairs of bits.
func shuffle16(v, by uint64) uint64 {
	return v>>(by&3*16)&0xffff | v>>(by>>2&3*16)&0xffff<<16 | v>>(by>>4&3*16)&0xffff<<32 | v>>(by>>6&3*16)<<48
}

// lane32 is a doubleword by the low two bits of i.
func (x *xmm) lane32(i uint64) uint64 { return x[i>>1&1] >> (i & 1 * 32) & 0xffffffff }

func pshufD(c *CPU, u *uop) stop {
	s, by := c.x(u.s), u.imm
	*c.x(u.d) = xmm{s.lane32(by) | s.lane32(by>>2)<<32, s.lane32(by>>4) | s.lane32(by>>6)<<32}
	return next
}

func pshufLW(c *CPU, u *uop) stop {
	s := c.x(u.s)
	*c.x(u.d) = xmm{shuffle16(s[0], u.imm), s[1]}
	return next
}

func pshufHW(c *CPU, u *uop) stop {
	s := c.x(u.s)
	*c.x(u.d) = xmm{s[0], shuffle16(s[1], u.imm)}
	return next
}

func shufPS(c *CPU, u *uop) stop {
	d, s, by := c.x(u.d), c.x(u.s), u.imm
	*d = xmm{d.lane32(by) | d.lane32(by>>2)<<32, s.lane32(by>>4) | s.lane32(by>>6)<<32}
	return next
}

func shufPD(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	*d = xmm{d[u.imm&1], s[u.imm>>1&1]}
	return next
}

// pshufB picks bytes of d, or zeros, by the bytes of s. Of MMX registers, both halves
// of d are the same.
func pshufB(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	var r xmm
	for h, by := range s {
		var v uint64
		for i := 0; i < 64; i += 8 {
			k := by >> i
			if k&0x80 == 0 {
				v |= d[k>>3&1] >> (k & 7 * 8) & 0xff << i
			}
		}
		r[h] = v
	}
	*d = r
	return next
}

// palignR takes 16 bytes from d:s, from the imm-th on.
func palignR(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	w := [6]uint64{s[0], s[1], d[0], d[1]}
	n, r := u.imm&0xff/8, u.imm&7*8
	if n > 3 {
		*d = xmm{}
		return next
	}
	*d = xmm{w[n]>>r | w[n+1]<<(64-r), w[n+1]>>r | w[n+2]<<(64-r)}
	return next
}

// palignRMMX is the same with 8 bytes.
func palignRMMX(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	if n := u.imm & 0xff * 8; n < 64 {
		d[0] = s[0]>>n | d[0]<<(64-n)
	} else {
		d[0] >>= n - 64
	}
	return next
}

// lowerInsert is PINSRx from a general register or memory. PINSRD and PINSRQ, which
// have no fn, are told apart by REX.W.
func lowerInsert(l *lowerer, v *vector) bool {
	l.sse()
	l.insert(v, l.in.Reg)
	return true
}

// insert adds an insertion into d.
func (l *lowerer) insert(v *vector, d uint8) {
	fn, size := v.fn, v.size
	if fn == nil {
		fn, size = pinsrD, l.wide()
		if size == 8 {
			fn = pinsrQ
		}
	}
	s := l.in.RM
	if l.in.Mem {
		s = regT0
		l.load(s, size, l.mem())
	}
	u := l.call(fn)
	u.d, u.s, u.imm = d, s, l.in.Imm
}

// put replaces a lane of n bits.
func (x *xmm) put(i uint64, n uint, v uint64) {
	per := 64 / uint64(n)
	mask := uint64(1)<<n - 1
	at := i % per * uint64(n)
	h := &x[i/per&1]
	*h = *h&^(mask<<at) | v&mask<<at
}

func pinsrB(c *CPU, u *uop) stop {
	c.x(u.d).put(u.imm&15, 8, c.r[u.s&31])
	return next
}

func pinsrW(c *CPU, u *uop) stop {
	c.x(u.d).put(u.imm&7, 16, c.r[u.s&31])
	return next
}

func pinsrD(c *CPU, u *uop) stop {
	c.x(u.d).put(u.imm&3, 32, c.r[u.s&31])
	return next
}

func pinsrQ(c *CPU, u *uop) stop {
	c.x(u.d)[u.imm&1] = c.r[u.s&31]
	return next
}

// insertPS takes the doubleword of s that imm tells, or the one from memory, and
// clears what it tells.
func insertPS(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	v := s.lane32(u.imm >> 6)
	if u.s == xmmT0 {
		v = s[0]
	}
	d.put(u.imm>>4&3, 32, v)
	for i := range uint64(4) {
		if u.imm>>i&1 != 0 {
			d.put(i, 32, 0)
		}
	}
	return next
}

// lowerExtract is PEXTRx and EXTRACTPS of the map 0F 3A: size 0 is by REX.W.
func lowerExtract(l *lowerer, v *vector) bool {
	l.sse()
	size := v.size
	if size == 0 {
		size = l.wide()
	}
	d := l.in.RM
	if l.in.Mem {
		d = regT0
	}
	u := l.call(pextr)
	u.d, u.s, u.size, u.imm = d, l.in.Reg, size, l.in.Imm
	if l.in.Mem {
		l.store(regT0, size, 0, l.mem())
	}
	return true
}

// pextr zero-extends a lane of u.size bytes.
func pextr(c *CPU, u *uop) stop {
	at := u.imm * uint64(u.size) & 15
	c.r[u.d&31] = c.x(u.s)[at>>3] >> (at & 7 * 8) & maskOf(u.size)
	return next
}

func pextrW(c *CPU, u *uop) stop {
	c.r[u.d&31] = c.x(u.s)[u.imm>>2&1] >> (u.imm & 3 * 16) & 0xffff
	return next
}

// Blends take lanes of s where a mask says so, else those of d.

func (x *xmm) blend(m0, m1 uint64, s *xmm) stop {
	x[0], x[1] = pick(m0, s[0], x[0]), pick(m1, s[1], x[1])
	return next
}

// Those with a variable mask have it in XMM0.

func pblendVB(c *CPU, u *uop) stop {
	m := &c.xmm[0]
	return c.x(u.d).blend(spread(m[0]&high8, 7), spread(m[1]&high8, 7), c.x(u.s))
}

func blendVPS(c *CPU, u *uop) stop {
	m := &c.xmm[0]
	return c.x(u.d).blend(spread(m[0]&high32, 31), spread(m[1]&high32, 31), c.x(u.s))
}

func blendVPD(c *CPU, u *uop) stop {
	m := &c.xmm[0]
	return c.x(u.d).blend(uint64(int64(m[0])>>63), uint64(int64(m[1])>>63), c.x(u.s))
}

func blendPS(c *CPU, u *uop) stop {
	m := u.imm
	return c.x(u.d).blend(-(m&1)>>32|-(m>>1&1)<<32, -(m>>2&1)>>32|-(m>>3&1)<<32, c.x(u.s))
}

func blendPD(c *CPU, u *uop) stop {
	return c.x(u.d).blend(-(u.imm & 1), -(u.imm >> 1 & 1), c.x(u.s))
}

// words16 fills a word for each of four bits.
func words16(m uint64) uint64 {
	return (m&1 | m&2<<15 | m&4<<30 | m&8<<45) * 0xffff
}

func pblendW(c *CPU, u *uop) stop {
	return c.x(u.d).blend(words16(u.imm), words16(u.imm>>4), c.x(u.s))
}

// extend makes PMOVSX and PMOVZX from lanes of a size, in bytes, to those of another.
func extend(from, to uint8, signed bool) func(*CPU, *uop) stop {
	return func(c *CPU, u *uop) stop {
		v := c.x(u.s)[0]
		var r xmm
		for i := uint8(0); i < 16; i += to {
			lane := v & maskOf(from)
			if signed {
				lane = signExtend(v, from) & maskOf(to)
			}
			r[i>>3] |= lane << (i & 7 * 8)
			v >>= 8 * from
		}
		*c.x(u.d) = r
		return next
	}
}

// mpsadbw is eight sums of the differences of four bytes of s, where imm says, to
// four bytes of d, from one place to the next.
func mpsadbw(c *CPU, u *uop) stop {
	d, s := c.x(u.d), c.x(u.s)
	b := s.lane32(u.imm)
	at := u.imm >> 2 & 1 * 4
	var r xmm
	for i := range uint64(8) {
		from := at + i
		a := d[from>>3] >> (from & 7 * 8)
		if n := from & 7; n > 4 && from < 8 {
			a |= d[1] << (64 - n*8)
		}
		r[i>>2] |= psadbw(a&0xffffffff, b) << (i & 3 * 16)
	}
	*d = r
	return next
}
