package cputest

import "github.com/vmkit-go/vmkit/vcpu"

const shutdown = vcpu.ExitShutdown

// access is one access to a page at data, and the page fault that it ought to be.
type pageAccess struct {
	name       string
	cpl        uint8
	pte        uint64
	code       string
	cr0, cr4   uint64 // to set
	clear0     uint64
	ac         bool
	want       uint64 // error code
	fine       bool   // no fault
	feature    uint   // bit of leaf 7 EBX
	needed     bool
	executable bool // CR2 is where it jumps
}

const (
	load = `
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		e6 f4                    out 0xf4,al
	`
	store = `
		48 89 04 25 00 a0 00 00  mov QWORD PTR ds:0xa000,rax
		e6 f4                    out 0xf4,al
	`
	fetch = `
		b8 00 a0 00 00  mov eax,0xa000
		ff e0           jmp rax
	`
)

var pageAccesses = []pageAccess{
	{name: "load absent", pte: 0, code: load, want: 0},
	{name: "store absent", pte: pteW, code: store, want: pfW},
	{name: "load absent at CPL 3", cpl: 3, code: load, want: pfU},
	{name: "store absent at CPL 3", cpl: 3, code: store, want: pfU | pfW},
	{name: "fetch absent", code: fetch, want: pfI},
	{name: "fetch absent at CPL 3", cpl: 3, code: fetch, want: pfU | pfI},
	{name: "load supervisor at CPL 3", cpl: 3, pte: pteP | pteW, code: load, want: pfP | pfU},
	{name: "store supervisor at CPL 3", cpl: 3, pte: pteP | pteW, code: store, want: pfP | pfU | pfW},
	{name: "store read-only at CPL 3", cpl: 3, pte: pteP | pteU, code: store, want: pfP | pfU | pfW},
	{name: "store read-only at CPL 0", pte: pteP, code: store, want: pfP | pfW},
	{name: "store read-only without WP", pte: pteP | pteU, clear0: cr0WP, code: store, fine: true},
	{name: "load read-only", pte: pteP, code: load, fine: true},
	{name: "fetch NX", pte: pteP | pteNX, code: fetch, want: pfP | pfI},
	{name: "fetch NX at CPL 3", cpl: 3, pte: pteP | pteU | pteNX, code: fetch, want: pfP | pfU | pfI},
	{name: "fetch supervisor at CPL 3", cpl: 3, pte: pteP, code: fetch, want: pfP | pfU | pfI},
	{name: "load NX", pte: pteP | pteNX, code: load, fine: true},
	{name: "reserved bit", pte: pteP | 1<<51, code: load, want: pfP | pfRSVD},
	{name: "reserved bit in a store at CPL 3", cpl: 3, pte: pteP | pteU | pteW | 1<<51, code: store, want: pfP | pfRSVD | pfU | pfW},
	{name: "SMEP", pte: pteP | pteU, code: fetch, cr4: cr4SMEP, want: pfP | pfI, feature: 7, needed: true},
	{name: "SMEP lets CPL 3", cpl: 3, pte: pteP | pteU, code: fetch, cr4: cr4SMEP, want: pfU | pfI, feature: 7, needed: true, executable: true},
	{name: "SMAP load", pte: pteP | pteU, code: load, cr4: cr4SMAP, want: pfP, feature: 20, needed: true},
	{name: "SMAP store", pte: pteP | pteU | pteW, code: store, cr4: cr4SMAP, want: pfP | pfW, feature: 20, needed: true},
	{name: "SMAP with AC", pte: pteP | pteU | pteW, code: store, cr4: cr4SMAP, ac: true, fine: true, feature: 20, needed: true},
	{name: "SMAP supervisor page", pte: pteP | pteW, code: store, cr4: cr4SMAP, fine: true, feature: 20, needed: true},
}

