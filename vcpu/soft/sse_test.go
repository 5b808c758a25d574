package soft

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"testing"

	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
)

// fill gives the vector registers contents that tell them apart.
func (c *CPU) fillVectors() {
	for i := range c.xmm {
		c.xmm[i] = xmm{0x1111111111111111 * uint64(i), ^uint64(i)}
	}
}

// expectFault runs an instruction that has to fault and change nothing else.
func expectFault(t *testing.T, c *CPU, insn []byte, vector uint8) {
	t.Helper()
	before, mx := c.xmm, c.mxcsr
	r, mm := c.r, c.fpu.mm
	s := c.stepVector(insn)
	if s != fault || c.exc.vector != vector {
		t.Fatalf("% x: stop %d, exception %d; want a fault with %d", insn, s, c.exc.vector, vector)
	}
	if c.rip != vectorCode {
		t.Errorf("% x: RIP is %#x", insn, c.rip)
	}
	r[regT0], r[regT1], r[regEA], r[regRIP] = c.r[regT0], c.r[regT1], c.r[regEA], c.r[regRIP]
	if c.xmm != before || c.r != r || c.fpu.mm != mm || vector != excXM && vector != excUD && c.mxcsr != mx {
		t.Errorf("% x: registers have changed", insn)
	}
}

func expectDone(t *testing.T, c *CPU, insn []byte) {
	t.Helper()
	if s := c.stepVector(insn); s != budget {
		t.Fatalf("% x: stop %d, exception %d", insn, s, c.exc.vector)
	}
}

// TestVectorUnavailable: the operating system decides whether there is SSE and MMX.
func TestVectorUnavailable(t *testing.T) {
	sse := [][]byte{
		{0x0f, 0x28, 0xca},             // MOVAPS XMM1, XMM2
		{0x66, 0x0f, 0xef, 0xc9},       // PXOR
		{0xf2, 0x0f, 0x58, 0xca},       // ADDSD
		{0x66, 0x0f, 0x38, 0x00, 0xca}, // PSHUFB
		{0x66, 0x0f, 0x3a, 0x63, 0xca, 0},
		{0x66, 0x0f, 0x71, 0xd1, 1}, // PSRLW XMM1, 1
		{0x41, 0x0f, 0xae, 0x11},    // LDMXCSR [R9]
		{0x41, 0x0f, 0xae, 0x19},
		{0xf3, 0x0f, 0xd6, 0xca}, // MOVQ2DQ
	}
	mmx := [][]byte{{0x0f, 0x6f, 0xca}, {0x0f, 0xfc, 0xca}, {0x0f, 0x77}, {0x0f, 0x71, 0xd1, 1}, {0x41, 0x0f, 0x7f, 0x09}}
	always := [][]byte{{0x0f, 0xae, 0xf0}, {0x0f, 0xae, 0xe8}, {0x0f, 0xae, 0xf8}, {0x41, 0x0f, 0xc3, 0x09},
		{0xf3, 0x0f, 0xb8, 0xca}, {0xf2, 0x0f, 0x38, 0xf1, 0xca}, {0x41, 0x0f, 0xae, 0x39}, {0x41, 0x0f, 0x18, 0x09}}
	for _, tt := range []struct {
		name     string
		cr0, cr4 uint64
		sw       uint16
		sse, mmx uint8
	}{
		{"on", cr0PE, cr4OSFXSR, 0, 0, 0},
		{"TS", cr0PE | cr0TS, cr4OSFXSR, 0, excNM, excNM},
		{"EM", cr0PE | cr0EM, cr4OSFXSR, 0, excUD, excUD},
		{"EM and TS", cr0PE | cr0EM | cr0TS, cr4OSFXSR, 0, excUD, excUD},
		{"no OSFXSR", cr0PE, 0, 0, excUD, 0},
		{"no OSFXSR, TS", cr0PE | cr0TS, 0, 0, excUD, excNM},
		{"x87 exception", cr0PE | cr0NE, cr4OSFXSR, 0x81, 0, excMF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newVectorCPU(t)
			c.cr0, c.cr4, c.r[regR9] = tt.cr0, tt.cr4, vectorMem
			for i, list := range [][][]byte{sse, mmx, always} {
				want := [3]uint8{tt.sse, tt.mmx}[i]
				for _, insn := range list {
					c.fpu.sw = tt.sw
					switch {
					case insn[1] == 0x0f && insn[2] == 0xd6 && want == 0 && tt.mmx != 0:
						expectFault(t, c, insn, tt.mmx)
					case want != 0:
						expectFault(t, c, insn, want)
					default:
						expectDone(t, c, insn)
					}
				}
			}
		})
	}
}

