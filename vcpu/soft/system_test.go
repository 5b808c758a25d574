package soft

import (
	"encoding/binary"
	"testing"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// A machine for tests of the system side: the first 2 MiB are mapped one to one, by pages
// of 4 KiB. Every vector has a handler that halts.
const (
	atCode     = 0x1000
	atGDT      = 0x2000
	atIDT      = 0x3000
	atTSS      = 0x4000
	atTables   = 0x5000 // PML4, PDPT, PD, PT
	rsp0       = 0xa000
	ist1       = 0xb000
	userStack  = 0xc000
	kernStack  = 0xe000
	atUser     = 0x10000 // user pages up to atHandlers
	atHandlers = 0x20000 // 16 bytes for each vector
	atGate     = 0x22000 // where call gates lead
	atAbsent   = 0x30000 // a page that is not present
	atReadOnly = 0x31000
	atData     = 0x40000

	selCode    = 0x08
	selData    = 0x10
	selUser32  = 0x18 | 3
	selUserSS  = 0x20 | 3
	selUser    = 0x28 | 3
	selTSS     = 0x30
	selLDT     = 0x40
	selGate    = 0x50
	selCode32  = 0x60
	selConform = 0x68
	selAbsent  = 0x70
	selExec    = 0x78
	selROData  = 0x80
	selCode64D = 0x88 // L and D: reserved
	gdtLimit   = 0x8f
)

type machine struct {
	*CPU
	t   *testing.T
	mem *memory.Memory
}

// desc makes a descriptor with 4 KiB granularity. access is the type byte.
func desc(base, limit uint32, access, flags uint64) uint64 {
	return uint64(limit)&0xffff | uint64(limit)>>16&15<<48 | uint64(base)&0xffffff<<16 | uint64(base)>>24<<56 | access<<40 | flags<<52
}

func (m *machine) put64(at uint64, v ...uint64) {
	m.t.Helper()
	for i, x := range v {
		if err := m.mem.Write(at+uint64(i)*8, binary.LittleEndian.AppendUint64(nil, x)); err != nil {
			m.t.Fatal(err)
		}
	}
}

func (m *machine) get(at uint64, size int) uint64 {
	m.t.Helper()
	var b [8]byte
	if err := m.mem.Read(at, b[:size]); err != nil {
		m.t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

func (m *machine) code(at uint64, code ...byte) {
	m.t.Helper()
	if err := m.mem.Write(at, code); err != nil {
		m.t.Fatal(err)
	}
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	mem, err := memory.New(memory.Config{Size: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	e, err := New(mem, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return &machine{CPU: e.cpus[0], t: t, mem: mem}
}

// newLong returns a machine in 64-bit mode at CPL 0.
func newLong(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.put64(atGDT, 0,
		desc(0, 0xfffff, 0x9b, 0xa), desc(0, 0xfffff, 0x93, 0xc),
		desc(0, 0xfffff, 0xfb, 0xc), desc(0, 0xfffff, 0xf3, 0xc), desc(0, 0xfffff, 0xfb, 0xa),
		desc(atTSS, 0xffff, 0x89, 0), 0,
		desc(0x3f00, 0xff, 0x82, 0), 0,
		gate(selCode, atGate, sysCall|3<<5|0x80, 0), 0,
		desc(0, 0xfffff, 0x9b, 0xc), desc(0, 0xfffff, 0x9f, 0xa),
		desc(0, 0xfffff, 0x73, 0xc), desc(0, 0xfffff, 0x99, 0xc), desc(0, 0xfffff, 0x91, 0xc),
		desc(0, 0xfffff, 0x9b, 0xe))
	for v := range uint64(256) {
		m.put64(atIDT+16*v, gate(selCode, atHandlers+16*uint32(v), sysInt|0x80, 0), 0)
		m.code(atHandlers+16*v, 0xf4)
	}
	m.put64(atTSS+4, rsp0)
	m.put64(atTSS+0x60, 0xffff<<48) // no I/O permission bitmap
	m.put64(atTSS+0x24, ist1)
	m.put64(atTables, atTables+0x1000|7)
	m.put64(atTables+0x1000, atTables+0x2000|7)
	m.put64(atTables+0x2000, atTables+0x3000|7)
	for p := range uint64(512) {
		e := p<<12 | ptePresent | pteWritable
		switch at := p << 12; {
		case at == userStack-0x1000, at >= atUser && at < atHandlers:
			e |= pteUser
		case at == atAbsent:
			e = 0
		case at == atReadOnly:
			e &^= pteWritable
		}
		m.put64(atTables+0x3000+8*p, e)
	}
	s := longState()
	if err := m.SetState(&s); err != nil {
		t.Fatal(err)
	}
	return m
}

// gate makes the lower half of a gate.
func gate(sel uint16, off uint32, access, ist uint64) uint64 {
	return uint64(off)&0xffff | uint64(sel)<<16 | ist<<32 | access<<40 | uint64(off)>>16<<48
}

func longState() vcpu.State {
	s := vcpu.PowerUp(true)
	s.Regs = vcpu.Registers{RIP: atCode, RSP: kernStack, RFLAGS: 2}
	data := flatStack(selData, 0)
	s.Segments = vcpu.Segments{
		CS: flatCode(selCode, 0, true), SS: data, DS: data, ES: data, FS: data, GS: data,
		TR:  vcpu.Segment{Selector: selTSS, Base: atTSS, Limit: 0xffff, Type: 11, System: true, Present: true},
		LDT: vcpu.Segment{Unusable: true},
	}
	s.GDT = vcpu.Table{Base: atGDT, Limit: gdtLimit}
	s.IDT = vcpu.Table{Base: atIDT, Limit: 0xfff}
	s.Control.CR0 = cr0PE | cr0PG | cr0ET | cr0NE | cr0WP
	s.Control.CR3 = atTables
	s.Control.CR4 = cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT
	s.Control.EFER = eferLME | eferLMA | eferNXE | eferSCE
	return s
}

// user makes the machine ready to run code at CPL 3.
func (m *machine) user(code ...byte) {
	m.code(atUser, code...)
	m.rip, m.r[regRSP] = atUser, userStack-64
	m.CPU.setSegment(segCS, flatCode(selUser, 3, true))
	for _, i := range []uint8{segSS, segDS, segES, segFS, segGS} {
		m.CPU.setSegment(i, flatStack(selUserSS, 3))
	}
	m.cpl = 3
	m.updateMode()
}

// kernel makes the machine ready to run code at CPL 0.
func (m *machine) kernel(code ...byte) {
	m.code(atCode, code...)
	m.rip, m.r[regRSP] = atCode, kernStack
	m.updateMode()
}

// runs runs until the CPU halts or shuts down.
func (m *machine) runs() {
	m.t.Helper()
	for range 100 {
		m.run(1000)
		m.e.count = m.end - m.left
		if m.halted || m.shutdown {
			return
		}
	}
	m.t.Fatalf("still running at %#x", m.rip)
}

// steps runs n instructions.
func (m *machine) steps(n int64) {
	m.t.Helper()
	m.e.timesChanged = false
	m.run(n)
	if got := m.end - m.left - m.e.count; got != n {
		m.t.Fatalf("%d instructions of %d, at %#x", got, n, m.rip)
	}
	m.e.count += n
}

// vector is the vector whose handler the CPU has halted in, or -1.
func (m *machine) vector() int {
	if m.shutdown || m.rip < atHandlers || m.rip >= atHandlers+0x1000 {
		return -1
	}
	return int(m.rip-atHandlers) / 16
}

// fault expects that the CPU has halted in the handler of a fault with an error code, or
// with none if code is negative, raised by the instruction at rip.
func (m *machine) fault(vector, code int, rip uint64) {
	m.t.Helper()
	if got := m.vector(); got != vector {
		m.t.Fatalf("vector %d (halted at %#x), want %d", got, m.rip, vector)
	}
	sp := m.r[regRSP]
	if code >= 0 {
		if got := m.get(sp, 8); got != uint64(code) {
			m.t.Errorf("error code %#x, want %#x", got, code)
		}
		sp += 8
	}
	if got := m.get(sp, 8); got != rip {
		m.t.Errorf("saved RIP %#x, want %#x", got, rip)
	}
}

// realState is real mode at 0000:1000.
func realState() vcpu.State {
	s := vcpu.PowerUp(true)
	s.Segments.CS.Selector, s.Segments.CS.Base = 0, 0
	s.Regs.RIP, s.Regs.RSP = 0x1000, 0x8000
	return s
}

// newProtected returns a machine in 32-bit protected mode without paging at CPL 0, with
// the GDT of newLong and the handlers at the same place.
func newProtected(t *testing.T) *machine {
	t.Helper()
	m := newLong(t)
	for v := range uint64(256) {
		m.put64(atIDT+8*v, gate(selCode32, atHandlers+16*uint32(v), sysInt|0x80, 0))
	}
	m.put64(atGDT+selGate, gate(selCode32, atGate, sysCall|3<<5|0x80, 2)) // two parameters
	m.put64(atTSS, rsp0<<32, selData)
	s := longState()
	s.Control.CR0 &^= cr0PG
	s.Control.EFER = 0
	s.Control.CR4 = 0
	s.Segments.CS = flatCode(selCode32, 0, false)
	s.IDT.Limit = 0x7ff
	if err := m.SetState(&s); err != nil {
		t.Fatal(err)
	}
	return m
}

// user32 is user for 32-bit code.
func (m *machine) user32(code ...byte) {
	m.user(code...)
	m.CPU.setSegment(segCS, flatCode(selUser32, 3, false))
	m.updateMode()
}

// fault32 is fault with frames of 32-bit words.
func (m *machine) fault32(vector, code int, rip uint64) {
	m.t.Helper()
	if got := m.vector(); got != vector {
		m.t.Fatalf("vector %d (halted at %#x), want %d", got, m.rip, vector)
	}
	sp := m.r[regRSP]
	if code >= 0 {
		if got := m.get(sp, 4); got != uint64(code) {
			m.t.Errorf("error code %#x, want %#x", got, code)
		}
		sp += 4
	}
	if got := m.get(sp, 4); got != rip {
		m.t.Errorf("saved EIP %#x, want %#x", got, rip)
	}
}
