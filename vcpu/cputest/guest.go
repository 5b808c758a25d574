package cputest

import (
	"encoding/binary"
	"encoding/hex"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// The guest's memory. Its first 2 MiB are mapped one to one in 4 KiB pages, for CPL 0
// alone but for the pages from userBase to userEnd, and so are the next 2 MiB in
// one large page.
const (
	memSize = 8 << 20

	ivt      = 0 // of real mode
	gdt      = 0x1000
	idt64    = 0x2000
	idt32    = 0x3000
	tss64    = 0x4000
	tss32    = 0x4800
	ldt      = 0x4c00
	stubs64  = 0x5000 // one for each vector, stubSize apart
	stubs32  = 0x6000
	stubs16  = 0x7000
	userBase = 0x8000
	code     = 0x8000 // where programs begin: two pages
	data     = 0xa000 // two pages
	stack3   = 0xd000 // top of the stack of CPL 3
	spare    = 0xd000 // three pages
	userEnd  = 0x10000
	stack0   = 0x12000 // tops of the stacks of CPL 0
	ist1     = 0x14000
	ist2     = 0x16000
	stack1   = 0x18000 // of CPL 1
	tables   = 0x100000
	large    = 0x200000 // a page of 2 MiB
	high     = 0x400000 // memory that is not mapped

	stubSize = 16
)

// Ports that programs write to.
const (
	endPort   = 0xf4 // the end
	faultPort = 0xe0 // an exception's stub
)

// Selectors. The order is what SYSCALL and SYSRET want.
const (
	code64  = 0x08
	data0   = 0x10
	code32  = 0x18
	code32u = 0x20 | 3
	data3   = 0x28 | 3
	code64u = 0x30 | 3
	code16  = 0x38
	selTSS  = 0x40 // 16 bytes
	selTSS3 = 0x50 // of 32-bit code
	selLDT  = 0x58 // 16 bytes
	small   = 0x68 // data of 4 KiB at data, CPL 3
	absent  = 0x70 // data, not present
	fixed   = 0x78 // read-only data
	xonly   = 0x80 // code that cannot be read
	conform = 0x88 // conforming 64-bit code
	gate    = 0x90 // call gate, 16 bytes, for a test to fill
	down    = 0xa0 // data that expands down from 0xffff to 0x1000
	data16  = 0xa8 // data of 64 KiB for 16-bit code
	nocode  = 0xb0 // 64-bit code, not present
	code1   = 0xb8 // 64-bit code of CPL 1
	data1   = 0xc0
	gdtSize = 0xd0
)

// Bits of page-table entries and of page faults' error codes.
const (
	pteP   = 1 << 0
	pteW   = 1 << 1
	pteU   = 1 << 2
	pteA   = 1 << 5
	pteD   = 1 << 6
	ptePS  = 1 << 7
	pteG   = 1 << 8
	pteNX  = 1 << 63
	pfP    = 1
	pfW    = 2
	pfU    = 4
	pfRSVD = 8
	pfI    = 16
)

// Exceptions.
const (
	vDE = 0
	vDB = 1
	vBP = 3
	vOF = 4
	vBR = 5
	vUD = 6
	vNM = 7
	vDF = 8
	vTS = 10
	vNP = 11
	vSS = 12
	vGP = 13
	vPF = 14
	vMF = 16
	vAC = 17
	vXM = 19
)

const (
	cr0MP     = 1 << 1
	cr0EM     = 1 << 2
	cr0TS     = 1 << 3
	cr0NE     = 1 << 5
	cr0WP     = 1 << 16
	cr0AM     = 1 << 18
	cr4DE     = 1 << 3
	cr4TSD    = 1 << 2
	cr4PSE    = 1 << 4
	cr4PGE    = 1 << 7
	cr4FXSR   = 1 << 9
	cr4XMM    = 1 << 10
	cr4UMIP   = 1 << 11
	cr4FSGS   = 1 << 16
	cr4XSAVE  = 1 << 18
	cr4SMEP   = 1 << 20
	cr4SMAP   = 1 << 21
	flagCF    = 1 << 0
	flagPF    = 1 << 2
	flagAF    = 1 << 4
	flagZF    = 1 << 6
	flagSF    = 1 << 7
	flagTF    = 1 << 8
	flagIF    = 1 << 9
	flagDF    = 1 << 10
	flagOF    = 1 << 11
	flagNT    = 1 << 14
	flagRF    = 1 << 16
	flagAC    = 1 << 18
	status    = flagCF | flagPF | flagAF | flagZF | flagSF | flagOF
	errorCode = 1<<8 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<17
)

// guest is a machine with a program to run.
type guest struct {
	testing.TB
	mem   *memory.Memory
	eng   vcpu.Engine
	cpu   vcpu.CPU
	run   vcpu.CPU // runs cpu: itself, or what takes turns
	cpuid vcpu.CPUID
	// s is the state to start in, and after a stop the state there.
	s         vcpu.State
	started   bool
	nextTable uint64
}

func newGuest(t testing.TB, cfg Config) *guest {
	t.Helper()
	g := &guest{TB: t, nextTable: tables}
	var err error
	g.mem, err = memory.New(memory.Config{Size: memSize})
	g.must(err)
	t.Cleanup(func() { g.must(g.mem.Close()) })
	g.eng = cfg.New(t, g.mem)
	t.Cleanup(func() { g.must(g.eng.Close()) })
	g.cpu, err = g.eng.NewCPU(0)
	g.must(err)
	g.run = g.cpu
	if turns, ok := g.eng.(vcpu.Turns); ok {
		g.run = turns.Runner()
	}
	g.cpuid = g.eng.CPUID()
	g.tables()
	g.long(0)
	return g
}

func (g *guest) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

func (g *guest) put64(addr, v uint64) { g.Helper(); g.must(g.mem.PutUint64(addr, v)) }
func (g *guest) put32(addr uint64, v uint32) {
	g.Helper()
	g.must(g.mem.PutUint32(addr, v))
}

func (g *guest) get64(addr uint64) uint64 {
	g.Helper()
	v, err := g.mem.Uint64(addr)
	g.must(err)
	return v
}

func (g *guest) get32(addr uint64) uint32 { return uint32(g.get64(addr)) }

func (g *guest) write(addr uint64, p []byte) { g.Helper(); g.must(g.mem.Write(addr, p)) }

func (g *guest) read(addr uint64, n int) []byte {
	g.Helper()
	p := make([]byte, n)
	g.must(g.mem.Read(addr, p))
	return p
}

// listing returns the bytes of a listing: on each line hex bytes and, after two
// spaces, what they mean.
func (g *guest) listing(text string) []byte {
	g.Helper()
	var out []byte
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "  ")
		b, err := hex.DecodeString(strings.ReplaceAll(line, " ", ""))
		g.must(err)
		out = append(out, b...)
	}
	return out
}

