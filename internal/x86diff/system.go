package x86diff

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"

	"github.com/vmkit-go/vmkit/vcpu"
)

// SystemCase is an experiment with what belongs to a kernel: an instruction that
// is privileged, loads a segment or changes privilege, or one that touches memory
// through page tables with random entries. Descriptors, gates, page tables,
// control registers and the CPL come from the seed.
type SystemCase struct {
	Seed uint64
	Kind string
	CPL  uint8
	Code []byte // ends with INT3

	// Of its set-up, once it has run: the random descriptors, and the registers.
	gdt     [randomSels]uint64
	initial vcpu.Registers
}

// SystemOutcome is what it leaves behind. After an exception CS and SS are the
// interrupted ones.
type SystemOutcome struct {
	Outcome
	CS, SS   uint64
	Segments vcpu.Segments
	GDT, IDT vcpu.Table
	Control  vcpu.Control
	Debug    vcpu.DebugRegisters
}

const (
	systemData  = dataBase + 0x800
	randomSel   = 0x50 // of the first random descriptor
	randomSels  = 16
	randomGate  = 0x20 // vector of the first random gate
	randomGates = 8
	tablesEnd   = tableBase + 0x6000
	aliasPDPT   = tableBase + 0x4000
	aliasPD     = tableBase + 0x5000
	int3        = 0xcc
)

// kinds are the templates of system cases.
var kinds = []struct {
	name string
	make func(b *systemBuilder)
}{
	{"load", func(b *systemBuilder) { b.code(0x48, 0x8b, 0x03) }},          // mov rax, [rbx]
	{"store", func(b *systemBuilder) { b.code(0x48, 0x89, 0x03) }},         // mov [rbx], rax
	{"modify", func(b *systemBuilder) { b.code(0xf0, 0x48, 0x01, 0x03) }},  // lock add [rbx], rax
	{"compare", func(b *systemBuilder) { b.code(0x48, 0x0f, 0xb1, 0x0b) }}, // cmpxchg [rbx], rcx
	{"copy", func(b *systemBuilder) { b.code(0xf3, 0xa4) }},                // rep movsb
	{"jump", func(b *systemBuilder) { b.code(0xff, 0xe3) }},                // jmp rbx
	{"push", func(b *systemBuilder) { b.code(0x48, 0x89, 0xdc, 0x50) }},    // mov rsp, rbx; push rax
	{"twice", func(b *systemBuilder) { b.code(0x48, 0x8b, 0x03, 0x48, 0x89, 0x03) }},
	{"segment", func(b *systemBuilder) { b.code(0x8e, 0xc0|[]byte{0, 2, 3, 4, 5}[b.r.IntN(5)]<<3) }}, // mov sreg, eax
	{"lar", func(b *systemBuilder) { b.code(0x0f, 0x02, 0xd0) }},
	{"lsl", func(b *systemBuilder) { b.code(0x0f, 0x03, 0xd0) }},
	{"verr", func(b *systemBuilder) { b.code(0x0f, 0x00, 0xe0) }},
	{"verw", func(b *systemBuilder) { b.code(0x0f, 0x00, 0xe8) }},
	{"lldt", func(b *systemBuilder) { b.code(0x0f, 0x00, 0xd0) }},
	{"ltr", func(b *systemBuilder) { b.code(0x0f, 0x00, 0xd8) }},
	{"iret", func(b *systemBuilder) {
		// push ss, rsp, flags, cs, rip
		b.code(0x52, 0x68, 0x00, 0x4e, 0, 0)
		b.code(0x68)
		b.word(uint32(0x202 | b.r.Uint32()&0x8d5))
		b.code(0x50, 0x68)
		b.word(codeBase + 0x100)
		b.code(0x48, 0xcf)
	}},
	{"far return", func(b *systemBuilder) {
		b.code(0x52, 0x68, 0x00, 0x4e, 0, 0, 0x50, 0x68)
		b.word(codeBase + 0x100)
		b.code(0x48, 0xcb)
	}},
	{"interrupt", func(b *systemBuilder) { b.code(0xcd, randomGate+byte(b.r.IntN(randomGates))) }},
	{"mov cr0", func(b *systemBuilder) { b.code(0x0f, 0x22, 0xc1) }},
	{"mov cr4", func(b *systemBuilder) { b.code(0x0f, 0x22, 0xe1) }},
	{"mov dr", func(b *systemBuilder) { b.code(0x0f, 0x23, 0xc0|byte(b.r.IntN(8))<<3) }},
	{"mov from dr", func(b *systemBuilder) { b.code(0x0f, 0x21, 0xc0|byte(b.r.IntN(8))<<3) }},
	{"lmsw", func(b *systemBuilder) { b.code(0x0f, 0x01, 0xf1) }},
	{"swapgs", func(b *systemBuilder) { b.code(0x0f, 0x01, 0xf8) }},
	{"wrmsr", func(b *systemBuilder) { b.code(0x0f, 0x30) }},
	{"invlpg", func(b *systemBuilder) { b.code(0x0f, 0x01, 0x3b) }},
}