// TestVectorUndefined lists forms that do not exist.
func TestVectorUndefined(t *testing.T) {
	c := newVectorCPU(t)
	c.r[regR9] = vectorMem
	for _, insn := range [][]byte{
		{0x66, 0x0f, 0x12, 0xca},              // MOVLPD between registers
		{0x0f, 0x13, 0xca},                    // MOVLPS to a register
		{0x66, 0x0f, 0x16, 0xca},              // MOVHPD
		{0x0f, 0x17, 0xca},                    // MOVHPS to a register
		{0x0f, 0x2b, 0xca},                    // MOVNTPS
		{0x66, 0x0f, 0xe7, 0xca},              // MOVNTDQ
		{0x0f, 0xe7, 0xca},                    // MOVNTQ
		{0x0f, 0xc3, 0xca},                    // MOVNTI
		{0x66, 0x0f, 0x38, 0x2a, 0xca},        // MOVNTDQA
		{0xf2, 0x0f, 0xf0, 0xca},              // LDDQU
		{0x41, 0x0f, 0x50, 0x09},              // MOVMSKPS from memory
		{0x66, 0x41, 0x0f, 0xd7, 0x09},        // PMOVMSKB from memory
		{0x66, 0x41, 0x0f, 0xc5, 0x09, 0},     // PEXTRW from memory
		{0x66, 0x41, 0x0f, 0xf7, 0x09},        // MASKMOVDQU
		{0x0f, 0x6c, 0xca},                    // PUNPCKLQDQ of MMX registers
		{0x0f, 0x38, 0x10, 0xca},              // PBLENDVB
		{0x66, 0x0f, 0x71, 0xc1, 1},           // groups of shifts
		{0x66, 0x0f, 0x72, 0xf9, 1},           //
		{0x0f, 0x73, 0xd9, 1},                 // PSRLDQ of MMX registers
		{0x66, 0x41, 0x0f, 0x71, 0x11, 1},     // of memory
		{0xf3, 0x0f, 0x28, 0xca},              //
		{0xf2, 0x0f, 0x6f, 0xca},              //
		{0x66, 0x0f, 0x38, 0xff, 0xca},        //
		{0xf2, 0x0f, 0x2b, 0xca},              //
		{0xf0, 0x66, 0x41, 0x0f, 0x7f, 0x09},  // LOCK
		{0x0f, 0xae, 0xd1},                    // LDMXCSR of a register
		{0xf3, 0x41, 0x0f, 0xae, 0x11},        // with a prefix
		{0x66, 0x0f, 0xb8, 0xca},              // POPCNT without its prefix
		{0xf3, 0x0f, 0x38, 0xf0, 0xca},        // CRC32 with another
		{0x66, 0x0f, 0x3a, 0x0b | 0x80, 0xca}, //
	} {
		expectFault(t, c, insn, excUD)
	}
}

// TestVectorAlignment: operands of 16 bytes must be aligned, but for some.
func TestVectorAlignment(t *testing.T) {
	c := newVectorCPU(t)
	for _, tt := range []struct {
		insn []byte
		ok   bool
	}{
		{[]byte{0x41, 0x0f, 0x28, 0x09}, false},                // MOVAPS
		{[]byte{0x41, 0x0f, 0x29, 0x09}, false},                // and its store
		{[]byte{0x66, 0x41, 0x0f, 0x28, 0x09}, false},          // MOVAPD
		{[]byte{0x66, 0x41, 0x0f, 0x6f, 0x09}, false},          // MOVDQA
		{[]byte{0x66, 0x41, 0x0f, 0x7f, 0x09}, false},          //
		{[]byte{0x66, 0x41, 0x0f, 0xe7, 0x09}, false},          // MOVNTDQ
		{[]byte{0x41, 0x0f, 0x2b, 0x09}, false},                // MOVNTPS
		{[]byte{0x66, 0x41, 0x0f, 0x38, 0x2a, 0x09}, false},    // MOVNTDQA
		{[]byte{0x66, 0x41, 0x0f, 0xef, 0x09}, false},          // PXOR
		{[]byte{0x66, 0x41, 0x0f, 0x70, 0x09, 1}, false},       // PSHUFD
		{[]byte{0x41, 0x0f, 0x58, 0x09}, false},                // ADDPS
		{[]byte{0x66, 0x41, 0x0f, 0x3a, 0x0f, 0x09, 1}, false}, // PALIGNR
		{[]byte{0x66, 0x41, 0x0f, 0xd1, 0x09}, false},          // PSRLW
		{[]byte{0x41, 0x0f, 0x10, 0x09}, true},                 // MOVUPS
		{[]byte{0x41, 0x0f, 0x11, 0x09}, true},                 //
		{[]byte{0xf3, 0x41, 0x0f, 0x6f, 0x09}, true},           // MOVDQU
		{[]byte{0xf3, 0x41, 0x0f, 0x7f, 0x09}, true},           //
		{[]byte{0xf2, 0x41, 0x0f, 0xf0, 0x09}, true},           // LDDQU
		{[]byte{0x66, 0x41, 0x0f, 0x3a, 0x63, 0x09, 1}, true},  // PCMPISTRI
		{[]byte{0x66, 0x41, 0x0f, 0x38, 0x20, 0x09}, true},     // PMOVSXBW: 8 bytes
		{[]byte{0xf2, 0x41, 0x0f, 0x58, 0x09}, true},           // ADDSD
		{[]byte{0xf3, 0x41, 0x0f, 0xe6, 0x09}, true},           // CVTDQ2PD: 8 bytes
		{[]byte{0x41, 0x0f, 0xfc, 0x09}, true},                 // PADDB of MMX registers
	} {
		c.r[regR9] = vectorMem + 64
		expectDone(t, c, tt.insn)
		c.r[regR9] = vectorMem + 65
		if tt.ok {
			expectDone(t, c, tt.insn)
		} else {
			expectFault(t, c, tt.insn, excGP)
		}
	}
}

