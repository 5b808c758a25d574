package soft

import (
	"hash/crc32"
	"math/bits"

	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

// What came with SSE but does without its registers: fences, cache control, MXCSR,
// CRC32 and POPCNT.

// registerSSE enters the instructions of SSE and MMX.
func registerSSE() {
	registerVectors(decode.Map0F, join(vectorMoves, packedOps(vectorInts[:]), vectorLogic,
		vectorShuffles, vectorShifts, mmxMoves, vectorFloats, vectorConversions))
	registerVectors(decode.Map0F38, join(packedOps(vectorInts38[:]), vectorInts41, vectorShuffles38, vectorCrypto38))
	registerVectors(decode.Map0F3A, join(vectorShuffles3A, vectorStrings, vectorCrypto3A, vectorFloats3A))
	for op := 0x18; op <= 0x1f; op++ {
		also(&lower0F[op], lowerNop) // PREFETCHh; the rest are NOPs
	}
	also(&lower0F[0x0d], lowerPrefetchW)
	also(&lower0F[0xae], lowerGroup15)
	also(&lower0F[0xb8], lowerPopcnt)
	also(&lower0F38[0xf0], lowerCRC32)
	also(&lower0F38[0xf1], lowerCRC32)
}

// lowerNop is for hints, whose operand is not accessed.
func lowerNop(l *lowerer) bool {
	l.emit(kindNop)
	return true
}

// lowerPrefetchW is PREFETCH and PREFETCHW.
func lowerPrefetchW(l *lowerer) bool { return l.in.Mem && lowerNop(l) }

// lowerGroup15 is what of the group 15 is SSE's. CPUs take turns, and see the same
// memory at any time: fences do nothing, and there is no cache to flush.
func lowerGroup15(l *lowerer) bool {
	reg := l.in.Reg & 7
	switch pp := l.prefix(); {
	case !l.in.Mem:
		return pp == ppNone && reg >= 5 && lowerNop(l) // LFENCE, MFENCE, SFENCE
	case reg == 7 && (pp == ppNone || pp == pp66), reg == 6 && pp == pp66: // CLFLUSH, CLFLUSHOPT, CLWB
		u := l.call((*CPU).flushLine).at(l.mem())
		u.size = 1
		return true
	case pp != ppNone:
		return false
	case reg == 2:
		l.sse()
		l.load(regT0, 4, l.mem())
		l.call((*CPU).loadMXCSR)
		return true
	case reg == 3:
		l.sse()
		l.call((*CPU).storeMXCSR).at(l.mem())
		return true
	}
	return false
}

// flushLine faults as a read does.
func (c *CPU) flushLine(u *uop) stop {
	return c.check(c.space, u.ss, c.addr(u), accessRead)
}

// mxcsrMask has the bits of MXCSR that exist; setting another one is #GP.
const mxcsrMask = 0xffff

func (c *CPU) loadMXCSR(*uop) stop {
	v := uint32(c.r[regT0])
	if v&^mxcsrMask != 0 {
		return c.gp()
	}
	c.mxcsr = v
	return next
}

func (c *CPU) storeMXCSR(u *uop) stop { return c.write(u, c.addr(u), 4, uint64(c.mxcsr)) }

// operandRM makes the operand in ModRM.rm, of size bytes, a general register, which
// for bytes may have to be shifted right by 8 (AH to BH).
func (l *lowerer) operandRM(size uint8) (reg, shift uint8) {
	switch {
	case l.in.Mem:
		l.load(regT0, size, l.mem())
		return regT0, 0
	case size == 1 && l.in.REX == 0 && l.in.RM >= 4:
		return l.in.RM - 4, 8
	}
	return l.in.RM, 0
}

func lowerPopcnt(l *lowerer) bool {
	if l.prefix() != ppF3 {
		return false
	}
	s, _ := l.operandRM(l.in.OpSize)
	u := l.call((*CPU).popcnt)
	u.d, u.s, u.size = l.in.Reg, s, l.in.OpSize
	return true
}

func (c *CPU) popcnt(u *uop) stop {
	n := uint64(bits.OnesCount64(c.r[u.s&31] & maskOf(u.size)))
	if u.size == 2 {
		c.r[u.d&31] = c.r[u.d&31]&^0xffff | n
	} else {
		c.r[u.d&31] = n
	}
	c.setArith(bit(n == 0) << 6)
	return next
}

// lowerCRC32 is CRC32 of a byte (F0) or of the operand size (F1).
func lowerCRC32(l *lowerer) bool {
	if l.prefix() != ppF2 {
		return false
	}
	size := uint8(1)
	if l.in.Op == 0xf1 {
		size = l.in.OpSize
	}
	s, shift := l.operandRM(size)
	u := l.call((*CPU).crc32)
	u.d, u.s, u.size, u.cc = l.in.Reg, s, size, shift
	return true
}

func (c *CPU) crc32(u *uop) stop {
	v := c.r[u.s&31] >> (u.cc & 63)
	crc := uint32(c.r[u.d&31])
	for range u.size {
		crc = crc>>8 ^ castagnoli[uint8(crc)^uint8(v)]
		v >>= 8
	}
	c.r[u.d&31] = uint64(crc)
	return next
}

// castagnoli is the table of the polynomial 0x11edc6f41, bits reversed.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)
