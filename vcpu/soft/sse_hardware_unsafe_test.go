package soft

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/sys/cpu"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

// vectorState is what a vector instruction works on. The stub in newHardware loads it,
// and stores it again.
type vectorState struct {
	xmm   [8]xmm
	mm    [8]uint64
	gpr   [6]uint64 // RAX, RCX, RDX, RBX, RSI, R10
	flags uint64
	_     [8]byte
	mxcsr uint32
	reset uint32 // of MXCSR
	_     [8]byte
	mem   [64]byte // R9 and RDI point here
}

const flagsSeen = flagArith

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

// newVectorCPU makes a CPU that runs 64-bit code without paging.
func newVectorCPU(t testing.TB) *CPU {
	t.Helper()
	mem, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mem.Close() })
	e, err := New(mem, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	c := e.cpus[0]
	c.mode, c.cr0, c.cr4 = mode64|modeFlat|modeSingle, cr0PE|cr0ET, cr4OSFXSR|cr4OSXMMEXCPT
	c.tlb, c.itlb = &c.tlbs[0], &c.itlbs[0]
	c.flushTLB()
	return c
}

const (
	vectorCode = 0x10000
	vectorMem  = 0x20000
)

// step executes one instruction, which is put at vectorCode.
func (c *CPU) stepVector(insn []byte) stop {
	page := c.e.page(vectorCode)
	clear(page.bytes[:64])
	copy(page.bytes, insn)
	c.e.invalidate(vectorCode, 64)
	c.rip, c.left, c.end = vectorCode, 1, 1
	b, s := c.lookup()
	if s != next {
		return s
	}
	return c.execute(b)
}

// run executes an instruction on s, as hardware.run does.
func (c *CPU) runVector(insn []byte, s *vectorState) stop {
	copy(c.xmm[:], s.xmm[:])
	c.fpu.mm = s.mm
	for i, r := range [6]int{regRAX, regRCX, regRDX, regRBX, regRSI, regR10} {
		c.r[r] = s.gpr[i]
	}
	c.setRFLAGS(s.flags)
	c.mxcsr = s.mxcsr
	c.r[regR9], c.r[regRDI] = vectorMem, vectorMem
	mem := c.e.page(vectorMem).bytes
	copy(mem, s.mem[:])
	st := c.stepVector(insn)
	copy(s.xmm[:], c.xmm[:])
	s.mm = c.fpu.mm
	for i, r := range [6]int{regRAX, regRCX, regRDX, regRBX, regRSI, regR10} {
		s.gpr[i] = c.r[r]
	}
	s.flags = c.rflags()
	s.mxcsr = c.mxcsr
	copy(s.mem[:], mem)
	return st
}

// randomState fills a state with what is likely to matter.
func randomState(r *rand.Rand) (s vectorState) {
	kind := r.IntN(4)
	word := func() uint64 {
		switch kind {
		case 0:
			return r.Uint64()
		case 1: // bytes at the ends of ranges
			var v uint64
			for range 8 {
				v = v<<8 | uint64([]byte{0, 1, 0x7f, 0x80, 0x81, 0xff, 0xfe, byte(r.Uint32())}[r.IntN(8)])
			}
			return v
		case 2: // numbers of interest
			f := floats64[r.IntN(len(floats64))]
			if r.IntN(2) == 0 {
				f = uint64(floats32[r.IntN(len(floats32))]) | uint64(floats32[r.IntN(len(floats32))])<<32
			}
			return f ^ r.Uint64()&uint64(r.IntN(2))
		}
		return uint64(r.IntN(40)) | uint64(r.IntN(3))<<32
	}
	for i := range s.xmm {
		s.xmm[i] = xmm{word(), word()}
		s.mm[i] = word()
	}
	if r.IntN(4) == 0 {
		s.xmm[2] = s.xmm[1]
		s.mm[2] = s.mm[1]
	}
	for i := range s.gpr {
		s.gpr[i] = word()
	}
	for i := 0; i < len(s.mem); i += 8 {
		binary.LittleEndian.PutUint64(s.mem[i:], word())
	}
	s.flags = flag1 | r.Uint64()&flagsSeen
	s.mxcsr = 0x1f80 | r.Uint32()&0xe07f
	return s
}

var floats64 = []uint64{0, 1 << 63, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0xfff0000000000000,
	0x7ff8000000000000, 0x7ff0000000000001, 0xfff8000000000123, 1, 0x000fffffffffffff, 0x0010000000000000, 0x7fefffffffffffff,
	0x43e0000000000000, 0xc3e0000000000000, 0x41dfffffffe00000, 0x41dfffffffc00000, 0xc1e0000000000000, 0x3fe0000000000000,
	0x4004000000000000, 0x47efffffefffffff, 0x380fffffffffffff, 0x3ff8000000000001}

var floats32 = []uint32{0, 1 << 31, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffc00123, 1,
	0x007fffff, 0x00800000, 0x7f7fffff, 0x4f000000, 0xcf000000, 0x5f000000, 0x3f000000, 0x40200000, 0x4effffff, 0x3fc00001}

// encode makes an instruction of the tables: register 1 with register 2 or memory.
func encode(m decode.Map, pp prefix, op byte, mem, w bool, imm byte) []byte {
	var b []byte
	switch pp {
	case pp66:
		b = append(b, 0x66)
	case ppF3:
		b = append(b, 0xf3)
	case ppF2:
		b = append(b, 0xf2)
	}
	rex := byte(0x40)
	if w {
		rex |= 8
	}
	modrm := byte(0xc0 | 1<<3 | 2)
	if mem {
		rex |= 1 // R9
		modrm = 1<<3 | 1
	}
	if rex != 0x40 {
		b = append(b, rex)
	}
	b = append(b, 0x0f)
	switch m {
	case decode.Map0F38:
		b = append(b, 0x38)
	case decode.Map0F3A:
		b = append(b, 0x3a)
	}
	b = append(b, op)
	if m == decode.Map0F && op == 0x77 { // EMMS has no ModRM
		return b
	}
	b = append(b, modrm)
	if m == decode.Map0F3A || m == decode.Map0F && (op >= 0x70 && op <= 0x73 || op == 0xc2 || op >= 0xc4 && op <= 0xc6) {
		b = append(b, imm)
	}
	return b
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
	want.flags &= flagsSeen
	got.flags &= flagsSeen
	got.reset = want.reset
	if got != want {
		t.Errorf("% x of\n%x:\ngot\n%x, want\n%x", insn, s, got, want)
	}
	return true
}
