package x86diff

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Groups are groups of forms, as a set.
type Groups uint32

// The groups. Base is what every x86-64 CPU has at CPL 3; the ones after SSE42
// are extras that a CPU model may lack, and the last ones are for CPL 0.
const (
	Base Groups = 1 << iota
	X87
	MMX
	SSE
	SSE2
	SSE3
	SSSE3
	SSE41
	SSE42 // with POPCNT
	MOVBE
	LZCNT
	BMI1
	BMI2
	ADX
	Fences // as all do; apart because CLFLUSH is slow
	System // privileged instructions

	// V2 is x86-64-v2.
	V2 = Base | X87 | MMX | SSE | SSE2 | SSE3 | SSSE3 | SSE41 | SSE42 | Fences
	// Extras are those beyond it that have no wider registers.
	Extras = MOVBE | LZCNT | BMI1 | BMI2 | ADX
)

var groupNames = [...]string{"base", "x87", "mmx", "sse", "sse2", "sse3", "ssse3", "sse41", "sse42",
	"movbe", "lzcnt", "bmi1", "bmi2", "adx", "fences", "system"}

// String lists the groups' names.
func (g Groups) String() string {
	var names []string
	for i, n := range groupNames {
		if g>>i&1 != 0 {
			names = append(names, n)
		}
	}
	return strings.Join(names, ",")
}

// Form is one form of an instruction: an opcode with the kinds of its operands.
//
// It is written as "name|encoding|attributes". The encoding is made of hex bytes,
// a mandatory prefix first, and V for VEX; then +r or +i (a register in the last
// byte's low bits), /r or a digit (ModRM), and immediates ib, iw, iz (16 or 32
// bits), io (up to 64), rel8, rel32, moffs. The attributes are
//
//	b v q     operand size: 8; 16, 32 or 64; 64 or 16
//	w         REX.W picks 64 over 32, no 66 prefix
//	r m       ModRM names a register only, memory only
//	a16       memory is to be aligned
//	lock rep  takes the prefix
//	u=OSZAPC  flags that it leaves undefined
//	s         ... that depend on the shift count; see Form.undefined
//	c=0123    x87 condition codes that it leaves undefined
//	ie        all of them, after an invalid or denormal operand
//	rf rc     reads flags, x87 condition codes or pointers
//	approx    its result is only an approximation (Intel SDM volume 2)
//	fault     always faults, so there is no other outcome
//	alone     not in sequences
//	loose     vendors disagree on which fault comes first and where
type Form struct {
	Name  string
	Group Groups

	vex       bool
	prefix    byte // mandatory
	op        []byte
	plus      byte // 'r', 'i' or 0
	modrm     bool
	digit     int8 // -1: a register operand
	imm       []string
	size      byte // 'b', 'v', 'q', 'w' or 0
	reg, mem  bool // what ModRM may name
	align     bool
	lock, rep bool
	undef     uint16
	shift     bool
	undefCC   uint16 // bits of FSW
	invalidCC bool
	readFlags bool
	readCC    bool
	approx    bool
	fault     bool
	alone     bool
	loose     bool
}

// Forms are all forms.
var Forms = slices.Concat(
	parse(Base, baseForms()), parse(Base, base0F), parse(Base, invalidForms), parse(Fences, fenceForms),
	parse(X87, x87Forms()), parse(MMX, mmxForms()), parse(SSE, sseForms()), parse(SSE2, sse2Forms()),
	parse(SSE3, sse3Forms), parse(SSSE3, ssse3Forms()), parse(SSE41, sse41Forms()), parse(SSE42, sse42Forms),
	parse(MOVBE, movbeForms), parse(LZCNT, lzcntForms), parse(BMI1, bmi1Forms), parse(BMI2, bmi2Forms), parse(ADX, adxForms),
)

const (
	flagC, flagP, flagA, flagZ, flagS, flagO = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11

	allFlags = flagC | flagP | flagA | flagZ | flagS | flagO
)

var flagBits = map[rune]uint16{'C': flagC, 'P': flagP, 'A': flagA, 'Z': flagZ, 'S': flagS, 'O': flagO}
var ccBits = map[rune]uint16{'0': 1 << 8, '1': 1 << 9, '2': 1 << 10, '3': 1 << 14}

