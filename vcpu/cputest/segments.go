package cputest

import "fmt"

// loadSegment loads DS from AX and ends.
const loadSegment = `
		8e d8  mov ds,eax
		e6 f4  out 0xf4,al
	`

var segmentTests = func() []test {
	out := []test{}
	// Loads of data segments at CPL 3: which selectors fault, and how.
	for _, l := range []struct {
		name   string
		sel    uint64
		vector int // -1: fine
		code   uint64
	}{
		{"null", 0, -1, 0},
		{"null with RPL", 3, -1, 0},
		{"data of CPL 3", data3, -1, 0},
		{"data of CPL 0", data0, vGP, data0},
		{"read-only data", fixed | 3, -1, 0},
		{"readable code", code32u, -1, 0},
		{"code that cannot be read", xonly | 3, vGP, xonly},
		{"conforming code", conform | 3, -1, 0},
		{"not present", absent | 3, vNP, absent},
		{"beyond the table", gdtSize | 3, vGP, gdtSize},
		{"a system segment", selTSS | 3, vGP, selTSS},
		{"local table", 0x0f, -1, 0},
		{"beyond the local table", 0x1f, vGP, 0x1c},
	} {
		out = append(out, test{"load " + l.name, func(g *guest) {
			g.long(3)
			g.s.Segments.LDT.Base, g.s.Segments.LDT.Limit, g.s.Segments.LDT.Selector = ldt, 0x17, selLDT
			g.s.Segments.LDT.Type, g.s.Segments.LDT.System, g.s.Segments.LDT.Present, g.s.Segments.LDT.Unusable = 2, true, true, false
			g.s.Regs.RAX = l.sel
			st := g.start(`
		8e d8  mov ds,eax
		0f 0b  ud2
	`)
			if l.vector >= 0 {
				g.faults(st, l.vector, l.code, 0)
				return
			}
			g.faults(st, vUD, 0, 2)
			g.equal("ds", uint64(g.s.Segments.DS.Selector), l.sel)
		}})
	}
	return append(out, moreSegments...)
}()

