package float

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// rounds returns how many operands a test draws: n, times VMKIT_FLOAT_ROUNDS if
// that is set.
func rounds(t testing.TB, n int) int {
	s := os.Getenv("VMKIT_FLOAT_ROUNDS")
	if s == "" {
		return n
	}
	k, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("VMKIT_FLOAT_ROUNDS: %v", err)
	}
	return k * n
}

// source draws operands, interesting ones more often than others.
type source struct{ *rand.Rand }

func newSource(t testing.TB) source {
	seed := uint64(1)
	if s := os.Getenv("VMKIT_FLOAT_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatalf("VMKIT_FLOAT_SEED: %v", err)
		}
		seed = v
	}
	return source{newRand(seed)}
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 2)) }

// Exponents of F80 around which something changes in F80, float64, float32 or
// an integer.
var exponents = []int{0, 1, 2, 64, 0x3FFF - 1074, 0x3FFF - 1022, 0x3FFF - 149, 0x3FFF - 126, 0x3FFF - 64,
	0x3FFF - 1, 0x3FFF, 0x3FFF + 1, 0x3FFF + 15, 0x3FFF + 31, 0x3FFF + 60, 0x3FFF + 63, 0x3FFF + 64, 0x3FFF + 127,
	0x3FFF + 1023, 0x7FFE, 0x7FFF}

// mant draws a significand of the given number of bits, right-justified.
func (s source) mant(size uint) uint64 {
	all := uint64(1)<<size - 1
	if size == 64 {
		all = ^uint64(0)
	}
	switch s.IntN(8) {
	case 0:
		return 0
	case 1:
		return all
	case 2:
		return 1 << s.UintN(size) & all
	case 3:
		return (all << s.UintN(size)) & all
	case 4:
		return all >> s.UintN(size)
	case 5: // few bits, at the points where F80 is rounded
		m := uint64(0)
		for range 1 + s.IntN(4) {
			p := [...]uint{0, 1, 9, 10, 11, 12, 38, 39, 40, 41, 61, 62, 63}[s.IntN(13)]
			m ^= 1 << p
		}
		return m & all
	case 6:
		return uint64(s.IntN(200)) & all
	}
	return s.Uint64() & all
}

// f80 draws any encoding. near, if not nil, is often close in exponent.
func (s source) f80(near *F80) F80 {
	x := F80{s.mant(64), uint16(s.Uint32())}
	switch s.IntN(8) {
	case 0, 1, 2:
		x.SE = uint16(exponents[s.IntN(len(exponents))]+s.IntN(7)-3)&0x7FFF | x.SE&0x8000
	case 3, 4, 5:
		if near != nil {
			x.SE = (near.SE+uint16(s.IntN(140)-70))&0x7FFF | x.SE&0x8000
		} else {
			x.SE = 0x3FFF + uint16(s.IntN(140)-70) | x.SE&0x8000
		}
		if s.IntN(8) == 0 && near != nil {
			x.Mant = near.Mant + uint64(s.IntN(3)) - 1
		}
	}
	if x.SE&0x7FFF != 0 && s.IntN(16) != 0 {
		x.Mant |= jbit
	}
	return x
}

// ieee draws the bits of a float32 or float64.
func (s source) ieee(f *format, near *uint64) uint64 {
	frac := s.mant(f.prec - 1)
	exp := s.IntN(int(2*f.bias) + 2)
	switch s.IntN(8) {
	case 0, 1, 2:
		e := [...]int{0, 1, int(f.prec), int(f.bias) - 1, int(f.bias), int(f.bias) + 31, int(f.bias) + 52, int(f.bias) + 62, int(2*f.bias) + 1}
		exp = e[s.IntN(len(e))] + s.IntN(5) - 2
	case 3, 4, 5:
		exp = int(f.bias) + s.IntN(130) - 65
		if near != nil {
			exp = int(*near>>(f.prec-1)) + s.IntN(130) - 65
		}
		if s.IntN(8) == 0 && near != nil {
			frac = *near + uint64(s.IntN(3)) - 1
		}
	}
	frac &= 1<<(f.prec-1) - 1
	return f.sign(s.IntN(2) == 0) | uint64(exp)&uint64(2*f.bias+1)<<(f.prec-1) | frac
}

// cw draws an x87 control word: any rounding and precision, and all masks set or
// any of them.
func (s source) cw() uint16 {
	cw := uint16(s.IntN(4))<<10 | uint16(s.IntN(4))<<8 | 0x7F
	if s.IntN(2) == 0 {
		cw &^= uint16(s.IntN(64))
	}
	return cw
}

// memFor draws a memory operand for an instruction by its name.
func (s source) memFor(name string) (m [16]byte) {
	binary.LittleEndian.PutUint64(m[8:], s.Uint64())
	v := s.ieee(&binary64, nil)
	switch {
	case name == "FBLD":
		for i := range m {
			m[i] = byte(s.IntN(10) | s.IntN(10)<<4)
		}
		if s.IntN(8) == 0 {
			clear(m[:9])
		}
		return m
	case name[:2] == "FI":
		v = s.mant(64)
	case name[len(name)-2:] == "32":
		v = s.ieee(&binary32, nil)
	}
	binary.LittleEndian.PutUint64(m[:], v)
	return m
}

// mxcsr draws a register: half of them round to nearest, some with PE set,
// some with DAZ or FTZ. All exceptions are masked.
func (s source) mxcsr() MXCSR {
	m := DefaultMXCSR
	if s.IntN(2) == 0 {
		m |= MXCSR(s.IntN(4)) << rcShift
	}
	if s.IntN(2) == 0 {
		m |= PE
	}
	if s.IntN(4) == 0 {
		m |= daz
	}
	if s.IntN(4) == 0 {
		m |= ftz
	}
	return m
}
