package float

import (
	"testing"

	"github.com/vmkit-go/vmkit/vcpu/soft/float/hardware"
)

const swMask = exceptions | C0 | C1 | C2 | C3

// runX87 runs an instruction on the processor.
func runX87(f func(*hardware.X87), a, b F80, mem [16]byte, cw uint16) outcome {
	s := hardware.X87{ST0: hardware.Reg(a), ST1: hardware.Reg(b), Mem: mem, CW: cw}
	f(&s)
	return outcome{F80(s.Reg(0)), F80(s.Reg(1)), s.Mem, s.SW() & swMask, uint8(s.RFLAGS) & 0x45}
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
				if !same(got, want, false) {
					t.Errorf("%x, %x, %x, control %#x:\n got %x\nwant %x", a, b, mem, cw, got, want)
					if bad++; bad == 10 {
						t.FailNow()
					}
				}
			}
		})
	}
}
