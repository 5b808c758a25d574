package cputest

import (
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/vmkit-go/vmkit/vcpu"
)

// insn is one instruction, or a few, with registers before and after: name=value in
// hex; f= are the status flags that are set, u= those that are undefined; xN= is a
// vector register; [addr]= are eight bytes of memory.
type insn struct {
	name, code, in, out string
}

func instructionTests() []test {
	var out []test
	for _, i := range insns {
		out = append(out, test{i.name, func(g *guest) { g.insn(i) }})
	}
	return out
}

func (g *guest) insn(i insn) {
	g.Helper()
	need := uint64(status)
	for f := range strings.FieldsSeq(i.in) {
		g.field(f, true, &need)
	}
	g.program(i.code + "\n e6 f4  out 0xf4,al")
	g.ends(g.resume())
	for _, undefined := range []bool{true, false} {
		for f := range strings.FieldsSeq(i.out) {
			if strings.HasPrefix(f, "u=") == undefined {
				g.field(f, false, &need)
			}
		}
	}
}

// field sets or checks one name=value.
func (g *guest) field(f string, set bool, flags *uint64) {
	g.Helper()
	name, text, _ := strings.Cut(f, "=")
	switch {
	case name == "u" || name == "f":
		var bits uint64
		for _, c := range text {
			bits |= map[rune]uint64{'C': flagCF, 'P': flagPF, 'A': flagAF, 'Z': flagZF, 'S': flagSF, 'O': flagOF, 'D': flagDF}[c]
		}
		switch {
		case name == "u":
			*flags &^= bits
		case set:
			g.s.Regs.RFLAGS |= bits
		default:
			g.equal("flags", g.s.Regs.RFLAGS&*flags, bits&*flags)
		}
		return
	case name[0] == 'x':
		n, err := strconv.Atoi(name[1:])
		g.must(err)
		b, err := hex.DecodeString(text)
		g.must(err)
		for l, r := 0, len(b)-1; l < r; l, r = l+1, r-1 {
			b[l], b[r] = b[r], b[l]
		}
		reg := g.s.XSAVE[160+16*n:][:16]
		if set {
			copy(reg, b)
		} else if string(reg) != string(b) {
			g.Errorf("xmm%d is %016x%016x, want %s", n, le64(reg[8:]), le64(reg), text)
		}
		return
	}
	v, err := strconv.ParseUint(text, 16, 64)
	g.must(err)
	if name[0] == '[' {
		addr, err := strconv.ParseUint(strings.Trim(name, "[]"), 16, 64)
		g.must(err)
		if set {
			g.put64(addr, v)
		} else {
			g.equal(name, g.get64(addr), v)
		}
		return
	}
	p := reg(&g.s.Regs, name)
	if set {
		*p = v
	} else {
		g.equal(name, *p, v)
	}
}

func reg(r *vcpu.Registers, name string) *uint64 {
	return map[string]*uint64{
		"rax": &r.RAX, "rbx": &r.RBX, "rcx": &r.RCX, "rdx": &r.RDX, "rsi": &r.RSI, "rdi": &r.RDI, "rsp": &r.RSP, "rbp": &r.RBP,
		"r8": &r.R8, "r9": &r.R9, "r10": &r.R10, "r11": &r.R11, "r12": &r.R12, "r13": &r.R13, "r14": &r.R14, "r15": &r.R15,
	}[name]
}

