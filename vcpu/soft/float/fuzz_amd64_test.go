package float

import (
	"encoding/binary"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu/soft/float/hardware"
)

// Operands that the seeds of the fuzz targets are made of.
var seeds = []F80{
	{0, 0}, {1, 0}, {jbit | 1, 0}, {jbit, 1}, {jbit, 0x3FFF}, {0xC90FDAA22168C235, 0xC000}, {^uint64(0), 0x403E},
	{^uint64(0), 0x7FFE}, {jbit, 0x7FFF}, {0xC000000000000001, 0x7FFF}, {0x8000000000000001, 0xFFFF}, {1 << 62, 0x3FFF},
}

func FuzzX87(f *testing.F) {
	cases := x87Cases()
	exact := len(cases)
	cases = append(cases, transCases()...)
	for i := range cases {
		a, b := seeds[i%len(seeds)], seeds[(i+5)%len(seeds)]
		f.Add(uint8(i), a.Mant, a.SE, b.Mant, b.SE, uint16(0x37F))
	}
	f.Fuzz(func(t *testing.T, op uint8, am uint64, ase uint16, bm uint64, bse, cw uint16) {
		i := int(op) % len(cases)
		c := &cases[i]
		hard, _ := hardware.X87Instr(c.name)
		a, b := F80{am, ase}, F80{bm, bse}
		cw = cw&0xF3F | 0x40
		var mem [16]byte
		binary.LittleEndian.PutUint64(mem[:], bm)
		if c.name == "FBLD" {
			for i, v := range mem { // other digits are undefined
				mem[i] = v & 0x77
			}
		}
		want := runX87(hard, a, b, mem, cw)
		got := outcome{a, b, mem, 0, want.zpc}
		e := X87{CW: cw}
		c.soft(&e, &got)
		got.sw = e.SW
		if !same(got, want, i >= exact) {
			t.Errorf("%s: %x, %x, control %#x:\n got %x\nwant %x", c.name, a, b, cw, got, want)
		}
	})
}

func FuzzSSE(f *testing.F) {
	cases := sseCases()
	for i := range cases {
		a, b := seeds[i%len(seeds)], seeds[(i+5)%len(seeds)]
		f.Add(uint8(i), a.Mant, b.Mant^uint64(b.SE)<<48, uint16(DefaultMXCSR))
	}
	f.Fuzz(func(t *testing.T, op uint8, a, b uint64, mxcsr uint16) {
		c := &cases[int(op)%len(cases)]
		hard, _ := hardware.SSEInstr(c.name)
		if c.from == &binary32 {
			a, b = a&(1<<32-1), b&(1<<32-1)
		}
		m := MXCSR(mxcsr)
		in := hardware.SSE{A: [2]uint64{a}, B: [2]uint64{b}, GPR: a, MXCSR: uint32(m)}
		want := in.Trap(hard)
		gotM, element := m, m.Begin()
		r := c.soft(&element, a, b, int64(a))
		got := gotM.End(element)
		if got != want || gotM != MXCSR(in.Out) || !want && r != c.result(&in) {
			t.Errorf("%s: %#x, %#x, MXCSR %#x: got %#x, %#x, #XM %v; want %#x, %#x, #XM %v",
				c.name, a, b, m, r, gotM, got, c.result(&in), in.Out, want)
		}
		if m.AllMasked() { // the flags that stick take other paths
			if r2 := c.soft(&m, a, b, int64(a)); r2 != r || m != gotM {
				t.Errorf("%s: %#x, %#x: got %#x, %#x, want %#x, %#x", c.name, a, b, r2, m, r, gotM)
			}
		}
	})
}
