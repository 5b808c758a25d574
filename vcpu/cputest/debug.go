package cputest

import "github.com/vmkit-go/vmkit/vcpu"

const (
	dr6Base = 0xffff0ff0
	dr6BS   = 1 << 14
	dr6BD   = 1 << 13
)

var debugTests = []test{
	{"single step", func(g *guest) {
		g.s.Regs.RFLAGS |= flagTF
		st := g.start(`
		90     nop
		ff c0  inc eax
		90     nop
		90     nop
	`)
		g.faults(st, vDB, 0, 1)
		g.equal("dr6", g.s.Debug.DR6, dr6Base|dr6BS)
		g.equal("TF in the frame", st.flags&flagTF, flagTF)
		g.equal("TF in the handler", g.s.Regs.RFLAGS&flagTF, 0)
		g.equal("RF in the frame", st.flags&flagRF, 0)
		g.faults(g.resume(), vDB, 0, 3)
		g.faults(g.resume(), vDB, 0, 4)
	}},
	{"single step at CPL 3 and over popf", func(g *guest) {
		g.long(3)
		st := g.start(`
		68 02 01 00 00  push 0x102
		9d              popf
		90              nop
		90              nop
		90              nop
	`)
		g.faults(st, vDB, 0, 7)
		g.equal("cs", st.cs, code64u)
	}},
	{"a step that clears TF still traps", func(g *guest) {
		g.s.Regs.RFLAGS |= flagTF
		st := g.start(`
		6a 02  push 0x2
		9d     popf
		90     nop
		e6 f4  out 0xf4,al
	`)
		g.faults(st, vDB, 0, 2)
		g.faults(g.resume(), vDB, 0, 3)
		g.ends(g.resume())
	}},
	{"steps of rep are iterations", func(g *guest) {
		g.s.Regs.RFLAGS |= flagTF
		g.s.Regs.RCX, g.s.Regs.RDI = 2, data
		st := g.start(`
		f3 aa  rep stos BYTE PTR es:[rdi],al
		90     nop
	`)
		g.faults(st, vDB, 0, 0)
		g.equal("rcx", g.s.Regs.RCX, 1)
		g.faults(g.resume(), vDB, 0, 2)
	}},
	{"a breakpoint on code is a fault", func(g *guest) {
		g.s.Debug.DR[0], g.s.Debug.DR7 = code+1, 0x401|1<<1
		// The SDM (volume 3, section 17.3.1.1) leaves it to the handler to set RF in
		// the saved flags; some processors do it themselves.
		g.faults(g.start(`
		90     nop
		ff c0  inc eax
		e6 f4  out 0xf4,al
	`), vDB, 0, 1)
		g.equal("dr6", g.s.Debug.DR6&0xf, 1)
	}},
	{"a breakpoint on data is a trap", func(g *guest) {
		// DR1: writes of 4 bytes at data+4.
		g.s.Debug.DR[1], g.s.Debug.DR7 = data+4, 0x400|3<<2|0xd<<20
		st := g.start(`
		8b 04 25 04 a0 00 00  mov eax,DWORD PTR ds:0xa004
		89 04 25 00 a0 00 00  mov DWORD PTR ds:0xa000,eax
		88 04 25 07 a0 00 00  mov BYTE PTR ds:0xa007,al
		90                    nop
		e6 f4                 out 0xf4,al
	`)
		g.faults(st, vDB, 0, 0x15)
		g.equal("dr6", g.s.Debug.DR6&0xf, 2)
		g.ends(g.resume())
	}},
	{"a breakpoint on reads and writes of 8 bytes", func(g *guest) {
		g.s.Debug.DR[2], g.s.Debug.DR7 = data, 0x400|3<<4|0xb<<24
		st := g.start(`
		8a 04 25 07 a0 00 00  mov al,BYTE PTR ds:0xa007
		90                    nop
		e6 f4                 out 0xf4,al
	`)
		g.faults(st, vDB, 0, 7)
		g.equal("dr6", g.s.Debug.DR6&0xf, 4)
	}},
	{"a disabled breakpoint does nothing", func(g *guest) {
		g.s.Debug.DR[0], g.s.Debug.DR7 = code+1, 0x400
		g.ends(g.start(`
		90     nop
		90     nop
		e6 f4  out 0xf4,al
	`))
	}},
	{"general detect", func(g *guest) {
		g.s.Debug.DR7 = 0x400 | 1<<13
		st := g.start(`
		90        nop
		0f 21 c0  mov rax,dr0
		e6 f4     out 0xf4,al
	`)
		g.faults(st, vDB, 0, 1)
		g.equal("dr6", g.s.Debug.DR6&dr6BD, dr6BD)
	}},
	{"debug registers", func(g *guest) {
		g.s.Regs.RAX = 0x123456789
		g.ends(g.start(`
		0f 23 c0  mov dr0,rax
		0f 21 c1  mov rcx,dr0
		0f 21 f2  mov rdx,dr6
		0f 21 fb  mov rbx,dr7
		e6 f4     out 0xf4,al
	`))
		g.equal("dr0", g.s.Regs.RCX, 0x123456789)
		g.equal("dr6", g.s.Regs.RDX, dr6Base)
		g.equal("dr7", g.s.Regs.RBX, 0x400)
		g.equal("state", g.s.Debug.DR[0], 0x123456789)
	}},
	{"dr4 is dr6 unless DE", func(g *guest) {
		g.ends(g.start("0f 21 e0  mov rax,dr4\n e6 f4  out 0xf4,al"))
		g.equal("dr4", g.s.Regs.RAX, dr6Base)
		g.long(0)
		g.s.Control.CR4 |= cr4DE
		g.faults(g.start("0f 21 e0  mov rax,dr4"), vUD, 0, 0)
	}},
	{"reserved bits of DR6 and DR7", func(g *guest) {
		g.s.Regs.RAX = 1 << 32
		g.faults(g.start(`0f 23 f8  mov dr7,rax`), vGP, 0, 0)
		g.long(0)
		g.s.Regs.RAX = 1 << 32
		g.faults(g.start(`0f 23 f0  mov dr6,rax`), vGP, 0, 0)
	}},
	{"icebp", func(g *guest) {
		st := g.start("f1  icebp")
		g.faults(st, vDB, 0, 1)
	}},
	{"int3 with TF traps once", func(g *guest) {
		g.s.Regs.RFLAGS |= flagTF
		st := g.start("cc  int3\n 90  nop")
		g.faults(st, vBP, 0, 1)
	}},
	{"the engine's own single step", func(g *guest) {
		g.program(`
		90     nop
		ff c0  inc eax
		eb 01  jmp 0x8006
		90     nop
		50     push rax
		e6 f4  out 0xf4,al
	`)
		g.must(g.cpu.SetState(&g.s))
		g.started = true
		g.must(g.run.SetSingleStep(true))
		for _, want := range []uint64{1, 3, 6, 7} {
			e := g.exitOnce()
			if e.Reason != vcpu.ExitDebug || e.Addr != code+want {
				g.Fatalf("%+v, want a stop at +%d", e, want)
			}
		}
		g.must(g.run.SetSingleStep(false))
		g.ends(g.resume())
	}},
}
