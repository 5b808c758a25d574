//go:build amd64 && linux

package soft

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

// hardware runs single instructions on the host's processor.
type hardware struct {
	code  []byte
	state *vectorState
	fn    struct {
		entry uintptr
		state *vectorState
	}
}

func newHardware(t *testing.T) *hardware {
	t.Helper()
	if !cpu.X86.HasSSE42 || !cpu.X86.HasPOPCNT {
		t.Skip("the host's processor has no SSE4.2 to compare with")
	}
	code, state := hostPages(t)
	h := &hardware{code: code, state: (*vectorState)(unsafe.Pointer(&state[0]))}
	h.fn.entry = uintptr(unsafe.Pointer(&code[0]))
	h.fn.state = h.state
	return h
}

func at32(op []byte, off uintptr) []byte { return binary.LittleEndian.AppendUint32(op, uint32(off)) }

// run executes an instruction on s.
func (h *hardware) run(insn []byte, s *vectorState) {
	var v vectorState
	gprs := [6][2]byte{{0x49, 0x80}, {0x49, 0x88}, {0x49, 0x90}, {0x49, 0x98}, {0x49, 0xb0}, {0x4d, 0x90}}
	c := []byte{0x4c, 0x8b, 0x42, 0x08} // MOV R8, [RDX+8]
	move := func(load bool) {
		for i := range uintptr(8) {
			op := byte(0x11)
			mm := byte(0x7f)
			if load {
				op, mm = 0x10, 0x6f
			}
			c = append(c, at32([]byte{0x41, 0x0f, op, 0x80 | byte(i)<<3}, unsafe.Offsetof(v.xmm)+i*16)...)
			c = append(c, at32([]byte{0x41, 0x0f, mm, 0x80 | byte(i)<<3}, unsafe.Offsetof(v.mm)+i*8)...)
		}
		for i, g := range gprs {
			op := byte(0x89)
			if load {
				op = 0x8b
			}
			c = append(c, at32([]byte{g[0], op, g[1]}, unsafe.Offsetof(v.gpr)+uintptr(i)*8)...)
		}
	}
	c = append(c, at32([]byte{0x41, 0x0f, 0xae, 0x90}, unsafe.Offsetof(v.mxcsr))...) // LDMXCSR
	move(true)
	c = append(c, at32([]byte{0x4d, 0x8d, 0x88}, unsafe.Offsetof(v.mem))...) // LEA R9
	c = append(c, 0x4c, 0x89, 0xcf)                                          // MOV RDI, R9
	c = append(c, at32([]byte{0x41, 0xff, 0xb0}, unsafe.Offsetof(v.flags))...)
	c = append(c, 0x9d)
	c = append(c, insn...)
	c = append(c, 0x9c)
	c = append(c, at32([]byte{0x41, 0x8f, 0x80}, unsafe.Offsetof(v.flags))...)
	move(false)
	c = append(c, at32([]byte{0x41, 0x0f, 0xae, 0x98}, unsafe.Offsetof(v.mxcsr))...) // STMXCSR
	c = append(c, at32([]byte{0x41, 0x0f, 0xae, 0x90}, unsafe.Offsetof(v.reset))...)
	c = append(c, 0x0f, 0x77, 0xc3) // EMMS, RET
	copy(h.code, c)
	*h.state = *s
	h.state.reset = 0x1f80
	fn := unsafe.Pointer(&h.fn)
	(*(*func())(unsafe.Pointer(&fn)))()
	*s = *h.state
}

// shifts is what ModRM.reg may be in the groups 71 to 73.
var shifts = [3][]byte{{2, 4, 6}, {2, 4, 6}, {2, 3, 6, 7}}

// TestVectorHardware compares every instruction of the tables with the processor.
func TestVectorHardware(t *testing.T) {
	h := newHardware(t)
	c := newVectorCPU(t)
	rounds := 200
	if testing.Short() {
		rounds = 30
	}
	for m := decode.Map0F; m <= decode.Map0F3A; m++ {
		for pp := ppNone; pp <= ppF2; pp++ {
			for op := range 256 {
				approximate := m == decode.Map0F && (op == 0x52 || op == 0x53) // RSQRT, RCP: see package float
				if vectors[m-decode.Map0F][pp][op].lower == nil || approximate {
					continue
				}
				t.Run(fmt.Sprintf("%d-%d-%02x", m, pp, op), func(t *testing.T) {
					r := rand.New(rand.NewPCG(uint64(op), uint64(m)<<8|uint64(pp)))
					ran := false
					for i := range rounds {
						insn := encode(m, pp, byte(op), i&1 != 0, i&2 != 0 && op != 0xf7, byte(r.Uint32()>>uint(r.IntN(8))))
						if m == decode.Map0F && op >= 0x71 && op <= 0x73 {
							choice := shifts[op-0x71]
							insn[len(insn)-2] = 0xc0 | choice[r.IntN(len(choice))]<<3 | 2
						}
						ran = compareVector(t, h, c, insn, randomState(r)) || ran
						if t.Failed() {
							return
						}
					}
					if !ran {
						t.Error("neither form is an instruction")
					}
				})
			}
		}
	}
}

// compareVector reports whether the instruction exists.
func compareVector(t *testing.T, h *hardware, c *CPU, insn []byte, s vectorState) bool {
	t.Helper()
	got := s
	if st := c.runVector(insn, &got); st == fault && c.exc.vector == excUD {
		return false // a form that hardware has not got either: see TestVectorUndefined
	} else if st != budget {
		t.Errorf("% x: stop %d, exception %d", insn, st, c.exc.vector)
		return true
	}
	want := s
	h.run(insn, &want)
	want.flags &= flagArith
	got.flags &= flagArith
	got.reset = want.reset
	if got != want {
		t.Errorf("% x of\n%x:\ngot\n%x, want\n%x", insn, s, got, want)
	}
	return true
}
