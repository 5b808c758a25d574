package float

import (
	"encoding/binary"
	"fmt"
	"math"
)

// outcome is what an x87 instruction leaves behind.
type outcome struct {
	st0, st1 F80
	mem      [16]byte
	sw       uint16 // flags and condition codes
	zpc      uint8  // ZF, PF, CF
}

// x87Case does in software what an instruction does: it turns the operands in o
// into the results. st1 is left out where the instruction changes the stack.
type x87Case struct {
	name string
	soft func(e *X87, o *outcome)
}

func binaryCase(name string, f func(e *X87, a, b F80) (F80, bool)) x87Case {
	return x87Case{name, func(e *X87, o *outcome) {
		if r, ok := f(e, o.st0, o.st1); ok {
			o.st0 = r
		}
	}}
}

func unaryCase(name string, f func(e *X87, a F80) (F80, bool)) x87Case {
	return binaryCase(name, func(e *X87, a, _ F80) (F80, bool) { return f(e, a) })
}

// pop makes ST1 what the tests see as ST0; ST1 is then not compared.
func (o *outcome) pop() { o.st0, o.st1 = o.st1, F80{} }

func (o *outcome) push(x F80) { o.st0, o.st1 = x, o.st0 }

func x87Cases() []x87Case {
	cases := []x87Case{
		binaryCase("FADD", (*X87).Add), binaryCase("FSUB", (*X87).Sub),
		binaryCase("FMUL", (*X87).Mul), binaryCase("FDIV", (*X87).Div),
		binaryCase("FSUBR", func(e *X87, a, b F80) (F80, bool) { return e.Arith(OpSubR, a, b) }),
		binaryCase("FDIVR", func(e *X87, a, b F80) (F80, bool) { return e.Arith(OpDivR, a, b) }),
		unaryCase("FSQRT", (*X87).Sqrt), unaryCase("FRNDINT", (*X87).RoundInt),
		binaryCase("FSCALE", (*X87).Scale),
		binaryCase("FPREM", func(e *X87, a, b F80) (F80, bool) { return e.Rem(a, b, false) }),
		binaryCase("FPREM1", func(e *X87, a, b F80) (F80, bool) { return e.Rem(a, b, true) }),
		{"FXTRACT", func(e *X87, o *outcome) {
			if s, x, ok := e.Extract(o.st0); ok {
				o.st0 = x
				o.push(s)
			}
		}},
		{"FCOM", func(e *X87, o *outcome) { e.Com(o.st0, o.st1, false) }},
		{"FUCOM", func(e *X87, o *outcome) { e.Com(o.st0, o.st1, true) }},
		{"FTST", func(e *X87, o *outcome) { e.Com(o.st0, F80{}, false) }},
		{"FCOMI", func(e *X87, o *outcome) {
			c, _ := e.Compare(o.st0, o.st1, false)
			o.zpc = uint8(c)
		}},
		{"FUCOMI", func(e *X87, o *outcome) {
			c, _ := e.Compare(o.st0, o.st1, true)
			o.zpc = uint8(c)
		}},
		{"FXAM", func(e *X87, o *outcome) { e.Examine(o.st0) }},
		{"FCHS", func(e *X87, o *outcome) { o.st0 = o.st0.Neg() }},
		{"FABS", func(e *X87, o *outcome) { o.st0 = o.st0.Abs() }},
		{"FLD32", func(e *X87, o *outcome) {
			if x, ok := e.Load32(binary.LittleEndian.Uint32(o.mem[:])); ok {
				o.push(x)
			}
		}},
		{"FLD64", func(e *X87, o *outcome) {
			if x, ok := e.Load64(binary.LittleEndian.Uint64(o.mem[:])); ok {
				o.push(x)
			}
		}},
		{"FILD16", func(e *X87, o *outcome) { o.push(FromInt64(int64(int16(binary.LittleEndian.Uint16(o.mem[:]))))) }},
		{"FILD32", func(e *X87, o *outcome) { o.push(FromInt64(int64(int32(binary.LittleEndian.Uint32(o.mem[:]))))) }},
		{"FILD64", func(e *X87, o *outcome) { o.push(FromInt64(int64(binary.LittleEndian.Uint64(o.mem[:])))) }},
		{"FBLD", func(e *X87, o *outcome) { o.push(LoadBCD([10]byte(o.mem[:10]))) }},
		{"FBSTP", func(e *X87, o *outcome) {
			if v, ok := e.StoreBCD(o.st0); ok {
				copy(o.mem[:], v[:])
				o.pop()
			}
		}},
		{"FSTP32", func(e *X87, o *outcome) {
			if v, ok := e.Store32(o.st0); ok {
				binary.LittleEndian.PutUint32(o.mem[:], v)
				o.pop()
			}
		}},
		{"FSTP64", func(e *X87, o *outcome) {
			if v, ok := e.Store64(o.st0); ok {
				binary.LittleEndian.PutUint64(o.mem[:], v)
				o.pop()
			}
		}},
	}
	for i, name := range []string{"FLD1", "FLDL2T", "FLDL2E", "FLDPI", "FLDLG2", "FLDLN2", "FLDZ"} {
		cases = append(cases, x87Case{name, func(e *X87, o *outcome) { o.push(e.Constant(uint8(i))) }})
	}
	for _, trunc := range []bool{false, true} {
		name := "FISTP"
		if trunc {
			name = "FISTTP"
		}
		cases = append(cases,
			x87Case{name + "16", func(e *X87, o *outcome) {
				if v, ok := e.Int16(o.st0, trunc); ok {
					binary.LittleEndian.PutUint16(o.mem[:], uint16(v))
					o.pop()
				}
			}},
			x87Case{name + "32", func(e *X87, o *outcome) {
				if v, ok := e.Int32(o.st0, trunc); ok {
					binary.LittleEndian.PutUint32(o.mem[:], uint32(v))
					o.pop()
				}
			}},
			x87Case{name + "64", func(e *X87, o *outcome) {
				if v, ok := e.Int64(o.st0, trunc); ok {
					binary.LittleEndian.PutUint64(o.mem[:], uint64(v))
					o.pop()
				}
			}})
	}
	for op, name := range []string{"FADD", "FMUL", "", "", "FSUB", "FSUBR", "FDIV", "FDIVR"} {
		op := Op(op)
		if name == "" {
			continue
		}
		cases = append(cases,
			x87Case{name + "32", func(e *X87, o *outcome) {
				if r, ok := e.Arith32(op, o.st0, binary.LittleEndian.Uint32(o.mem[:])); ok {
					o.st0 = r
				}
			}},
			x87Case{name + "64", func(e *X87, o *outcome) {
				if r, ok := e.Arith64(op, o.st0, binary.LittleEndian.Uint64(o.mem[:])); ok {
					o.st0 = r
				}
			}})
	}
	return append(cases,
		x87Case{"FCOM32", func(e *X87, o *outcome) { e.Com32(o.st0, binary.LittleEndian.Uint32(o.mem[:])) }},
		x87Case{"FCOM64", func(e *X87, o *outcome) { e.Com64(o.st0, binary.LittleEndian.Uint64(o.mem[:])) }})
}

// transCases are the transcendental instructions, whose results may differ from
// the processor's in the last bits.
func transCases() []x87Case {
	popping := func(name string, f func(e *X87, y, x F80) (F80, bool)) x87Case {
		return x87Case{name, func(e *X87, o *outcome) {
			if r, ok := f(e, o.st1, o.st0); ok {
				o.st0, o.st1 = r, F80{}
			}
		}}
	}
	return []x87Case{
		unaryCase("F2XM1", (*X87).Exp2m1), unaryCase("FSIN", (*X87).Sin), unaryCase("FCOS", (*X87).Cos),
		{"FSINCOS", func(e *X87, o *outcome) {
			if s, c, ok := e.SinCos(o.st0); ok {
				o.st0 = s
				o.push(c)
			}
		}},
		{"FPTAN", func(e *X87, o *outcome) {
			if r, p, ok := e.Tan(o.st0); ok {
				o.st0 = r
				o.push(p)
			}
		}},
		popping("FYL2X", (*X87).YLog2X), popping("FYL2XP1", (*X87).YLog2XP1), popping("FPATAN", (*X87).Atan),
	}
}

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