// Descriptors: Intel SDM volume 3, section 3.4.5.
func segment(base, limit uint32, typ, dpl uint8, flags uint8) uint64 {
	return uint64(limit&0xffff) | uint64(base&0xffffff)<<16 | uint64(typ)<<40 | 1<<44 | uint64(dpl)<<45 | 1<<47 |
		uint64(limit>>16&15)<<48 | uint64(flags)<<52 | uint64(base>>24)<<56
}

const (
	typeData, typeRead, typeDown, typeCode, typeExec, typeConform = 3, 1, 7, 11, 9, 15
	flagL, flagB, flagG                                           = 2, 4, 8
)

// tables writes descriptor tables, stubs and page tables.
func (g *guest) tables() {
	const all = 0xfffff
	for sel, d := range map[uint64]uint64{
		code64: segment(0, all, typeCode, 0, flagL|flagG), data0: segment(0, all, typeData, 0, flagB|flagG),
		code32: segment(0, all, typeCode, 0, flagB|flagG), code32u &^ 3: segment(0, all, typeCode, 3, flagB|flagG),
		data3 &^ 3: segment(0, all, typeData, 3, flagB|flagG), code64u &^ 3: segment(0, all, typeCode, 3, flagL|flagG),
		code16: segment(0, 0xffff, typeCode, 0, 0), small: segment(data, 0xfff, typeData, 3, flagB),
		absent: segment(0, all, typeData, 3, flagB|flagG) &^ (1 << 47), fixed: segment(0, all, typeRead, 3, flagB|flagG),
		xonly: segment(0, all, typeExec, 3, flagB|flagG), conform: segment(0, all, typeConform, 0, flagL|flagG),
		down: segment(0, 0xfff, typeDown, 3, 0), data16: segment(0, 0xffff, typeData, 0, 0),
		nocode: segment(0, all, typeCode, 0, flagL|flagG) &^ (1 << 47),
		code1:  segment(0, all, typeCode, 1, flagL|flagG), data1: segment(0, all, typeData, 1, flagB|flagG),
		selTSS: 0x67 | tss64<<16 | 0x89<<40, selTSS3: 0x67 | tss32<<16 | 0x89<<40, selLDT: 0x17 | ldt<<16 | 0x82<<40,
	} {
		g.put64(gdt+sel, d)
	}
	g.put64(ldt+8, segment(data, 0xff, typeData, 3, flagB)) // selector 0x0c
	g.put64(tss64+4, stack0)
	g.put64(tss64+12, stack1)
	g.put64(tss64+36, ist1)
	g.put64(tss64+44, ist2)
	g.put32(tss64+100, 0x68<<16)
	g.put32(tss32+4, stack0)
	g.put32(tss32+8, data0)
	g.put32(tss32+100, 0x68<<16)
	for v := range uint64(256) {
		out := []byte{0xe6, faultPort} // out faultPort, al
		stub := out
		stub32 := out
		if v < 32 && errorCode>>v&1 != 0 {
			stub = append(stub[:2:2], 0x48, 0x83, 0xc4, 8) // add rsp, 8
			stub32 = append(stub32[:2:2], 0x83, 0xc4, 4)   // add esp, 4
		}
		g.write(stubs64+v*stubSize, append(stub[:len(stub):len(stub)], 0x48, 0xcf)) // iretq
		g.write(stubs32+v*stubSize, append(stub32[:len(stub32):len(stub32)], 0xcf)) // iretd
		g.write(stubs16+v*8, append(out[:2:2], 0xcf))                               // iret
		dpl := uint64(0)
		if v == vBP || v == vOF || v == 0x80 {
			dpl = 3
		}
		g.gate64(v, stubs64+v*stubSize, code64, 0, 0x8e|dpl<<5)
		g.put64(idt32+8*v, (stubs32+v*stubSize)|code32<<16|(0x8e|dpl<<5)<<40)
		g.put32(ivt+4*v, uint32(stubs16+v*8))
	}
	pml4 := g.table()
	g.s.Control.CR3 = pml4
	for p := uint64(0); p < large; p += 4096 {
		flags := uint64(pteP | pteW)
		if p >= userBase && p < userEnd {
			flags |= pteU
		}
		g.page(p, p|flags)
	}
	pd := g.entry(large, 2)
	g.put64(pd, large|pteP|pteW|pteU|ptePS)
}

