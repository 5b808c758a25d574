package cputest

// Self-modifying code: a store is seen by the next instruction fetch of the same
// CPU after a jump, and, as all processors have it, even without one.
var codeTests = []test{
	{"a store changes the code after a jump", func(g *guest) {
		// mov eax, 1 at +0x20 becomes mov eax, 2.
		g.write(code+0x20, g.listing(`
		b8 01 00 00 00  mov eax,0x1
		e6 f4           out 0xf4,al
	`))
		g.ends(g.start(`
		c6 04 25 21 80 00 00 02  mov BYTE PTR ds:0x8021,0x2
		eb 16                    jmp 0x8020
		00 00                    add BYTE PTR [rax],al
		b8 01 00 00 00           mov eax,0x1
		e6 f4                    out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 2)
	}},
	{"a loop that rewrites itself", func(g *guest) {
		g.ends(g.start(`
		31 c0                 xor eax,eax
		b9 05 00 00 00        mov ecx,0x5
		83 c0 11              add eax,0x11
		fe 04 25 09 80 00 00  inc BYTE PTR ds:0x8009
		e2 f4                 loop 0x8007
		e6 f4                 out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 0x11+0x12+0x13+0x14+0x15)
	}},
	{"a store to the next instruction", func(g *guest) {
		g.ends(g.start(`
		c6 04 25 09 80 00 00 07  mov BYTE PTR ds:0x8009,0x7
		b8 01 00 00 00           mov eax,0x1
		e6 f4                    out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 7)
	}},
	{"through an alias", func(g *guest) {
		g.page(0x500000, code|pteP|pteW)
		g.ends(g.start(`
		b9 02 00 00 00           mov ecx,0x2
		b8 01 00 00 00           mov eax,0x1
		c6 04 25 06 00 50 00 09  mov BYTE PTR ds:0x500006,0x9
		e2 f1                    loop 0x8005
		e6 f4                    out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 9)
	}},
	{"an instruction across two pages, changed in the second", func(g *guest) {
		g.write(code+0xffe, []byte{0xb8, 1, 0, 0, 0, 0xc3}) // mov eax, 1; ret
		g.ends(g.start(`
		be fe 8f 00 00           mov esi,0x8ffe
		ff d6                    call rsi
		89 c3                    mov ebx,eax
		c6 04 25 00 90 00 00 02  mov BYTE PTR ds:0x9000,0x2
		ff d6                    call rsi
		e6 f4                    out 0xf4,al
	`))
		g.equal("first", g.s.Regs.RBX, 1)
		g.equal("second", g.s.Regs.RAX, 0x201)
	}},
	{"rep movsb over code", func(g *guest) {
		g.write(data, []byte{0xb8, 5, 0, 0, 0, 0xc3})
		g.write(code+0x100, []byte{0xb8, 4, 0, 0, 0, 0xc3})
		g.ends(g.start(`
		bb 00 81 00 00  mov ebx,0x8100
		ff d3           call rbx
		89 c2           mov edx,eax
		be 00 a0 00 00  mov esi,0xa000
		89 df           mov edi,ebx
		b9 06 00 00 00  mov ecx,0x6
		f3 a4           rep movs BYTE PTR es:[rdi],BYTE PTR ds:[rsi]
		ff d3           call rbx
		e6 f4           out 0xf4,al
	`))
		g.equal("before", g.s.Regs.RDX, 4)
		g.equal("after", g.s.Regs.RAX, 5)
	}},
	{"another page at the same address", func(g *guest) {
		g.write(data, []byte{0xb8, 5, 0, 0, 0, 0xc3})
		g.write(spare, []byte{0xb8, 6, 0, 0, 0, 0xc3})
		g.page(0x500000, data|pteP)
		g.s.Regs.RSI = g.entry(0x500000, 1)
		g.ends(g.start(`
		bb 00 00 50 00     mov ebx,0x500000
		ff d3              call rbx
		89 c2              mov edx,eax
		c7 06 01 d0 00 00  mov DWORD PTR [rsi],0xd001
		0f 01 3b           invlpg BYTE PTR [rbx]
		ff d3              call rbx
		e6 f4              out 0xf4,al
	`))
		g.equal("before", g.s.Regs.RDX, 5)
		g.equal("after", g.s.Regs.RAX, 6)
	}},
	{"one page at two addresses", func(g *guest) {
		// A block does not depend on where it is mapped, but RIP does.
		g.write(data, g.listing(`
		48 8d 05 00 00 00 00  lea rax,[rip+0x0] # 0x8007
		c3                    ret
	`))
		g.page(0x500000, data|pteP)
		g.ends(g.start(`
		bb 00 a0 00 00  mov ebx,0xa000
		ff d3           call rbx
		89 c2           mov edx,eax
		bb 00 00 50 00  mov ebx,0x500000
		ff d3           call rbx
		e6 f4           out 0xf4,al
	`))
		g.equal("first", g.s.Regs.RDX, data+7)
		g.equal("second", g.s.Regs.RAX, 0x500007)
	}},
	{"the same bytes in two modes", func(g *guest) {
		// 48 40 is dec eax; inc eax in 32-bit code, and a REX prefix in 64-bit code.
		g.write(code+0x100, []byte{0x48, 0x01, 0xc0, 0xcb}) // add rax, rax | dec eax; add eax, eax
		g.put64(data, 0x1800008100)
		g.put64(data+8, 0x0800008100)
		g.s.Regs.RAX = 0x80000003
		g.ends(g.start(`
		ff 1c 25 00 a0 00 00  call FWORD PTR ds:0xa000
		48 89 c1              mov rcx,rax
		ff 1c 25 08 a0 00 00  call FWORD PTR ds:0xa008
		e6 f4                 out 0xf4,al
	`))
		g.equal("32-bit", g.s.Regs.RCX, 4)
		g.equal("64-bit", g.s.Regs.RAX, 8)
	}},
	{"the host changes code between two runs", func(g *guest) {
		g.ends(g.start(`
		b8 01 00 00 00  mov eax,0x1
		e6 f4           out 0xf4,al
	`))
		g.restart()
		g.s.Regs.RIP = code
		g.ends(g.start(`
		b8 02 00 00 00  mov eax,0x2
		e6 f4           out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 2)
	}},
	{"a fault in the middle of a block", func(g *guest) {
		g.page(data, 0)
		st := g.start(`
		b8 01 00 00 00        mov eax,0x1
		b9 02 00 00 00        mov ecx,0x2
		8b 14 25 00 a0 00 00  mov edx,DWORD PTR ds:0xa000
		bb 03 00 00 00        mov ebx,0x3
		e6 f4                 out 0xf4,al
	`)
		g.faults(st, vPF, 0, 0xa)
		g.equal("eax", g.s.Regs.RAX, 1)
		g.equal("ecx", g.s.Regs.RCX, 2)
		g.equal("ebx", g.s.Regs.RBX, 0)
	}},
	{"flags at a fault are those of the last instruction that set them", func(g *guest) {
		g.page(data, 0)
		g.s.Regs.RAX = 0xffffffff
		st := g.start(`
		83 c0 01              add eax,0x1
		8b 14 25 00 a0 00 00  mov edx,DWORD PTR ds:0xa000
	`)
		g.faults(st, vPF, 0, 3)
		g.equal("flags", st.flags&status, flagCF|flagZF|flagPF|flagAF)
	}},
}