// parse reads forms, one a line. The tables are part of this package: a mistake
// in them panics when it starts.
func parse(g Groups, lines string) []Form {
	var out []Form
	for line := range strings.Lines(lines) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		f, err := parseForm(line)
		if err != nil {
			panic(fmt.Sprintf("x86diff: form %q: %v", line, err))
		}
		f.Group = g
		out = append(out, f)
	}
	return out
}

func parseForm(line string) (Form, error) {
	part := strings.Split(line, "|")
	if len(part) != 3 {
		return Form{}, fmt.Errorf("%d parts", len(part))
	}
	f := Form{Name: part[0], digit: -1, reg: true, mem: true}
	for _, t := range strings.Fields(part[1]) {
		switch {
		case t == "V":
			f.vex = true
		case t == "+r" || t == "+i":
			f.plus = t[1]
		case t == "/r":
			f.modrm = true
		case t[0] == '/':
			f.modrm = true
			f.digit = int8(t[1] - '0')
		case slices.Contains([]string{"ib", "iw", "iz", "io", "rel8", "rel32", "moffs"}, t):
			f.imm = append(f.imm, t)
		default:
			b, err := strconv.ParseUint(t, 16, 8)
			if err != nil {
				return f, err
			}
			if len(f.op) == 0 && f.prefix == 0 && (b == 0x66 || b == 0xf2 || b == 0xf3) {
				f.prefix = byte(b)
			} else {
				f.op = append(f.op, byte(b))
			}
		}
	}
	for _, a := range strings.Fields(part[2]) {
		switch a {
		case "b", "v", "q", "w":
			f.size = a[0]
		case "r":
			f.mem = false
		case "m":
			f.reg = false
		case "a16":
			f.align = true
		case "lock":
			f.lock = true
		case "rep":
			f.rep = true
		case "s":
			f.shift = true
		case "rf":
			f.readFlags = true
		case "rc":
			f.readCC = true
		case "approx":
			f.approx = true
		case "fault":
			f.fault = true
		case "ie":
			f.invalidCC = true
		case "alone":
			f.alone = true
		case "loose":
			f.loose, f.alone = true, true
		default:
			switch a[:2] {
			case "u=":
				for _, c := range a[2:] {
					f.undef |= flagBits[c]
				}
			case "c=":
				for _, c := range a[2:] {
					f.undefCC |= ccBits[c]
				}
			default:
				return f, fmt.Errorf("attribute %q", a)
			}
		}
	}
	return f, nil
}

var conditions = [16]string{"o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g"}

