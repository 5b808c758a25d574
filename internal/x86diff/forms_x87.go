package x86diff

import (
	"fmt"
	"strings"
)

// x87Forms are the x87 instructions. Where the manuals call condition codes
// undefined, c= names them. Its register forms have no ModRM here: the register
// is in the low bits of the second byte.
func x87Forms() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	for i, name := range []string{"add", "mul", "com", "comp", "sub", "subr", "div", "divr"} {
		cc := "c=023"
		if strings.HasPrefix(name, "com") {
			cc = ""
		}
		line("f%s|d8 /%d|m %s", name, i, cc)
		line("f%s|dc /%d|m %s", name, i, cc)
		line("fi%s|da /%d|m %s", name, i, cc)
		line("fi%s|de /%d|m %s", name, i, cc)
		line("f%s|d8 %02x +i|%s", name, 0xc0+i*8, cc)
		if cc == "" {
			continue
		}
		// With st(i) as destination, the reversed forms have changed places.
		j := i
		if i >= 4 {
			j ^= 1
		}
		line("f%s|dc %02x +i|%s", name, 0xc0+j*8, cc)
		line("f%sp|de %02x +i|%s", name, 0xc0+j*8, cc)
	}
	for i, name := range []string{"b", "e", "be", "u"} {
		line("fcmov%s|da %02x +i|c=0123 rf", name, 0xc0+i*8)
		line("fcmovn%s|db %02x +i|c=0123 rf", name, 0xc0+i*8)
	}
	for i, name := range []string{"fld1", "fldl2t", "fldl2e", "fldpi", "fldlg2", "fldln2", "fldz"} {
		line("%s|d9 %02x|c=023", name, 0xe8+i)
	}
	return b.String() + `
fld|d9 /0|m c=023
fst|d9 /2|m c=023
fstp|d9 /3|m c=023
fldenv|d9 /4|m alone
fldcw|d9 /5|m c=0123
fnstenv|d9 /6|m rc alone
fnstcw|d9 /7|m c=0123
fld|d9 c0 +i|c=023
fxch|d9 c8 +i|c=023
fnop|d9 d0|c=0123
fchs|d9 e0|c=023
fabs|d9 e1|c=023
ftst|d9 e4|
fxam|d9 e5|
fxtract|d9 f4|c=023
fprem1|d9 f5|ie
fdecstp|d9 f6|c=023
fincstp|d9 f7|c=023
fprem|d9 f8|ie
fsqrt|d9 fa|c=023
frndint|d9 fc|c=023
fscale|d9 fd|c=023
f2xm1|d9 f0|c=0123 approx
fyl2x|d9 f1|c=0123 approx
fptan|d9 f2|c=013 approx ie
fpatan|d9 f3|c=0123 approx
fyl2xp1|d9 f9|c=0123 approx
fsincos|d9 fb|c=013 approx ie
fsin|d9 fe|c=013 approx ie
fcos|d9 ff|c=013 approx ie
fucompp|da e9|
fild|db /0|m c=023
fisttp|db /1|m c=023
fist|db /2|m c=023
fistp|db /3|m c=023
fld|db /5|m c=023
fstp|db /7|m c=023
fnclex|db e2|c=0123
fninit|db e3|
fucomi|db e8 +i|c=1
fcomi|db f0 +i|c=1
fld|dd /0|m c=023
fisttp|dd /1|m c=023
fst|dd /2|m c=023
fstp|dd /3|m c=023
frstor|dd /4|m alone
fnsave|dd /6|m rc alone
fnstsw|dd /7|m rc
ffree|dd c0 +i|c=0123
fst|dd d0 +i|c=023
fstp|dd d8 +i|c=023
fucom|dd e0 +i|
fucomp|dd e8 +i|
fcompp|de d9|
fild|df /0|m c=023
fisttp|df /1|m c=023
fist|df /2|m c=023
fistp|df /3|m c=023
fbld|df /4|m c=023
fild|df /5|m c=023
fbstp|df /6|m c=023
fistp|df /7|m c=023
fnstsw|df e0|rc
fucomip|df e8 +i|c=1
fcomip|df f0 +i|c=1
bad|d9 /1|m fault
bad|d9 d1|fault
bad|d9 e2|fault
bad|d9 ef|fault
bad|da e0|fault
bad|da f0 +i|fault
bad|db /4|m fault
bad|db /6|m fault
bad|db f8 +i|fault
bad|dd /5|m fault
bad|dd f0 +i|fault
bad|de d8|fault
bad|df e1|fault
bad|df f8 +i|fault
`
}