// pagedCPU has its first 2 MiB mapped page by page, itself, and returns how to change
// the entry of a page.
func pagedCPU(t *testing.T) (c *CPU, set func(lin, flags uint64)) {
	c = newVectorCPU(t)
	const pml4, pdpt, pd, pt = 0x1000, 0x2000, 0x3000, 0x4000
	c.e.store64(pml4, pdpt|3)
	c.e.store64(pdpt, pd|3)
	c.e.store64(pd, pt|3)
	set = func(lin, flags uint64) {
		c.e.store64(pt+lin>>12*8, lin&pageMask|flags)
		c.flushTLB()
	}
	for lin := uint64(0); lin < 1<<20; lin += pageSize {
		set(lin, 3)
	}
	c.cr0 |= cr0PG | cr0WP
	c.cr3, c.cr4, c.efer = pml4, c.cr4|cr4PAE, eferLME|eferLMA
	return c, set
}

// TestVectorPageCrossing: a store that faults has changed nothing.
func TestVectorPageCrossing(t *testing.T) {
	c, set := pagedCPU(t)
	const second = vectorMem + pageSize
	mem := c.e.page(vectorMem).bytes
	c.fillVectors()
	movups := []byte{0x41, 0x0f, 0x11, 0x09}
	load := []byte{0x41, 0x0f, 0x10, 0x11}
	for off := uint64(pageSize - 16); off < pageSize; off++ {
		c.r[regR9] = vectorMem + off
		for _, flags := range []uint64{0, 1} { // not there, not writable
			set(second, flags)
			clear(mem)
			if off == pageSize-16 {
				expectDone(t, c, movups)
				continue
			}
			expectFault(t, c, movups, excPF)
			if c.cr2 != second || c.exc.code != uint32(flags)|pfWrite {
				t.Errorf("offset %#x: page fault at %#x with %#x", off, c.cr2, c.exc.code)
			}
			for i, b := range mem {
				if b != 0 {
					t.Fatalf("offset %#x: byte %#x is written", off, i)
				}
			}
			if flags == 0 {
				expectFault(t, c, load, excPF)
			}
		}
		set(second, 3)
		expectDone(t, c, movups)
		c.xmm[2] = xmm{}
		expectDone(t, c, load)
		if c.xmm[2] != c.xmm[1] {
			t.Errorf("offset %#x: read %x, want %x", off, c.xmm[2], c.xmm[1])
		}
	}
}

