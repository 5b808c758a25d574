package soft

import (
	"hash/crc32"
	"math/bits"

	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

// What came with SSE but does without its registers: fences, flushes, MXCSR, CRC32 and
// POPCNT.

// registerSSE enters the instructions of SSE and MMX.
func registerSSE() {
	registerVectors(decode.Map0F, join(vectorMoves, packedOps(vectorInts[:]), vectorLogic,
		vectorShuffles, vectorShifts, mmxMoves, vectorFloats, vectorConversions))
	registerVectors(decode.Map0F38, join(packedOps(vectorInts38[:]), vectorInts41, vectorShuffles38, vectorCrypto38))
	registerVectors(decode.Map0F3A, join(vectorShuffles3A, vectorStrings, vectorCrypto3A, vectorFloats3A))
	also(&lower0F[0xae], lowerGroup15)
	also(&lower0F[0xb8], lowerPopcnt)
}

// lowerGroup15 is what of the group 15 is SSE's. CPUs take turns, and see the same
// memory at any time: fences do nothing, and there is no cache to flush.
func lowerGroup15(l *lowerer) bool {
	reg := l.in.Reg & 7
	switch pp := l.prefix(); {
	case !l.in.Mem:
		if pp != ppNone || reg < 5 {
			return false
		}
		l.emit(kindNop) // LFENCE, MFENCE, SFENCE
		return true
	case reg == 7 && (pp == ppNone || pp == pp66), reg == 6 && pp == pp66: // CLFLUSH, CLFLUSHOPT, CLWB
		o := l.mem()
		u := l.call((*CPU).flushLine).at(o)
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
		o := l.mem()
		l.call((*CPU).storeMXCSR).at(o)
		return true
	}
	return false
}

// flushLine faults as a read does.
func (c *CPU) flushLine(u *uop) stop {
	return c.check(c.space, u.ss, c.addr(u), accessRead)
}

// loadMXCSR takes MXCSR from regT0. Bits that do not exist are #GP.
func (c *CPU) loadMXCSR(*uop) stop {
	v := uint32(c.r[regT0])
	if v&^mxcsrValid != 0 {
		return c.gp()
	}
	c.mxcsr = v
	return next
}

func (c *CPU) storeMXCSR(u *uop) stop { return c.write(u, c.addr(u), 4, uint64(c.mxcsr)) }

func lowerPopcnt(l *lowerer) bool {
	if l.prefix() != ppF3 {
		return false
	}
	s := l.source(l.in.OpSize)
	u := l.call((*CPU).popcnt)
	u.d, u.s, u.size = l.in.Reg, s, l.in.OpSize
	return true
}

func (c *CPU) popcnt(u *uop) stop {
	n := uint64(bits.OnesCount64(c.get(u.s, u.size)))
	c.set(u.d, u.size, n)
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
	s := l.source(size)
	u := l.call((*CPU).crc32)
	u.d, u.s, u.size = l.in.Reg, s, size
	return true
}

func (c *CPU) crc32(u *uop) stop {
	v := c.get(u.s, u.size)
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
