package soft

// Arithmetic on the lanes of a 64-bit word at once. In the names, a lane's size in
// bits; in the parameters, h has the highest bit of each lane set, and n is the lane's
// size less one. Callers pass constants, so that all of it folds.

const (
	high8  = 0x8080808080808080
	high16 = 0x8000800080008000
	high32 = 0x8000000080000000
	low8   = 0x0101010101010101
)

// addLanes adds lane by lane.
func addLanes(a, b, h uint64) uint64 { return (a&^h + b&^h) ^ (a^b)&h }

// subLanes subtracts lane by lane.
func subLanes(a, b, h uint64) uint64 { return (a | h - b&^h) ^ (a^^b)&h }

// spread fills each lane whose highest bit is set in m, which has no other bits.
func spread(m uint64, n uint) uint64 { return m | (m - m>>n) }

// below has all bits of the lanes set in which a < b, unsigned.
func below(a, b, h uint64, n uint) uint64 {
	return spread((^a&b|(^a|b)&subLanes(a, b, h))&h, n)
}

// equal has all bits of the lanes set in which a == b.
func equalLanes(a, b, h uint64, n uint) uint64 {
	x := a ^ b
	return spread(^(x&^h+^h|x)&h, n)
}

// pick takes a where mask is set, else b.
func pick(mask, a, b uint64) uint64 { return b ^ (a^b)&mask }

// The operations of integers, by half of a register.

func padd16(a, b uint64) uint64 { return addLanes(a, b, high16) }
func padd32(a, b uint64) uint64 { return addLanes(a, b, high32) }
func psub16(a, b uint64) uint64 { return subLanes(a, b, high16) }
func psub32(a, b uint64) uint64 { return subLanes(a, b, high32) }

func paddus(a, b, h uint64, n uint) uint64 {
	s := addLanes(a, b, h)
	return s | spread((a&b|(a|b)&^s)&h, n)
}

func psubus(a, b, h uint64, n uint) uint64 { return subLanes(a, b, h) &^ below(a, b, h, n) }

// saturate is what a signed lane becomes beyond the range, by the sign of a.
func saturate(a, h uint64, n uint) uint64 { return ^h + a&h>>n }

func padds(a, b, h uint64, n uint) uint64 {
	s := addLanes(a, b, h)
	return pick(spread(^(a^b)&(a^s)&h, n), saturate(a, h, n), s)
}

func psubs(a, b, h uint64, n uint) uint64 {
	s := subLanes(a, b, h)
	return pick(spread((a^b)&(a^s)&h, n), saturate(a, h, n), s)
}

func paddus8(a, b uint64) uint64  { return paddus(a, b, high8, 7) }
func paddus16(a, b uint64) uint64 { return paddus(a, b, high16, 15) }
func psubus16(a, b uint64) uint64 { return psubus(a, b, high16, 15) }
func padds8(a, b uint64) uint64   { return padds(a, b, high8, 7) }
func padds16(a, b uint64) uint64  { return padds(a, b, high16, 15) }
func psubs8(a, b uint64) uint64   { return psubs(a, b, high8, 7) }
func psubs16(a, b uint64) uint64  { return psubs(a, b, high16, 15) }

func pcmpeq16(a, b uint64) uint64 { return equalLanes(a, b, high16, 15) }
func pcmpeq64(a, b uint64) uint64 { return -bit(a == b) }
func pcmpgt8(a, b uint64) uint64  { return below(b^high8, a^high8, high8, 7) }
func pcmpgt16(a, b uint64) uint64 { return below(b^high16, a^high16, high16, 15) }
func pcmpgt32(a, b uint64) uint64 { return below(b^high32, a^high32, high32, 31) }
func pcmpgt64(a, b uint64) uint64 { return -bit(int64(a) > int64(b)) }

func pminu16(a, b uint64) uint64 { return pick(below(a, b, high16, 15), a, b) }
func pminu32(a, b uint64) uint64 { return pick(below(a, b, high32, 31), a, b) }
func pmaxu8(a, b uint64) uint64  { return pick(below(a, b, high8, 7), b, a) }
func pmaxu16(a, b uint64) uint64 { return pick(below(a, b, high16, 15), b, a) }
func pmaxu32(a, b uint64) uint64 { return pick(below(a, b, high32, 31), b, a) }
func pmins8(a, b uint64) uint64  { return pick(pcmpgt8(b, a), a, b) }
func pmins16(a, b uint64) uint64 { return pick(pcmpgt16(b, a), a, b) }
func pmins32(a, b uint64) uint64 { return pick(pcmpgt32(b, a), a, b) }
func pmaxs8(a, b uint64) uint64  { return pick(pcmpgt8(a, b), a, b) }
func pmaxs16(a, b uint64) uint64 { return pick(pcmpgt16(a, b), a, b) }
func pmaxs32(a, b uint64) uint64 { return pick(pcmpgt32(a, b), a, b) }