type systemBuilder struct {
	r *rand.Rand
	b []byte
}

func (b *systemBuilder) code(c ...byte) { b.b = append(b.b, c...) }
func (b *systemBuilder) word(v uint32)  { b.b = binary.LittleEndian.AppendUint32(b.b, v) }

// NewSystemCase returns the case of a seed.
func NewSystemCase(seed uint64) SystemCase {
	b := systemBuilder{r: rand.New(rand.NewPCG(seed, 5))}
	k := kinds[b.r.IntN(len(kinds))]
	c := SystemCase{Seed: seed, Kind: k.name}
	if b.r.IntN(2) == 0 {
		c.CPL = 3
	}
	k.make(&b)
	c.Code = append(b.b, int3)
	return c
}

// randomDescriptor returns a descriptor, mostly of a kind that can be loaded.
func randomDescriptor(r *rand.Rand) uint64 {
	d := uint64(0x00cf93000000ffff)
	if r.IntN(2) == 0 {
		d = 0x00af9b000000ffff
	}
	for range r.IntN(4) {
		d ^= 1 << (40 + r.IntN(8)) // type, S, DPL, P
	}
	if r.IntN(2) == 0 {
		d |= 3 << 45
	}
	if r.IntN(8) == 0 {
		d ^= 1 << (52 + r.IntN(4)) // AVL, L, B, G
	}
	return d
}

