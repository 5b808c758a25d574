package cputest

var floatTests = []test{
	{"fninit", func(g *guest) {
		g.ends(g.start(`
		d9 e8                 fld1
		db e3                 fninit
		d9 3c 25 00 a0 00 00  fnstcw WORD PTR ds:0xa000
		dd 3c 25 02 a0 00 00  fnstsw WORD PTR ds:0xa002
		d9 34 25 10 a0 00 00  fnstenv ds:0xa010
		e6 f4                 out 0xf4,al
	`))
		g.equal("control and status", uint64(g.get32(data)), 0x37f)
		g.equal("tags", g.get64(data+0x18)&0xffff, 0xffff)
	}},
	{"stack overflow and underflow", func(g *guest) {
		g.ends(g.start(`
		db e3                 fninit
		d9 e8                 fld1
		d9 e8                 fld1
		d9 e8                 fld1
		d9 e8                 fld1
		d9 e8                 fld1
		d9 e8                 fld1
		d9 e8                 fld1
		d9 e8                 fld1
		d9 e8                 fld1
		df e0                 fnstsw ax
		89 c1                 mov ecx,eax
		db e3                 fninit
		dd 1c 25 00 a0 00 00  fstp QWORD PTR ds:0xa000
		df e0                 fnstsw ax
		e6 f4                 out 0xf4,al
	`))
		g.equal("overflow", g.s.Regs.RCX&0x3a41, 0x3a41)
		g.equal("underflow", g.s.Regs.RAX&0x241, 0x41)
		g.equal("indefinite", g.get64(data), 0xfff8000000000000)
	}},
	{"fsave and frstor", func(g *guest) {
		g.ends(g.start(`
		db e3                 fninit
		d9 eb                 fldpi
		dd 34 25 00 a0 00 00  fnsave ds:0xa000
		df e0                 fnstsw ax
		89 c1                 mov ecx,eax
		dd 24 25 00 a0 00 00  frstor ds:0xa000
		db 3c 25 00 a1 00 00  fstp TBYTE PTR ds:0xa100
		e6 f4                 out 0xf4,al
	`))
		g.equal("status after fsave", g.s.Regs.RCX&0xffff, 0)
		g.equal("st0 in the image", g.get64(data+28), 0xc90fdaa22168c235)
		g.equal("restored", g.get64(data+0x100), 0xc90fdaa22168c235)
	}},
	{"precision control", func(g *guest) {
		g.ends(g.start(`
		6a 7f                 push 0x7f
		d9 2c 24              fldcw WORD PTR [rsp]
		d9 e8                 fld1
		6a 03                 push 0x3
		da 34 24              fidiv DWORD PTR [rsp]
		db 3c 25 00 a0 00 00  fstp TBYTE PTR ds:0xa000
		e6 f4                 out 0xf4,al
	`))
		g.equal("a third in 24 bits", g.get64(data), 0xaaaaab0000000000)
	}},
	{"MMX shares the x87 registers", func(g *guest) {
		g.ends(g.start(`
		db e3                          fninit
		48 b8 88 77 66 55 44 33 22 11  movabs rax,0x1122334455667788
		48 0f 6e c0                    movq mm0,rax
		d9 34 25 00 a0 00 00           fnstenv ds:0xa000
		48 0f ae 04 25 00 a1 00 00     fxsave64 ds:0xa100
		0f 77                          emms
		d9 34 25 40 a0 00 00           fnstenv ds:0xa040
		e6 f4                          out 0xf4,al
	`))
		for i := range 8 {
			g.equal("register in use with MMX", bool64(g.get64(data+8)>>(2*i)&3 != 3), 1)
		}
		g.equal("mm0", g.get64(data+0x120), 0x1122334455667788)
		g.equal("exponent", g.get64(data+0x128)&0xffff, 0xffff)
		g.equal("tags after emms", g.get64(data+0x48)&0xffff, 0xffff)
		g.equal("abridged tags", g.get64(data+0x104)&0xff, 0xff)
	}},
	{"denormals are zero, and flush to zero", func(g *guest) {
		g.put32(data, 1)
		g.put32(data+4, 0x00800000)
		g.put32(data+8, 0x3f000000)
		g.ends(g.start(`
		68 c0 9f 00 00              push 0x9fc0
		0f ae 14 24                 ldmxcsr DWORD PTR [rsp]
		f3 0f 10 04 25 00 a0 00 00  movss xmm0,DWORD PTR ds:0xa000
		f3 0f 58 c0                 addss xmm0,xmm0
		66 0f 7e c0                 movd eax,xmm0
		f3 0f 10 0c 25 04 a0 00 00  movss xmm1,DWORD PTR ds:0xa004
		f3 0f 59 0c 25 08 a0 00 00  mulss xmm1,DWORD PTR ds:0xa008
		66 0f 7e c9                 movd ecx,xmm1
		0f ae 1c 25 10 a0 00 00     stmxcsr DWORD PTR ds:0xa010
		e6 f4                       out 0xf4,al
	`))
		g.equal("denormal plus denormal", g.s.Regs.RAX, 0)
		g.equal("underflow", g.s.Regs.RCX, 0)
		g.equal("flags", uint64(g.get32(data+16))&0x3f, 0x30)
	}},
	{"rounding modes", func(g *guest) {
		for rc, want := range []uint64{2, 1, 2, 1} {
			g.long(0)
			g.put64(data, 0x3ff8000000000000) // 1.5
			g.s.Regs.RAX = uint64(0x1f80 | rc<<13)
			g.ends(g.start(`
		50                          push rax
		0f ae 14 24                 ldmxcsr DWORD PTR [rsp]
		f2 0f 2d 0c 25 00 a0 00 00  cvtsd2si ecx,QWORD PTR ds:0xa000
		e6 f4                       out 0xf4,al
	`))
			g.equal("rounded", g.s.Regs.RCX, want)
		}
	}},
	{"the state's XSAVE area is the registers", func(g *guest) {
		g.ends(g.start(`
		db e3           fninit
		d9 e8           fld1
		b8 99 00 00 00  mov eax,0x99
		66 44 0f 6e f8  movd xmm15,eax
		e6 f4           out 0xf4,al
	`))
		if len(g.s.XSAVE) < 576 {
			g.Fatalf("XSAVE area of %d bytes", len(g.s.XSAVE))
		}
		g.equal("xmm15", le64(g.s.XSAVE[160+16*15:]), 0x99)
		g.equal("st0", le64(g.s.XSAVE[32:]), 1<<63)
		g.equal("tags", uint64(g.s.XSAVE[4]), 0x80)
	}},
}

func bool64(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