// TestVectorMaskMov: bytes that are not selected are not touched, and no byte is
// written if one faults.
func TestVectorMaskMov(t *testing.T) {
	c, set := pagedCPU(t)
	set(vectorMem+pageSize, 0)
	mem := c.e.page(vectorMem).bytes
	c.fillVectors()
	c.r[regRDI] = vectorMem + pageSize - 8
	c.xmm[1] = xmm{0x0807060504030201, 0x100f0e0d0c0b0a09}
	insn := []byte{0x66, 0x0f, 0xf7, 0xca}
	c.xmm[2] = xmm{0x8000ff007f00ff80, 0x0080000000000000}
	expectFault(t, c, insn, excPF)
	if got := binary.LittleEndian.Uint64(mem[pageSize-8:]); got != 0 {
		t.Errorf("%x is written", got)
	}
	c.xmm[2][1] = 0x7f
	expectDone(t, c, insn)
	if got, want := binary.LittleEndian.Uint64(mem[pageSize-8:]), uint64(0x0800060000000201); got != want {
		t.Errorf("memory is %x, want %x", got, want)
	}
	// The same with MMX registers.
	clear(mem)
	c.fpu.mm[1], c.fpu.mm[2] = c.xmm[1][0], c.xmm[2][0]
	expectDone(t, c, []byte{0x0f, 0xf7, 0xca})
	if got, want := binary.LittleEndian.Uint64(mem[pageSize-8:]), uint64(0x0800060000000201); got != want {
		t.Errorf("MASKMOVQ: memory is %x, want %x", got, want)
	}
}

// TestCacheHints: a prefetch never faults, a flush does as a read.
func TestCacheHints(t *testing.T) {
	c, set := pagedCPU(t)
	set(vectorMem, 0)
	c.r[regR9] = vectorMem + 5
	for _, insn := range [][]byte{{0x41, 0x0f, 0x18, 0x09}, {0x41, 0x0f, 0x18, 0x01}, {0x41, 0x0f, 0x0d, 0x09}} {
		expectDone(t, c, insn)
	}
	for _, insn := range [][]byte{{0x41, 0x0f, 0xae, 0x39}, {0x66, 0x41, 0x0f, 0xae, 0x39}, {0x66, 0x41, 0x0f, 0xae, 0x31}} {
		expectFault(t, c, insn, excPF)
		if c.exc.code != 0 || c.cr2 != vectorMem+5 {
			t.Errorf("% x: page fault at %#x with %#x", insn, c.cr2, c.exc.code)
		}
	}
	set(vectorMem, 1) // read-only memory can be flushed
	expectDone(t, c, []byte{0x41, 0x0f, 0xae, 0x39})
}

// TestVectorExceptions: an exception that is not masked leaves the result alone.
func TestVectorExceptions(t *testing.T) {
	one, zero := math.Float64bits(1), uint64(0)
	snan := uint64(0x7ff0000000000001)
	tiny, third := math.Float64bits(0x1p-1000), math.Float64bits(3)
	for _, tt := range []struct {
		name  string
		insn  []byte
		a, b  xmm
		flags uint32 // raised, of which the highest is not masked
	}{
		{"DIVSD by zero", []byte{0xf2, 0x0f, 0x5e, 0xca}, xmm{one}, xmm{zero}, 1 << 2},
		{"DIVPD by zero above", []byte{0x66, 0x0f, 0x5e, 0xca}, xmm{one, one}, xmm{one, zero}, 1 << 2},
		{"ADDSD of a signaling NaN", []byte{0xf2, 0x0f, 0x58, 0xca}, xmm{one}, xmm{snan}, 1},
		{"MULSD underflow", []byte{0xf2, 0x0f, 0x59, 0xca}, xmm{tiny}, xmm{tiny}, 1 << 4},
		{"DIVSD inexact", []byte{0xf2, 0x0f, 0x5e, 0xca}, xmm{one}, xmm{third}, 1 << 5},
		{"COMISD of a signaling NaN", []byte{0x66, 0x0f, 0x2f, 0xca}, xmm{one}, xmm{snan}, 1},
		{"CVTSD2SI of a NaN", []byte{0xf2, 0x0f, 0x2d, 0xca}, xmm{one}, xmm{snan}, 1},
		{"CVTPD2PI of a NaN", []byte{0x66, 0x0f, 0x2d, 0xca}, xmm{one}, xmm{snan}, 1},
		{"ROUNDSD inexact", []byte{0x66, 0x0f, 0x3a, 0x0b, 0xca, 0}, xmm{one}, xmm{math.Float64bits(1.5)}, 1 << 5},
		{"CMPSD LT of a NaN", []byte{0xf2, 0x0f, 0xc2, 0xca, 1}, xmm{one}, xmm{snan}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newVectorCPU(t)
			c.fillVectors()
			c.xmm[1], c.xmm[2] = tt.a, tt.b
			highest := uint32(1) << (bits.Len32(tt.flags) - 1)
			c.mxcsr = 0x1f80 &^ (highest << 7)
			start := c.mxcsr
			flags := c.rflags()
			expectFault(t, c, tt.insn, excXM)
			if c.mxcsr != start|tt.flags {
				t.Errorf("MXCSR is %#x, want %#x", c.mxcsr, start|tt.flags)
			}
			if c.rflags() != flags {
				t.Error("RFLAGS have changed")
			}
			c.cr4 &^= cr4OSXMMEXCPT
			expectFault(t, c, tt.insn, excUD)
			c.mxcsr = 0x1f80
			expectDone(t, c, tt.insn)
			if c.mxcsr&tt.flags != tt.flags {
				t.Errorf("MXCSR is %#x", c.mxcsr)
			}
		})
	}
}

