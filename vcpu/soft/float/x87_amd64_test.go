package float

import (
	"encoding/binary"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu/soft/float/hardware"
)

// outcome is what an x87 instruction leaves behind.
type outcome struct {
	st0, st1 F80
	mem      [16]byte
	sw       uint16 // flags and condition codes
	zpc      uint8  // ZF, PF, CF
}

const swMask = exceptions | C0 | C1 | C2 | C3

// runX87 runs an instruction on the processor.
func runX87(f func(*hardware.X87), a, b F80, mem [16]byte, cw uint16) outcome {
	s := hardware.X87{ST0: hardware.Reg(a), ST1: hardware.Reg(b), Mem: mem, CW: cw}
	f(&s)
	return outcome{F80(s.Reg(0)), F80(s.Reg(1)), s.Mem, s.SW() & swMask, uint8(s.RFLAGS) & 0x45}
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

// popped is what the tests see as ST0 after a pop: ST1.
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
	for op, name := range map[Op]string{OpAdd: "FADD", OpMul: "FMUL", OpSub: "FSUB", OpSubR: "FSUBR", OpDiv: "FDIV", OpDivR: "FDIVR"} {
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

func TestX87(t *testing.T) {
	for _, c := range x87Cases() {
		t.Run(c.name, func(t *testing.T) {
			hard, ok := hardware.X87Instr(c.name)
			if !ok {
				t.Fatal("the processor has no such instruction")
			}
			s := newSource(t)
			bad := 0
			for range rounds(t, 50_000) {
				a := s.f80(nil)
				b := s.f80(&a)
				mem, cw := s.memFor(c.name), s.cw()
				want := runX87(hard, a, b, mem, cw)
				got := outcome{a, b, mem, 0, want.zpc}
				e := X87{CW: cw}
				c.soft(&e, &got)
				got.sw = e.SW
				if got.st1 == (F80{}) {
					want.st1 = F80{}
				}
				if got != want {
					t.Errorf("%x, %x, %x, control %#x:\n got %x\nwant %x", a, b, mem, cw, got, want)
					if bad++; bad == 10 {
						t.FailNow()
					}
				}
			}
		})
	}
}
