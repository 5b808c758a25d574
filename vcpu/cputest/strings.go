package cputest

var stringTests = []test{
	{"rep movsb", func(g *guest) {
		g.write(data, []byte("abcdefgh"))
		g.ends(g.start(`
		be 00 a0 00 00  mov esi,0xa000
		bf 00 a1 00 00  mov edi,0xa100
		b9 08 00 00 00  mov ecx,0x8
		f3 a4           rep movs BYTE PTR es:[rdi],BYTE PTR ds:[rsi]
		e6 f4           out 0xf4,al
	`))
		g.equal("copy", g.get64(data+0x100), g.get64(data))
		g.equal("rcx", g.s.Regs.RCX, 0)
		g.equal("rsi", g.s.Regs.RSI, data+8)
	}},
	{"rep movsb that overlaps repeats a pattern", func(g *guest) {
		g.write(data, []byte("ab......"))
		g.ends(g.start(`
		be 00 a0 00 00  mov esi,0xa000
		bf 02 a0 00 00  mov edi,0xa002
		b9 06 00 00 00  mov ecx,0x6
		f3 a4           rep movs BYTE PTR es:[rdi],BYTE PTR ds:[rsi]
		e6 f4           out 0xf4,al
	`))
		g.equal("pattern", g.get64(data), le64([]byte("abababab")))
	}},
	{"rep with count 0 touches nothing", func(g *guest) {
		g.ends(g.start(`
		31 c9                          xor ecx,ecx
		48 bf 00 00 00 00 ff 7f 00 00  movabs rdi,0x7fff00000000
		48 89 fe                       mov rsi,rdi
		f3 48 ab                       rep stos QWORD PTR es:[rdi],rax
		f3 a6                          repz cmps BYTE PTR ds:[rsi],BYTE PTR es:[rdi]
		e6 f4                          out 0xf4,al
	`))
	}},
	{"backwards", func(g *guest) {
		g.ends(g.start(`
		fd                             std
		bf 08 a0 00 00                 mov edi,0xa008
		b9 02 00 00 00                 mov ecx,0x2
		48 b8 88 77 66 55 44 33 22 11  movabs rax,0x1122334455667788
		f3 48 ab                       rep stos QWORD PTR es:[rdi],rax
		fc                             cld
		e6 f4                          out 0xf4,al
	`))
		g.equal("first", g.get64(data), 0x1122334455667788)
		g.equal("rdi", g.s.Regs.RDI, data-8)
	}},
	{"rep stos into a missing page stops there", func(g *guest) {
		g.page(data+0x1000, 0)
		st := g.start(`
		bf f0 af 00 00  mov edi,0xaff0
		b9 08 00 00 00  mov ecx,0x8
		b8 55 00 00 00  mov eax,0x55
		f3 48 ab        rep stos QWORD PTR es:[rdi],rax
		e6 f4           out 0xf4,al
	`)
		g.faults(st, vPF, pfW, 0xf)
		g.equal("rcx", g.s.Regs.RCX, 6)
		g.equal("rdi", g.s.Regs.RDI, data+0x1000)
		g.equal("cr2", g.s.Control.CR2, data+0x1000)
		g.page(data+0x1000, data+0x1000|pteP|pteW|pteU)
		g.ends(g.resume())
		g.equal("rcx", g.s.Regs.RCX, 0)
		g.equal("last", g.get64(data+0x1028), 0x55)
	}},
	{"rep movsq whose source crosses into a missing page", func(g *guest) {
		g.page(data+0x1000, 0)
		st := g.start(`
		be ec af 00 00  mov esi,0xafec
		bf 00 d0 00 00  mov edi,0xd000
		b9 04 00 00 00  mov ecx,0x4
		f3 48 a5        rep movs QWORD PTR es:[rdi],QWORD PTR ds:[rsi]
		e6 f4           out 0xf4,al
	`)
		g.faults(st, vPF, 0, 0xf)
		g.equal("rcx", g.s.Regs.RCX, 2)
		g.equal("rsi", g.s.Regs.RSI, data+0xffc)
		g.equal("rdi", g.s.Regs.RDI, spare+16)
		g.equal("cr2", g.s.Control.CR2, data+0x1000)
		g.page(data+0x1000, data+0x1000|pteP|pteW|pteU)
		g.ends(g.resume())
		g.equal("rdi", g.s.Regs.RDI, spare+32)
	}},
	{"repe cmpsb stops at a difference", func(g *guest) {
		g.write(data, []byte("abcdXfgh"))
		g.write(data+0x100, []byte("abcdefgh"))
		g.ends(g.start(`
		be 00 a0 00 00  mov esi,0xa000
		bf 00 a1 00 00  mov edi,0xa100
		b9 08 00 00 00  mov ecx,0x8
		f3 a6           repz cmps BYTE PTR ds:[rsi],BYTE PTR es:[rdi]
		e6 f4           out 0xf4,al
	`))
		g.equal("rcx", g.s.Regs.RCX, 3)
		g.equal("flags", g.s.Regs.RFLAGS&(flagCF|flagZF|flagSF), flagCF|flagSF)
	}},
	{"repne scasb finds", func(g *guest) {
		g.write(data, []byte("hello\x00..."))
		g.ends(g.start(`
		bf 00 a0 00 00        mov edi,0xa000
		48 c7 c1 ff ff ff ff  mov rcx,0xffffffffffffffff
		31 c0                 xor eax,eax
		f2 ae                 repnz scas al,BYTE PTR es:[rdi]
		48 f7 d1              not rcx
		e6 f4                 out 0xf4,al
	`))
		g.equal("rcx", g.s.Regs.RCX, 6)
		g.equal("zf", g.s.Regs.RFLAGS&flagZF, flagZF)
	}},
	{"32-bit addresses wrap and count in ecx", func(g *guest) {
		g.ends(g.start(`
		48 bf 00 a0 00 00 ff ff ff ff  movabs rdi,0xffffffff0000a000
		48 b9 02 00 00 00 ff ff ff ff  movabs rcx,0xffffffff00000002
		b8 77 00 00 00                 mov eax,0x77
		67 f3 aa                       rep stos BYTE PTR es:[edi],al
		e6 f4                          out 0xf4,al
	`))
		g.equal("stored", g.get64(data), 0x7777)
		g.equal("rdi", g.s.Regs.RDI, data+2)
		g.equal("rcx", g.s.Regs.RCX, 0)
	}},
	{"lods and scas by segment", func(g *guest) {
		g.s.Segments.FS.Base = 0x1000
		g.write(data+0x1000, []byte{0x42})
		g.ends(g.start(`
		be 00 a0 00 00  mov esi,0xa000
		64 ac           lods al,BYTE PTR fs:[rsi]
		e6 f4           out 0xf4,al
	`))
		g.equal("al", g.s.Regs.RAX&0xff, 0x42)
	}},
	{"ins and outs with rep", func(g *guest) {
		g.write(data, []byte("xyz"))
		g.program(`
		be 00 a0 00 00  mov esi,0xa000
		b9 03 00 00 00  mov ecx,0x3
		ba 99 00 00 00  mov edx,0x99
		f3 6e           rep outs dx,BYTE PTR ds:[rsi]
		e6 f4           out 0xf4,al
	`)
		var got []byte
		for len(got) < 3 {
			e := g.exitOnce()
			if !e.Write || e.Port != 0x99 || e.Size != 1 || int(e.Count) != len(e.Data) {
				g.Fatalf("%+v", e)
			}
			got = append(got, e.Data...)
		}
		if string(got) != "xyz" {
			g.Errorf("wrote %q", got)
		}
		g.ends(g.resume())
	}},
	{"rep movs across a border that is writable only on one side", func(g *guest) {
		g.page(data+0x1000, data+0x1000|pteP|pteU)
		st := g.start(`
		be 00 d0 00 00  mov esi,0xd000
		bf f8 af 00 00  mov edi,0xaff8
		b9 10 00 00 00  mov ecx,0x10
		f3 a4           rep movs BYTE PTR es:[rdi],BYTE PTR ds:[rsi]
		e6 f4           out 0xf4,al
	`)
		g.faults(st, vPF, pfP|pfW, 0xf)
		g.equal("rcx", g.s.Regs.RCX, 8)
	}},
}
