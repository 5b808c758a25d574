package soft

import (
	"encoding/binary"
	"math/rand/v2"
)

// hostileCode makes code that is mostly instructions, and of these more of the odd ones.
type hostileCode struct{ *rand.Rand }

func (h hostileCode) pick(list ...byte) byte { return list[h.IntN(len(list))] }

func (h hostileCode) bytes(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(h.Uint32())
	}
	return p
}

// value is a number at which something may go wrong.
func (h hostileCode) value() uint64 {
	switch h.IntN(12) {
	case 0:
		return h.Uint64()
	case 1:
		return uint64(h.IntN(256))
	case 2:
		return uint64(int64(-h.IntN(64)))
	case 3:
		return 1<<47 - uint64(h.IntN(32))
	case 4:
		return 0xffff800000000000 + uint64(h.IntN(32))
	case 5:
		return 1<<32 - uint64(h.IntN(64))
	case 6:
		return 0xfee00000 + uint64(h.IntN(0x400))&^uint64(h.IntN(16))
	case 7:
		return 0xfec00000 + uint64(h.IntN(0x20))
	case 8:
		return hostileSize - uint64(h.IntN(64))
	case 9:
		return uint64(h.IntN(hostileSize/pageSize+1))*pageSize - uint64(h.IntN(64))
	}
	return uint64(h.IntN(hostileSize))
}

// msr is the index of an MSR.
func (h hostileCode) msr() uint32 {
	switch h.IntN(8) {
	case 0:
		return h.Uint32()
	case 1:
		return savedMSRs[h.IntN(len(savedMSRs))]
	case 2, 3:
		return 0x800 + h.Uint32N(0x40)
	case 4:
		return msrTSCDeadline
	case 5:
		return msrAPICBase
	case 6:
		return msrEFER
	}
	return h.Uint32N(0x800)
}

// modrm is ModRM with what follows it.
func (h hostileCode) modrm(p []byte, reg byte) []byte {
	mod := h.pick(0, 0, 1, 2, 3)
	rm := byte(h.IntN(8))
	p = append(p, mod<<6|reg&7<<3|rm)
	return append(p, h.bytes(h.IntN(6))...)
}

// prefixes are up to four of them, seldom more.
func (h hostileCode) prefixes(p []byte) []byte {
	n := max(h.IntN(8)-4, 0)
	if h.IntN(200) == 0 {
		n = 15
	}
	for range n {
		p = append(p, h.pick(0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x66, 0x67, 0x67, 0xf0, 0xf2, 0xf3, 0xf3))
	}
	if h.IntN(3) == 0 {
		p = append(p, 0x40|byte(h.IntN(16)))
	}
	return p
}

func (h hostileCode) imm32(op byte) []byte {
	return binary.LittleEndian.AppendUint32([]byte{op}, uint32(h.value()))
}

