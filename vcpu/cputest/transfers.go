package cputest

import "github.com/vmkit-go/vmkit/vcpu"

// toUser drops to CPL 3 by IRETQ with the CS in RCX, to address RDX.
const toUser = `
		6a 2b           push 0x2b
		68 00 cf 00 00  push 0xcf00
		68 02 02 00 00  push 0x202
		51              push rcx
		52              push rdx
		48 cf           iretq
	`

var transferTests = []test{
	{"iretq to 64-bit code", func(g *guest) {
		g.s.Regs.RCX, g.s.Regs.RDX = code64u, code+0x100
		g.write(code+0x100, g.listing(`
		48 89 e0  mov rax,rsp
		8c c9     mov ecx,cs
		8c d2     mov edx,ss
		0f 0b     ud2
	`))
		st := g.start(toUser)
		g.faults(st, vUD, 0, 0x107)
		g.equal("cs", st.cs, code64u)
		g.equal("rsp", g.s.Regs.RAX, 0xcf00)
		g.equal("cs seen", g.s.Regs.RCX, code64u)
		g.equal("ss seen", g.s.Regs.RDX, data3)
		g.equal("frame", st.frame, stack0-40)
	}},
	{"iretq to compatibility mode", func(g *guest) {
		g.s.Regs.RCX, g.s.Regs.RDX = code32u, code+0x100
		g.write(code+0x100, g.listing(`
		40              inc eax
		b8 ff ff ff ff  mov eax,0xffffffff
		cd 80           int 0x80
	`))
		st := g.start(toUser)
		g.faults(st, 0x80, 0, 0x108)
		g.equal("cs", st.cs, code32u)
		g.equal("rax", g.s.Regs.RAX, 0xffffffff)
	}},
	{"iretq nulls what CPL 3 must not have", func(g *guest) {
		g.s.Regs.RCX, g.s.Regs.RDX = code64u, code+0x100
		g.s.Regs.RAX = data0
		g.write(code+0x100, g.listing(`
		8c d8  mov eax,ds
		0f 0b  ud2
	`))
		st := g.start("8e d8  mov ds,eax\n" + toUser)
		g.faults(st, vUD, 0, 0x102)
		g.equal("ds", g.s.Regs.RAX, 0)
	}},
	{"iretq at the same CPL pops the stack", func(g *guest) {
		g.ends(g.start(`
		48 89 e3        mov rbx,rsp
		6a 10           push 0x10
		68 00 1f 01 00  push 0x11f00
		6a 46           push 0x46
		6a 08           push 0x8
		68 18 80 00 00  push 0x8018
		48 cf           iretq
		90              nop
		90              nop
		90              nop
		90              nop
		90              nop
		90              nop
		90              nop
		90              nop
		90              nop
		90              nop
		90              nop
		e6 f4           out 0xf4,al
	`))
		g.equal("rsp", g.s.Regs.RSP, 0x11f00)
		g.equal("flags", g.s.Regs.RFLAGS&status, flagZF|flagPF)
	}},
	{"iretq to bad selectors", func(g *guest) {
		for _, l := range []struct {
			cs, code uint64
			vector   int
		}{
			{0, 0, vGP}, {data3, data3 &^ 3, vGP}, {gdtSize, gdtSize, vGP}, {nocode, nocode, vNP}, {code64u &^ 3, code64u &^ 3, vGP},
		} {
			g.long(0)
			g.s.Regs.RCX, g.s.Regs.RDX = l.cs, code
			st := g.start(toUser)
			if st.vector != l.vector || st.code != l.code || st.rip != code+0xe {
				g.Errorf("cs %#x: exception %d, code %#x, at %#x", l.cs, st.vector, st.code, st.rip)
			}
		}
	}},
	{"iretq to an address that is not canonical", func(g *guest) {
		g.s.Regs.RCX, g.s.Regs.RDX = code64u, 1<<47
		st := g.start(toUser)
		if st.vector != vGP {
			g.Fatalf("%+v", st)
		}
	}},
	{"iretq with NT", func(g *guest) {
		st := g.start(`
		68 02 40 00 00  push 0x4002
		9d              popf
		48 cf           iretq
	`)
		g.faults(st, vGP, 0, 6)
	}},
	{"iretq keeps NMI and VIP as they were at CPL 3", func(g *guest) {
		g.long(3)
		// At CPL 3 IRET cannot set IF or IOPL.
		g.s.Regs.RCX, g.s.Regs.RDX = code64u, code+0x100
		g.write(code+0x100, g.listing(`
		9c     pushf
		58     pop rax
		0f 0b  ud2
	`))
		st := g.start(`
		6a 2b           push 0x2b
		68 00 cf 00 00  push 0xcf00
		68 02 32 00 00  push 0x3202
		51              push rcx
		52              push rdx
		48 cf           iretq
	`)
		g.faults(st, vUD, 0, 0x102)
		g.equal("flags", g.s.Regs.RAX&(flagIF|3<<12), 0)
	}},
	{"syscall and sysret", func(g *guest) {
		g.syscallMSRs()
		g.long(3)
		g.keepMSRs(0xc0000081, 0xc0000082, 0xc0000084)
		g.s.Regs.RFLAGS |= flagCF | flagDF | flagIF
		g.write(code+0x100, g.listing(`
		48 89 c8  mov rax,rcx
		4c 89 da  mov rdx,r11
		8c ce     mov esi,cs
		8c d7     mov edi,ss
		9c        pushf
		5b        pop rbx
		48 0f 07  sysretq
	`))
		g.s.Regs.RSP = stack3 - 0x100
		st := g.start(`
		0f 05     syscall
		41 8c c8  mov r8d,cs
		41 8c d1  mov r9d,ss
		9c        pushf
		41 5a     pop r10
		0f 0b     ud2
	`)
		g.faults(st, vUD, 0, 0xb)
		r := &g.s.Regs
		g.equal("return address", r.RAX, code+2)
		g.equal("saved flags", r.RDX&(flagCF|flagDF|flagIF), flagCF|flagDF|flagIF)
		g.equal("cs", r.RSI, code64)
		g.equal("ss", r.RDI, data0)
		g.equal("flags inside", r.RBX&(flagDF|flagIF), 0)
		g.equal("carry inside", r.RBX&flagCF, flagCF)
		g.equal("cs after", r.R8, code64u)
		g.equal("ss after", r.R9, data3)
		g.equal("flags after", r.R10&(flagDF|flagIF|flagCF), flagCF|flagDF|flagIF)
	}},
	{"sysret to compatibility mode", func(g *guest) {
		g.syscallMSRs()
		g.long(0)
		g.keepMSRs(0xc0000081, 0xc0000082, 0xc0000084)
		g.s.Regs.RCX, g.s.Regs.R11 = code+0x100, 0x202
		g.write(code+0x100, g.listing(`cd 80  int 0x80`))
		st := g.start("0f 07  sysret")
		g.faults(st, 0x80, 0, 0x102)
		g.equal("cs", st.cs, code32u)
	}},
	{"syscall without SCE", func(g *guest) {
		g.long(3)
		g.s.Control.EFER &^= vcpu.EFERSCE
		g.faults(g.start(`0f 05  syscall`), vUD, 0, 0)
	}},
	{"sysenter", func(g *guest) {
		g.writeMSRs(map[uint32]uint64{0x174: code64, 0x175: stack1, 0x176: code + 0x100})
		g.write(code+0x100, g.listing(`
		8c ce     mov esi,cs
		8c d7     mov edi,ss
		48 89 e0  mov rax,rsp
		e6 f4     out 0xf4,al
	`))
		if g.amd() {
			g.long(3)
			g.keepMSRs(0x174, 0x175, 0x176)
			g.faults(g.start(`0f 34  sysenter`), vUD, 0, 0)
			return
		}
		g.long(3)
		g.keepMSRs(0x174, 0x175, 0x176)
		g.ends(g.start(`0f 34  sysenter`))
		g.equal("cs", g.s.Regs.RSI, code64)
		g.equal("ss", g.s.Regs.RDI, code64+8)
		g.equal("rsp", g.s.Regs.RAX, stack1)
	}},
	{"swapgs", func(g *guest) {
		g.writeMSRs(map[uint32]uint64{0xc0000102: 0x123456789000})
		g.long(0)
		g.keepMSRs(0xc0000102)
		g.s.Segments.GS.Base = 0x1111
		g.ends(g.start(`
		0f 01 f8  swapgs
		e6 f4     out 0xf4,al
	`))
		g.equal("gs base", g.s.Segments.GS.Base, 0x123456789000)
		g.equal("kernel gs base", g.msr(0xc0000102), 0x1111)
	}},
	{"rdfsbase and wrgsbase", func(g *guest) {
		if !g.has(7, 'b', 0) {
			g.faults(g.start(`f3 48 0f ae c0  rdfsbase rax`), vUD, 0, 0)
			return
		}
		g.s.Segments.FS.Base = 0x7777
		g.s.Control.CR4 |= cr4FSGS
		g.s.Regs.RCX = 0x123456789
		g.ends(g.start(`
		f3 48 0f ae c0  rdfsbase rax
		f3 48 0f ae d9  wrgsbase rcx
		f3 0f ae d1     wrfsbase ecx
		e6 f4           out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x7777)
		g.equal("gs", g.s.Segments.GS.Base, 0x123456789)
		g.equal("fs", g.s.Segments.FS.Base, 0x23456789)
		g.long(0)
		g.s.Control.CR4 |= cr4FSGS
		g.s.Regs.RCX = 1 << 47
		g.faults(g.start(`f3 48 0f ae d9  wrgsbase rcx`), vGP, 0, 0)
		g.long(0)
		g.faults(g.start(`f3 48 0f ae c0  rdfsbase rax`), vUD, 0, 0)
	}},
	{"far call and return in 64-bit mode", func(g *guest) {
		g.put64(data, 0x1800008020)
		g.write(code+0x20, g.listing(`
		b8 34 12 00 00  mov eax,0x1234
		cb              retf
	`))
		g.ends(g.start(`
		48 89 e3              mov rbx,rsp
		ff 1c 25 00 a0 00 00  call FWORD PTR ds:0xa000
		48 29 e3              sub rbx,rsp
		e6 f4                 out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x1234)
		g.equal("stack", g.s.Regs.RBX, 0)
	}},
	{"far jump through memory", func(g *guest) {
		g.put64(data, 0x0800008020)
		g.write(code+0x20, g.listing(`
		8c c8  mov eax,cs
		e6 f4  out 0xf4,al
	`))
		g.ends(g.start(`ff 2c 25 00 a0 00 00  jmp FWORD PTR ds:0xa000`))
		g.equal("cs", g.s.Regs.RAX, code64)
	}},
	{"far return to CPL 3", func(g *guest) {
		g.write(code+0x20, g.listing(`
		48 89 e0  mov rax,rsp
		0f 0b     ud2
	`))
		st := g.start(`
		6a 2b           push 0x2b
		68 00 cf 00 00  push 0xcf00
		6a 33           push 0x33
		68 20 80 00 00  push 0x8020
		48 cb           retfq
	`)
		g.faults(st, vUD, 0, 0x23)
		g.equal("cs", st.cs, code64u)
		g.equal("rsp", g.s.Regs.RAX, 0xcf00)
	}},
	{"call gate to CPL 0", func(g *guest) {
		g.long(3)
		g.put64(gdt+gate, (code+0x40)&0xffff|code64<<16|0xec<<40)
		g.put64(gdt+gate+8, 0)
		g.put64(data, (gate|3)<<32)
		g.write(code+0x40, g.listing(`
		8c c8           mov eax,cs
		48 89 e1        mov rcx,rsp
		8c d2           mov edx,ss
		48 8b 1c 24     mov rbx,QWORD PTR [rsp]
		48 8b 74 24 10  mov rsi,QWORD PTR [rsp+0x10]
		48 cb           retfq
	`))
		st := g.start(`
		ff 1c 25 00 a0 00 00  call FWORD PTR ds:0xa000
		8c cf                 mov edi,cs
		0f 0b                 ud2
	`)
		g.faults(st, vUD, 0, 9)
		r := &g.s.Regs
		g.equal("cs", r.RAX, code64)
		g.equal("rsp", r.RCX, stack0-32)
		g.equal("ss", r.RDX, 0)
		g.equal("return address", r.RBX, code+7)
		g.equal("old rsp", r.RSI, stack3-0x100)
		g.equal("cs after", r.RDI, code64u)
	}},
	{"interrupt to CPL 0 loads a null SS", func(g *guest) {
		g.long(3)
		g.start(`cd 80  int 0x80`)
		g.equal("ss", uint64(g.s.Segments.SS.Selector), 0)
		g.equal("cs", uint64(g.s.Segments.CS.Selector), code64)
	}},
}

// syscallMSRs has SYSCALL go to code+0x100.
func (g *guest) syscallMSRs() {
	g.writeMSRs(map[uint32]uint64{0xc0000081: uint64(code32u)<<48 | code64<<32, 0xc0000082: code + 0x100, 0xc0000084: flagDF | flagIF})
}

// writeMSRs has the guest itself write MSRs, and keeps them in g.s.
func (g *guest) writeMSRs(msrs map[uint32]uint64) {
	g.Helper()
	for index, v := range msrs {
		g.long(0)
		r := &g.s.Regs
		r.RCX, r.RAX, r.RDX = uint64(index), v&0xffffffff, v>>32
		saved := g.read(code, 16)
		g.ends(g.start(`
		0f 30  wrmsr
		e6 f4  out 0xf4,al
	`))
		g.write(code, saved)
		g.equal("msr", g.msr(index), v)
	}
}

// keepMSRs has nothing to do but to say what counts: a state without MSRs leaves
// them as they are.
func (g *guest) keepMSRs(...uint32) {}