// gate64 fills a gate of the 64-bit IDT.
func (g *guest) gate64(v, addr, sel, ist, typ uint64) {
	g.put64(idt64+16*v, addr&0xffff|sel<<16|ist<<32|typ<<40|addr>>16&0xffff<<48)
	g.put64(idt64+16*v+8, addr>>32)
}

func (g *guest) table() uint64 {
	t := g.nextTable
	g.nextTable += 4096
	return t
}

// entry returns the address of lin's entry at a level, 1 to 4, of 4-level paging,
// and makes the tables above it.
func (g *guest) entry(lin uint64, level int) uint64 {
	t := g.s.Control.CR3 &^ 0xfff
	for l := 4; ; l-- {
		e := t + lin>>(12+9*(l-1))&511*8
		if l == level {
			return e
		}
		v := g.get64(e)
		if v&pteP == 0 {
			v = g.table() | pteP | pteW | pteU
			g.put64(e, v)
		}
		t = v & 0xffffffffff000
	}
}

// page sets lin's entry in its page table.
func (g *guest) page(lin, pte uint64) { g.put64(g.entry(lin, 1), pte) }

func flat(sel uint16, dpl uint8, typ uint8) vcpu.Segment {
	return vcpu.Segment{Selector: sel, Limit: 0xffffffff, Type: typ, DPL: dpl, Present: true, Big: typ < 8, Granularity: true}
}