// TestMXCSR loads and stores the register.
func TestMXCSR(t *testing.T) {
	c := newVectorCPU(t)
	c.r[regR9] = vectorMem + 2
	mem := c.e.page(vectorMem).bytes[2:]
	ld, st := []byte{0x41, 0x0f, 0xae, 0x11}, []byte{0x41, 0x0f, 0xae, 0x19}
	for bit := range 32 {
		v := uint32(0x1f80) | 1<<bit
		binary.LittleEndian.PutUint32(mem, v)
		if bit >= 16 {
			expectFault(t, c, ld, excGP)
			continue
		}
		expectDone(t, c, ld)
		binary.LittleEndian.PutUint32(mem, 0)
		expectDone(t, c, st)
		if got := binary.LittleEndian.Uint32(mem); got != v || c.mxcsr != v {
			t.Errorf("MXCSR is %#x, stored %#x, want %#x", c.mxcsr, got, v)
		}
	}
}

// TestMMXState: MMX instructions take the x87's registers over, and EMMS gives them
// back.
func TestMMXState(t *testing.T) {
	c := newVectorCPU(t)
	c.r[regR9] = vectorMem
	for _, tt := range []struct {
		insn     []byte
		enters   bool
		exponent bool // of register 1
	}{
		{[]byte{0x0f, 0x6f, 0xca}, true, true},                  // MOVQ MM1, MM2
		{[]byte{0x0f, 0x7f, 0xd1}, true, true},                  // the other way round
		{[]byte{0x41, 0x0f, 0x6f, 0x09}, true, true},            // from memory
		{[]byte{0x41, 0x0f, 0x7f, 0x09}, true, false},           // to memory
		{[]byte{0x0f, 0x7e, 0xc8}, true, false},                 // MOVD EAX, MM1
		{[]byte{0x0f, 0x6e, 0xc8}, true, true},                  // MOVD MM1, EAX
		{[]byte{0x0f, 0x71, 0xd1, 1}, true, true},               // PSRLW MM1, 1
		{[]byte{0x0f, 0xfc, 0xca}, true, true},                  // PADDB
		{[]byte{0x0f, 0xd7, 0xc1}, true, false},                 // PMOVMSKB EAX, MM1
		{[]byte{0xf3, 0x0f, 0xd6, 0xca}, true, false},           // MOVQ2DQ XMM1, MM2
		{[]byte{0xf2, 0x0f, 0xd6, 0xca}, true, true},            // MOVDQ2Q MM1, XMM2
		{[]byte{0x0f, 0x2a, 0xca}, true, false},                 // CVTPI2PS
		{[]byte{0x41, 0x0f, 0x2a, 0x09}, false, false},          // from memory
		{[]byte{0x41, 0x0f, 0x2d, 0x09}, true, true},            // CVTPS2PI
		{[]byte{0x66, 0x0f, 0xfc, 0xca}, false, false},          // PADDB of xmm
		{[]byte{0x41, 0x0f, 0x3a, 0x0f, 0x09, 3}, true, true},   // PALIGNR
		{[]byte{0x41, 0x0f, 0xc4, 0x09, 3}, true, true},         // PINSRW
		{[]byte{0x41, 0x0f, 0xe7, 0x09}, true, false},           // MOVNTQ
		{[]byte{0x0f, 0x38, 0x00, 0xca}, true, true},            // PSHUFB
		{[]byte{0x66, 0x41, 0x0f, 0x38, 0x00, 9}, false, false}, // of xmm
	} {
		c.fpu.reset()
		c.fpu.sw, c.fpu.tw = 5<<11|0x4700, 0x20
		expectDone(t, c, tt.insn)
		sw, tw, se := uint16(5<<11|0x4700), uint8(0x20), uint16(0)
		if tt.enters {
			sw, tw = 0x4700, 0xff
		}
		if tt.exponent {
			se = 0xffff
		}
		if c.fpu.sw != sw || c.fpu.tw != tw || c.fpu.se[1] != se {
			t.Errorf("% x: status %#x, tags %#x, exponent %#x; want %#x, %#x, %#x", tt.insn, c.fpu.sw, c.fpu.tw, c.fpu.se[1], sw, tw, se)
		}
	}
	expectDone(t, c, []byte{0x0f, 0x77})
	if c.fpu.tw != 0 {
		t.Errorf("tags after EMMS are %#x", c.fpu.tw)
	}
}