var insns = []insn{
	{"add8", `00 c8  add al,cl`, "rax=11ff rcx=1", "rax=1100 f=CZPA"},
	{"add32 clears the upper half", `01 c8  add eax,ecx`, "rax=ffffffff00000001 rcx=7fffffff", "rax=80000000 f=SOAP"},
	{"adc64", `48 11 c8  adc rax,rcx`, "rax=ffffffffffffffff rcx=0 f=C", "rax=0 f=CZPA"},
	{"sub16 keeps the upper bits", `66 29 c8  sub ax,cx`, "rax=aaaa0000 rcx=1", "rax=aaaaffff f=CSPA"},
	{"sbb overflow", `19 c8  sbb eax,ecx`, "rax=80000000 rcx=0 f=C", "rax=7fffffff f=OPA"},
	{"cmp", `48 39 c8  cmp rax,rcx`, "rax=5 rcx=5", "rax=5 f=ZP"},
	{"neg", `f7 d8  neg eax`, "rax=80000000", "rax=80000000 f=CSOP"},
	{"inc keeps carry", `ff c0  inc eax`, "rax=7fffffff f=C", "rax=80000000 f=CSOPA"},
	{"dec keeps carry", `fe c8  dec al`, "rax=0 f=C", "rax=ff f=CSPA"},
	{"high byte", `00 ec  add ah,ch`, "rax=1200 rcx=3400", "rax=4600 f="},
	{"sil needs rex", `40 88 f0  mov al,sil`, "rax=0 rsi=77", "rax=77"},
	{"imm8 sign", `48 83 c0 ff  add rax,0xffffffffffffffff`, "rax=0", "rax=ffffffffffffffff f=SP"},
	{"mul64", `48 f7 e1  mul rcx`, "rax=ffffffffffffffff rcx=2", "rax=fffffffffffffffe rdx=1 f=CO u=SZAP"},
	{"imul64", `48 f7 e9  imul rcx`, "rax=ffffffffffffffff rcx=2", "rax=fffffffffffffffe rdx=ffffffffffffffff f= u=SZAP"},
	{"imul3", `6b c1 03  imul eax,ecx,0x3`, "rcx=60000000", "rax=20000000 f=CO u=SZAP"},
	{"div64", `48 f7 f1  div rcx`, "rax=0 rdx=1 rcx=10", "rax=1000000000000000 rdx=0"},
	{"idiv32", `f7 f9  idiv ecx`, "rax=fffffff9 rdx=ffffffff rcx=2", "rax=fffffffd rdx=ffffffff"},
	{"div8", `f6 f1  div cl`, "rax=103 rcx=10", "rax=310"},
	{"shl", `d1 e0  shl eax,1`, "rax=80000001", "rax=2 f=CO u=AP"},
	{"shift by 0 keeps flags", `d3 e0  shl eax,cl`, "rax=1 rcx=20 f=CZSOPA", "rax=1 f=CZSOPA"},
	{"sar", `48 c1 f8 3f  sar rax,0x3f`, "rax=8000000000000000", "rax=ffffffffffffffff f=SP u=OA"},
	{"rol8 by 9", `c0 c0 09  rol al,0x9`, "rax=81", "rax=3 f=C u=O"},
	{"rcr", `d1 d8  rcr eax,1`, "rax=1 f=", "rax=0 f=C"},
	{"rcl8 by 9 is nothing", `c0 d0 09  rcl al,0x9`, "rax=5a f=C", "rax=5a f=C u=O"},
	{"shld", `48 0f a4 c8 04  shld rax,rcx,0x4`, "rax=1 rcx=f000000000000000", "rax=1f f= u=AOP"},
	{"shrd", `0f ad c8  shrd eax,ecx,cl`, "rax=100 rcx=88", "rax=88000001 f=S u=OAP"},
	{"bt memory beyond the operand", `48 0f a3 04 25 08 a0 00 00  bt QWORD PTR ds:0xa008,rax`, "rax=ffffffffffffffff [a000]=8000000000000000", "f=C u=OSAPZ"},
	{"bts memory", `0f ab 04 25 00 a0 00 00  bts DWORD PTR ds:0xa000,eax`, "rax=21 [a000]=0", "[a000]=200000000 f= u=OSAPZ"},
	{"bsf", `48 0f bc c1  bsf rax,rcx`, "rcx=8000", "rax=f f= u=COSAP"},
	{"bsr zero", `0f bd c1  bsr eax,ecx`, "rcx=0", "f=Z u=COSAP"},
	{"bswap", `48 0f c8  bswap rax`, "rax=102030405060708", "rax=807060504030201"},
	{"cmpxchg equal", `f0 48 0f b1 0c 25 00 a0 00 00  lock cmpxchg QWORD PTR ds:0xa000,rcx`, "rax=5 rcx=9 [a000]=5", "[a000]=9 rax=5 f=ZP"},
	{"cmpxchg unequal", `f0 0f b1 0c 25 00 a0 00 00  lock cmpxchg DWORD PTR ds:0xa000,ecx`, "rax=ffffffff00000004 rcx=9 [a000]=5", "[a000]=5 rax=5 f=CSAP"},
	{"cmpxchg8b", `f0 0f c7 0c 25 00 a0 00 00  lock cmpxchg8b QWORD PTR ds:0xa000`, "rax=2 rdx=1 rbx=4 rcx=3 [a000]=100000002", "[a000]=300000004 f=Z"},
	{"cmpxchg16b equal", `f0 48 0f c7 0c 25 00 a0 00 00  lock cmpxchg16b OWORD PTR ds:0xa000`, "rax=2 rdx=1 rbx=4 rcx=3 [a000]=2 [a008]=1", "[a000]=4 [a008]=3 f=Z"},
	{"cmpxchg16b unequal", `48 0f c7 0c 25 00 a0 00 00  cmpxchg16b OWORD PTR ds:0xa000`, "rax=2 rdx=1 rbx=4 rcx=3 [a000]=7 [a008]=8 f=Z", "rax=7 rdx=8 [a000]=7 f="},
	{"xadd", `f0 0f c1 04 25 00 a0 00 00  lock xadd DWORD PTR ds:0xa000,eax`, "rax=3 [a000]=ffffffff00000005", "rax=5 [a000]=ffffffff00000008 f="},
	{"xchg", `48 87 04 25 00 a0 00 00  xchg QWORD PTR ds:0xa000,rax`, "rax=3 [a000]=7", "rax=7 [a000]=3"},
	{"xchg eax,eax is a nop", `90  nop`, "rax=ffffffffffffffff", "rax=ffffffffffffffff"},
	{"movsx", `48 0f be c1  movsx rax,cl`, "rcx=80", "rax=ffffffffffffff80"},
	{"movzx", `0f b7 c1  movzx eax,cx`, "rax=ffffffffffffffff rcx=fffff", "rax=ffff"},
	{"movsxd", `48 63 c1  movsxd rax,ecx`, "rcx=80000000", "rax=ffffffff80000000"},
	{"movabs", `48 a1 00 a0 00 00 00 00 00 00  movabs rax,ds:0xa000`, "[a000]=123456789abcdef", "rax=123456789abcdef"},
	{"cqo", `48 99  cqo`, "rax=8000000000000000", "rdx=ffffffffffffffff"},
	{"cwde", `98  cwde`, "rax=ffffffff00008000", "rax=ffff8000"},
	{"lea 32-bit address", `67 48 8d 44 91 01  lea rax,[ecx+edx*4+0x1]`, "rcx=ffffffff rdx=1", "rax=4"},
	{"rip relative", "48 8d 05 f8 ff ff ff  lea rax,[rip-8]", "", "rax=7fff"},
	{"lahf", `9f  lahf`, "rax=0 f=CZ", "rax=4300"},
	{"sahf", `9e  sahf`, "rax=d500", "f=CPAZS"},
	{"cmov not taken clears the upper half", `0f 42 c1  cmovb eax,ecx`, "rax=ffffffffffffffff rcx=1 f=", "rax=ffffffff"},
	{"setg", `0f 9f c0  setg al`, "rax=0 f=SO", "rax=1"},
	{"push16", `
		66 50        push ax
		59           pop rcx
		48 83 ec 02  sub rsp,0x2
		48 83 c4 08  add rsp,0x8
	`, "rax=1234", "rcx=1234"},
	{"pushf and popf", `
		68 d5 0a 00 00  push 0xad5
		9d              popf
		9c              pushf
		58              pop rax
	`, "", "rax=ad7"},
	{"pop rsp", `
		48 c7 04 25 00 a0 00 00 78 56 00 00  mov QWORD PTR ds:0xa000,0x5678
		bc 00 a0 00 00                       mov esp,0xa000
		5c                                   pop rsp
		89 e0                                mov eax,esp
	`, "", "rax=5678"},
	{"push rsp", `
		89 e1  mov ecx,esp
		54     push rsp
		58     pop rax
		29 c8  sub eax,ecx
	`, "", "rax=0"},
	{"enter and leave", `
		48 89 e1     mov rcx,rsp
		c8 10 00 00  enter 0x10,0x0
		48 29 e1     sub rcx,rsp
		c9           leave
	`, "rbp=77", "rcx=18 rbp=77"},
	{"xlat", `d7  xlat BYTE PTR ds:[rbx]`, "rax=3 rbx=a000 [a000]=44332211", "rax=44"},
	{"loop", `
		b9 05 00 00 00  mov ecx,0x5
		31 c0           xor eax,eax
		ff c0           inc eax
		e2 fc           loop 0x8007
	`, "", "rax=5 rcx=0"},
	{"jrcxz with 67 takes ecx", `
		31 c0     xor eax,eax
		67 e3 02  jecxz 0x8007
		ff c0     inc eax
		90        nop
	`, "rcx=100000000", "rax=0"},
	{"call and ret", `
		e8 02 00 00 00  call 0x8007
		eb 08           jmp 0x800f
		b8 07 00 00 00  mov eax,0x7
		c2 08 00        ret 0x8
		90              nop
	`, "", "rax=7"},
	{"popcnt", `f3 48 0f b8 c1  popcnt rax,rcx`, "rcx=f0f0000000000001", "rax=9 f="},
	{"crc32", `f2 0f 38 f0 c1  crc32 eax,cl`, "rax=0 rcx=61", "rax=93ad1061"},
	{"pushfq has VM and RF clear", `
		9c              pushf
		58              pop rax
		25 00 00 03 00  and eax,0x30000
	`, "", "rax=0"},
	{"std lods", `
		fd  std
		ac  lods al,BYTE PTR ds:[rsi]
		fc  cld
	`, "rsi=a001 [a000]=2211", "rax=22 rsi=a000"},

	// x87, through memory.
	{"fadd", `
		dd 04 25 00 a0 00 00  fld QWORD PTR ds:0xa000
		dc 04 25 08 a0 00 00  fadd QWORD PTR ds:0xa008
		dd 1c 25 10 a0 00 00  fstp QWORD PTR ds:0xa010
	`, "[a000]=3ff8000000000000 [a008]=4000000000000000", "[a010]=400c000000000000"},
	{"fild and fistp", `
		df 2c 25 00 a0 00 00  fild QWORD PTR ds:0xa000
		db 1c 25 10 a0 00 00  fistp DWORD PTR ds:0xa010
	`, "[a000]=fffffffffffffffd", "[a010]=fffffffd"},
	{"fistp rounds to even", `
		dd 04 25 00 a0 00 00  fld QWORD PTR ds:0xa000
		df 3c 25 10 a0 00 00  fistp QWORD PTR ds:0xa010
	`, "[a000]=4004000000000000", "[a010]=2"},
	{"fld1 and fldpi in 80 bits", `
		d9 eb                 fldpi
		db 3c 25 10 a0 00 00  fstp TBYTE PTR ds:0xa010
	`, "", "[a010]=c90fdaa22168c235 [a018]=4000"},
	{"fsqrt", `
		db 04 25 00 a0 00 00  fild DWORD PTR ds:0xa000
		d9 fa                 fsqrt
		dd 1c 25 10 a0 00 00  fstp QWORD PTR ds:0xa010
	`, "[a000]=2", "[a010]=3ff6a09e667f3bcd"},
	{"fdivrp", `
		d9 e8                 fld1
		db 04 25 00 a0 00 00  fild DWORD PTR ds:0xa000
		de f9                 fdivp st(1),st
		dd 1c 25 10 a0 00 00  fstp QWORD PTR ds:0xa010
	`, "[a000]=3", "[a010]=3fd5555555555555"},
	{"fcomi", `
		d9 ee  fldz
		d9 e8  fld1
		db f1  fcomi st,st(1)
	`, "", "f="},
	{"fucomi unordered", `
		d9 ee  fldz
		d9 ee  fldz
		de f9  fdivp st(1),st
		db e8  fucomi st,st(0)
	`, "", "f=ZPC"},
	{"fnstsw", `
		d9 e8  fld1
		d9 ee  fldz
		df e0  fnstsw ax
	`, "rax=0", "rax=3000"},
	{"fbstp", `
		db 04 25 00 a0 00 00  fild DWORD PTR ds:0xa000
		df 34 25 10 a0 00 00  fbstp TBYTE PTR ds:0xa010
	`, "[a000]=bc614e", "[a010]=12345678 [a018]=0"},
	{"fprem", `
		db 04 25 04 a0 00 00  fild DWORD PTR ds:0xa004
		db 04 25 00 a0 00 00  fild DWORD PTR ds:0xa000
		d9 f8                 fprem
		db 1c 25 10 a0 00 00  fistp DWORD PTR ds:0xa010
	`, "[a000]=300000011", "[a010]=2"},

	// SSE.
	{"addps", `0f 58 c1  addps xmm0,xmm1`, "x0=3f800000400000004040000040800000 x1=3f8000003f8000003f8000003f800000", "x0=40000000404000004080000040a00000"},
	{"divsd", `f2 0f 5e c1  divsd xmm0,xmm1`, "x0=11111111111111113ff0000000000000 x1=00000000000000004008000000000000", "x0=11111111111111113fd5555555555555"},
	{"minps takes the second of NaNs", `f3 0f 5d c1  minss xmm0,xmm1`, "x0=0000000000000000000000007fc00000 x1=0000000000000000000000003f800000", "x0=0000000000000000000000003f800000"},
	{"cvttsd2si of too much", `f2 48 0f 2c c0  cvttsd2si rax,xmm0`, "x0=000000000000000043e0000000000000", "rax=8000000000000000"},
	{"ucomisd unordered", `66 0f 2e c0  ucomisd xmm0,xmm0`, "x0=00000000000000007ff8000000000000", "f=ZPC"},
	{"pshufb", `66 0f 38 00 c1  pshufb xmm0,xmm1`, "x0=0f0e0d0c0b0a09080706050403020100 x1=80800f0e000102030405060708090a0b", "x0=00000f0e000102030405060708090a0b"},
	{"pmovmskb", `66 0f d7 c0  pmovmskb eax,xmm0`, "x0=80000000000000000000000000000080", "rax=8001"},
	{"paddusb", `66 0f dc c1  paddusb xmm0,xmm1`, "x0=000000000000000000000000000000f0 x1=00000000000000000000000000000020", "x0=000000000000000000000000000000ff"},
	{"pcmpistri", `66 0f 3a 63 c1 00  pcmpistri xmm0,xmm1,0x0`, "x0=00000000000000000000000000636261 x1=0000000000000000000000000063787a", "rcx=2 f=CSZ"},
	{"palignr", `66 0f 3a 0f c1 04  palignr xmm0,xmm1,0x4`, "x0=000000000000000000000000deadbeef x1=00112233445566778899aabbccddeeff", "x0=deadbeef00112233445566778899aabb"},
	{"roundsd", `66 0f 3a 0b c1 01  roundsd xmm0,xmm1,0x1`, "x1=0000000000000000bff8000000000000", "x0=0000000000000000c000000000000000"},
	{"movq2dq", `
		0f 6f 04 25 00 a0 00 00  movq mm0,QWORD PTR ds:0xa000
		f3 0f d6 c0              movq2dq xmm0,mm0
		0f 77                    emms
	`, "[a000]=123 x0=ffffffffffffffffffffffffffffffff", "x0=00000000000000000000000000000123"},
	{"ptest", `66 0f 38 17 c1  ptest xmm0,xmm1`, "x0=00000000000000000000000000000001 x1=00000000000000000000000000000002", "f=Z"},
	{"movmskpd", `66 0f 50 c0  movmskpd eax,xmm0`, "x0=80000000000000000000000000000000", "rax=2"},
	{"psrldq", `66 0f 73 d8 03  psrldq xmm0,0x3`, "x0=0f0e0d0c0b0a09080706050403020100", "x0=0000000f0e0d0c0b0a09080706050403"},
}