func (g *guest) pageAccess(a pageAccess) {
	if a.needed && !g.has(7, 'b', a.feature) {
		return // CPUID does not offer it
	}
	g.long(a.cpl)
	g.s.Control.CR0 = g.s.Control.CR0&^a.clear0 | a.cr0
	g.s.Control.CR4 |= a.cr4
	if a.cr4&(cr4SMEP|cr4SMAP) != 0 && a.cpl == 0 {
		// The code itself must not be the user's.
		for p := uint64(code); p < code+0x2000; p += 4096 {
			g.page(p, p|pteP|pteW)
		}
	}
	if a.ac {
		g.s.Regs.RFLAGS |= flagAC
	}
	pte := a.pte
	if pte != 0 {
		pte |= data
	}
	g.page(data, pte)
	want := uint64(data)
	if a.executable {
		g.write(data, g.listing(`
		b8 00 00 50 00  mov eax,0x500000
		ff e0           jmp rax
	`))
		want = 0x500000
	}
	st := g.start(a.code)
	if a.fine {
		if a.cpl == 0 {
			g.ends(st)
		}
		return
	}
	if st.vector != vPF || st.code != a.want {
		g.Fatalf("exception %d, error code %#x; want a page fault with %#x", st.vector, st.code, a.want)
	}
	g.equal("cr2", g.s.Control.CR2, want)
}

var pagingTests = func() []test {
	var out []test
	for _, a := range pageAccesses {
		out = append(out, test{a.name, func(g *guest) { g.pageAccess(a) }})
	}
	return append(out, morePaging...)
}()