// TestCRC32 compares with the standard library.
func TestCRC32(t *testing.T) {
	c := newVectorCPU(t)
	table := crc32.MakeTable(crc32.Castagnoli)
	v := uint64(0x8877665544332211)
	mem := c.e.page(vectorMem).bytes
	binary.LittleEndian.PutUint64(mem, v)
	for _, tt := range []struct {
		insn []byte
		data []byte
	}{
		{[]byte{0xf2, 0x0f, 0x38, 0xf0, 0xca}, mem[:1]},                    // CRC32 ECX, DL
		{[]byte{0xf2, 0x0f, 0x38, 0xf0, 0xce}, mem[1:2]},                   // DH
		{[]byte{0xf2, 0x40, 0x0f, 0x38, 0xf0, 0xce}, []byte{0x99}},         // SIL
		{[]byte{0x66, 0xf2, 0x0f, 0x38, 0xf1, 0xca}, mem[:2]},              // DX
		{[]byte{0xf2, 0x0f, 0x38, 0xf1, 0xca}, mem[:4]},                    // EDX
		{[]byte{0xf2, 0x48, 0x0f, 0x38, 0xf1, 0xca}, mem[:8]},              // RDX
		{[]byte{0xf2, 0x41, 0x0f, 0x38, 0xf0, 0x49, 0x02}, mem[2:3]},       // memory
		{[]byte{0x66, 0xf2, 0x41, 0x0f, 0x38, 0xf1, 0x49, 0x02}, mem[2:4]}, //
		{[]byte{0xf2, 0x49, 0x0f, 0x38, 0xf1, 0x09}, mem[:8]},              //
		{[]byte{0xf2, 0x48, 0x0f, 0x38, 0xf0, 0xca}, mem[:1]},              // CRC32 RCX, DL
	} {
		c.r[regR9], c.r[regRDX], c.r[regRSI] = vectorMem, v, 0x99
		c.r[regRCX] = 0xdeadbeef_89abcdef
		flags := c.rflags()
		expectDone(t, c, tt.insn)
		if want := ^crc32.Update(^uint32(0x89abcdef), table, tt.data); c.r[regRCX] != uint64(want) {
			t.Errorf("% x: %#x, want %#x", tt.insn, c.r[regRCX], want)
		}
		if c.rflags() != flags {
			t.Errorf("% x: flags have changed", tt.insn)
		}
	}
}

func TestPOPCNT(t *testing.T) {
	c := newVectorCPU(t)
	for _, v := range []uint64{0, 1, 0xffff, 0xf0f0_0000, 0xff00_0000_0000_0000, math.MaxUint64} {
		for size, insn := range map[uint8][]byte{
			2: {0x66, 0xf3, 0x0f, 0xb8, 0xca}, 4: {0xf3, 0x0f, 0xb8, 0xca}, 8: {0xf3, 0x48, 0x0f, 0xb8, 0xca},
		} {
			c.r[regRCX], c.r[regRDX] = math.MaxUint64, v
			c.setRFLAGS(flagArith)
			expectDone(t, c, insn)
			n := uint64(bits.OnesCount64(v & maskOf(size)))
			want, flags := n, bit(n == 0)<<6|flag1
			if size == 2 {
				want |= ^uint64(0xffff)
			}
			if c.r[regRCX] != want || c.rflags() != flags {
				t.Errorf("POPCNT of %#x, %d bytes: %#x, flags %#x; want %#x, %#x", v, size, c.r[regRCX], c.rflags(), want, flags)
			}
		}
	}
}

// TestMOVNTI stores 4 and 8 bytes, and keeps REX.R and an SIB byte apart.
func TestMOVNTI(t *testing.T) {
	c := newVectorCPU(t)
	mem := c.e.page(vectorMem).bytes
	c.r[regR9], c.r[regRCX], c.r[regR10] = vectorMem, 2, 0x8877665544332211
	expectDone(t, c, []byte{0x45, 0x0f, 0xc3, 0x14, 0x09}) // MOVNTI [R9+RCX], R10D
	if got := binary.LittleEndian.Uint64(mem[2:]); got != 0x44332211 {
		t.Errorf("stored %#x", got)
	}
	expectDone(t, c, []byte{0x4d, 0x0f, 0xc3, 0x14, 0x09})
	if got := binary.LittleEndian.Uint64(mem[2:]); got != c.r[regR10] {
		t.Errorf("stored %#x", got)
	}
}

