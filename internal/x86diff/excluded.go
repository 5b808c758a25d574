package x86diff

// Exclusion is a form that has no random cases, and why.
type Exclusion struct{ Name, Opcode, Why string }

const (
	whyHost    = "at CPL 3 it would show the host's own tables, where KVM runs that natively; the conformance suite has it"
	whyValue   = "its result differs from run to run or from model to model; the conformance suite has it"
	whyNewer   = "no part of the CPU models that the engine has"
	whyVendor  = "vendors disagree"
	whyAlias   = "an undocumented alias of another form"
	whyLegacy  = "not in 64-bit mode; the conformance suite has it"
	whyControl = "depends on control registers; the conformance suite has it"
)

// Excluded are the forms of user code that the tables leave out.
var Excluded = []Exclusion{
	{"mov sreg", "8E /r", whyHost},
	{"mov from sreg", "8C /r", whyHost},
	{"pop fs, pop gs", "0F A1, 0F A9", whyHost},
	{"lss, lfs, lgs", "0F B2, 0F B4, 0F B5", whyHost},
	{"lar, lsl, verr, verw", "0F 02, 0F 03, 0F 00 /4, /5", whyHost},
	{"sgdt, sidt, sldt, str, smsw", "0F 01 /0, /1, /4, 0F 00 /0, /1", whyHost},
	{"int n", "CD ib", whyHost},
	{"retf", "CA iw, CB", whyHost},
	{"iret", "CF", whyHost},
	{"call far, jmp far", "FF /3, /5", whyHost},
	{"syscall", "0F 05", whyHost},
	{"sysenter, sysexit", "0F 34, 0F 35", whyVendor},
	{"rdfsbase and its like", "F3 0F AE /0 to /3", whyControl},
	{"xsave, xrstor, xsaveopt", "0F AE /4 to /6 mem", whyControl},
	{"xgetbv, xsetbv", "0F 01 D0, D1", whyControl},
	{"rdtsc, rdtscp, rdpmc", "0F 31, 0F 01 F9, 0F 33", whyValue},
	{"cpuid", "0F A2", whyValue},
	{"icebp", "F1", "a single step at CPL 3 ends some KVMs; the conformance suite has it"},
	{"stac, clac", "0F 01 CB, CA", whyControl},
	{"near branches with 66", "66 E8 and others", whyVendor},
	{"bswap of 16 bits, shld and shrd by more than 16 of 16 bits", "66 0F C8+r", "undefined as a whole"},
	{"fcom2, fcomp3, fcomp5, fxch4, fxch7, fstp1, fstp8, fstp9, ffreep", "DC D0+i and others", whyAlias},
	{"feni, fdisi, fsetpm, frstpm", "DB E0, E1, E4, E5", whyAlias},
	{"aes, pclmulqdq, sha, rdrand, rdseed, avx and its like", "66 0F 38 DB and others", whyNewer},
	{"sse4a, 3DNow!", "F2 0F 78 and others", whyNewer},
	{"prefetchw, clwb, clflushopt, wbnoinvd, cldemote", "0F AE /6 mem and others", whyNewer},
	{"pusha, popa, bound, into, arpl, daa, das, aaa, aas, aam, aad, salc, les, lds", "60 and others", whyLegacy},
}
