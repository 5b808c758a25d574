package float

import (
	"math"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu/soft/float/hardware"
)

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

// With exceptions unmasked, what counts is which flags are raised and whether #XM
// is due. A SIGFPE costs microseconds, so there are fewer rounds.
func TestSSEUnmasked(t *testing.T) {
	trapping(t)
	for _, c := range sseCases() {
		hard, _ := hardware.SSEInstr(c.name)
		s := newSource(t)
		for range rounds(t, 1000) {
			var a, b uint64
			v := int64(s.mant(64)) >> s.IntN(64)
			if c.from != nil {
				a = s.ieee(c.from, nil)
				b = s.ieee(c.from, &a)
			}
			m := s.mxcsr() &^ MXCSR(s.IntN(64)<<maskShift)
			in := hardware.SSE{A: [2]uint64{a}, B: [2]uint64{b}, GPR: uint64(v), MXCSR: uint32(m)}
			want := in.Trap(hard)
			gotM, element := m, m.Begin()
			r := c.soft(&element, a, b, v)
			got := gotM.End(element)
			if got != want || gotM != MXCSR(in.Out) || !want && r != c.result(&in) {
				t.Fatalf("%s: %#x, %#x, %#x, MXCSR %#x: got %#x, #XM %v; want %#x, #XM %v", c.name, a, b, v, m, gotM, got, in.Out, want)
			}
		}
	}
}

// trapping prepares for Trap: between the exception and its end the Go runtime runs
// with exceptions that are not masked, and the garbage collector's arithmetic is in
// floating point.
func trapping(t *testing.T) {
	t.Helper()
	runtime.GC()
	old := debug.SetGCPercent(-1)
	t.Cleanup(func() { debug.SetGCPercent(old) })
}

// The elements of one instruction raise exceptions together.
func TestSSEPacked(t *testing.T) {
	trapping(t)
	s := newSource(t)
	for _, c := range []struct {
		name string
		soft func(m *MXCSR, a, b [2]uint64) (r [2]uint64, due bool)
	}{
		{"ADDPD", elements((*MXCSR).Add64)}, {"MULPD", elements((*MXCSR).Mul64)}, {"DIVPD", elements((*MXCSR).Div64)},
		{"DPPD51", func(m *MXCSR, a, b [2]uint64) ([2]uint64, bool) { return m.Dot64(a, b, 0x33) }},
		{"DPPD17", func(m *MXCSR, a, b [2]uint64) ([2]uint64, bool) { return m.Dot64(a, b, 0x11) }},
		{"DPPS255", dot(0xFF)}, {"DPPS113", dot(0x71)}, {"DPPS178", dot(0xB2)},
	} {
		hard, ok := hardware.SSEInstr(c.name)
		if !ok {
			t.Fatalf("the processor has no %s", c.name)
		}
		for i := range rounds(t, 20_000) {
			var a, b [2]uint64
			for i := range a {
				if c.name[:4] == "DPPS" {
					x := s.ieee(&binary32, nil)
					a[i] = x | s.ieee(&binary32, &x)<<32
					b[i] = s.ieee(&binary32, &x) | s.ieee(&binary32, nil)<<32
				} else {
					a[i] = s.ieee(&binary64, nil)
					b[i] = s.ieee(&binary64, &a[i])
				}
			}
			m := s.mxcsr()
			if i%20 == 0 {
				m &^= MXCSR(s.IntN(64) << maskShift)
			}
			in := hardware.SSE{A: a, B: b, MXCSR: uint32(m)}
			want := in.Trap(hard)
			gotM := m
			r, got := c.soft(&gotM, a, b)
			if got != want || gotM != MXCSR(in.Out) || !want && r != in.R {
				t.Fatalf("%s: %#x, %#x, MXCSR %#x: got %#x, %#x, #XM %v; want %#x, %#x, #XM %v", c.name, a, b, m, r, gotM, got, in.R, in.Out, want)
			}
		}
	}
}

// elements applies an operation to both elements, as one instruction.
func elements(f func(m *MXCSR, a, b uint64) uint64) func(m *MXCSR, a, b [2]uint64) ([2]uint64, bool) {
	return func(m *MXCSR, a, b [2]uint64) (r [2]uint64, due bool) {
		t := m.Begin()
		for i := range r {
			r[i] = f(&t, a[i], b[i])
		}
		return r, m.End(t)
	}
}

func dot(imm uint8) func(m *MXCSR, a, b [2]uint64) ([2]uint64, bool) {
	return func(m *MXCSR, a, b [2]uint64) ([2]uint64, bool) {
		split := func(v [2]uint64) [4]uint32 {
			return [4]uint32{uint32(v[0]), uint32(v[0] >> 32), uint32(v[1]), uint32(v[1] >> 32)}
		}
		r, due := m.Dot32(split(a), split(b), imm)
		return [2]uint64{uint64(r[0]) | uint64(r[1])<<32, uint64(r[2]) | uint64(r[3])<<32}, due
	}
}

// RCPSS and RSQRTSS need only be close to the true value, and special cases equal.
func TestApproximations(t *testing.T) {
	for _, c := range []struct {
		name string
		soft func(uint32) uint32
	}{{"RCPSS", Rcp32}, {"RSQRTSS", Rsqrt32}} {
		hard, ok := hardware.SSEInstr(c.name)
		if !ok {
			t.Fatalf("the processor has no %s", c.name)
		}
		s := newSource(t)
		for range rounds(t, 50_000) {
			a := s.ieee(&binary32, nil)
			in := hardware.SSE{B: [2]uint64{a}, MXCSR: uint32(s.mxcsr())}
			hard(&in)
			got, want := c.soft(uint32(a)), uint32(in.R[0])
			x, y := float64(math.Float32frombits(got)), float64(math.Float32frombits(want))
			if got != want && !(math.Abs(x-y) <= 3.0/(1<<12)*math.Abs(y)) || in.Out != in.MXCSR {
				t.Fatalf("%s %#x: got %#x, want about %#x", c.name, a, got, want)
			}
		}
	}
}