// reset gives the state a start that is the same for all modes.
func (g *guest) reset() {
	cr3 := g.s.Control.CR3
	g.s = vcpu.PowerUp(true)
	g.s.XSAVE = make([]byte, 576) // as after FNINIT
	binary.LittleEndian.PutUint16(g.s.XSAVE, 0x37f)
	binary.LittleEndian.PutUint32(g.s.XSAVE[24:], 0x1f80)
	g.s.XSAVE[512] = 3
	g.s.Control.CR3 = cr3
	g.s.Control.CR0 = 0x21 | vcpu.CR0ET // NE, PE
	g.s.Regs.RIP, g.s.Regs.RSP = code, stack0-0x100
	g.s.GDT = vcpu.Table{Base: gdt, Limit: gdtSize - 1}
	g.s.Segments.LDT = vcpu.Segment{Unusable: true}
	g.started = false
}

// long prepares 64-bit code at a CPL.
func (g *guest) long(cpl uint8) {
	g.reset()
	s := &g.s
	s.Control.CR0 |= vcpu.CR0PG | cr0WP
	s.Control.CR4 = vcpu.CR4PAE | cr4FXSR | cr4XMM
	s.Control.EFER = vcpu.EFERLME | vcpu.EFERLMA | vcpu.EFERNXE | vcpu.EFERSCE
	s.IDT = vcpu.Table{Base: idt64, Limit: 4095}
	cs, ss := uint16(code64), uint16(data0)
	if cpl == 3 {
		cs, ss = code64u, data3
		s.Regs.RSP = stack3 - 0x100
	}
	s.Segments.CS = flat(cs, cpl, 11)
	s.Segments.CS.Long = true
	d := flat(ss, cpl, 3)
	s.Segments.DS, s.Segments.ES, s.Segments.SS, s.Segments.FS, s.Segments.GS = d, d, d, d, d
	s.Segments.TR = vcpu.Segment{Base: tss64, Limit: 0x67, Selector: selTSS, Type: 11, System: true, Present: true}
}

// compat prepares 32-bit code at a CPL under a 64-bit kernel.
func (g *guest) compat(cpl uint8) {
	g.long(cpl)
	sel := uint16(code32)
	if cpl == 3 {
		sel = code32u
	}
	g.s.Segments.CS = flat(sel, cpl, 11)
	g.s.Segments.CS.Big = true
}

// protected prepares 32-bit code without paging.
func (g *guest) protected(cpl uint8) {
	g.compat(cpl)
	s := &g.s
	s.Control.CR0 &^= vcpu.CR0PG
	s.Control.CR4 = cr4FXSR | cr4XMM
	s.Control.EFER = 0
	s.IDT = vcpu.Table{Base: idt32, Limit: 2047}
	s.Segments.TR = vcpu.Segment{Base: tss32, Limit: 0x67, Selector: selTSS3, Type: 11, System: true, Present: true}
}

// real prepares 16-bit code in real mode.
func (g *guest) real() {
	g.reset()
	s := &g.s
	s.Control.CR0 = 0x20 | vcpu.CR0ET
	s.IDT = vcpu.Table{Limit: 0x3ff}
	d := vcpu.Segment{Limit: 0xffff, Type: 3, Present: true}
	s.Segments.CS = vcpu.Segment{Limit: 0xffff, Type: 11, Present: true}
	s.Segments.DS, s.Segments.ES, s.Segments.SS, s.Segments.FS, s.Segments.GS = d, d, d, d, d
	s.Regs.RSP = stack3 - 0x100
}

// stop is where a program stopped.
type stop struct {
	vector int // of an exception, or -1 at the end
	code   uint64
	rip    uint64
	cs     uint64
	flags  uint64
	rsp    uint64 // in long mode, or with a change of privilege
	ss     uint64
	frame  uint64 // address of the interrupted RIP on the handler's stack
	exit   vcpu.Exit
}

// program writes a program that go runs.
func (g *guest) program(listing string) { g.write(code, g.listing(listing)) }

// start runs a program up to its first stop.
func (g *guest) start(listing string) stop {
	g.Helper()
	g.program(listing)
	return g.resume()
}

