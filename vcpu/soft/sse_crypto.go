package soft

import "math/bits"

// AES rounds and carry-less multiplication (Intel SDM volume 1, section 12.13; FIPS
// 197). A state's bytes are in the order of memory, four to a column.

var vectorCrypto38 = []vector{
	{pp: pp66, op: 0xdb, lower: lowerXX, fn: aesIMC},
	{pp: pp66, op: 0xdc, lower: lowerXX, fn: aesEnc},
	{pp: pp66, op: 0xdd, lower: lowerXX, fn: aesEncLast},
	{pp: pp66, op: 0xde, lower: lowerXX, fn: aesDec},
	{pp: pp66, op: 0xdf, lower: lowerXX, fn: aesDecLast},
}

var vectorCrypto3A = []vector{
	{pp: pp66, op: 0x44, lower: lowerXX, fn: pclmulqdq},
	{pp: pp66, op: 0xdf, lower: lowerXX, fn: aesKeyGenAssist},
}

// The S-box and its inverse.
var aesSBox, aesInverse = makeSBox()

// makeSBox walks through the field's elements by their powers of 3, and the inverses
// by those of 1/3.
func makeSBox() (box, inverse [256]byte) {
	p, q := byte(1), byte(1)
	for {
		p ^= p<<1 ^ p>>7*0x1b
		q ^= q << 1
		q ^= q << 2
		q ^= q << 4
		q ^= q >> 7 * 0x09
		s := q ^ bits.RotateLeft8(q, 1) ^ bits.RotateLeft8(q, 2) ^ bits.RotateLeft8(q, 3) ^ bits.RotateLeft8(q, 4) ^ 0x63
		box[p], inverse[s] = s, p
		if p == 1 {
			break
		}
	}
	box[0], inverse[0x63] = 0x63, 0
	return box, inverse
}

// substitute maps the bytes and moves row r by r columns, times step.
func substitute(v *xmm, box *[256]byte, step int) (r xmm) {
	for i := range 16 {
		from := (i + i&3*4*step) & 15
		r[i>>3] |= uint64(box[byte(v[from>>3]>>(from&7*8))]) << (i & 7 * 8)
	}
	return r
}

// double multiplies each byte by two in the field.
func double(v uint64) uint64 { return v&^high8<<1 ^ v&high8>>7*0x1b }

// rotate moves each column's bytes up by n bits.
func rotate(v uint64, n uint) uint64 {
	return uint64(bits.RotateLeft32(uint32(v), -int(n))) | uint64(bits.RotateLeft32(uint32(v>>32), -int(n)))<<32
}

func mixColumns(v uint64) uint64 {
	r := rotate(v, 8)
	return double(v^r) ^ r ^ rotate(v, 16) ^ rotate(v, 24)
}

func unmixColumns(v uint64) uint64 { return mixColumns(v ^ double(double(v^rotate(v, 16)))) }

func aesEnc(c *CPU, u *uop) stop {
	d, k := c.x(u.d), c.x(u.s)
	v := substitute(d, &aesSBox, 1)
	*d = xmm{mixColumns(v[0]) ^ k[0], mixColumns(v[1]) ^ k[1]}
	return next
}

func aesEncLast(c *CPU, u *uop) stop {
	d, k := c.x(u.d), c.x(u.s)
	v := substitute(d, &aesSBox, 1)
	*d = xmm{v[0] ^ k[0], v[1] ^ k[1]}
	return next
}

func aesDec(c *CPU, u *uop) stop {
	d, k := c.x(u.d), c.x(u.s)
	v := substitute(d, &aesInverse, -1)
	*d = xmm{unmixColumns(v[0]) ^ k[0], unmixColumns(v[1]) ^ k[1]}
	return next
}

func aesDecLast(c *CPU, u *uop) stop {
	d, k := c.x(u.d), c.x(u.s)
	v := substitute(d, &aesInverse, -1)
	*d = xmm{v[0] ^ k[0], v[1] ^ k[1]}
	return next
}

func aesIMC(c *CPU, u *uop) stop {
	s := c.x(u.s)
	*c.x(u.d) = xmm{unmixColumns(s[0]), unmixColumns(s[1])}
	return next
}

func aesKeyGenAssist(c *CPU, u *uop) stop {
	s := c.x(u.s)
	var r xmm
	for i, v := range s {
		var w uint32
		for j := 0; j < 32; j += 8 {
			w |= uint32(aesSBox[byte(v>>(32+j))]) << j
		}
		r[i] = uint64(w) | uint64(bits.RotateLeft32(w, -8)^uint32(uint8(u.imm)))<<32
	}
	*c.x(u.d) = r
	return next
}

// pclmulqdq multiplies a half of each operand without carries.
func pclmulqdq(c *CPU, u *uop) stop {
	d := c.x(u.d)
	a, b := d[u.imm&1], c.x(u.s)[u.imm>>4&1]
	var lo, hi uint64
	for ; b != 0; b &= b - 1 {
		n := bits.TrailingZeros64(b)
		lo ^= a << n
		hi ^= a >> (64 - n)
	}
	*d = xmm{lo, hi}
	return next
}
