package cputest

import "github.com/vmkit-go/vmkit/vcpu"

var modeTests = []test{
	{"real mode", func(g *guest) {
		g.real()
		g.s.Regs.RAX = 0xffff0000
		g.ends(g.start(`
		b8 00 10           mov ax,0x1000
		8e d8              mov ds,ax
		c7 06 10 00 78 56  mov WORD PTR ds:0x10,0x5678
		a1 10 00           mov ax,ds:0x10
		e6 f4              out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 0xffff5678)
		g.equal("memory", g.get64(0x10010)&0xffff, 0x5678)
	}},
	{"real mode interrupt", func(g *guest) {
		g.real()
		st := g.start(`
		cd 21  int 0x21
		e6 f4  out 0xf4,al
	`)
		g.faults(st, 0x21, 0, 2)
		g.ends(g.resume())
	}},
	{"real mode exceptions push no error code", func(g *guest) {
		g.real()
		st := g.start(`
		31 c9  xor cx,cx
		f7 f1  div cx
	`)
		g.faults(st, vDE, 0, 2)
		g.real()
		st = g.start(`
		be ff ff  mov si,0xffff
		8b 04     mov ax,WORD PTR [si]
	`) // beyond the limit
		g.faults(st, vGP, 0, 3)
	}},
	{"real mode call, ret and push", func(g *guest) {
		g.real()
		g.ends(g.start(`
		89 e5     mov bp,sp
		68 34 12  push 0x1234
		e8 02 00  call 0x800a
		eb 03     jmp 0x800d
		58        pop ax
		50        push ax
		c3        ret
		5b        pop bx
		29 e5     sub bp,sp
		e6 f4     out 0xf4,al
	`))
		g.equal("ax", g.s.Regs.RAX&0xffff, code+8)
		g.equal("bx", g.s.Regs.RBX&0xffff, 0x1234)
		g.equal("bp", g.s.Regs.RBP&0xffff, 0)
	}},
	{"real mode far jump and return", func(g *guest) {
		g.real()
		g.write(code+0x100, g.listing(`
		8c c8  mov ax,cs
		cb     retf
	`))
		g.ends(g.start("9a 00 00 10 08  call 0x810:0\n e6 f4  out 0xf4,al"))
		g.equal("cs inside", g.s.Regs.RAX&0xffff, 0x810)
		g.equal("cs", uint64(g.s.Segments.CS.Selector), 0)
	}},
	{"real mode string with 64 KiB wrap", func(g *guest) {
		g.real()
		g.write(0x10000-1+0, []byte{0})
		g.s.Segments.ES.Base, g.s.Segments.ES.Selector = 0x20000, 0x2000
		g.s.Regs.RDI, g.s.Regs.RCX, g.s.Regs.RAX = 0xffff, 2, 0x77
		g.ends(g.start(`
		f3 aa  rep stos BYTE PTR es:[di],al
		e6 f4  out 0xf4,al
	`))
		g.equal("last", g.get64(0x2fff8)>>56, 0x77)
		g.equal("first", g.get64(0x20000)&0xff, 0x77)
		g.equal("di", g.s.Regs.RDI&0xffff, 1)
	}},
	{"real mode 32-bit operands and addresses", func(g *guest) {
		g.real()
		g.put32(data, 0x12345678)
		g.ends(g.start(`
		66 bb 00 a0 00 00  mov ebx,0xa000
		67 66 8b 03        mov eax,DWORD PTR [ebx]
		66 01 c0           add eax,eax
		e6 f4              out 0xf4,al
	`))
		g.equal("eax", g.s.Regs.RAX, 0x2468acf0)
	}},
	{"BCD", func(g *guest) {
		g.real()
		g.ends(g.start(`
		b0 19     mov al,0x19
		04 28     add al,0x28
		27        daa
		88 c3     mov bl,al
		b8 07 02  mov ax,0x207
		d5 0a     aad 0xa
		88 c1     mov cl,al
		b0 2d     mov al,0x2d
		d4 0a     aam 0xa
		89 c2     mov dx,ax
		b0 0b     mov al,0xb
		30 e4     xor ah,ah
		37        aaa
		89 c6     mov si,ax
		b0 12     mov al,0x12
		2c 05     sub al,0x5
		2f        das
		e6 f4     out 0xf4,al
	`))
		r := &g.s.Regs
		g.equal("daa", r.RBX&0xff, 0x47)
		g.equal("aad", r.RCX&0xff, 27)
		g.equal("aam", r.RDX&0xffff, 0x0405)
		g.equal("aaa", r.RSI&0xffff, 0x0101)
		g.equal("das", r.RAX&0xff, 0x07)
	}},
	{"pusha, popa and bound", func(g *guest) {
		g.protected(0)
		g.put64(data, 10<<32|1)
		g.s.Regs.RAX, g.s.Regs.RDI = 5, 7
		st := g.start(`
		60                 pusha
		b8 00 00 00 00     mov eax,0x0
		bf 00 00 00 00     mov edi,0x0
		61                 popa
		62 05 00 a0 00 00  bound eax,QWORD PTR ds:0xa000
		b9 0b 00 00 00     mov ecx,0xb
		62 0d 00 a0 00 00  bound ecx,QWORD PTR ds:0xa000
	`)
		g.faults(st, vBR, 0, 0x17)
		g.equal("eax", g.s.Regs.RAX, 5)
		g.equal("edi", g.s.Regs.RDI, 7)
	}},
	{"into", func(g *guest) {
		g.protected(0)
		g.s.Regs.RAX = 0x7fffffff
		g.faults(g.start(`
		ce  into
		40  inc eax
		ce  into
		90  nop
	`), vOF, 0, 3)
	}},
	{"32-bit protected mode", func(g *guest) {
		g.protected(0)
		g.ends(g.start(`
		b8 78 56 34 12  mov eax,0x12345678
		50              push eax
		8b 0c 24        mov ecx,DWORD PTR [esp]
		41              inc ecx
		e8 02 00 00 00  call 0x8011
		eb 03           jmp 0x8014
		5a              pop edx
		ff e2           jmp edx
		e6 f4           out 0xf4,al
	`))
		g.equal("ecx", g.s.Regs.RCX, 0x12345679)
	}},
	{"32-bit interrupt from CPL 3 by the TSS", func(g *guest) {
		g.protected(3)
		st := g.start(`cd 80  int 0x80`)
		g.faults(st, 0x80, 0, 2)
		g.equal("cs", st.cs, code32u)
		g.equal("ss", st.ss, data3)
		g.equal("esp", st.rsp, stack3-0x100)
		g.equal("frame", st.frame, stack0-20)
		g.equal("ss inside", uint64(g.s.Segments.SS.Selector), data0)
	}},
	{"32-bit iret to CPL 3 and back", func(g *guest) {
		g.protected(0)
		g.write(code+0x100, g.listing(`
		8c c8  mov eax,cs
		cd 80  int 0x80
	`))
		st := g.start(`
		6a 2b           push 0x2b
		68 00 cf 00 00  push 0xcf00
		68 02 02 00 00  push 0x202
		6a 23           push 0x23
		68 00 81 00 00  push 0x8100
		cf              iret
	`)
		g.faults(st, 0x80, 0, 0x104)
		g.equal("cs", g.s.Regs.RAX, code32u)
	}},
	{"32-bit general protection pushes 32 bits", func(g *guest) {
		g.protected(0)
		st := g.start(`
		b8 d8 00 00 00  mov eax,0xd8
		8e d8           mov ds,eax
	`)
		g.faults(st, vGP, 0xd8, 5)
	}},
	{"enter with levels", func(g *guest) {
		g.protected(0)
		g.ends(g.start(`
		89 e5        mov ebp,esp
		6a 11        push 0x11
		c8 08 00 02  enter 0x8,0x2
		8b 45 00     mov eax,DWORD PTR [ebp+0x0]
		29 e8        sub eax,ebp
		8b 4d f8     mov ecx,DWORD PTR [ebp-0x8]
		29 e9        sub ecx,ebp
		c9           leave
		5a           pop edx
		e6 f4        out 0xf4,al
	`))
		g.equal("old ebp", g.s.Regs.RAX, 8)
		g.equal("own frame", g.s.Regs.RCX, 0)
		g.equal("edx", g.s.Regs.RDX, 0x11)
	}},
	{"compatibility mode", func(g *guest) {
		g.compat(0)
		g.s.Regs.R8, g.s.Regs.RAX = 0x1234, 0xffffffff
		g.ends(g.start(`
		40        inc eax
		49        dec ecx
		8d 50 ff  lea edx,[eax-0x1]
		e6 f4     out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0)
		g.equal("rcx", g.s.Regs.RCX, 0xffffffff)
		g.equal("rdx", g.s.Regs.RDX, 0xffffffff)
		g.equal("r8", g.s.Regs.R8, 0x1234)
	}},
	{"compatibility mode wraps addresses at 4 GiB", func(g *guest) {
		g.compat(0)
		g.put64(data, 0x42)
		g.s.Regs.RBX, g.s.Regs.RCX = 0xffffffff, data+1
		g.ends(g.start(`
		8b 04 0b  mov eax,DWORD PTR [ebx+ecx*1]
		e6 f4     out 0xf4,al
	`))
		g.equal("rax", g.s.Regs.RAX, 0x42)
	}},
	{"from real mode to long mode", func(g *guest) {
		g.real()
		cr3 := uint32(g.s.Control.CR3)
		g.write(data, []byte{0xcf, 0, 0, 0x10, 0, 0})
		g.write(data+8, []byte{0xff, 0x0f, 0, 0x20, 0, 0, 0, 0, 0, 0})
		g.s.Regs.RBX = uint64(cr3)
		g.write(code+0x100, g.listing(`
		b8 10 00 00 00        mov eax,0x10
		8e d8                 mov ds,eax
		8e d0                 mov ss,eax
		0f 20 e0              mov eax,cr4
		83 c8 20              or eax,0x20
		0f 22 e0              mov cr4,eax
		0f 22 db              mov cr3,ebx
		b9 80 00 00 c0        mov ecx,0xc0000080
		0f 32                 rdmsr
		0d 00 09 00 00        or eax,0x900
		0f 30                 wrmsr
		0f 20 c0              mov eax,cr0
		0d 00 00 00 80        or eax,0x80000000
		0f 22 c0              mov cr0,eax
		ea 00 82 00 00 08 00  jmp 0x8:0x8200
	`))
		g.write(code+0x200, g.listing(`
		48 b8 f0 de bc 9a 78 56 34 12  movabs rax,0x123456789abcdef0
		0f 01 1c 25 08 a0 00 00        lidt ds:0xa008
		0f 0b                          ud2
	`))
		st := g.start(`
		fa                       cli
		66 0f 01 16 00 a0        lgdtd ds:0xa000
		0f 20 c0                 mov eax,cr0
		0c 01                    or al,0x1
		0f 22 c0                 mov cr0,eax
		66 ea 00 81 00 00 18 00  jmp 0x18:0x8100
	`)
		g.faults(st, vUD, 0, 0x212)
		g.equal("rax", g.s.Regs.RAX, 0x123456789abcdef0)
		g.equal("LMA", g.s.Control.EFER&vcpu.EFERLMA, vcpu.EFERLMA)
	}},
	{"from protected mode back to real mode", func(g *guest) {
		g.protected(0)
		g.put64(gdt+gate, segment(0, 0xffff, typeCode, 0, 0))
		g.write(code+0x100, g.listing(`
		b8 a8 00        mov ax,0xa8
		8e d8           mov ds,ax
		8e d0           mov ss,ax
		0f 20 c0        mov eax,cr0
		24 fe           and al,0xfe
		0f 22 c0        mov cr0,eax
		ea 00 82 00 00  jmp 0x0:0x8200
	`))
		g.write(code+0x200, g.listing(`
		b8 00 01  mov ax,0x100
		8e d8     mov ds,ax
		a1 00 90  mov ax,ds:0x9000
		e6 f4     out 0xf4,al
	`))
		g.put64(data, 0xbeef)
		g.ends(g.start(`ea 00 81 00 00 38 00  jmp 0x38:0x8100`))
		g.equal("ax", g.s.Regs.RAX&0xffff, 0xbeef)
		g.equal("cs", uint64(g.s.Segments.CS.Selector), 0)
	}},
	{"16-bit protected mode", func(g *guest) {
		g.protected(0)
		g.write(code+0x100, g.listing(`
		b8 a8 00           mov ax,0xa8
		8e d0              mov ss,ax
		bc 00 d0           mov sp,0xd000
		50                 push ax
		59                 pop cx
		66 be 00 a0 00 00  mov esi,0xa000
		67 66 8b 06        mov eax,DWORD PTR [esi]
		e6 f4              out 0xf4,al
	`))
		g.put64(data, 0x11223344)
		g.ends(g.start(`ea 00 81 00 00 38 00  jmp 0x38:0x8100`))
		g.equal("eax", g.s.Regs.RAX, 0x11223344)
		g.equal("cx", g.s.Regs.RCX&0xffff, data16)
	}},
}
