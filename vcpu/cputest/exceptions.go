package cputest

var exceptionTests = []test{
	{"divide by zero", func(g *guest) {
		g.faults(g.start(`
		31 c9  xor ecx,ecx
		f7 f1  div ecx
	`), vDE, 0, 2)
	}},
	{"divide overflow", func(g *guest) {
		g.faults(g.start(`
		48 b8 00 00 00 00 00 00 00 80  movabs rax,0x8000000000000000
		48 99                          cqo
		48 c7 c1 ff ff ff ff           mov rcx,0xffffffffffffffff
		48 f7 f9                       idiv rcx
	`), vDE, 0, 0x13)
	}},
	{"ud2", func(g *guest) {
		g.faults(g.start(`
		90     nop
		0f 0b  ud2
	`), vUD, 0, 1)
	}},
	{"invalid in 64-bit mode", func(g *guest) {
		for _, op := range []byte{0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x82, 0x9a, 0xce, 0xd4, 0xd5, 0xd6, 0xea} {
			g.write(code, []byte{op, 0, 0, 0, 0, 0, 0, 0})
			g.long(0)
			st := g.resume()
			if st.vector != vUD || st.rip != code {
				g.Errorf("%02x: exception %d at %#x", op, st.vector, st.rip)
			}
		}
	}},
	{"lock where it must not be", func(g *guest) {
		g.faults(g.start("f0 01 c8  lock add eax,ecx"), vUD, 0, 0)
		g.long(0)
		g.faults(g.start("f0 8b 06  lock mov eax,[rsi]"), vUD, 0, 0)
	}},
	{"int3 is a trap", func(g *guest) { g.faults(g.start("cc  int3"), vBP, 0, 1) }},
	{"int n", func(g *guest) { g.faults(g.start(`cd 80  int 0x80`), 0x80, 0, 2) }},
	{"int n from CPL 3", func(g *guest) {
		g.long(3)
		st := g.start(`cd 80  int 0x80`)
		g.faults(st, 0x80, 0, 2)
		g.equal("cs", st.cs, code64u)
		g.equal("ss", st.ss, data3)
		g.equal("frame", st.frame, stack0-40)
		g.equal("rsp", st.rsp, stack3-0x100)
	}},
	{"int n without the privilege", func(g *guest) {
		g.long(3)
		g.faults(g.start(`cd 81  int 0x81`), vGP, 0x81*8+2, 0)
	}},
	{"int n beyond the table", func(g *guest) {
		g.s.IDT.Limit = 0x20*16 - 1
		g.faults(g.start(`cd 80  int 0x80`), vGP, 0x80*8+2, 0)
	}},
	{"gate not present", func(g *guest) {
		g.gate64(0x50, stubs64, code64, 0, 0x0e)
		g.faults(g.start(`cd 50  int 0x50`), vNP, 0x50*8+2, 0)
	}},
	{"gate to no code", func(g *guest) {
		g.gate64(0x50, stubs64, data0, 0, 0x8e)
		g.faults(g.start(`cd 50  int 0x50`), vGP, data0, 0)
	}},
	{"gate to absent code", func(g *guest) {
		g.gate64(0x50, stubs64, nocode, 0, 0x8e)
		g.faults(g.start(`cd 50  int 0x50`), vNP, nocode, 0)
	}},
	{"interrupt gate clears IF, trap gate does not", func(g *guest) {
		g.gate64(0x50, stubs64, code64, 0, 0x8e)
		g.gate64(0x51, stubs64, code64, 0, 0x8f)
		g.s.Regs.RFLAGS |= flagIF
		st := g.start(`
		cd 50  int 0x50
		cd 51  int 0x51
		e6 f4  out 0xf4,al
	`)
		g.equal("IF in the frame", st.flags&flagIF, flagIF)
		g.equal("IF", g.s.Regs.RFLAGS&flagIF, 0)
		g.resume()
		g.equal("IF behind a trap gate", g.s.Regs.RFLAGS&flagIF, flagIF)
		g.ends(g.resume())
		g.equal("IF at the end", g.s.Regs.RFLAGS&flagIF, flagIF)
	}},
	{"the stack is aligned to 16", func(g *guest) {
		g.s.Regs.RSP = stack0 - 0x103
		st := g.start(`
		cd 80  int 0x80
		e6 f4  out 0xf4,al
	`)
		g.equal("frame", st.frame, stack0-0x110-40)
		g.equal("rsp", st.rsp, stack0-0x103)
		g.ends(g.resume())
		g.equal("rsp", g.s.Regs.RSP, stack0-0x103)
	}},
	{"IST", func(g *guest) {
		g.gate64(vUD, stubs64+vUD*stubSize, code64, 1, 0x8e)
		st := g.start(`0f 0b  ud2`)
		g.faults(st, vUD, 0, 0)
		g.equal("frame", st.frame, ist1-40)
		g.equal("ss", st.ss, data0)
	}},
	{"faults set RF in the frame, traps do not", func(g *guest) {
		st := g.start(`0f 0b  ud2`)
		g.equal("RF of a fault", st.flags&flagRF, flagRF)
		g.long(0)
		st = g.start(`cc  int3`)
		g.equal("RF of a trap", st.flags&flagRF, 0)
	}},
	{"a fault changes nothing, and the instruction starts again", func(g *guest) {
		g.page(data, 0)
		g.s.Regs.RAX = 5
		st := g.start(`
		f0 48 0f c1 04 25 00 a0 00 00  lock xadd QWORD PTR ds:0xa000,rax
		e6 f4                          out 0xf4,al
	`)
		g.faults(st, vPF, pfW, 0)
		g.equal("rax", g.s.Regs.RAX, 5)
		g.page(data, data|pteP|pteW)
		g.put64(data, 10)
		g.ends(g.resume())
		g.equal("rax", g.s.Regs.RAX, 10)
		g.equal("sum", g.get64(data), 15)
	}},
	{"push to a missing page keeps rsp", func(g *guest) {
		g.page(data, 0)
		g.gate64(vPF, stubs64+vPF*stubSize, code64, 1, 0x8e)
		st := g.start(`
		bc 00 a8 00 00  mov esp,0xa800
		50              push rax
		e6 f4           out 0xf4,al
	`)
		g.faults(st, vPF, pfW, 5)
		g.equal("rsp", st.rsp, data+0x800)
	}},
	{"call whose push faults does not jump", func(g *guest) {
		g.page(data, 0)
		g.gate64(vPF, stubs64+vPF*stubSize, code64, 1, 0x8e)
		g.faults(g.start(`
		bc 00 a8 00 00  mov esp,0xa800
		e8 01 00 00 00  call 0x800b
		90              nop
		90              nop
	`), vPF, pfW, 5)
	}},
	{"pop into a missing page keeps rsp", func(g *guest) {
		g.page(data, 0)
		st := g.start(`8f 04 25 00 a0 00 00  pop QWORD PTR ds:0xa000`)
		g.faults(st, vPF, pfW, 0)
		g.equal("rsp", st.rsp, stack0-0x100)
	}},
	{"not canonical is #GP", func(g *guest) {
		g.faults(g.start(`
		48 b8 00 00 00 00 00 80 00 00  movabs rax,0x800000000000
		48 8b 08                       mov rcx,QWORD PTR [rax]
	`), vGP, 0, 0xa)
	}},
	{"not canonical on the stack is #SS", func(g *guest) {
		g.gate64(vSS, stubs64+vSS*stubSize, code64, 1, 0x8e)
		g.faults(g.start(`
		48 bd 00 00 00 00 00 80 00 00  movabs rbp,0x800000000000
		48 8b 4d 00                    mov rcx,QWORD PTR [rbp+0x0]
	`), vSS, 0, 0xa)
		g.long(0)
		g.gate64(vSS, stubs64+vSS*stubSize, code64, 1, 0x8e)
		g.faults(g.start(`
		48 bc 00 00 00 00 00 90 00 00  movabs rsp,0x900000000000
		50                             push rax
	`), vSS, 0, 0xa)
	}},
	{"jump to what is not canonical", func(g *guest) {
		// The jump itself faults.
		g.faults(g.start(`
		48 b8 00 00 00 00 00 80 00 00  movabs rax,0x800000000000
		ff e0                          jmp rax
	`), vGP, 0, 0xa)
	}},
	{"an instruction of 15 bytes is allowed, of 16 not", func(g *guest) {
		g.ends(g.start("66 66 66 66 66 66 66 66 66 66 66 66 66 66 90  nop\n e6 f4  out 0xf4,al"))
		g.long(0)
		g.faults(g.start("66 66 66 66 66 66 66 66 66 66 66 66 66 66 66 90  nop"), vGP, 0, 0)
	}},
	{"an instruction that goes on in a missing page", func(g *guest) {
		g.page(code+0x1000, 0)
		g.write(code+0xffe, []byte{0x48, 0xb8}) // movabs rax, ...
		g.s.Regs.RIP = code + 0xffe
		st := g.resume()
		g.faults(st, vPF, pfI, 0xffe) // with NXE, fetches are told apart
		g.equal("cr2", g.s.Control.CR2, code+0x1000)
	}},
	{"a complete instruction before a missing page", func(g *guest) {
		g.page(code+0x1000, 0)
		g.write(code+0xffe, []byte{0xe6, endPort})
		g.s.Regs.RIP = code + 0xffe
		g.ends(g.resume())
	}},
	{"alignment check", func(g *guest) {
		g.long(3)
		g.s.Control.CR0 |= cr0AM
		g.s.Regs.RFLAGS |= flagAC
		g.s.Regs.RAX = data + 1
		g.faults(g.start(`8b 08  mov ecx,DWORD PTR [rax]`), vAC, 0, 0)
		g.long(3)
		g.s.Control.CR0 |= cr0AM
		g.s.Regs.RFLAGS |= flagAC
		g.s.Regs.RAX = data + 1
		g.faults(g.start(`
		8a 08     mov cl,BYTE PTR [rax]
		8b 48 03  mov ecx,DWORD PTR [rax+0x3]
		0f 0b     ud2
	`), vUD, 0, 5)
		g.long(0) // never at CPL 0
		g.s.Control.CR0 |= cr0AM
		g.s.Regs.RFLAGS |= flagAC
		g.s.Regs.RAX = data + 1
		g.ends(g.start(`
		8b 08  mov ecx,DWORD PTR [rax]
		e6 f4  out 0xf4,al
	`))
	}},
	{"movaps misaligned", func(g *guest) {
		g.faults(g.start(`
		b8 08 a0 00 00  mov eax,0xa008
		0f 28 00        movaps xmm0,XMMWORD PTR [rax]
	`), vGP, 0, 5)
	}},
	{"cmpxchg16b misaligned", func(g *guest) {
		g.faults(g.start(`
		b8 08 a0 00 00  mov eax,0xa008
		48 0f c7 08     cmpxchg16b OWORD PTR [rax]
	`), vGP, 0, 5)
	}},
	{"a fault in delivering a fault is a double fault", func(g *guest) {
		g.gate64(vGP, stubs64, nocode, 0, 0x8e) // #NP while #GP is delivered
		st := g.start(`
		48 b8 00 00 00 00 00 80 00 00  movabs rax,0x800000000000
		48 8b 08                       mov rcx,QWORD PTR [rax]
	`)
		if st.vector != vDF || st.code != 0 {
			g.Fatalf("%+v", st)
		}
	}},
	{"page fault in delivering a page fault is a double fault", func(g *guest) {
		g.page(spare, 0)
		g.s.Regs.RSP = spare + 0x800
		g.gate64(vDF, stubs64+vDF*stubSize, code64, 1, 0x8e)
		st := g.start(`
		48 8b 04 25 00 00 50 00  mov rax,QWORD PTR ds:0x500000
		90                       nop
	`)
		if st.vector != vDF || st.code != 0 {
			g.Fatalf("%+v", st)
		}
	}},
	{"a contributory fault, then a page fault, is a page fault", func(g *guest) {
		// #UD is benign: the page fault of its delivery is delivered.
		g.page(spare, 0)
		g.s.Regs.RSP = spare + 0x800
		g.gate64(vPF, stubs64+vPF*stubSize, code64, 1, 0x8e)
		st := g.start(`0f 0b  ud2`)
		g.faults(st, vPF, pfW, 0)
		g.equal("page of cr2", g.s.Control.CR2&^0xfff, spare)
	}},
	{"triple fault", func(g *guest) {
		g.s.IDT.Limit = 0
		g.program(`0f 0b  ud2`)
		if e := g.exitOnce(); e.Reason != shutdown {
			g.Fatalf("%+v", e)
		}
	}},
	{"device not available", func(g *guest) {
		g.s.Control.CR0 |= cr0TS
		g.faults(g.start(`d9 e8  fld1`), vNM, 0, 0)
		g.long(0)
		g.s.Control.CR0 |= cr0TS
		g.faults(g.start(`0f 58 c0  addps xmm0,xmm0`), vNM, 0, 0)
		g.long(0)
		g.s.Control.CR0 |= cr0TS
		g.ends(g.start(`
		0f 06  clts
		d9 e8  fld1
		e6 f4  out 0xf4,al
	`))
		g.long(0)
		g.s.Control.CR0 |= cr0TS | cr0MP
		g.faults(g.start(`9b  fwait`), vNM, 0, 0)
	}},
	{"emulated floating point", func(g *guest) {
		g.s.Control.CR0 |= cr0EM
		g.faults(g.start(`0f 58 c0  addps xmm0,xmm0`), vUD, 0, 0)
		g.long(0)
		g.s.Control.CR0 |= cr0EM
		g.faults(g.start(`d9 e8  fld1`), vNM, 0, 0)
	}},
	{"SSE without OSFXSR", func(g *guest) {
		g.s.Control.CR4 &^= cr4FXSR
		g.faults(g.start(`0f 58 c0  addps xmm0,xmm0`), vUD, 0, 0)
	}},
	{"x87 exceptions wait for the next instruction", func(g *guest) {
		st := g.start(`
		68 7b 03 00 00  push 0x37b
		d9 2c 24        fldcw WORD PTR [rsp]
		d9 e8           fld1
		d9 ee           fldz
		de f9           fdivp st(1),st
		90              nop
		d9 e8           fld1
		e6 f4           out 0xf4,al
	`)
		g.faults(st, vMF, 0, 0xf)
	}},
	{"SSE exceptions", func(g *guest) {
		st := g.start(`
		68 80 1d 00 00  push 0x1d80
		0f ae 14 24     ldmxcsr DWORD PTR [rsp]
		b8 01 00 00 00  mov eax,0x1
		f3 0f 2a c0     cvtsi2ss xmm0,eax
		0f 57 c9        xorps xmm1,xmm1
		f3 0f 5e c1     divss xmm0,xmm1
		e6 f4           out 0xf4,al
	`)
		g.faults(st, vXM, 0, 0x15)
		g.long(0)
		g.s.Control.CR4 &^= cr4XMM
		st = g.start(`
		68 80 1d 00 00  push 0x1d80
		0f ae 14 24     ldmxcsr DWORD PTR [rsp]
		b8 01 00 00 00  mov eax,0x1
		f3 0f 2a c0     cvtsi2ss xmm0,eax
		0f 57 c9        xorps xmm1,xmm1
		f3 0f 5e c1     divss xmm0,xmm1
		e6 f4           out 0xf4,al
	`)
		g.faults(st, vUD, 0, 0x15)
	}},
	{"reserved bits of MXCSR", func(g *guest) {
		g.faults(g.start(`
		68 00 00 01 00  push 0x10000
		0f ae 14 24     ldmxcsr DWORD PTR [rsp]
		e6 f4           out 0xf4,al
	`), vGP, 0, 5)
	}},
	{"privileged instructions at CPL 3", func(g *guest) {
		for _, c := range []string{"f4", "fa", "fb", "0f 06", "0f 08", "0f 09", "0f 20 c0", "0f 22 c0", "0f 21 c0", "0f 23 c0",
			"0f 30", "0f 32", "0f 01 10", "0f 01 18", "0f 01 38", "0f 00 d0", "0f 00 d8", "0f 01 f8", "0f 01 f0", "e4 80", "ee", "6c", "0f 07"} {
			g.long(3)
			g.s.Regs.RAX = data
			g.s.Regs.RDI = data
			st := g.start(c)
			if st.vector != vGP || st.code != 0 || st.rip != code {
				g.Errorf("%s: exception %d, code %#x, at %#x", c, st.vector, st.code, st.rip)
			}
		}
	}},
	{"ports by permission map", func(g *guest) {
		g.long(3)
		g.s.Segments.TR.Limit = 0x68 + 0x20
		g.write(tss64+0x68, make([]byte, 0x21))
		g.write(tss64+0x68+0x10, []byte{0xfe}) // port 0x80 alone
		g.write(tss64+0x68+0x1e, []byte{0xef}) // and 0xf4
		g.write(tss64+0x68+0x1f, []byte{0xff, 0xff})
		g.program(`
		e6 80  out 0x80,al
		e6 81  out 0x81,al
	`)
		if e := g.exitOnce(); e.Port != 0x80 {
			g.Fatalf("%+v", e)
		}
		g.faults(g.resume(), vGP, 0, 2)
		// A word needs both bits.
		g.long(3)
		g.s.Segments.TR.Limit = 0x68 + 0x20
		g.faults(g.start(`66 e7 80  out 0x80,ax`), vGP, 0, 0)
	}},
	{"IOPL 3 opens ports and IF", func(g *guest) {
		g.long(3)
		g.s.Regs.RFLAGS |= 3 << 12
		g.ends(g.start(`
		fa     cli
		fb     sti
		fa     cli
		e6 f4  out 0xf4,al
	`))
	}},
	{"popf at CPL 3 keeps IF and IOPL", func(g *guest) {
		g.long(3)
		g.s.Regs.RFLAGS |= flagIF
		st := g.start(`
		68 00 30 00 00  push 0x3000
		9d              popf
		0f 0b           ud2
	`)
		g.equal("flags", st.flags&(flagIF|3<<12), flagIF)
	}},
}
