package float

import (
	"fmt"
	"math"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu/soft/float/hardware"
)

// sseCase does in software what an SSE instruction does to the lowest element
// of a and b, or to the integer v. It returns the element, the integer or the
// flags ZF, PF and CF.
type sseCase struct {
	name string
	from *format // of the operands, nil for v
	out  byte    // 'd', 's' for floats; 'q', 'l' for integers in RAX, 'L' in XMM0; 'f' for flags
	soft func(m *MXCSR, a, b uint64, v int64) uint64
}

func sseCases() []sseCase {
	var cases []sseCase
	two := func(name string, f64 func(m *MXCSR, a, b uint64) uint64, f32 func(m *MXCSR, a, b uint32) uint32) {
		cases = append(cases,
			sseCase{name + "SD", &binary64, 'd', func(m *MXCSR, a, b uint64, _ int64) uint64 { return f64(m, a, b) }},
			sseCase{name + "SS", &binary32, 's', func(m *MXCSR, a, b uint64, _ int64) uint64 { return uint64(f32(m, uint32(a), uint32(b))) }})
	}
	two("ADD", (*MXCSR).Add64, (*MXCSR).Add32)
	two("SUB", (*MXCSR).Sub64, (*MXCSR).Sub32)
	two("MUL", (*MXCSR).Mul64, (*MXCSR).Mul32)
	two("DIV", (*MXCSR).Div64, (*MXCSR).Div32)
	two("MIN", (*MXCSR).Min64, (*MXCSR).Min32)
	two("MAX", (*MXCSR).Max64, (*MXCSR).Max32)
	two("SQRT", func(m *MXCSR, _, b uint64) uint64 { return m.Sqrt64(b) }, func(m *MXCSR, _, b uint32) uint32 { return m.Sqrt32(b) })
	for i, p := range []string{"EQ", "LT", "LE", "UNORD", "NEQ", "NLT", "NLE", "ORD"} {
		two("CMP"+p, func(m *MXCSR, a, b uint64) uint64 {
			if m.Cmp64(a, b, uint8(i)) {
				return math.MaxUint64
			}
			return 0
		}, func(m *MXCSR, a, b uint32) uint32 {
			if m.Cmp32(a, b, uint8(i)) {
				return math.MaxUint32
			}
			return 0
		})
	}
	for imm := range uint8(16) {
		cases = append(cases,
			sseCase{fmt.Sprint("ROUNDSD", imm), &binary64, 'd', func(m *MXCSR, a, _ uint64, _ int64) uint64 { return m.RoundInt64(a, imm) }},
			sseCase{fmt.Sprint("ROUNDSS", imm), &binary32, 's', func(m *MXCSR, a, _ uint64, _ int64) uint64 {
				return uint64(m.RoundInt32(uint32(a), imm))
			}})
	}
	for _, trunc := range []bool{false, true} {
		t := map[bool]string{true: "T"}[trunc]
		f64l := func(m *MXCSR, a, _ uint64, _ int64) uint64 { return uint64(uint32(m.Float64ToInt32(a, trunc))) }
		f32l := func(m *MXCSR, a, _ uint64, _ int64) uint64 { return uint64(uint32(m.Float32ToInt32(uint32(a), trunc))) }
		cases = append(cases,
			sseCase{"CVT" + t + "SD2SI32", &binary64, 'l', f64l}, sseCase{"CVT" + t + "PD2DQ", &binary64, 'L', f64l},
			sseCase{"CVT" + t + "SS2SI32", &binary32, 'l', f32l}, sseCase{"CVT" + t + "PS2DQ", &binary32, 'L', f32l},
			sseCase{"CVT" + t + "SD2SI64", &binary64, 'q', func(m *MXCSR, a, _ uint64, _ int64) uint64 { return uint64(m.Float64ToInt64(a, trunc)) }},
			sseCase{"CVT" + t + "SS2SI64", &binary32, 'q', func(m *MXCSR, a, _ uint64, _ int64) uint64 {
				return uint64(m.Float32ToInt64(uint32(a), trunc))
			}})
	}
	return append(cases,
		sseCase{"CVTSI2SD32", nil, 'd', func(m *MXCSR, _, _ uint64, v int64) uint64 { return m.IntToFloat64(int64(int32(v))) }},
		sseCase{"CVTSI2SD64", nil, 'd', func(m *MXCSR, _, _ uint64, v int64) uint64 { return m.IntToFloat64(v) }},
		sseCase{"CVTSI2SS32", nil, 's', func(m *MXCSR, _, _ uint64, v int64) uint64 { return uint64(m.IntToFloat32(int64(int32(v)))) }},
		sseCase{"CVTSI2SS64", nil, 's', func(m *MXCSR, _, _ uint64, v int64) uint64 { return uint64(m.IntToFloat32(v)) }},
		sseCase{"CVTSS2SD", &binary32, 'd', func(m *MXCSR, a, _ uint64, _ int64) uint64 { return m.Float32To64(uint32(a)) }},
		sseCase{"CVTSD2SS", &binary64, 's', func(m *MXCSR, a, _ uint64, _ int64) uint64 { return uint64(m.Float64To32(a)) }},
		sseCase{"COMISD", &binary64, 'f', func(m *MXCSR, a, b uint64, _ int64) uint64 { return uint64(m.Comi64(a, b)) }},
		sseCase{"UCOMISD", &binary64, 'f', func(m *MXCSR, a, b uint64, _ int64) uint64 { return uint64(m.Ucomi64(a, b)) }},
		sseCase{"COMISS", &binary32, 'f', func(m *MXCSR, a, b uint64, _ int64) uint64 { return uint64(m.Comi32(uint32(a), uint32(b))) }},
		sseCase{"UCOMISS", &binary32, 'f', func(m *MXCSR, a, b uint64, _ int64) uint64 { return uint64(m.Ucomi32(uint32(a), uint32(b))) }})
}

// result returns what of s the output of the instruction is.
func (c *sseCase) result(s *hardware.SSE) uint64 {
	switch c.out {
	case 'd':
		return s.R[0]
	case 's', 'L':
		return s.R[0] & math.MaxUint32
	case 'l':
		return s.GPR & math.MaxUint32
	case 'q':
		return s.GPR
	}
	return s.RFLAGS & 0x45
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

func TestSSE(t *testing.T) {
	for _, c := range sseCases() {
		t.Run(c.name, func(t *testing.T) {
			hard, ok := hardware.SSEInstr(c.name)
			if !ok {
				t.Fatal("the processor has no such instruction")
			}
			s := newSource(t)
			bad := 0
			for range rounds(t, 50_000) {
				var a, b uint64
				v := int64(s.mant(64)) >> s.IntN(64)
				if c.from != nil {
					a = s.ieee(c.from, nil)
					b = s.ieee(c.from, &a)
				}
				m := s.mxcsr()
				in := hardware.SSE{A: [2]uint64{a}, B: [2]uint64{b}, GPR: uint64(v), MXCSR: uint32(m)}
				hard(&in)
				want, wantM := c.result(&in), MXCSR(in.Out)
				gotM := m
				if got := c.soft(&gotM, a, b, v); got != want || gotM != wantM {
					t.Errorf("%#x, %#x, %#x, MXCSR %#x: got %#x, %#x; want %#x, %#x", a, b, v, m, got, gotM, want, wantM)
					if bad++; bad == 10 {
						t.FailNow()
					}
				}
			}
		})
	}
}