// setUp changes memory and the state to what the seed says.
func (c *SystemCase) setUp(ram []byte, s *vcpu.State) {
	r := rand.New(rand.NewPCG(c.Seed, 6))
	le := binary.LittleEndian
	put := func(addr, v uint64) { le.PutUint64(ram[addr:], v) }
	for i := range uint64(randomSels) {
		c.gdt[i] = randomDescriptor(r)
		put(gdtBase+randomSel+8*i, c.gdt[i])
	}
	for i := range uint64(randomGates) {
		gate := uint64(stubBase+(randomGate+i)*stubSize)&0xffff | uint64(stubBase)>>16<<48
		sel, typ := uint64(selCode0), uint64(0x8e)
		switch r.IntN(6) {
		case 0:
			sel = randomSel + 8*uint64(r.IntN(randomSels)) + uint64(r.IntN(4))
		case 1:
			typ ^= 1 << r.IntN(8)
		case 2:
			typ |= 0x60
		case 3:
			typ = 0xef
		}
		put(idtBase+16*(randomGate+i), gate|sel<<16|typ<<40|uint64(r.IntN(2))<<32)
		put(idtBase+16*(randomGate+i)+8, 0)
	}
	put(tssBase+36, stackTop-0x400) // IST1

	// The data pages, and the tables of the alias, get random rights.
	rights := func(addr uint64) uint64 {
		e := addr | pteP | pteW | pteU | r.Uint64()&(pteA|pteD)
		if r.IntN(3) == 0 {
			e &^= 1 << r.IntN(3)
		}
		if r.IntN(4) == 0 {
			e |= pteNX
		}
		if r.IntN(16) == 0 {
			e |= 1 << (48 + r.IntN(4)) // reserved
		}
		return e
	}
	const pml4, pt = tableBase, tableBase + 0x3000
	for p := uint64(dataBase); p < dataLast; p += 4096 {
		put(pt+p>>12*8, rights(p))
	}
	put(pml4+aliasBase>>39*8, rights(aliasPDPT))
	put(aliasPDPT, rights(aliasPD))
	put(aliasPD, rights(pt))
	if r.IntN(4) == 0 {
		put(aliasPD, rights(0)|1<<7) // the same as a large page
	}

	s.Regs = vcpu.Registers{}
	g := &s.Regs
	g.RIP, g.RFLAGS, g.RSP = codeBase+0x800, 2|r.Uint64()&0x8d5, 0x54e00
	if c.CPL == 0 {
		g.RSP = stackTop - 0x200
	}
	p := uint64(systemData) + uint64(r.IntN(8))*4096
	if r.IntN(3) == 0 {
		p |= 0x7fc // across pages
	}
	if c.Kind == "jump" { // mov rax, 0x0101010101010101; int3
		copy(ram[p:], []byte{0x48, 0xb8, 1, 1, 1, 1, 1, 1, 1, 1, int3})
	}
	if r.IntN(2) == 0 {
		p += aliasBase
	}
	g.RBX, g.RSI, g.RDI = p, p, systemData+uint64(r.IntN(8))*4096
	g.RCX, g.RDX, g.RAX = uint64(r.IntN(16)), integer(r), integer(r)
	sel := func() uint64 {
		switch r.IntN(4) {
		case 0:
			return []uint64{0, 1, 3, selCode0, selData0, selData3, selCode3, selTSS, 0xf8, 0xff0}[r.IntN(10)]
		}
		return randomSel + 8*uint64(r.IntN(randomSels)) + uint64(r.IntN(4))&^uint64(r.IntN(2)*3)
	}
	bits := [...]uint{0, 1, 2, 3, 4, 5, 7, 9, 10, 16, 18, 20, 21, 29, 30, 31}
	flip := func(v uint64) uint64 {
		for range 1 + r.IntN(2) {
			v ^= 1 << bits[r.IntN(len(bits))]
		}
		return v
	}
	s.Control.CR0 &^= 1 << 18 // AM: QEMU has no alignment check
	if r.IntN(2) == 0 {
		s.Control.CR0 &^= 1 << 16 // WP
	}
	if r.IntN(3) == 0 && c.CPL == 3 {
		s.Control.CR4 |= 1 << 20 // SMEP: the code of CPL 0 is in pages of CPL 3
	}
	if r.IntN(2) == 0 {
		s.Control.CR4 |= 1 << 21 // SMAP
		g.RFLAGS |= uint64(r.IntN(2)) << 18
	}
	switch c.Kind {
	case "segment", "lar", "lsl", "verr", "verw", "lldt", "ltr":
		g.RAX = sel()
	case "iret", "far return":
		g.RAX, g.RDX = sel(), sel()
	case "mov cr0", "lmsw":
		g.RCX = flip(s.Control.CR0)
	case "mov cr4":
		g.RCX = flip(s.Control.CR4)
	case "mov dr":
		g.RAX &= 0xffffffff &^ 0x23ff // no breakpoints are on
		if r.IntN(8) == 0 {
			g.RAX |= 1 << (32 + r.IntN(32))
		}
	case "wrmsr":
		g.RCX = []uint64{0x174, 0x175, 0x176, 0x277, 0xc0000080, 0xc0000081, 0xc0000082, 0xc0000084, 0xc0000100, 0xc0000101, 0xc0000102, 0x123}[r.IntN(12)]
		if g.RCX == 0xc0000080 {
			g.RAX, g.RDX = flip(s.Control.EFER), 0
		}
	}
	c.initial = *g
}

