package soft

import (
	"github.com/vmkit-go/vmkit/vcpu/soft/float"
)

// The x87 (Intel SDM volume 1, chapter 8): opcodes D8 to DF. Package float computes; this
// is the register stack, its faults, and the form of the instructions.

// x87SF is the status word's stack fault.
const x87SF = 1 << 6

// x87Form is how the instructions with one low half of an opcode and one ModRM.reg look.
// d and s of their micro-operation are ModRM.reg and ModRM.rm; imm is the opcode's low 3
// bits and ModRM together, as FOP has it.
type x87Form func(*CPU, *uop) stop

// x87Memory are the instructions with an operand in memory, by opcode and ModRM.reg.
var x87Memory = [8][8]x87Form{
	0: {(*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem},
	1: {(*CPU).fld, nil, (*CPU).fst, (*CPU).fst, (*CPU).fldenv, (*CPU).fldcw, (*CPU).fnstenv, (*CPU).fnstcw},
	2: {(*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem},
	3: {(*CPU).fild, (*CPU).fist, (*CPU).fist, (*CPU).fist, nil, (*CPU).fld80, nil, (*CPU).fstp80},
	4: {(*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem},
	5: {(*CPU).fld, (*CPU).fist, (*CPU).fst, (*CPU).fst, (*CPU).frstor, nil, (*CPU).fnsave, (*CPU).fnstsw},
	6: {(*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem, (*CPU).farithMem},
	7: {(*CPU).fild, (*CPU).fist, (*CPU).fist, (*CPU).fist, (*CPU).fbld, (*CPU).fild, (*CPU).fbstp, (*CPU).fist},
}

// x87Register are those on registers.
var x87Register = [8][8]x87Form{
	0: {(*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith},
	1: {(*CPU).fldReg, (*CPU).fxch, (*CPU).fnop, (*CPU).fstReg, (*CPU).fsign, (*CPU).fconst, (*CPU).ftrans, (*CPU).ftrans},
	2: {(*CPU).fcmov, (*CPU).fcmov, (*CPU).fcmov, (*CPU).fcmov, nil, (*CPU).fucompp, nil, nil},
	3: {(*CPU).fcmov, (*CPU).fcmov, (*CPU).fcmov, (*CPU).fcmov, (*CPU).fcontrol, (*CPU).fcomi, (*CPU).fcomi, nil},
	4: {(*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith},
	5: {(*CPU).ffree, (*CPU).fxch, (*CPU).fstReg, (*CPU).fstReg, (*CPU).fucom, (*CPU).fucom, nil, nil},
	6: {(*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith, (*CPU).farith},
	7: {(*CPU).ffree, (*CPU).fxch, (*CPU).fstReg, (*CPU).fstReg, (*CPU).fnstswAX, (*CPU).fcomi, (*CPU).fcomi, nil},
}

func registerX87() {
	span(&lowerPrimary, lowerX87, 0xd8, 0xdf)
	lowerPrimary[0x9b] = func(l *lowerer) bool { l.call((*CPU).fwait); return true }
}

func lowerX87(l *lowerer) bool {
	in := &l.in
	op, reg, rm := in.Op&7, in.Reg&7, in.RM&7
	forms := &x87Register
	if in.Mem {
		forms = &x87Memory
	}
	f := forms[op][reg]
	if f == nil || !in.Mem && !x87Exists(op, reg, rm) {
		return false
	}
	if x87NoWait(op, reg, in.Mem) {
		l.call((*CPU).x87Here)
	} else {
		l.call((*CPU).x87Ready)
	}
	var o operand
	if in.Mem {
		o = l.mem()
	}
	u := l.call(f)
	if in.Mem {
		u.at(o)
	}
	u.d, u.s = reg, rm
	u.imm = uint64(op)<<8 | uint64(in.Mod)<<6 | uint64(reg)<<3 | uint64(rm)
	u.cc = uint8(bit(in.Mem))
	u.size = in.OpSize
	return true
}

// x87NoWait tells the control instructions that do not look for faults that are due: FNCLEX
// and FNINIT, FNSTSW, FNSTCW, FNSTENV and FNSAVE.
func x87NoWait(op, reg uint8, mem bool) bool {
	if mem {
		return (op == 1 || op == 5) && reg >= 6
	}
	return (op == 3 || op == 7) && reg == 4
}

// x87Exists tells the groups of which not every rm is an instruction.
func x87Exists(op, reg, rm uint8) bool {
	switch op<<4 | reg {
	case 0x12:
		return rm == 0
	case 0x14:
		return rm <= 1 || rm == 4 || rm == 5
	case 0x15:
		return rm <= 6
	case 0x25, 0x63:
		return rm == 1
	case 0x34:
		return rm <= 4
	case 0x74:
		return rm == 0
	}
	return true
}

// x87Here makes sure that there is an x87 to use, and x87Ready that no fault of it is due
// either. Each instruction begins with one of them.
func (c *CPU) x87Here(*uop) stop {
	if c.cr0&(cr0EM|cr0TS) != 0 {
		return c.raise(excNM)
	}
	return next
}

func (c *CPU) x87Ready(u *uop) stop {
	if s := c.x87Here(u); s != next {
		return s
	}
	return c.x87Fault()
}

// x87Fault raises the fault that is due, if there is one.
func (c *CPU) x87Fault() stop {
	if c.fpu.pending() {
		return c.raise(excMF)
	}
	return next
}

// x87Env is the environment for an instruction that computes.
func (c *CPU) x87Env() float.X87 { return float.X87{CW: c.fpu.cw, SW: c.fpu.sw} }

// x87End takes over the flags, and notes which instruction it was.
func (c *CPU) x87End(u *uop, e *float.X87) stop {
	f := &c.fpu
	f.sw = e.SW
	f.summarize()
	f.fop = uint16(u.imm & 0x7ff)
	f.fip = (c.r[regRIP] + uint64(u.off)) & c.ripMask()
	f.fcs, f.fds = 0, 0
	if u.cc != 0 {
		f.fdp = c.addr(u)
	}
	return next
}

// st is the physical number of ST(i).
func (f *fpu) st(i uint8) uint8 { return (f.top() + i) & 7 }

func (f *fpu) empty(i uint8) bool { return f.tw>>f.st(i)&1 == 0 }

func (f *fpu) get(i uint8) float.F80 {
	r := f.st(i)
	return float.F80{Mant: f.mm[r], SE: f.se[r]}
}

func (f *fpu) put(i uint8, v float.F80) {
	r := f.st(i)
	f.mm[r], f.se[r] = v.Mant, v.SE
	f.tw |= 1 << r
}

// x87Pop and x87Push move TOP in a status word.
func (f *fpu) x87Pop(e *float.X87) {
	f.tw &^= 1 << (e.SW >> 11 & 7)
	e.SW = e.SW&^fpuTop | (e.SW+1<<11)&fpuTop
}

// underflow is what an empty operand does: it reports whether the instruction goes on
// with the default NaN.
func x87Underflow(e *float.X87) bool {
	e.SW = e.SW&^float.C1 | float.IE | x87SF
	return e.CW&float.IE != 0
}

// operand reads ST(i), or the default NaN if it is empty.
func (c *CPU) x87Get(e *float.X87, i uint8) (v float.F80, ok bool) {
	if c.fpu.empty(i) {
		return float.DefaultNaN, x87Underflow(e)
	}
	return c.fpu.get(i), true
}

// x87Load pushes v.
func (c *CPU) x87Load(e *float.X87, v float.F80) {
	f := &c.fpu
	if !f.empty(7) {
		e.SW |= float.IE | x87SF | float.C1
		if e.CW&float.IE == 0 {
			return
		}
		v = float.DefaultNaN
	}
	e.SW = e.SW&^fpuTop | (e.SW-1<<11)&fpuTop
	r := e.SW >> 11 & 7
	f.mm[r], f.se[r] = v.Mant, v.SE
	f.tw |= 1 << r
}

func (c *CPU) fwait(*uop) stop {
	if c.cr0&(cr0MP|cr0TS) == cr0MP|cr0TS {
		return c.raise(excNM)
	}
	return c.x87Fault()
}

// farithMem is arithmetic and comparison of ST(0) with memory.
func (c *CPU) farithMem(u *uop) stop {
	e := c.x87Env()
	op := u.imm >> 8
	size := uint8(4)
	if op == 4 {
		size = 8
	} else if op == 6 {
		size = 2
	}
	m, s := c.read(u, c.addr(u), size)
	if s != next {
		return s
	}
	k := float.Op(u.d)
	a, ok := c.x87Get(&e, 0)
	empty := c.fpu.empty(0)
	if k == float.OpCom || k == float.OpComP {
		e.SW &^= float.C1
		switch {
		case empty:
			e.SW |= float.C0 | float.C2 | float.C3
		case op == 0:
			ok = e.Com32(a, uint32(m))
		case op == 4:
			ok = e.Com64(a, m)
		default:
			ok = e.Com(a, float.FromInt64(int64(signExtend(m, size))), false)
		}
		if ok && k == float.OpComP {
			c.fpu.x87Pop(&e)
		}
		return c.x87End(u, &e)
	}
	r := a
	if !empty {
		switch op {
		case 0:
			r, ok = e.Arith32(k, a, uint32(m))
		case 4:
			r, ok = e.Arith64(k, a, m)
		default:
			r, ok = e.Arith(k, a, float.FromInt64(int64(signExtend(m, size))))
		}
	}
	if ok {
		c.fpu.put(0, r)
	}
	return c.x87End(u, &e)
}

// farith is arithmetic and comparison between registers: D8 to ST(0), DC and DE to
// ST(i), of which DE pops.
func (c *CPU) farith(u *uop) stop {
	e := c.x87Env()
	op, k, i := u.imm>>8, float.Op(u.d), u.s
	a, okA := c.x87Get(&e, 0)
	b, okB := c.x87Get(&e, i)
	empty := c.fpu.empty(0) || c.fpu.empty(i)
	ok := okA && okB
	if k == float.OpCom || k == float.OpComP {
		if empty {
			e.SW |= float.C0 | float.C2 | float.C3
		} else {
			ok = e.Com(a, b, false)
		}
		if ok && (k == float.OpComP || op == 6) {
			c.fpu.x87Pop(&e)
			if op == 6 && k == float.OpComP {
				c.fpu.x87Pop(&e)
			}
		}
		return c.x87End(u, &e)
	}
	to := uint8(0)
	if op != 0 {
		// The result goes to ST(i), and the reversed forms swap places.
		to = i
		a, b = b, a
		if k >= float.OpSub {
			k ^= 1
		}
	}
	r := float.DefaultNaN
	if !empty {
		r, ok = e.Arith(k, a, b)
	}
	if ok {
		c.fpu.put(to, r)
		if op == 6 {
			c.fpu.x87Pop(&e)
		}
	}
	return c.x87End(u, &e)
}

func (c *CPU) fucompp(u *uop) stop {
	e := c.x87Env()
	a, okA := c.x87Get(&e, 0)
	b, okB := c.x87Get(&e, 1)
	ok := okA && okB
	if c.fpu.empty(0) || c.fpu.empty(1) {
		e.SW |= float.C0 | float.C2 | float.C3
	} else {
		ok = e.Com(a, b, true)
	}
	if ok {
		c.fpu.x87Pop(&e)
		c.fpu.x87Pop(&e)
	}
	return c.x87End(u, &e)
}

// fucom is FUCOM and FUCOMP.
func (c *CPU) fucom(u *uop) stop {
	e := c.x87Env()
	a, okA := c.x87Get(&e, 0)
	b, okB := c.x87Get(&e, u.s)
	ok := okA && okB
	if c.fpu.empty(0) || c.fpu.empty(u.s) {
		e.SW |= float.C0 | float.C2 | float.C3
	} else {
		ok = e.Com(a, b, true)
	}
	if ok && u.d == 5 {
		c.fpu.x87Pop(&e)
	}
	return c.x87End(u, &e)
}

// fcomi is FCOMI, FUCOMI (reg 5), and with opcode DF the forms that pop.
func (c *CPU) fcomi(u *uop) stop {
	e := c.x87Env()
	a, okA := c.x87Get(&e, 0)
	b, okB := c.x87Get(&e, u.s)
	ok := okA && okB
	r := float.Unordered
	if !c.fpu.empty(0) && !c.fpu.empty(u.s) {
		r, ok = e.Compare(a, b, u.d == 5)
	}
	c.setArith(uint64(r)) // even if the exception is not masked
	if ok && u.imm>>8 == 7 {
		c.fpu.x87Pop(&e)
	}
	return c.x87End(u, &e)
}

// fcmov is FCMOVB, FCMOVE, FCMOVBE and FCMOVU, and with opcode DB their opposites.
func (c *CPU) fcmov(u *uop) stop {
	e := c.x87Env()
	v, ok := c.x87Get(&e, u.s)
	if ok && c.fpu.empty(0) {
		v, ok = c.x87Get(&e, 0)
	}
	e.SW &^= float.C1
	cc := [...]uint8{2, 4, 6, 10}[u.d&3]
	if ok && (c.cond(cc) == (u.imm>>8 == 2) || c.fpu.empty(0) || c.fpu.empty(u.s)) {
		c.fpu.put(0, v)
	}
	return c.x87End(u, &e)
}

func (c *CPU) fxch(u *uop) stop {
	e := c.x87Env()
	a, okA := c.x87Get(&e, 0)
	b, okB := c.x87Get(&e, u.s)
	e.SW &^= float.C1
	if okA && okB {
		c.fpu.put(0, b)
		c.fpu.put(u.s, a)
	}
	return c.x87End(u, &e)
}

func (c *CPU) fnop(u *uop) stop {
	e := c.x87Env()
	return c.x87End(u, &e)
}

// ffree is FFREE, and with opcode DF FFREEP.
func (c *CPU) ffree(u *uop) stop {
	e := c.x87Env()
	c.fpu.tw &^= 1 << c.fpu.st(u.s)
	if u.imm>>8 == 7 {
		c.fpu.x87Pop(&e)
	}
	return c.x87End(u, &e)
}

// fldReg is FLD ST(i).
func (c *CPU) fldReg(u *uop) stop {
	e := c.x87Env()
	v, ok := c.x87Get(&e, u.s)
	if ok {
		empty := c.fpu.empty(u.s)
		if !empty {
			e.SW &^= float.C1
		}
		c.x87Load(&e, v)
		if empty { // underflow, even if the stack is full too
			e.SW &^= float.C1
		}
	}
	return c.x87End(u, &e)
}

// fstReg is FST ST(i) and FSTP ST(i), and the old names of the latter.
func (c *CPU) fstReg(u *uop) stop {
	e := c.x87Env()
	v, ok := c.x87Get(&e, 0)
	e.SW &^= float.C1
	if ok {
		c.fpu.put(u.s, v)
		if u.imm>>8 != 5 || u.d == 3 {
			c.fpu.x87Pop(&e)
		}
	}
	return c.x87End(u, &e)
}

// fcontrol is FNCLEX and FNINIT, and those of the 8087 and 80287 that do nothing.
func (c *CPU) fcontrol(u *uop) stop {
	switch u.s {
	case 2:
		c.fpu.sw &^= 0x80ff
	case 3:
		c.fpu.init()
	}
	return next
}

func (c *CPU) fnstswAX(*uop) stop {
	c.set(regRAX, 2, uint64(c.fpu.sw))
	return next
}

// fsign is FCHS, FABS, FTST and FXAM.
func (c *CPU) fsign(u *uop) stop {
	e := c.x87Env()
	if u.s == 5 { // FXAM takes an empty register as well
		v := c.fpu.get(0)
		e.Examine(v)
		if c.fpu.empty(0) {
			e.SW = e.SW&^(float.C0|float.C2|float.C3) | float.C0 | float.C3
		}
		return c.x87End(u, &e)
	}
	v, ok := c.x87Get(&e, 0)
	empty := c.fpu.empty(0)
	e.SW &^= float.C1
	switch {
	case u.s == 4:
		if empty {
			e.SW |= float.C0 | float.C2 | float.C3
		} else {
			e.Com(v, float.F80{}, false)
		}
		return c.x87End(u, &e)
	case empty:
	case u.s == 0:
		v = v.Neg()
	default:
		v = v.Abs()
	}
	if ok {
		c.fpu.put(0, v)
	}
	return c.x87End(u, &e)
}

func (c *CPU) fconst(u *uop) stop {
	e := c.x87Env()
	c.x87Load(&e, e.Constant(u.s))
	return c.x87End(u, &e)
}

// ftrans is opcode D9 with ModRM F0 to FF.
func (c *CPU) ftrans(u *uop) stop {
	e := c.x87Env()
	k := u.d&1<<3 | u.s
	if k == 6 || k == 7 { // FDECSTP, FINCSTP
		d := uint16(1 << 11)
		if k == 6 {
			d = -d
		}
		e.SW = e.SW&^(fpuTop|float.C1) | (e.SW+d)&fpuTop
		return c.x87End(u, &e)
	}
	// FYL2X, FPATAN, FPREM1, FPREM, FYL2XP1, FSCALE have a second operand.
	const binary = 1<<1 | 1<<3 | 1<<5 | 1<<8 | 1<<9 | 1<<13
	two := binary>>k&1 != 0
	x, ok := c.x87Get(&e, 0)
	var y float.F80
	empty := c.fpu.empty(0)
	if two {
		var okY bool
		y, okY = c.x87Get(&e, 1)
		ok = ok && okY
		empty = empty || c.fpu.empty(1)
	}
	c.transcendental(&e, k, x, y, ok, empty)
	return c.x87End(u, &e)
}

// transcendental computes k of x and y and puts the results in their places. With an
// empty operand these are default NaNs, if ok.
func (c *CPU) transcendental(e *float.X87, k uint8, x, y float.F80, ok, empty bool) {
	r, second := float.DefaultNaN, float.DefaultNaN
	pushes, pops := false, false
	f := func(v float.F80, good bool) { r, ok = v, good }
	switch k {
	case 2, 4, 11:
		pushes = true
	case 1, 3, 9:
		pops = true
	}
	under := empty
	if pushes && !c.fpu.empty(7) {
		e.SW |= float.IE | x87SF
		if !empty { // else it is an underflow
			e.SW |= float.C1
		}
		ok = e.CW&float.IE != 0
		empty = true
	}
	if !empty {
		switch k {
		case 0:
			f(e.Exp2m1(x))
		case 1:
			f(e.YLog2X(y, x))
		case 2:
			r, second, ok = e.Tan(x)
		case 3:
			f(e.Atan(y, x))
		case 4:
			second, r, ok = e.Extract(x)
		case 5:
			f(e.Rem(x, y, true))
		case 8:
			f(e.Rem(x, y, false))
		case 9:
			f(e.YLog2XP1(y, x))
		case 10:
			f(e.Sqrt(x))
		case 11:
			r, second, ok = e.SinCos(x)
		case 12:
			f(e.RoundInt(x))
		case 13:
			f(e.Scale(x, y))
		case 14:
			f(e.Sin(x))
		default:
			f(e.Cos(x))
		}
	}
	if !ok {
		return
	}
	switch {
	case pops:
		c.fpu.put(1, r)
		c.fpu.x87Pop(e)
	case pushes:
		c.fpu.put(0, r)
		c.x87Load(e, second)
		if under {
			e.SW &^= float.C1
		}
	default:
		c.fpu.put(0, r)
	}
}