// instruction appends an instruction, or a few that go together.
func (h hostileCode) instruction(p []byte) []byte {
	switch h.IntN(20) {
	case 0:
		return append(p, h.bytes(1+h.IntN(15))...)
	case 1, 2, 3, 4:
		return h.modrm(append(h.prefixes(p), byte(h.Uint32())), byte(h.Uint32()))
	case 5, 6, 7:
		return h.modrm(append(h.prefixes(p), 0x0f, byte(h.Uint32())), byte(h.Uint32()))
	case 8:
		return h.modrm(append(h.prefixes(p), 0x0f, h.pick(0x38, 0x3a), byte(h.Uint32())), byte(h.Uint32()))
	case 9:
		if h.IntN(2) == 0 {
			return h.modrm(append(p, 0xc5, byte(h.Uint32()), byte(h.Uint32())), byte(h.Uint32()))
		}
		return h.modrm(append(p, 0xc4, byte(h.Uint32())&0xe3, byte(h.Uint32()), byte(h.Uint32())), byte(h.Uint32()))
	case 10: // x87
		return h.modrm(append(h.prefixes(p), 0xd8+byte(h.IntN(8))), byte(h.Uint32()))
	case 11: // an MSR
		p = binary.LittleEndian.AppendUint32(append(p, 0xb9), h.msr())
		p = append(p, h.imm32(0xb8)...)
		if h.IntN(2) == 0 {
			p = append(p, 0x31, 0xd2)
		}
		return append(p, 0x0f, h.pick(0x30, 0x30, 0x32))
	case 12: // MOV to or from a control or debug register
		reg := byte(h.IntN(8))
		if h.IntN(3) == 0 {
			p = append(p, 0x44)
		}
		if h.IntN(2) == 0 { // change one bit
			bit := byte(h.IntN(32))
			return append(p, 0x0f, 0x20, 0xc0|reg<<3, 0x0f, 0xba, 0xf8, bit, 0x0f, 0x22, 0xc0|reg<<3)
		}
		return append(p, 0x0f, h.pick(0x20, 0x21, 0x22, 0x23), 0xc0|reg<<3|byte(h.IntN(8)))
	case 13: // a string instruction
		p = append(p, h.imm32(0xb9)...)
		if h.IntN(4) == 0 {
			p = append(p, h.pick(0xfc, 0xfd))
		}
		p = append(h.prefixes(p), h.pick(0xf2, 0xf3))
		return append(p, h.pick(0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf, 0x6c, 0x6d, 0x6e, 0x6f))
	case 14: // a far transfer
		switch h.IntN(5) {
		case 0:
			return append(append(p, h.imm32(0xea)...), byte(8*h.IntN(32)), 0)
		case 1:
			return append(h.prefixes(p), h.pick(0xcb, 0xca, 0xcf, 0xcc, 0xce, 0xf1), byte(h.IntN(64)), 0)
		case 2:
			return append(h.prefixes(p), 0xcd, byte(h.Uint32()))
		case 3:
			return h.modrm(append(h.prefixes(p), 0xff), h.pick(2, 3, 4, 5, 6))
		}
		return append(h.prefixes(p), 0x0f, h.pick(0x05, 0x07, 0x34, 0x35))
	case 15: // descriptor tables, VERR, LMSW, INVLPG, SWAPGS and their like
		return h.modrm(append(h.prefixes(p), 0x0f, h.pick(0, 1, 1, 2, 3)), byte(h.Uint32()))
	case 16: // extended state
		return h.modrm(append(h.prefixes(p), 0x0f, 0xae), byte(h.Uint32()))
	case 17: // flags, segments, ENTER, HLT, ports
		switch h.IntN(6) {
		case 0:
			return append(h.prefixes(p), h.pick(0x9c, 0x9d, 0xfa, 0xfb, 0x9e, 0x9f, 0x17, 0x1f, 0x07))
		case 1:
			return h.modrm(append(h.prefixes(p), 0x8e), byte(h.IntN(6)))
		case 2:
			return append(h.prefixes(p), 0xc8, byte(h.Uint32()), byte(h.IntN(2)), byte(h.IntN(32)))
		case 3:
			return append(p, h.pick(0xfb, 0x90, 0xf3), h.pick(0xf4, 0x90))
		case 4:
			return append(h.prefixes(p), h.pick(0xe4, 0xe5, 0xe6, 0xe7), h.pick(0x20, 0x21, 0x40, 0x43, 0x61, 0x70, 0xa0, 0xa1, 0xcf, byte(h.Uint32())))
		}
		return append(h.prefixes(p), h.pick(0xec, 0xed, 0xee, 0xef))
	case 18: // a register gets an interesting value
		r := byte(h.IntN(8))
		if h.IntN(2) == 0 {
			return binary.LittleEndian.AppendUint64(append(p, 0x48|byte(h.IntN(2)), 0xb8|r), h.value())
		}
		return append(p, h.imm32(0xb8|r)...)
	}
	// near branches, of which many go back
	switch h.IntN(4) {
	case 0:
		return append(p, 0x70|byte(h.IntN(16)), byte(h.IntN(64)-32))
	case 1:
		return append(p, h.pick(0xe0, 0xe1, 0xe2, 0xe3, 0xeb), byte(h.IntN(64)-32))
	case 2:
		return binary.LittleEndian.AppendUint32(append(p, h.pick(0xe8, 0xe9)), uint32(h.IntN(1<<17)-1<<16))
	}
	return append(p, 0xc3)
}

// fill fills p with code.
func (h hostileCode) fill(p []byte) {
	var b []byte
	for len(b) < len(p) {
		b = h.instruction(b)
	}
	copy(p, b)
}