var morePaging = []test{
	{"accessed and dirty", func(g *guest) {
		e := g.entry(data, 1)
		g.put64(e, data|pteP|pteW)
		g.ends(g.start(load))
		g.equal("pte after a load", g.get64(e), data|pteP|pteW|pteA)
		g.long(0)
		g.ends(g.start(store))
		g.equal("pte after a store", g.get64(e), data|pteP|pteW|pteA|pteD)
		for l := 2; l <= 4; l++ {
			g.equal("accessed above", g.get64(g.entry(data, l))&pteA, pteA)
		}
	}},
	{"no dirty bit for a store that faults", func(g *guest) {
		e := g.entry(data, 1)
		g.put64(e, data|pteP)
		st := g.start(store)
		g.faults(st, vPF, pfP|pfW, 0)
		g.equal("pte", g.get64(e)&pteD, 0)
	}},
	{"dirty is set by the first store after loads", func(g *guest) {
		e := g.entry(data, 1)
		g.put64(e, data|pteP|pteW|pteA)
		g.ends(g.start(`
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		48 89 04 25 08 a0 00 00  mov QWORD PTR ds:0xa008,rax
		e6 f4                    out 0xf4,al
	`))
		g.equal("pte", g.get64(e), data|pteP|pteW|pteA|pteD)
	}},
	{"large page", func(g *guest) {
		g.put64(large+0x12340, 0x77)
		g.ends(g.start(`
		48 8b 04 25 40 23 21 00  mov rax,QWORD PTR ds:0x212340
		48 89 04 25 48 23 21 00  mov QWORD PTR ds:0x212348,rax
		e6 f4                    out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x77)
		g.equal("stored", g.get64(large+0x12348), 0x77)
		e := g.get64(g.entry(large, 2))
		g.equal("pde", e&(pteA|pteD), pteA|pteD)
	}},
	{"large page with a reserved bit", func(g *guest) {
		g.put64(g.entry(large, 2), large|1<<13|pteP|pteW|pteU|ptePS)
		st := g.start(`48 8b 04 25 40 23 21 00  mov rax,QWORD PTR ds:0x212340`)
		g.faults(st, vPF, pfP|pfRSVD, 0)
	}},
	{"gigabyte page", func(g *guest) {
		if !g.has(0x80000001, 'd', 26) {
			return
		}
		g.put64(g.entry(1<<30, 3), 0|pteP|pteW|ptePS)
		g.put64(data, 0x1234)
		g.ends(g.start(`
		48 8b 04 25 00 a0 00 40  mov rax,QWORD PTR ds:0x4000a000
		e6 f4                    out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x1234)
	}},
	{"rights are those of all levels together", func(g *guest) {
		g.long(3)
		pd := g.entry(data, 2)
		g.put64(pd, g.get64(pd)&^pteU)
		// Its own code is out of reach, too.
		st := g.start(`90  nop`)
		g.faults(st, vPF, pfP|pfU|pfI, 0)
	}},
	{"NX in an upper level", func(g *guest) {
		g.put64(g.entry(large, 2), large|pteP|pteW|ptePS|pteNX)
		st := g.start(`
		b8 00 00 20 00  mov eax,0x200000
		ff e0           jmp rax
	`)
		if st.vector != vPF || st.code != pfP|pfI || st.rip != large {
			g.Fatalf("%+v", st)
		}
	}},
	{"access across pages faults in the second", func(g *guest) {
		g.page(data+0x1000, 0)
		st := g.start(`48 8b 04 25 fc af 00 00  mov rax,QWORD PTR ds:0xaffc`)
		g.faults(st, vPF, 0, 0)
		g.equal("cr2", g.s.Control.CR2, data+0x1000)
	}},
	{"a store across pages changes neither if one faults", func(g *guest) {
		g.page(data+0x1000, data+0x1000|pteP)
		g.s.Regs.RAX = 0x1122334455667788
		st := g.start(`48 89 04 25 fc af 00 00  mov QWORD PTR ds:0xaffc,rax`)
		g.faults(st, vPF, pfP|pfW, 0)
		g.equal("memory", g.get64(data+0xff8), 0)
	}},
	{"invlpg", func(g *guest) {
		g.put64(spare, 0x5a)
		// Map data elsewhere while the old translation may be in use.
		e := g.entry(data, 1)
		g.s.Regs.RBX, g.s.Regs.RCX = e, spare|pteP|pteW
		g.ends(g.start(`
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		48 89 0b                 mov QWORD PTR [rbx],rcx
		0f 01 3c 25 00 a0 00 00  invlpg BYTE PTR ds:0xa000
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		e6 f4                    out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x5a)
	}},
	{"a write to CR3 flushes", func(g *guest) {
		g.put64(spare, 0x5a)
		g.s.Regs.RBX, g.s.Regs.RCX = g.entry(data, 1), spare|pteP|pteW
		g.ends(g.start(`
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		48 89 0b                 mov QWORD PTR [rbx],rcx
		0f 20 da                 mov rdx,cr3
		0f 22 da                 mov cr3,rdx
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		e6 f4                    out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x5a)
	}},
	{"a change of CR4.PGE flushes global pages", func(g *guest) {
		g.s.Control.CR4 |= cr4PGE
		g.put64(spare, 0x5a)
		g.page(data, data|pteP|pteW|pteG)
		g.s.Regs.RBX, g.s.Regs.RCX = g.entry(data, 1), spare|pteP|pteW|pteG
		g.ends(g.start(`
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		48 89 0b                 mov QWORD PTR [rbx],rcx
		0f 20 e2                 mov rdx,cr4
		80 f2 80                 xor dl,0x80
		0f 22 e2                 mov cr4,rdx
		48 8b 04 25 00 a0 00 00  mov rax,QWORD PTR ds:0xa000
		e6 f4                    out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x5a)
	}},
	{"more rights are seen without a flush after the fault", func(g *guest) {
		g.page(data, data|pteP)
		g.faults(g.start(store), vPF, pfP|pfW, 0)
		g.page(data, data|pteP|pteW)
		g.ends(g.resume())
	}},
	{"the walk of a missing table", func(g *guest) {
		g.faults(g.start(`48 8b 04 25 00 00 50 00  mov rax,QWORD PTR ds:0x500000`), vPF, 0, 0)
		g.equal("cr2", g.s.Control.CR2, 0x500000)
		g.long(0)
		g.faults(g.start(`
		48 bb bc 9a 78 56 34 12 00 00  movabs rbx,0x123456789abc
		48 8b 03                       mov rax,QWORD PTR [rbx]
	`), vPF, 0, 0xa)
		g.equal("cr2", g.s.Control.CR2, 0x123456789abc)
	}},
	{"the upper half", func(g *guest) {
		g.page(0xffffffff80000000, data|pteP|pteW)
		g.put64(data, 0x99)
		g.ends(g.start(`
		48 8b 04 25 00 00 00 80  mov rax,QWORD PTR ds:0xffffffff80000000
		e6 f4                    out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x99)
	}},
	{"NX is reserved without EFER.NXE", func(g *guest) {
		g.s.Control.EFER &^= vcpu.EFERNXE
		g.page(data, data|pteP|pteNX)
		g.faults(g.start(load), vPF, pfP|pfRSVD, 0)
	}},
	{"implicit accesses are the supervisor's", func(g *guest) {
		// The interrupt at CPL 3 reads tables of CPL 0.
		g.long(3)
		g.faults(g.start(`
		66 b8 2b 00  mov ax,0x2b
		8e d8        mov ds,eax
		cd 80        int 0x80
	`), 0x80, 0, 8)
	}},
	{"32-bit paging", func(g *guest) {
		g.protected(0)
		pd, pt := g.table(), g.table()
		g.put64(pd, uint64(uint32(pt|7))|0x400087<<32) // second: 4 MiB page
		for i := uint64(0); i < 1024; i++ {
			g.put32(pt+4*i, uint32(i<<12|7))
		}
		g.put32(pt+data>>12*4, spare|7)
		g.put64(spare, 0x66)
		g.put64(high+0x10, 0x77)
		g.s.Control.CR3 = pd
		g.s.Control.CR0 |= vcpu.CR0PG | cr0WP
		g.s.Control.CR4 |= cr4PSE
		g.ends(g.start(`
		a1 00 a0 00 00     mov eax,ds:0xa000
		8b 1d 10 00 40 00  mov ebx,DWORD PTR ds:0x400010
		a3 04 a0 00 00     mov ds:0xa004,eax
		e6 f4              out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 0x66)
		g.equal("ebx", g.s.Regs.RBX, 0x77)
		g.equal("pte", uint64(g.get32(pt+data>>12*4)), spare|7|pteA|pteD)
		g.equal("pde", uint64(g.get32(pd+4))&(pteA|pteD), pteA)
	}},
	{"32-bit page fault", func(g *guest) {
		g.protected(0)
		pd, pt := g.table(), g.table()
		g.put32(pd, uint32(pt|7))
		for i := uint64(0); i < 1024; i++ {
			g.put32(pt+4*i, uint32(i<<12|7))
		}
		g.s.Control.CR3 = pd
		g.s.Control.CR0 |= vcpu.CR0PG | cr0WP
		st := g.start(`
		b8 01 00 00 00  mov eax,0x1
		a3 00 00 80 00  mov ds:0x800000,eax
	`)
		g.faults(st, vPF, pfW, 5)
		g.equal("cr2", g.s.Control.CR2, 0x800000)
	}},
	{"PAE paging", func(g *guest) {
		g.protected(0)
		pdpt, pd, pt := g.table(), g.table(), g.table()
		g.put64(pdpt, pd|1)
		g.put64(pd, pt|7)
		g.put64(pd+8, large|0x87)
		for i := uint64(0); i < 512; i++ {
			g.put64(pt+8*i, i<<12|7)
		}
		g.put64(pt+data>>12*8, spare|7|pteNX)
		g.put64(spare, 0x66)
		g.put64(large+8, 0x55)
		g.s.Control.CR3 = pdpt
		g.s.Control.CR0 |= vcpu.CR0PG | cr0WP
		g.s.Control.CR4 |= vcpu.CR4PAE
		g.s.Control.EFER = vcpu.EFERNXE
		g.ends(g.start(`
		a1 00 a0 00 00     mov eax,ds:0xa000
		8b 1d 08 00 20 00  mov ebx,DWORD PTR ds:0x200008
		e6 f4              out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 0x66)
		g.equal("ebx", g.s.Regs.RBX, 0x55)
		g.restart()
		g.s.Regs.RIP = code
		st := g.start(`
		b8 00 a0 00 00  mov eax,0xa000
		ff e0           jmp eax
	`)
		if st.vector != vPF || st.code != pfP|pfI {
			g.Fatalf("%+v", st)
		}
	}},
}