func baseForms() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for i, name := range []string{"add", "or", "adc", "sbb", "and", "sub", "xor", "cmp"} {
		attr := map[string]string{"or": "u=A", "and": "u=A", "xor": "u=A", "adc": "rf", "sbb": "rf"}[name]
		lock := "lock"
		if name == "cmp" {
			lock = ""
		}
		for j, t := range []string{"/r|b", "/r|v", "/r|b", "/r|v", "ib|b", "iz|v"} {
			l := lock
			if j > 1 {
				l = ""
			}
			line("%s|%02x %s %s %s", name, i*8+j, t, l, attr)
		}
		line("%s|80 /%d ib|b %s %s", name, i, lock, attr)
		line("%s|81 /%d iz|v %s %s", name, i, lock, attr)
		line("%s|83 /%d ib|v %s %s", name, i, lock, attr)
	}
	for i, c := range conditions {
		line("j%s|%02x rel8|rf", c, 0x70+i)
		line("j%s|0f %02x rel32|rf", c, 0x80+i)
		line("set%s|0f %02x /r|b rf", c, 0x90+i)
		line("cmov%s|0f %02x /r|v rf", c, 0x40+i)
	}
	for i, name := range []string{"rol", "ror", "rcl", "rcr", "shl", "shr", "sal", "sar"} {
		rf := ""
		if name == "rcl" || name == "rcr" {
			rf = "rf"
		}
		for _, t := range []string{"c0 /%d ib|b", "c1 /%d ib|v", "d0 /%d|b", "d1 /%d|v", "d2 /%d|b", "d3 /%d|v"} {
			line("%s|"+t+" s %s", name, i, rf)
		}
	}
	return b.String() + `
push|50 +r|q
pop|58 +r|q
movsxd|63 /r|v
push|68 iz|q
imul|69 /r iz|v u=SZAP
push|6a ib|q
imul|6b /r ib|v u=SZAP
test|84 /r|b u=A
test|85 /r|v u=A
xchg|86 /r|b lock
xchg|87 /r|v lock
mov|88 /r|b
mov|89 /r|v
mov|8a /r|b
mov|8b /r|v
lea|8d /r|v m
pop|8f /0|q
xchg|90 +r|v
pause|f3 90|
cbw|98|v
cwd|99|v
fwait|9b|
pushf|9c|q rf
popf|9d|q alone
sahf|9e|
lahf|9f|rf
mov|a0 moffs|b
mov|a1 moffs|v
mov|a2 moffs|b
mov|a3 moffs|v
movs|a4|b rep
movs|a5|v rep
cmps|a6|b rep
cmps|a7|v rep
test|a8 ib|b u=A
test|a9 iz|v u=A
stos|aa|b rep
stos|ab|v rep
lods|ac|b rep
lods|ad|v rep
scas|ae|b rep
scas|af|v rep
mov|b0 +r ib|b
mov|b8 +r io|v
ret|c2 iw|q alone
ret|c3|q alone
mov|c6 /0 ib|b
mov|c7 /0 iz|v
enter|c8 iw ib|q loose
leave|c9|q
xlat|d7|b
loopne|e0 rel8|rf
loope|e1 rel8|rf
loop|e2 rel8|
jrcxz|e3 rel8|
call|e8 rel32|
jmp|e9 rel32|
jmp|eb rel8|
cmc|f5|rf
test|f6 /0 ib|b u=A
test|f6 /1 ib|b u=A
not|f6 /2|b lock
neg|f6 /3|b lock
mul|f6 /4|b u=SZAP
imul|f6 /5|b u=SZAP
div|f6 /6|b u=OSZAPC
idiv|f6 /7|b u=OSZAPC
test|f7 /0 iz|v u=A
test|f7 /1 iz|v u=A
not|f7 /2|v lock
neg|f7 /3|v lock
mul|f7 /4|v u=SZAP
imul|f7 /5|v u=SZAP
div|f7 /6|v u=OSZAPC
idiv|f7 /7|v u=OSZAPC
clc|f8|
stc|f9|
cld|fc|
std|fd|
inc|fe /0|b lock
dec|fe /1|b lock
inc|ff /0|v lock
dec|ff /1|v lock
call|ff /2|q alone
jmp|ff /4|q alone
push|ff /6|q
`
}

const base0F = `
prefetch|0f 0d /r|m
hint|0f 18 /r|v
nop|0f 19 /r|v
nop|0f 1a /r|v
nop|0f 1c /r|v
nop|0f 1d /r|v
nop|0f 1f /r|v
push fs|0f a0|q
push gs|0f a8|q
bt|0f a3 /r|v u=OSAP
shld|0f a4 /r ib|v s
shld|0f a5 /r|v s
bts|0f ab /r|v u=OSAP lock
shrd|0f ac /r ib|v s
shrd|0f ad /r|v s
imul|0f af /r|v u=SZAP
cmpxchg|0f b0 /r|b lock
cmpxchg|0f b1 /r|v lock
btr|0f b3 /r|v u=OSAP lock
movzx|0f b6 /r|v
movzx|0f b7 /r|v
bt|0f ba /4 ib|v u=OSAP
bts|0f ba /5 ib|v u=OSAP lock
btr|0f ba /6 ib|v u=OSAP lock
btc|0f ba /7 ib|v u=OSAP lock
btc|0f bb /r|v u=OSAP lock
bsf|0f bc /r|v u=OSAPC
bsr|0f bd /r|v u=OSAPC
movsx|0f be /r|v
movsx|0f bf /r|v
xadd|0f c0 /r|b lock
xadd|0f c1 /r|v lock
movnti|0f c3 /r|w m
cmpxchg8b|0f c7 /1|w m lock
bswap|0f c8 +r|w
`

