package x86diff

import (
	"strings"
)

// simd are the packed integer instructions of map 0F that MMX and SSE2 share.
const simd = `60 punpcklbw 61 punpcklwd 62 punpckldq 63 packsswb 64 pcmpgtb 65 pcmpgtw 66 pcmpgtd 67 packuswb
68 punpckhbw 69 punpckhwd 6a punpckhdq 6b packssdw 74 pcmpeqb 75 pcmpeqw 76 pcmpeqd
d1 psrlw d2 psrld d3 psrlq d5 pmullw d8 psubusb d9 psubusw db pand dc paddusb dd paddusw df pandn
e1 psraw e2 psrad e5 pmulhw e8 psubsb e9 psubsw eb por ec paddsb ed paddsw ef pxor
f1 psllw f2 pslld f3 psllq f5 pmaddwd f8 psubb f9 psubw fa psubd fc paddb fd paddw fe paddd`

// simdSSE came to MMX with SSE, and to XMM with SSE2; likewise simdSSE2.
const (
	simdSSE  = `da pminub de pmaxub e0 pavgb e3 pavgw e4 pmulhuw ea pminsw ee pmaxsw f6 psadbw`
	simdSSE2 = `d4 paddq f4 pmuludq fb psubq`
)

// pairs makes a line of each pair of opcode and name.
func pairs(list, format string) string {
	var b strings.Builder
	f := strings.Fields(list)
	for i := 0; i < len(f); i += 2 {
		b.WriteString(strings.NewReplacer("OP", f[i], "NAME", f[i+1]).Replace(format) + "\n")
	}
	return b.String()
}

// shifts makes the shifts by an immediate.
func shifts(prefix string) string {
	return strings.ReplaceAll(`
psrlw|P 0f 71 /2 ib|r
psraw|P 0f 71 /4 ib|r
psllw|P 0f 71 /6 ib|r
psrld|P 0f 72 /2 ib|r
psrad|P 0f 72 /4 ib|r
pslld|P 0f 72 /6 ib|r
psrlq|P 0f 73 /2 ib|r
psllq|P 0f 73 /6 ib|r
`, "P ", prefix)
}

func mmxForms() string {
	return pairs(simd, "NAME|0f OP /r|") + shifts("") + `
movd|0f 6e /r|w
movd|0f 7e /r|w
movq|0f 6f /r|
movq|0f 7f /r|
emms|0f 77|
bad|0f 71 /0 ib|r fault
bad|0f 73 /3 ib|r fault
bad|0f 71 /2 ib|m fault
`
}

// scalarPacked makes lines for packed and scalar single precision (double if
// second is set).
func scalarPacked(list string, second bool) string {
	if second {
		return pairs(list, "NAMEpd|66 0f OP /r|a16\nNAMEsd|f2 0f OP /r|")
	}
	return pairs(list, "NAMEps|0f OP /r|a16\nNAMEss|f3 0f OP /r|")
}

const arithmetic = "51 sqrt 58 add 59 mul 5c sub 5d min 5e div 5f max"

func sseForms() string {
	return scalarPacked(arithmetic, false) + pairs(simdSSE, "NAME|0f OP /r|") +
		pairs("14 unpckl 15 unpckh 54 and 55 andn 56 or 57 xor", "NAMEps|0f OP /r|a16") + `
movups|0f 10 /r|
movups|0f 11 /r|
movss|f3 0f 10 /r|
movss|f3 0f 11 /r|
movlps|0f 12 /r|
movlps|0f 13 /r|m
movhps|0f 16 /r|
movhps|0f 17 /r|m
movaps|0f 28 /r|a16
movaps|0f 29 /r|a16
cvtpi2ps|0f 2a /r|loose
cvtsi2ss|f3 0f 2a /r|w
movntps|0f 2b /r|m a16
cvttps2pi|0f 2c /r|loose
cvtps2pi|0f 2d /r|loose
cvttss2si|f3 0f 2c /r|w
cvtss2si|f3 0f 2d /r|w
ucomiss|0f 2e /r|
comiss|0f 2f /r|
movmskps|0f 50 /r|r w
rsqrtps|0f 52 /r|a16 approx
rsqrtss|f3 0f 52 /r|approx
rcpps|0f 53 /r|a16 approx
rcpss|f3 0f 53 /r|approx
pshufw|0f 70 /r ib|
ldmxcsr|0f ae /2|m
stmxcsr|0f ae /3|m
fxsave|0f ae /0|w m a16 rc loose
fxrstor|0f ae /1|w m a16 loose
cmpps|0f c2 /r ib|a16
cmpss|f3 0f c2 /r ib|
pinsrw|0f c4 /r ib|w
pextrw|0f c5 /r ib|r w
shufps|0f c6 /r ib|a16
pmovmskb|0f d7 /r|r w
movntq|0f e7 /r|m
maskmovq|0f f7 /r|r loose
bad|0f 50 /r|m fault
bad|0f 13 /r|r fault
bad|0f 2b /r|r fault
bad|0f f7 /r|m fault
`
}