// pavg rounds half up.
func pavg8(a, b uint64) uint64  { return (a | b) - (a^b)>>1&^high8 }
func pavg16(a, b uint64) uint64 { return (a | b) - (a^b)>>1&^high16 }

// pabs and psign take the operand from b, as the instructions do.
func pabs(b, h uint64, n uint) uint64 {
	m := spread(b&h, n)
	return subLanes(b^m, m, h)
}

func pabs8(_, b uint64) uint64  { return pabs(b, high8, 7) }
func pabs16(_, b uint64) uint64 { return pabs(b, high16, 15) }
func pabs32(_, b uint64) uint64 { return pabs(b, high32, 31) }

func psign(a, b, h uint64, n uint) uint64 {
	m := spread(b&h, n)
	return subLanes(a^m, m, h) &^ equalLanes(b, 0, h, n)
}

func psign8(a, b uint64) uint64  { return psign(a, b, high8, 7) }
func psign16(a, b uint64) uint64 { return psign(a, b, high16, 15) }
func psign32(a, b uint64) uint64 { return psign(a, b, high32, 31) }

// Products, lane by lane.

func pmullw(a, b uint64) (r uint64) {
	for i := 0; i < 64; i += 16 {
		r |= uint64(uint16(a>>i)*uint16(b>>i)) << i
	}
	return r
}

func pmulhw(a, b uint64) (r uint64) {
	for i := 0; i < 64; i += 16 {
		r |= uint64(uint16(int32(int16(a>>i))*int32(int16(b>>i))>>16)) << i
	}
	return r
}

func pmulhuw(a, b uint64) (r uint64) {
	for i := 0; i < 64; i += 16 {
		r |= a >> i & 0xffff * (b >> i & 0xffff) >> 16 << i
	}
	return r
}

func pmulhrsw(a, b uint64) (r uint64) {
	for i := 0; i < 64; i += 16 {
		p := int32(int16(a>>i)) * int32(int16(b>>i))
		r |= uint64(uint16((p>>14+1)>>1)) << i
	}
	return r
}

func pmulld(a, b uint64) uint64 {
	return uint64(uint32(a)*uint32(b)) | uint64(uint32(a>>32)*uint32(b>>32))<<32
}

func pmuludq(a, b uint64) uint64 { return uint64(uint32(a)) * uint64(uint32(b)) }
func pmuldq(a, b uint64) uint64  { return uint64(int64(int32(a)) * int64(int32(b))) }

func pmaddwd(a, b uint64) uint64 {
	lo := int32(int16(a))*int32(int16(b)) + int32(int16(a>>16))*int32(int16(b>>16))
	hi := int32(int16(a>>32))*int32(int16(b>>32)) + int32(int16(a>>48))*int32(int16(b>>48))
	return uint64(uint32(lo)) | uint64(uint32(hi))<<32
}

// pmaddubsw multiplies unsigned bytes of a by signed ones of b.
func pmaddubsw(a, b uint64) (r uint64) {
	for i := 0; i < 64; i += 16 {
		p := int32(uint8(a>>i))*int32(int8(b>>i)) + int32(uint8(a>>(i+8)))*int32(int8(b>>(i+8)))
		r |= clamp(p, -1<<15, 1<<15-1) & 0xffff << i
	}
	return r
}

// clamp cuts v to a range.
func clamp(v, lo, hi int32) uint64 { return uint64(max(lo, min(v, hi))) }

// psadbw is the sum of absolute differences of bytes.
func psadbw(a, b uint64) uint64 {
	m := below(a, b, high8, 7)
	d := subLanes(a, b, high8)
	d = subLanes(d^m, m, high8)
	d = d&0x00ff00ff00ff00ff + d>>8&0x00ff00ff00ff00ff
	return d * 0x0001000100010001 >> 48
}