// TestVectorLegacyMode runs 32-bit code with a segment's base.
func TestVectorLegacyMode(t *testing.T) {
	c := newVectorCPU(t)
	c.mode = mode32 | modeStack32 | modeSingle
	for i := range c.seg {
		s := c.seg[i]
		s.Limit, s.Present, s.Type, s.Base, s.Unusable = 0xffffffff, true, 3, 0, false
		c.setSegment(uint8(i), s)
	}
	ds := c.seg[segDS]
	ds.Base = 0x1000
	c.setSegment(segDS, ds)
	c.fillVectors()
	c.r[regRSI] = vectorMem - 0x1000
	expectDone(t, c, []byte{0x0f, 0x11, 0x4e, 0x10}) // MOVUPS [ESI+0x10], XMM1
	mem := c.e.page(vectorMem).bytes[0x10:]
	if got := (xmm{binary.LittleEndian.Uint64(mem), binary.LittleEndian.Uint64(mem[8:])}); got != c.xmm[1] {
		t.Errorf("stored %x", got)
	}
	expectDone(t, c, []byte{0x66, 0x0f, 0x6f, 0x56, 0x10}) // MOVDQA XMM2, [ESI+0x10]
	if c.xmm[2] != c.xmm[1] {
		t.Errorf("loaded %x", c.xmm[2])
	}
	expectFault(t, c, []byte{0x66, 0x0f, 0x6f, 0x56, 0x11}, excGP)
}

// TestVectorAddressSize has the address cut to 32 bits, in each kind of access.
func TestVectorAddressSize(t *testing.T) {
	c := newVectorCPU(t)
	mem := c.e.page(vectorMem).bytes
	c.xmm[1], c.xmm[2] = xmm{0x1111111111111111, 0x2222222222222222}, xmm{0x80, 0}
	c.r[regR9], c.r[regRDI] = 0xabcd00000000|vectorMem, 0xabcd00000000|vectorMem
	for _, tt := range []struct {
		insn []byte
		want uint64 // stored
	}{
		{[]byte{0x67, 0x66, 0x0f, 0xf7, 0xca}, 0x11},               // MASKMOVDQU
		{[]byte{0x67, 0x41, 0x0f, 0x11, 0x09}, 0x1111111111111111}, // MOVUPS
		{[]byte{0x67, 0x41, 0x0f, 0x17, 0x09}, 0x2222222222222222}, // MOVHPS
		{[]byte{0x67, 0x66, 0x41, 0x0f, 0x3a, 0x15, 0x09, 7}, 0x2222},
		{[]byte{0x67, 0x41, 0x0f, 0xae, 0x19}, 0x1f80},           // STMXCSR
		{[]byte{0x67, 0x41, 0x0f, 0xae, 0x39}, 0},                // CLFLUSH
		{[]byte{0x67, 0x41, 0x0f, 0xc3, 0x11}, 0x12345678},       // MOVNTI
		{[]byte{0x67, 0x41, 0x0f, 0x7e, 0x09}, 0xfedcba98},       // MOVD of MM1
		{[]byte{0x67, 0x66, 0x41, 0x0f, 0xef, 0x09}, 0},          // PXOR
		{[]byte{0x67, 0x66, 0x41, 0x0f, 0x3a, 0x20, 0x09, 1}, 0}, // PINSRB
	} {
		clear(mem)
		c.r[regRDX], c.fpu.mm[1] = 0x12345678, 0xfedcba98
		expectDone(t, c, tt.insn)
		if got := binary.LittleEndian.Uint64(mem); got != tt.want {
			t.Errorf("% x: stored %#x, want %#x", tt.insn, got, tt.want)
		}
	}
	// LDMXCSR, from what lies there.
	binary.LittleEndian.PutUint32(mem, 0x9f80)
	expectDone(t, c, []byte{0x67, 0x41, 0x0f, 0xae, 0x11})
	if c.mxcsr != 0x9f80 {
		t.Errorf("MXCSR is %#x", c.mxcsr)
	}
}