func sse2Forms() string {
	return scalarPacked(arithmetic, true) + pairs(simd+" "+simdSSE+" "+simdSSE2, "NAME|66 0f OP /r|a16") +
		pairs(simdSSE2, "NAME|0f OP /r|") + shifts("66 ") +
		pairs("14 unpckl 15 unpckh 54 and 55 andn 56 or 57 xor", "NAMEpd|66 0f OP /r|a16") +
		pairs("6c punpcklqdq 6d punpckhqdq", "NAME|66 0f OP /r|a16") + `
movupd|66 0f 10 /r|
movupd|66 0f 11 /r|
movsd|f2 0f 10 /r|
movsd|f2 0f 11 /r|
movlpd|66 0f 12 /r|m
movlpd|66 0f 13 /r|m
movhpd|66 0f 16 /r|m
movhpd|66 0f 17 /r|m
movapd|66 0f 28 /r|a16
movapd|66 0f 29 /r|a16
cvtpi2pd|66 0f 2a /r|loose
cvtsi2sd|f2 0f 2a /r|w
movntpd|66 0f 2b /r|m a16
cvttpd2pi|66 0f 2c /r|a16 loose
cvtpd2pi|66 0f 2d /r|a16 loose
cvttsd2si|f2 0f 2c /r|w
cvtsd2si|f2 0f 2d /r|w
ucomisd|66 0f 2e /r|
comisd|66 0f 2f /r|
movmskpd|66 0f 50 /r|r w
cvtps2pd|0f 5a /r|
cvtpd2ps|66 0f 5a /r|a16
cvtss2sd|f3 0f 5a /r|
cvtsd2ss|f2 0f 5a /r|
cvtdq2ps|0f 5b /r|a16
cvtps2dq|66 0f 5b /r|a16
cvttps2dq|f3 0f 5b /r|a16
movd|66 0f 6e /r|w
movd|66 0f 7e /r|w
movq|f3 0f 7e /r|
movq|66 0f d6 /r|
movdqa|66 0f 6f /r|a16
movdqa|66 0f 7f /r|a16
movdqu|f3 0f 6f /r|
movdqu|f3 0f 7f /r|
pshufd|66 0f 70 /r ib|a16
pshufhw|f3 0f 70 /r ib|a16
pshuflw|f2 0f 70 /r ib|a16
psrldq|66 0f 73 /3 ib|r
pslldq|66 0f 73 /7 ib|r
cmppd|66 0f c2 /r ib|a16
cmpsd|f2 0f c2 /r ib|
pinsrw|66 0f c4 /r ib|w
pextrw|66 0f c5 /r ib|r w
shufpd|66 0f c6 /r ib|a16
movq2dq|f3 0f d6 /r|r
movdq2q|f2 0f d6 /r|r
pmovmskb|66 0f d7 /r|r w
cvttpd2dq|66 0f e6 /r|a16
cvtdq2pd|f3 0f e6 /r|
cvtpd2dq|f2 0f e6 /r|a16
movntdq|66 0f e7 /r|m a16
maskmovdqu|66 0f f7 /r|r loose
bad|66 0f 12 /r|r fault
bad|66 0f 17 /r|r fault
bad|66 0f d7 /r|m fault
`
}

const sse3Forms = `
movddup|f2 0f 12 /r|
movsldup|f3 0f 12 /r|a16
movshdup|f3 0f 16 /r|a16
haddpd|66 0f 7c /r|a16
haddps|f2 0f 7c /r|a16
hsubpd|66 0f 7d /r|a16
hsubps|f2 0f 7d /r|a16
addsubpd|66 0f d0 /r|a16
addsubps|f2 0f d0 /r|a16
lddqu|f2 0f f0 /r|m
bad|f2 0f f0 /r|r fault
`

func ssse3Forms() string {
	const list = `00 pshufb 01 phaddw 02 phaddd 03 phaddsw 04 pmaddubsw 05 phsubw 06 phsubd 07 phsubsw
08 psignb 09 psignw 0a psignd 0b pmulhrsw 1c pabsb 1d pabsw 1e pabsd`
	return pairs(list, "NAME|0f 38 OP /r|\nNAME|66 0f 38 OP /r|a16") + `
palignr|0f 3a 0f /r ib|
palignr|66 0f 3a 0f /r ib|a16
`
}

func sse41Forms() string {
	return pairs(`10 pblendvb 14 blendvps 15 blendvpd 17 ptest 28 pmuldq 29 pcmpeqq 2b packusdw
38 pminsb 39 pminsd 3a pminuw 3b pminud 3c pmaxsb 3d pmaxsd 3e pmaxuw 3f pmaxud 40 pmulld 41 phminposuw`,
		"NAME|66 0f 38 OP /r|a16") +
		pairs(`20 pmovsxbw 21 pmovsxbd 22 pmovsxbq 23 pmovsxwd 24 pmovsxwq 25 pmovsxdq
30 pmovzxbw 31 pmovzxbd 32 pmovzxbq 33 pmovzxwd 34 pmovzxwq 35 pmovzxdq`, "NAME|66 0f 38 OP /r|") +
		pairs("08 roundps 09 roundpd 0c blendps 0d blendpd 0e pblendw 40 dpps 41 dppd 42 mpsadbw",
			"NAME|66 0f 3a OP /r ib|a16") + `
movntdqa|66 0f 38 2a /r|m a16
roundss|66 0f 3a 0a /r ib|
roundsd|66 0f 3a 0b /r ib|
pextrb|66 0f 3a 14 /r ib|w
pextrw|66 0f 3a 15 /r ib|w
pextrd|66 0f 3a 16 /r ib|w
extractps|66 0f 3a 17 /r ib|w
pinsrb|66 0f 3a 20 /r ib|w
insertps|66 0f 3a 21 /r ib|
pinsrd|66 0f 3a 22 /r ib|w
bad|66 0f 38 2a /r|r fault
`
}

const sse42Forms = `
popcnt|f3 0f b8 /r|v
crc32|f2 0f 38 f0 /r|w
crc32|f2 0f 38 f1 /r|v
pcmpgtq|66 0f 38 37 /r|a16
pcmpestrm|66 0f 3a 60 /r ib|w
pcmpestri|66 0f 3a 61 /r ib|w
pcmpistrm|66 0f 3a 62 /r ib|w
pcmpistri|66 0f 3a 63 /r ib|w
`