var moreSegments = []test{
	{"descriptors are marked accessed", func(g *guest) {
		d := g.get64(gdt + data3&^3)
		g.put64(gdt+data3&^3, d&^(1<<40))
		g.s.Regs.RAX = data3
		g.ends(g.start(loadSegment))
		g.equal("descriptor", g.get64(gdt+data3&^3), d|1<<40)
	}},
	{"the hidden part", func(g *guest) {
		g.s.Regs.RAX = small
		g.ends(g.start(loadSegment))
		ds := g.s.Segments.DS
		g.equal("base", ds.Base, data)
		g.equal("limit", uint64(ds.Limit), 0xfff)
	}},
	{"SS in 64-bit mode", func(g *guest) {
		for _, l := range []struct {
			cpl       uint8
			sel, code uint64
			vector    int
		}{
			{0, data0, 0, -1}, {0, 0, 0, -1}, {0, data3, data3 &^ 3, vGP}, {0, fixed, fixed, vGP}, {0, code64, code64, vGP}, {0, absent, absent, vGP},
			{3, 0, 0, vGP}, {3, data3, 0, -1}, {3, absent | 3, absent, vSS}, {3, data0, data0, vGP}, {3, 3, 0, vGP},
		} {
			g.long(l.cpl)
			g.s.Regs.RAX = l.sel
			st := g.start(`
		8e d0  mov ss,eax
		90     nop
		0f 0b  ud2
	`)
			what := fmt.Sprintf("selector %#x at CPL %d: exception %d, code %#x", l.sel, l.cpl, st.vector, st.code)
			if l.vector >= 0 && (st.vector != l.vector || st.code != l.code) || l.vector < 0 && st.vector != vUD {
				g.Errorf("%s", what)
			}
		}
	}},
	{"mov to cs", func(g *guest) { g.faults(g.start("8e c8  mov cs,eax"), vUD, 0, 0) }},
	{"mov from a segment register", func(g *guest) {
		g.ends(g.start(`
		48 c7 c0 ff ff ff ff  mov rax,0xffffffffffffffff
		48 c7 c1 ff ff ff ff  mov rcx,0xffffffffffffffff
		8c d8                 mov eax,ds
		66 8c d9              mov cx,ds
		8c 14 25 00 a0 00 00  mov WORD PTR ds:0xa000,ss
		e6 f4                 out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, data0)
		g.equal("cx", g.s.Regs.RCX, 0xffffffffffff0000|data0)
		g.equal("memory", g.get64(data), data0)
	}},
	{"push and pop fs", func(g *guest) {
		g.ends(g.start(`
		6a 2b  push 0x2b
		0f a1  pop fs
		0f a0  push fs
		58     pop rax
		e6 f4  out 0xf4,al
	`))
		g.equal("fs", g.s.Regs.RAX, data3)
	}},
	{"bases count for FS and GS alone", func(g *guest) {
		g.s.Segments.FS.Base, g.s.Segments.GS.Base = 0x100, 0x200
		g.s.Segments.DS.Base, g.s.Segments.ES.Base = 0x300, 0x300
		for i := uint64(0); i < 4; i++ {
			g.put64(data+0x100*i, i+1)
		}
		g.ends(g.start(`
		8b 04 25 00 a0 00 00     mov eax,DWORD PTR ds:0xa000
		64 8b 0c 25 00 a0 00 00  mov ecx,DWORD PTR fs:0xa000
		65 8b 14 25 00 a0 00 00  mov edx,DWORD PTR gs:0xa000
		26 8b 1c 25 00 a0 00 00  es mov ebx,DWORD PTR ds:0xa000
		e6 f4                    out 0xf4,al
	`))
		r := &g.s.Regs
		g.equal("ds", r.RAX, 1)
		g.equal("fs", r.RCX, 2)
		g.equal("gs", r.RDX, 3)
		g.equal("es", r.RBX, 1)
	}},
	{"32-bit limits", func(g *guest) {
		g.compat(3)
		g.s.Regs.RAX = small | 3
		g.put64(data+0xff8, 0x1122334455667788)
		st := g.start(`
		8e d8              mov ds,eax
		8b 0d fc 0f 00 00  mov ecx,DWORD PTR ds:0xffc
		8b 15 fd 0f 00 00  mov edx,DWORD PTR ds:0xffd
	`)
		g.faults(st, vGP, 0, 8)
		g.equal("ecx", g.s.Regs.RCX, 0x11223344)
	}},
	{"32-bit limit of the stack", func(g *guest) {
		g.compat(3)
		g.s.Regs.RAX, g.s.Regs.RBP = small|3, 0x1000
		st := g.start(`
		8e d0     mov ss,eax
		8b 4d 00  mov ecx,DWORD PTR [ebp+0x0]
	`)
		g.faults(st, vSS, 0, 2)
	}},
	{"expand-down", func(g *guest) {
		g.compat(3)
		g.s.Regs.RAX = down | 3
		st := g.start(`
		8e d8              mov ds,eax
		8b 0d 00 a0 00 00  mov ecx,DWORD PTR ds:0xa000
		8b 0d fc ff 00 00  mov ecx,DWORD PTR ds:0xfffc
		8b 0d ff 0f 00 00  mov ecx,DWORD PTR ds:0xfff
	`)
		g.faults(st, vGP, 0, 0xe)
	}},
	{"32-bit null segment", func(g *guest) {
		g.compat(3)
		st := g.start(`
		31 c0  xor eax,eax
		8e d8  mov ds,eax
		8b 08  mov ecx,DWORD PTR [eax]
	`)
		g.faults(st, vGP, 0, 4)
	}},
	{"32-bit read-only and unreadable", func(g *guest) {
		g.compat(3)
		g.s.Regs.RAX = fixed | 3
		g.faults(g.start(`
		8e d8              mov ds,eax
		8b 0d 00 a0 00 00  mov ecx,DWORD PTR ds:0xa000
		89 0d 00 a0 00 00  mov DWORD PTR ds:0xa000,ecx
	`), vGP, 0, 8)
		g.compat(3)
		g.faults(g.start(`2e 89 0d 00 a0 00 00  mov DWORD PTR cs:0xa000,ecx`), vGP, 0, 0)
	}},
	{"code limit", func(g *guest) {
		g.compat(3)
		g.s.Segments.CS.Limit, g.s.Segments.CS.Granularity = code+1, false
		st := g.start(`
		90  nop
		90  nop
		90  nop
	`)
		g.faults(st, vGP, 0, 2)
	}},
	{"lgdt, sgdt, lidt, sidt", func(g *guest) {
		g.write(data, []byte{0xcf, 0, 0, 0x10, 0, 0, 0, 0, 0, 0})
		g.ends(g.start(`
		0f 01 14 25 00 a0 00 00  lgdt ds:0xa000
		0f 01 04 25 10 a0 00 00  sgdt ds:0xa010
		0f 01 0c 25 20 a0 00 00  sidt ds:0xa020
		66 b8 2b 00              mov ax,0x2b
		8e d8                    mov ds,eax
		0f 01 1c 25 20 a0 00 00  lidt ds:0xa020
		e6 f4                    out 0xf4,al
	`))
		if got, want := string(g.read(data+0x10, 10)), string(g.read(data, 10)); got != want {
			g.Errorf("sgdt stored % x, want % x", got, want)
		}
		g.equal("idt limit", g.get64(data+0x20)&0xffff, 4095)
		g.equal("idt base", g.get64(data+0x22), idt64)
	}},
	{"ltr and str", func(g *guest) {
		g.put64(gdt+selTSS, g.get64(gdt+selTSS))
		g.ends(g.start(`
		b8 40 00 00 00  mov eax,0x40
		0f 00 d8        ltr ax
		0f 00 c9        str ecx
		e6 f4           out 0xf4,al
	`))
		g.equal("tr", g.s.Regs.RCX, selTSS)
		g.equal("type", uint64(g.s.Segments.TR.Type), 11)
		g.equal("descriptor is busy", g.get64(gdt+selTSS)>>40&15, 11)
		g.restart()
		g.s.Regs.RIP = code
		g.faults(g.resume(), vGP, selTSS, 5) // busy already
	}},
	{"lldt and sldt", func(g *guest) {
		g.ends(g.start(`
		b8 58 00 00 00  mov eax,0x58
		0f 00 d0        lldt ax
		0f 00 c1        sldt ecx
		b8 0c 00 00 00  mov eax,0xc
		8e d8           mov ds,eax
		31 c0           xor eax,eax
		0f 00 d0        lldt ax
		0f 00 c2        sldt edx
		e6 f4           out 0xf4,al
	`))
		g.equal("ldt", g.s.Regs.RCX, selLDT)
		g.equal("base by the local table", g.s.Segments.DS.Base, data)
		g.equal("null", g.s.Regs.RDX, 0)
	}},
	{"lar, lsl, verr, verw", func(g *guest) {
		g.long(3)
		g.s.Regs.RBX = small | 3
		g.s.Regs.RSI = data0
		g.s.Regs.RDI = fixed | 3
		st := g.start(`
		0f 02 c3     lar eax,ebx
		41 0f 94 c0  sete r8b
		0f 03 cb     lsl ecx,ebx
		0f 02 d6     lar edx,esi
		41 0f 94 c1  sete r9b
		0f 00 e7     verr di
		41 0f 94 c2  sete r10b
		0f 00 ef     verw di
		41 0f 94 c3  sete r11b
		0f 00 e6     verr si
		41 0f 94 c4  sete r12b
		0f 0b        ud2
	`)
		g.faults(st, vUD, 0, 0x26)
		r := &g.s.Regs
		g.equal("lar", r.RAX, g.get64(gdt+small)>>32&0xffff00)
		g.equal("lsl", r.RCX, 0xfff)
		for i, v := range []uint64{r.R8, r.R9, r.R10, r.R11, r.R12} {
			g.equal(fmt.Sprint("zf ", i), v&1, []uint64{1, 0, 1, 0, 0}[i])
		}
	}},
	{"lss and lfs", func(g *guest) {
		g.write(data, []byte{0x78, 0x56, 0x34, 0x12, data3, 0})
		g.ends(g.start(`
		0f b4 04 25 00 a0 00 00  lfs eax,FWORD PTR ds:0xa000
		e6 f4                    out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 0x12345678)
		g.equal("fs", uint64(g.s.Segments.FS.Selector), data3)
	}},
	{"a stack segment holds interrupts off for one instruction", func(g *guest) {
		// A single step after MOV SS comes one instruction late.
		g.s.Regs.RAX = data0
		st := g.start(`
		9c                    pushf
		81 0c 24 00 01 00 00  or DWORD PTR [rsp],0x100
		9d                    popf
		8e d0                 mov ss,eax
		90                    nop
		90                    nop
		90                    nop
	`)
		if st.vector != vDB {
			g.Fatalf("%+v", st)
		}
		// POPF sets TF after itself: the trap is after MOV SS, which defers it.
		g.equal("rip", st.rip, code+0xc)
	}},
}
