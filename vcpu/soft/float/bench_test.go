package float

import (
	"math"
	"testing"
)

var sink64 uint64

// Operands near one, and a state that has PE set or not.
func BenchmarkSSE(b *testing.B) {
	ops := []struct {
		name string
		f    func(m *MXCSR, a, b uint64) uint64
	}{
		{"Add64", (*MXCSR).Add64}, {"Mul64", (*MXCSR).Mul64}, {"Div64", (*MXCSR).Div64},
		{"Add32", func(m *MXCSR, a, b uint64) uint64 { return uint64(m.Add32(uint32(a>>32), uint32(b>>32))) }},
		{"Mul32", func(m *MXCSR, a, b uint64) uint64 { return uint64(m.Mul32(uint32(a>>32), uint32(b>>32))) }},
		{"Sqrt64", func(m *MXCSR, a, _ uint64) uint64 { return m.Sqrt64(a) }},
		{"Max64", (*MXCSR).Max64},
		{"Ucomi64", func(m *MXCSR, a, b uint64) uint64 { return uint64(m.Ucomi64(a, b)) }},
		{"ToInt32", func(m *MXCSR, a, _ uint64) uint64 { return uint64(m.Float64ToInt32(a, true)) }},
		{"RoundInt64", func(m *MXCSR, a, _ uint64) uint64 { return m.RoundInt64(a, 1) }},
		{"FromInt", func(m *MXCSR, a, _ uint64) uint64 { return m.IntToFloat64(int64(a)) }},
	}
	operands := make([]uint64, 1024)
	for i := range operands {
		operands[i] = math.Float64bits(1 + float64(i)/7)
	}
	for _, op := range ops {
		for _, mode := range []struct {
			name  string
			m     MXCSR
			clear bool
		}{{"sticky", DefaultMXCSR | PE, false}, {"clear", DefaultMXCSR, true}, {"down", DefaultMXCSR | 1<<rcShift, false}} {
			b.Run(op.name+"/"+mode.name, func(b *testing.B) {
				b.ReportAllocs()
				m := mode.m
				var r uint64
				for i := range b.N {
					r += op.f(&m, operands[i&1023], operands[(i+1)&1023])
					if mode.clear {
						m &^= PE
					}
				}
				sink64 = r
			})
		}
	}
}

func BenchmarkX87(b *testing.B) {
	x, y := F80{0xC90FDAA22168C235, 0x4000}, F80{0xB17217F7D1CF79AC, 0x3FFE}
	e := X87{CW: 0x37F}
	for _, op := range []struct {
		name string
		f    func()
	}{
		{"Add", func() { e.Add(x, y) }}, {"Mul", func() { e.Mul(x, y) }}, {"Div", func() { e.Div(x, y) }},
		{"Sqrt", func() { e.Sqrt(x) }}, {"Com", func() { e.Com(x, y, false) }}, {"Rem", func() { e.Rem(x, y, false) }},
		{"Load64", func() { e.Load64(0x3FF8000000000000) }}, {"Store64", func() { e.Store64(x) }},
		{"Int32", func() { e.Int32(x, false) }},
	} {
		b.Run(op.name, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				op.f()
			}
		})
	}
}