// restart has the next resume begin with g.s.
func (g *guest) restart() { g.started = false }

// exitOnce enters the guest until any exit.
func (g *guest) exitOnce() vcpu.Exit {
	g.Helper()
	if !g.started {
		g.must(g.cpu.SetState(&g.s))
		g.started = true
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	watchdog := time.AfterFunc(20*time.Second, g.run.Kick)
	defer watchdog.Stop()
	var e vcpu.Exit
	if err := g.run.Run(&e); err != nil {
		var s vcpu.State
		_ = g.cpu.State(&s)
		g.Fatalf("%v (RIP %#x)", err, s.Regs.RIP)
	}
	return e
}

// resume runs on to the next stop, and loads g.s.
func (g *guest) resume() stop {
	g.Helper()
	e := g.exitOnce()
	st := stop{vector: -1, exit: e}
	g.must(g.cpu.State(&g.s))
	r := &g.s.Regs
	switch {
	case e.Reason == vcpu.ExitIO && e.Write && e.Port == endPort:
		return st
	case e.Reason == vcpu.ExitIO && e.Write && e.Port == faultPort:
	default:
		g.Fatalf("exit %+v at %#x, want one from a stub or the end", e, r.RIP)
	}
	word := uint64(8)
	sp := r.RSP
	switch {
	case r.RIP >= stubs64 && r.RIP < stubs32:
		st.vector = int(r.RIP-stubs64) / stubSize
	case r.RIP >= stubs32 && r.RIP < stubs16:
		st.vector, word = int(r.RIP-stubs32)/stubSize, 4
	case r.RIP >= stubs16 && r.RIP < code:
		st.vector, word = int(r.RIP-stubs16)/8, 2
		sp = r.RSP & 0xffff
	default:
		g.Fatalf("no stub at %#x", r.RIP)
	}
	pop := func() uint64 {
		v := g.get64(sp)
		sp += word
		switch word {
		case 4:
			v &= 0xffffffff
		case 2:
			v &= 0xffff
		}
		return v
	}
	if word > 2 && st.vector < 32 && errorCode>>st.vector&1 != 0 {
		st.code = pop()
	}
	st.frame = sp
	st.rip, st.cs, st.flags = pop(), pop(), pop()
	if word == 8 || word == 4 && st.cs&3 != uint64(g.s.Segments.CS.Selector&3) {
		st.rsp, st.ss = pop(), pop()
	}
	return st
}

// ends checks that a stop is the end.
func (g *guest) ends(st stop) {
	g.Helper()
	if st.vector != -1 {
		g.Fatalf("exception %d, error code %#x, at %#x, CR2 %#x; want the end", st.vector, st.code, st.rip, g.s.Control.CR2)
	}
}

// faults checks that a stop is an exception at code+off.
func (g *guest) faults(st stop, vector int, errorCode, off uint64) {
	g.Helper()
	if st.vector != vector || st.code != errorCode || st.rip != code+off {
		g.Fatalf("exception %d, error code %#x, at %#x; want %d, %#x, at %#x", st.vector, st.code, st.rip, vector, errorCode, code+off)
	}
}

// equal checks a number.
func (g *guest) equal(what string, got, want uint64) {
	g.Helper()
	if got != want {
		g.Errorf("%s is %#x, want %#x", what, got, want)
	}
}

// has reports whether CPUID has a feature: a bit of a register ('a' to 'd') of a
// leaf.
func (g *guest) has(function uint32, reg byte, bit uint) bool {
	l, _ := g.cpuid.Get(function, 0)
	return []uint32{l.EAX, l.EBX, l.ECX, l.EDX}[reg-'a']>>bit&1 != 0
}

func (g *guest) amd() bool { return g.cpuid.Vendor() == "AuthenticAMD" }

// msr returns a model-specific register of g.s.
func (g *guest) msr(index uint32) uint64 {
	g.Helper()
	for _, m := range g.s.MSRs {
		if m.Index == index {
			return m.Value
		}
	}
	g.Fatalf("the state has no MSR %#x", index)
	return 0
}

func le64(p []byte) uint64 { return binary.LittleEndian.Uint64(p) }