// TestVectorHighRegisters uses XMM8 to XMM15 in each place.
func TestVectorHighRegisters(t *testing.T) {
	c := newVectorCPU(t)
	c.fillVectors()
	c.r[regR9] = vectorMem
	expectDone(t, c, []byte{0x45, 0x0f, 0x28, 0xc7}) // MOVAPS XMM8, XMM15
	expectDone(t, c, []byte{0x45, 0x0f, 0x29, 0x01}) // MOVAPS [R9], XMM8
	expectDone(t, c, []byte{0x45, 0x0f, 0x28, 0x11}) // MOVAPS XMM10, [R9]
	if want := (xmm{0xffffffffffffffff, ^uint64(15)}); c.xmm[8] != want || c.xmm[10] != want {
		t.Errorf("XMM8 is %x, XMM10 %x; want %x", c.xmm[8], c.xmm[10], want)
	}
	expectDone(t, c, []byte{0x66, 0x41, 0x0f, 0x73, 0xd7, 60}) // PSRLQ XMM15, 60
	if want := (xmm{15, 15}); c.xmm[15] != want {
		t.Errorf("XMM15 is %x", c.xmm[15])
	}
}

// TestVectorAllocations: no instruction of the tables allocates.
func TestVectorAllocations(t *testing.T) {
	c := newVectorCPU(t)
	c.mode &^= modeSingle
	var code []byte
	n := int64(0)
	for m := range vectors {
		for pp := range vectors[m] {
			for op, v := range vectors[m][pp] {
				if v.lower == nil || m == 0 && op >= 0x71 && op <= 0x73 {
					continue
				}
				for _, mem := range []bool{false, true} {
					insn := encode(decode.Map0F+decode.Map(m), prefix(pp), byte(op), mem, false, 1)
					c.r[regR9], c.r[regRDI] = vectorMem, vectorMem
					if c.stepVector(insn) == budget {
						code = append(code, insn...)
						n++
					}
				}
			}
		}
	}
	if n < 400 {
		t.Fatalf("only %d instructions", n)
	}
	copy(c.e.page(vectorCode+pageSize).bytes, code)
	if err := c.e.mem.Write(vectorCode+pageSize, code); err != nil {
		t.Fatal(err)
	}
	c.e.invalidate(vectorCode+pageSize, uint64(len(code)))
	run := func() {
		c.rip, c.left, c.end = vectorCode+pageSize, n, n
		c.r[regR9], c.r[regRDI] = vectorMem, vectorMem
		b, s := c.lookup()
		if s == next {
			s = c.execute(b)
		}
		if s != budget || c.left >= maxInsns {
			t.Fatalf("stop %d, exception %d, %d instructions left", s, c.exc.vector, c.left)
		}
	}
	run()
	if got := testing.AllocsPerRun(20, run); got != 0 {
		t.Errorf("%v allocations", got)
	}
}

func BenchmarkVector(b *testing.B) {
	for _, tt := range []struct {
		name string
		insn []byte
	}{
		{"MOVUPS-load", []byte{0x41, 0x0f, 0x10, 0x09}},
		{"MOVUPS-store", []byte{0x41, 0x0f, 0x11, 0x09}},
		{"MOVDQA-load", []byte{0x66, 0x41, 0x0f, 0x6f, 0x09}},
		{"PXOR", []byte{0x66, 0x0f, 0xef, 0xca}},
		{"PCMPEQB-memory", []byte{0x66, 0x41, 0x0f, 0x74, 0x09}},
		{"PMINUB", []byte{0x66, 0x0f, 0xda, 0xca}},
		{"PMOVMSKB", []byte{0x66, 0x0f, 0xd7, 0xca}},
		{"PSHUFB", []byte{0x66, 0x0f, 0x38, 0x00, 0xca}},
		{"PADDW", []byte{0x66, 0x0f, 0xfd, 0xca}},
		{"ADDSD", []byte{0xf2, 0x0f, 0x58, 0xca}},
		{"MULPS", []byte{0x0f, 0x59, 0xca}},
		{"AESENC", []byte{0x66, 0x0f, 0x38, 0xdc, 0xca}},
	} {
		b.Run(tt.name, func(b *testing.B) {
			c := newVectorCPU(b)
			c.mode &^= modeSingle
			c.r[regR9] = vectorMem
			var code []byte
			for range 60 {
				code = append(code, tt.insn...)
			}
			code = append(code, 0xe9)
			code = binary.LittleEndian.AppendUint32(code, -uint32(len(code)+4))
			copy(c.e.page(vectorCode).bytes, code)
			c.rip, c.left, c.end = vectorCode, int64(b.N), int64(b.N)
			blk, s := c.lookup()
			if s != next {
				b.Fatal(s)
			}
			b.ResetTimer()
			if s := c.execute(blk); s != budget {
				b.Fatal(fmt.Sprint("stop ", s))
			}
		})
	}
}
