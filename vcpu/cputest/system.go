package cputest

import (
	"fmt"

	"github.com/vmkit-go/vmkit/vcpu"
)

var systemTests = []test{
	{"control registers", func(g *guest) {
		g.ends(g.start(`
		0f 20 c0           mov rax,cr0
		0f 20 d9           mov rcx,cr3
		0f 20 e2           mov rdx,cr4
		44 0f 20 c3        mov rbx,cr8
		41 b8 05 00 00 00  mov r8d,0x5
		45 0f 22 c0        mov cr8,r8
		45 0f 20 c1        mov r9,cr8
		e6 f4              out 0xf4,al
	`))
		r := &g.s.Regs
		g.equal("cr0", r.RAX, g.s.Control.CR0)
		g.equal("cr3", r.RCX, g.s.Control.CR3)
		g.equal("cr4", r.RDX, g.s.Control.CR4)
		g.equal("cr8", r.R9, 5)
	}},
	{"writes to control registers that fault", func(g *guest) {
		for _, w := range []struct {
			what, code string
			change     func(r *vcpu.State)
		}{
			{"CR0 without PE", `0f 22 c0  mov cr0,rax`, func(s *vcpu.State) { s.Regs.RAX = s.Control.CR0 &^ 1 }},
			{"CR0 without PG in 64-bit mode", `0f 22 c0  mov cr0,rax`, func(s *vcpu.State) { s.Regs.RAX = s.Control.CR0 &^ vcpu.CR0PG }},
			{"CR0 NW without CD", `0f 22 c0  mov cr0,rax`, func(s *vcpu.State) { s.Regs.RAX = s.Control.CR0 | vcpu.CR0NW }},
			{"CR0 upper half", `0f 22 c0  mov cr0,rax`, func(s *vcpu.State) { s.Regs.RAX = s.Control.CR0 | 1<<32 }},
			{"CR4 without PAE", `0f 22 e0  mov cr4,rax`, func(s *vcpu.State) { s.Regs.RAX = s.Control.CR4 &^ vcpu.CR4PAE }},
			{"CR4 reserved", `0f 22 e0  mov cr4,rax`, func(s *vcpu.State) { s.Regs.RAX = s.Control.CR4 | 1<<30 }},
			{"CR3 reserved", `0f 22 d8  mov cr3,rax`, func(s *vcpu.State) { s.Regs.RAX = s.Control.CR3 | 1<<62 }},
			{"CR8 reserved", `44 0f 22 c0  mov cr8,rax`, func(s *vcpu.State) { s.Regs.RAX = 16 }},
		} {
			g.long(0)
			w.change(&g.s)
			st := g.start(w.code)
			if st.vector != vGP || st.code != 0 || st.rip != code {
				g.Errorf("%s: exception %d, code %#x, at %#x", w.what, st.vector, st.code, st.rip)
			}
		}
		g.long(0)
		g.faults(g.start("0f 20 c8  mov rax,cr1"), vUD, 0, 0)
	}},
	{"smsw, lmsw, clts", func(g *guest) {
		g.ends(g.start(`
		48 c7 c0 ff ff ff ff  mov rax,0xffffffffffffffff
		48 0f 01 e0           smsw rax
		b9 3b 00 00 00        mov ecx,0x3b
		0f 01 f1              lmsw cx
		0f 01 e2              smsw edx
		0f 06                 clts
		0f 01 e3              smsw ebx
		b9 32 00 00 00        mov ecx,0x32
		0f 01 f1              lmsw cx
		0f 01 e6              smsw esi
		e6 f4                 out 0xf4,al
	`))
		r := &g.s.Regs
		g.equal("TS set", r.RDX&15, 0xb)
		g.equal("TS clear", r.RBX&8, 0)
		g.equal("PE stays", r.RSI&15, 3)
	}},
	{"EFER", func(g *guest) {
		g.ends(g.start(`
		b9 80 00 00 c0  mov ecx,0xc0000080
		0f 32           rdmsr
		89 c3           mov ebx,eax
		83 e0 fe        and eax,0xfffffffe
		0f 30           wrmsr
		0f 32           rdmsr
		e6 f4           out 0xf4,al
	`))
		g.equal("before", g.s.Regs.RBX, vcpu.EFERLMA|vcpu.EFERLME|vcpu.EFERNXE|vcpu.EFERSCE)
		g.equal("after", g.s.Regs.RAX, vcpu.EFERLMA|vcpu.EFERLME|vcpu.EFERNXE)
		g.long(0) // LME cannot change while paging is on
		g.faults(g.start(`
		b9 80 00 00 c0  mov ecx,0xc0000080
		0f 32           rdmsr
		25 ff fe ff ff  and eax,0xfffffeff
		0f 30           wrmsr
	`), vGP, 0, 0xc)
	}},
	{"MSRs that do not exist", func(g *guest) {
		g.faults(g.start(`
		b9 78 56 34 12  mov ecx,0x12345678
		0f 32           rdmsr
	`), vGP, 0, 5)
		g.long(0)
		g.faults(g.start(`
		b9 78 56 34 12  mov ecx,0x12345678
		0f 30           wrmsr
	`), vGP, 0, 5)
	}},
	{"MSRs with addresses must be canonical", func(g *guest) {
		for _, index := range []uint64{0xc0000100, 0xc0000101, 0xc0000102, 0xc0000082, 0xc0000083} {
			g.long(0)
			g.s.Regs.RCX, g.s.Regs.RAX, g.s.Regs.RDX = index, 0, 0x8000
			g.faults(g.start(`0f 30  wrmsr`), vGP, 0, 0)
		}
	}},
	{"MSRs that Linux keeps state in", func(g *guest) {
		for index, v := range map[uint32]uint64{
			0x174: 0x10, 0x175: 0x12345678, 0x176: 0x87654321, 0x277: 0x0007040600070406,
			0xc0000081: 0x0023001000000000, 0xc0000082: 0xffffffff81000000, 0xc0000083: 0xffffffff82000000, 0xc0000084: 0x47700,
			0xc0000102: 0xffff888000000000, 0xc0000103: 7,
		} {
			if index == 0xc0000103 && !g.has(0x80000001, 'd', 27) {
				continue
			}
			g.long(0)
			r := &g.s.Regs
			r.RCX, r.RAX, r.RDX = uint64(index), v&0xffffffff, v>>32
			g.ends(g.start(`
		0f 30  wrmsr
		31 c0  xor eax,eax
		31 d2  xor edx,edx
		0f 32  rdmsr
		e6 f4  out 0xf4,al
	`))
			g.equal(fmt.Sprintf("msr %#x", index), g.s.Regs.RDX<<32|g.s.Regs.RAX, v)
		}
	}},
	{"FS and GS bases by MSR", func(g *guest) {
		g.s.Regs.RAX, g.s.Regs.RDX = 0x89abcdef, 0x1234
		g.ends(g.start(`
		b9 00 01 00 c0  mov ecx,0xc0000100
		0f 30           wrmsr
		ff c1           inc ecx
		0f 30           wrmsr
		e6 f4           out 0xf4,al
	`))
		g.equal("fs", g.s.Segments.FS.Base, 0x123489abcdef)
		g.equal("gs", g.s.Segments.GS.Base, 0x123489abcdef)
	}},
	{"a null selector clears the base", func(g *guest) {
		g.s.Segments.FS.Base = 0x1000
		g.ends(g.start(`
		b8 2b 00 00 00  mov eax,0x2b
		8e e0           mov fs,eax
		e6 f4           out 0xf4,al
	`))
		g.equal("base of flat data", g.s.Segments.FS.Base, 0)
	}},
	{"CPUID is what the engine says", func(g *guest) {
		for _, l := range g.cpuid {
			if l.Function == 1 || l.Function == 0xb || l.Function == 0x1f || l.Function == 4 || l.Function >= 0x4000_0000 && l.Function < 0x5000_0000 ||
				l.Function == 0xd || l.Function == 0x80000008 || l.Function == 0x8000001d || l.Function == 0x8000001e || l.Function == 7 {
				continue // these depend on the CPU or on its state
			}
			g.long(0)
			g.s.Regs.RAX, g.s.Regs.RCX = uint64(l.Function), uint64(l.Index)
			g.ends(g.start(`
		0f a2  cpuid
		e6 f4  out 0xf4,al
	`))
			r := &g.s.Regs
			if r.RAX != uint64(l.EAX) || r.RBX != uint64(l.EBX) || r.RCX != uint64(l.ECX) || r.RDX != uint64(l.EDX) {
				g.Errorf("leaf %#x index %d: %x %x %x %x, want %+v", l.Function, l.Index, r.RAX, r.RBX, r.RCX, r.RDX, l)
			}
		}
	}},
	{"CPUID is consistent", func(g *guest) {
		leaf := func(f, i uint64) [4]uint64 {
			g.long(0)
			g.s.Control.CR4 |= cr4XSAVE
			if !g.has(1, 'c', 26) {
				g.s.Control.CR4 &^= cr4XSAVE
			}
			g.s.Regs.RAX, g.s.Regs.RCX = f, i
			g.ends(g.start(`
		0f a2  cpuid
		e6 f4  out 0xf4,al
	`))
			r := &g.s.Regs
			return [4]uint64{r.RAX, r.RBX, r.RCX, r.RDX}
		}
		if leaf(0, 0)[0] < 7 {
			g.Error("no leaf 7")
		}
		one := leaf(1, 0)
		// FPU PSE TSC MSR PAE CX8 APIC PGE CMOV CLFLUSH MMX FXSR SSE SSE2.
		if need := uint64(0x0788a379); one[3]&need != need {
			g.Errorf("leaf 1 EDX %#x lacks %#x", one[3], need&^one[3])
		}
		g.equal("OSXSAVE follows CR4", one[2]>>27&1, one[2]>>26&1)
		g.equal("APIC ID", one[1]>>24, 0)
		ext := leaf(0x80000001, 0)
		if need := uint64(1<<11 | 1<<20 | 1<<29); ext[3]&need != need {
			g.Errorf("leaf 0x80000001 EDX %#x", ext[3])
		}
		if w := leaf(0x80000008, 0)[0]; w&0xff < 36 || w>>8&0xff != 48 && w>>8&0xff != 57 {
			g.Errorf("address widths %#x", w)
		}
	}},
	{"rdtsc grows", func(g *guest) {
		g.ends(g.start(`
		0f 31           rdtsc
		48 c1 e2 20     shl rdx,0x20
		48 09 d0        or rax,rdx
		48 89 c3        mov rbx,rax
		b9 e8 03 00 00  mov ecx,0x3e8
		e2 fe           loop 0x8011
		0f 31           rdtsc
		48 c1 e2 20     shl rdx,0x20
		48 09 d0        or rax,rdx
		e6 f4           out 0xf4,al
	`))
		if g.s.Regs.RAX <= g.s.Regs.RBX {
			g.Errorf("%d, then %d", g.s.Regs.RBX, g.s.Regs.RAX)
		}
	}},
	{"rdtsc at CPL 3 with TSD", func(g *guest) {
		g.long(3)
		g.s.Control.CR4 |= cr4TSD
		g.faults(g.start(`0f 31  rdtsc`), vGP, 0, 0)
	}},
	{"TSC is the state's", func(g *guest) {
		g.start(`e6 f4  out 0xf4,al`)
		g.restart()
		g.s.TSC = 1 << 40
		g.s.Regs.RIP = code
		g.ends(g.start(`
		0f 31        rdtsc
		48 c1 e2 20  shl rdx,0x20
		48 09 d0     or rax,rdx
		e6 f4        out 0xf4,al
	`))
		if d := g.s.Regs.RAX - 1<<40; d > 1<<38 {
			g.Errorf("rdtsc %#x", g.s.Regs.RAX)
		}
	}},
	{"hlt wakes for an interrupt that STI lets in", func(g *guest) {
		// Nothing is pending: HLT with IF clear and no interrupt would stay; the
		// shadow of STI covers the next instruction.
		g.s.Regs.RFLAGS &^= flagIF
		g.ends(g.start(`
		fb     sti
		fa     cli
		9c     pushf
		58     pop rax
		e6 f4  out 0xf4,al
	`))
		g.equal("IF", g.s.Regs.RAX&flagIF, 0)
	}},
	{"fxsave and fxrstor", func(g *guest) {
		g.ends(g.start(`
		db e3                       fninit
		d9 e8                       fld1
		d9 eb                       fldpi
		b8 78 56 34 12              mov eax,0x12345678
		66 0f 6e d8                 movd xmm3,eax
		48 0f ae 04 25 00 a0 00 00  fxsave64 ds:0xa000
		db e3                       fninit
		66 0f ef db                 pxor xmm3,xmm3
		48 0f ae 0c 25 00 a0 00 00  fxrstor64 ds:0xa000
		66 0f 7e d9                 movd ecx,xmm3
		df e0                       fnstsw ax
		dd d8                       fstp st(0)
		db 1c 25 00 a3 00 00        fistp DWORD PTR ds:0xa300
		e6 f4                       out 0xf4,al
	`))
		p := g.read(data, 512)
		g.equal("fcw", uint64(p[0])|uint64(p[1])<<8, 0x37f)
		g.equal("fsw", uint64(p[2])|uint64(p[3])<<8, 6<<11)
		g.equal("tags", uint64(p[4]), 0xc0)
		g.equal("mxcsr", uint64(p[24])|uint64(p[25])<<8, 0x1f80)
		g.equal("st0", le64(p[32:]), 0xc90fdaa22168c235)
		g.equal("st1", le64(p[48:]), 1<<63)
		g.equal("xmm3", le64(p[160+48:]), 0x12345678)
		g.equal("xmm3 again", g.s.Regs.RCX, 0x12345678)
		g.equal("st1 again", uint64(g.get32(data+0x300)), 1)
	}},
	{"fxrstor checks MXCSR and alignment", func(g *guest) {
		g.put32(data+24, 1<<16)
		g.faults(g.start(`0f ae 0c 25 00 a0 00 00  fxrstor ds:0xa000`), vGP, 0, 0)
		g.long(0)
		g.faults(g.start(`0f ae 04 25 08 a0 00 00  fxsave ds:0xa008`), vGP, 0, 0)
	}},
	{"xsave", func(g *guest) {
		if !g.has(1, 'c', 26) {
			g.faults(g.start(`0f 01 d0  xgetbv`), vUD, 0, 0)
			return
		}
		g.s.Control.CR4 |= cr4XSAVE
		g.s.XCRs = []vcpu.XCR{{Index: 0, Value: 3}}
		g.ends(g.start(`
		31 c9                    xor ecx,ecx
		0f 01 d0                 xgetbv
		89 c3                    mov ebx,eax
		b8 55 00 00 00           mov eax,0x55
		66 0f 6e c8              movd xmm1,eax
		b8 03 00 00 00           mov eax,0x3
		31 d2                    xor edx,edx
		0f ae 24 25 00 a0 00 00  xsave ds:0xa000
		66 0f ef c9              pxor xmm1,xmm1
		0f ae 2c 25 00 a0 00 00  xrstor ds:0xa000
		66 0f 7e ce              movd esi,xmm1
		e6 f4                    out 0xf4,al
	`))
		g.equal("xcr0", g.s.Regs.RBX, 3)
		g.equal("xmm1", g.s.Regs.RSI, 0x55)
		g.equal("stored", g.get64(data+160+16), 0x55)
		if bv := g.get64(data + 512); bv&2 == 0 || bv&^3 != 0 {
			g.Errorf("XSTATE_BV %#x", bv)
		}
		g.long(0)
		g.s.Control.CR4 |= cr4XSAVE
		g.faults(g.start(`
		31 c9           xor ecx,ecx
		31 d2           xor edx,edx
		b8 02 00 00 00  mov eax,0x2
		0f 01 d1        xsetbv
	`), vGP, 0, 9)
	}},
	{"what xsetbv writes is in the state", func(g *guest) {
		if !g.has(1, 'c', 26) {
			return
		}
		g.s.Control.CR4 |= cr4XSAVE
		g.s.XCRs = []vcpu.XCR{{Index: 0, Value: 1}}
		g.ends(g.start(`
		31 c9           xor ecx,ecx
		31 d2           xor edx,edx
		b8 03 00 00 00  mov eax,0x3
		0f 01 d1        xsetbv
		e6 f4           out 0xf4,al
	`))
		for _, x := range g.s.XCRs {
			if x.Index == 0 {
				g.equal("xcr0", x.Value, 3)
				return
			}
		}
		g.Errorf("no XCR0 in the state")
	}},
	{"umip", func(g *guest) {
		if !g.has(7, 'c', 2) {
			return
		}
		for _, c := range []string{"0f 01 00", "0f 01 08", "0f 00 c0", "0f 00 c8", "0f 01 e0"} {
			g.long(3)
			g.s.Control.CR4 |= cr4UMIP
			g.s.Regs.RAX = data
			if st := g.start(c); st.vector != vGP || st.rip != code {
				g.Errorf("%s: exception %d at %#x", c, st.vector, st.rip)
			}
		}
	}},
	{"stac and clac", func(g *guest) {
		if !g.has(7, 'b', 20) {
			g.faults(g.start(`0f 01 cb  stac`), vUD, 0, 0)
			return
		}
		g.ends(g.start(`
		0f 01 cb  stac
		9c        pushf
		58        pop rax
		0f 01 ca  clac
		9c        pushf
		59        pop rcx
		e6 f4     out 0xf4,al
	`))
		g.equal("AC set", g.s.Regs.RAX&flagAC, flagAC)
		g.equal("AC clear", g.s.Regs.RCX&flagAC, 0)
	}},
	{"fences, prefetches and nops", func(g *guest) {
		g.ends(g.start(`
		0f ae e8                 lfence
		0f ae f0                 mfence
		0f ae f8                 sfence
		0f 18 08                 prefetcht0 BYTE PTR [rax]
		f3 90                    pause
		0f 1f 00                 nop DWORD PTR [rax]
		0f ae 3c 25 00 a0 00 00  clflush BYTE PTR ds:0xa000
		0f 09                    wbinvd
		f3 0f 1e fa              endbr64
		e6 f4                    out 0xf4,al
	`))
	}},
	{"a read of a port", func(g *guest) {
		g.s.Regs.RAX = 0xffffffffffffffff
		g.program(`
		e4 80           in al,0x80
		48 89 c3        mov rbx,rax
		ba 34 12 00 00  mov edx,0x1234
		ed              in eax,dx
		e6 f4           out 0xf4,al
	`)
		e := g.exitOnce()
		if e.Write || e.Port != 0x80 || len(e.Data) != 1 {
			g.Fatalf("%+v", e)
		}
		e.Data[0] = 0x12
		e = g.exitOnce()
		if e.Write || e.Port != 0x1234 || len(e.Data) != 4 {
			g.Fatalf("%+v", e)
		}
		copy(e.Data, []byte{1, 2, 3, 4})
		g.ends(g.resume())
		g.equal("rbx", g.s.Regs.RBX, 0xffffffffffffff12)
		g.equal("rax", g.s.Regs.RAX, 0x04030201)
	}},
	{"memory that is not there", func(g *guest) {
		g.page(0x500000, 0xd0000000|pteP|pteW)
		g.s.Regs.RCX = 0x1122334455667788
		g.program(`
		66 8b 04 25 10 00 50 00  mov ax,WORD PTR ds:0x500010
		48 89 0c 25 18 00 50 00  mov QWORD PTR ds:0x500018,rcx
		83 04 25 20 00 50 00 01  add DWORD PTR ds:0x500020,0x1
		e6 f4                    out 0xf4,al
	`)
		e := g.exitOnce()
		if e.Reason != vcpu.ExitMMIO || e.Write || e.Addr != 0xd0000010 || len(e.Data) != 2 {
			g.Fatalf("%+v", e)
		}
		copy(e.Data, []byte{0x34, 0x12})
		e = g.exitOnce()
		if e.Reason != vcpu.ExitMMIO || !e.Write || e.Addr != 0xd0000018 || le64(e.Data) != 0x1122334455667788 {
			g.Fatalf("%+v", e)
		}
		e = g.exitOnce()
		if e.Write || e.Addr != 0xd0000020 || len(e.Data) != 4 {
			g.Fatalf("%+v", e)
		}
		copy(e.Data, []byte{0xff, 0, 0, 0})
		e = g.exitOnce()
		if !e.Write || e.Addr != 0xd0000020 || string(e.Data) != "\x00\x01\x00\x00" {
			g.Fatalf("%+v", e)
		}
		g.ends(g.resume())
		g.equal("ax", g.s.Regs.RAX, 0x1234)
	}},
}