// RunSystem runs a system case. It is for engines that run CPL 0 for real.
func (e *Engine) RunSystem(c *SystemCase, out *SystemOutcome) error {
	s := startState(c.CPL)
	ram := append([]byte(nil), e.image...)
	copy(ram[codeBase:codeLast], int3s[:])
	copy(ram[codeBase+0x800:], c.Code)
	c.setUp(ram, &s)
	binary.LittleEndian.PutUint16(e.fx[:], 0x37f)
	s.IDT.Limit = (randomGate+randomGates)*16 - 1
	s.GDT.Limit = randomSel + 8*randomSels - 1
	if err := e.mem.Write(0, ram); err != nil {
		return err
	}
	was := append([]byte(nil), ram...)
	exit, runErr, err := e.enter(&s)
	if err != nil {
		return err
	}
	plain := Case{Code: c.Code[:len(c.Code)-1]}
	e.finish(&plain, &out.Outcome, &s.Regs, s.Control.CR2)
	e.outcome(&out.Outcome, exit, runErr)
	out.CS, out.SS = out.frame[0], out.frame[1]
	out.Segments, out.GDT, out.IDT, out.Control, out.Debug = s.Segments, s.GDT, s.IDT, s.Control, s.Debug
	out.Control.CR2, out.Control.APICBase, out.Control.PDPTRs = 0, 0, nil
	out.Memory = nil
	for i := 0; i < dataLast; i += 8 {
		if i >= stackTop-0x1000 && i < stackTop {
			continue // the frames are in the registers
		}
		if a, b := was[i:i+8], e.ram[i:i+8]; string(a) != string(b) {
			out.Memory = append(out.Memory, Bytes{uint64(i), append([]byte(nil), b...)})
		}
	}
	return e.mem.Write(0, e.image)
}

var int3s = func() (b [codeLast - codeBase]byte) {
	for i := range b {
		b[i] = int3
	}
	return b
}()

// CompareSystem returns how got differs from want, one difference a line, or "".
// What [emulated] says of a processor that has made want does not count; excused
// are the reasons of these differences. It changes got.
func CompareSystem(c *SystemCase, want, got *SystemOutcome) (differences string, excused []string) {
	for i := range emulated {
		if e := &emulated[i]; e.excuse(c, want, got) {
			excused = append(excused, e.reason)
		}
	}
	if want.Vector == Shutdown && got.Vector == Shutdown {
		return "", excused // KVM resets the CPU
	}
	var b strings.Builder
	b.WriteString(Compare(&Case{Code: c.Code}, &want.Outcome, &got.Outcome))
	field := func(name string, w, g any) {
		if !reflect.DeepEqual(w, g) {
			fmt.Fprintf(&b, "%s: want %+v, got %+v\n", name, w, g)
		}
	}
	field("cs of the frame", want.CS, got.CS)
	field("ss of the frame", want.SS, got.SS)
	w, g := reflect.ValueOf(want.Segments), reflect.ValueOf(got.Segments)
	for i := range w.NumField() {
		ws, gs := w.Field(i).Interface().(vcpu.Segment), g.Field(i).Interface().(vcpu.Segment)
		for _, s := range []*vcpu.Segment{&ws, &gs} {
			if s.Unusable { // the rest has no meaning
				*s = vcpu.Segment{Selector: s.Selector, Unusable: true}
			}
			s.Available = false
		}
		field(w.Type().Field(i).Name, ws, gs)
	}
	field("gdt", want.GDT, got.GDT)
	field("idt", want.IDT, got.IDT)
	field("control", want.Control, got.Control)
	field("debug", want.Debug, got.Debug)
	return b.String(), excused
}