// invalidForms always fault at CPL 3.
const invalidForms = `
bad|06|fault
bad|07|fault
bad|0e|fault
bad|16|fault
bad|17|fault
bad|1e|fault
bad|1f|fault
bad|27|fault
bad|2f|fault
bad|37|fault
bad|3f|fault
bad|60|fault
bad|61|fault
bad|82 /0 ib|fault
bad|9a|fault
bad|ce|fault
bad|d4 ib|fault
bad|d5 ib|fault
bad|ea|fault
ins|6c|b rep fault
ins|6d|v rep fault
outs|6e|b rep fault
outs|6f|v rep fault
int3|cc|fault
in|e4 ib|b fault
in|e5 ib|v fault
out|e6 ib|b fault
out|e7 ib|v fault
in|ec|b fault
in|ed|v fault
out|ee|b fault
out|ef|v fault
hlt|f4|fault
cli|fa|fault
sti|fb|fault
bad|fe /2|b fault
bad|fe /7|b fault
bad|ff /7|v fault
bad|c6 /1 ib|b fault
bad|c7 /3 iz|v fault
bad|8f /1|v fault
bad lea|8d /r|v r fault
bad lock mov|f0 89 /r|v fault
bad lock cmp|f0 39 /r|v fault
lldt|0f 00 /2|fault
ltr|0f 00 /3|fault
lgdt|0f 01 /2|m fault
lidt|0f 01 /3|m fault
invlpg|0f 01 /7|m fault
swapgs|0f 01 f8|fault
clts|0f 06|fault
sysret|0f 07|w fault
invd|0f 08|fault
wbinvd|0f 09|fault
ud2|0f 0b|fault
mov from cr0|0f 20 c0|fault
mov to cr0|0f 22 c0|fault
mov to cr3|0f 22 d8|fault
mov from dr7|0f 21 f8|fault
mov to dr7|0f 23 f8|fault
wrmsr|0f 30|fault
rdmsr|0f 32|fault
getsec|0f 37|fault
bad|0f 04|fault
bad|0f 0a|fault
bad|0f 0c|fault
bad|0f 24|fault
bad|0f 25|fault
bad|0f 36|fault
bad|0f 39|fault
bad|0f 3b|fault
bad|0f 7a|fault
bad|0f a6|fault
bad|0f a7|fault
rsm|0f aa|fault
ud1|0f b9 /r|fault
bad|0f ba /0 ib|v fault
bad|0f ba /3 ib|v fault
bad|0f c7 /1|r fault
ud0|0f ff /r|fault
bad|0f 38 0c /r|fault
bad|0f 38 f2 /r|fault
bad|0f 3a 00 /r ib|fault
bad|0f 3a 0a /r ib|fault
`

const fenceForms = `
lfence|0f ae e8|
mfence|0f ae f0|
sfence|0f ae f8|
clflush|0f ae /7|m
`

const movbeForms = `
movbe|0f 38 f0 /r|v m
movbe|0f 38 f1 /r|v m
`

const lzcntForms = `
lzcnt|f3 0f bd /r|v u=OSAP
`

const bmi1Forms = `
tzcnt|f3 0f bc /r|v u=OSAP
andn|V 0f 38 f2 /r|w u=AP
blsr|V 0f 38 f3 /1|w u=AP
blsmsk|V 0f 38 f3 /2|w u=AP
blsi|V 0f 38 f3 /3|w u=AP
bextr|V 0f 38 f7 /r|w u=SAP
`

const bmi2Forms = `
bzhi|V 0f 38 f5 /r|w u=AP
pext|V f3 0f 38 f5 /r|w
pdep|V f2 0f 38 f5 /r|w
mulx|V f2 0f 38 f6 /r|w
shlx|V 66 0f 38 f7 /r|w
sarx|V f3 0f 38 f7 /r|w
shrx|V f2 0f 38 f7 /r|w
rorx|V f2 0f 3a f0 /r ib|w
`

const adxForms = `
adcx|66 0f 38 f6 /r|w rf
adox|f3 0f 38 f6 /r|w rf
`
