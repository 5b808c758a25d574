package soft

import (
	"encoding/binary"

	"github.com/vmkit-go/vmkit/vcpu/soft/float"
)

// x87Read reads n bytes, up to 10, of the operand.
func (c *CPU) x87Read(u *uop, p []byte) stop { return c.readBytes(u, c.addr(u), p) }

// fld is FLD of a float32 (D9) or a float64 (DD).
func (c *CPU) fld(u *uop) stop {
	e := c.x87Env()
	size := uint8(4)
	if u.imm>>8 == 5 {
		size = 8
	}
	m, s := c.read(u, c.addr(u), size)
	if s != next {
		return s
	}
	if !c.fpu.empty(7) { // the overflow comes before a look at the number
		c.x87Load(&e, float.DefaultNaN)
		return c.x87End(u, &e)
	}
	var v float.F80
	ok := false
	if size == 4 {
		v, ok = e.Load32(uint32(m))
	} else {
		v, ok = e.Load64(m)
	}
	if ok {
		c.x87Load(&e, v)
	}
	return c.x87End(u, &e)
}

func (c *CPU) fld80(u *uop) stop {
	e := c.x87Env()
	var b [10]byte
	if s := c.x87Read(u, b[:]); s != next {
		return s
	}
	e.SW &^= float.C1
	c.x87Load(&e, float.F80{Mant: binary.LittleEndian.Uint64(b[:]), SE: binary.LittleEndian.Uint16(b[8:])})
	return c.x87End(u, &e)
}

// fild is FILD of 16 (DF /0), 32 (DB /0) or 64 bits (DF /5).
func (c *CPU) fild(u *uop) stop {
	e := c.x87Env()
	size := uint8(4)
	if u.imm>>8 == 7 {
		size = 2
		if u.d == 5 {
			size = 8
		}
	}
	m, s := c.read(u, c.addr(u), size)
	if s != next {
		return s
	}
	e.SW &^= float.C1
	c.x87Load(&e, float.FromInt64(int64(signExtend(m, size))))
	return c.x87End(u, &e)
}

func (c *CPU) fbld(u *uop) stop {
	e := c.x87Env()
	var b [10]byte
	if s := c.x87Read(u, b[:]); s != next {
		return s
	}
	e.SW &^= float.C1
	c.x87Load(&e, float.LoadBCD(b))
	return c.x87End(u, &e)
}

// x87Store ends an instruction that stores m, and perhaps pops, unless an exception keeps
// it from that; the operand has to be writable in any case.
func (c *CPU) x87Store(u *uop, e *float.X87, size uint8, m uint64, ok, pop bool) stop {
	if !ok {
		return c.x87Stored(u, e, c.probe(u, c.addr(u), size), false)
	}
	return c.x87Stored(u, e, c.write(u, c.addr(u), size, m), pop)
}

// x87Store80 is x87Store for 10 bytes, after which the register is popped.
func (c *CPU) x87Store80(u *uop, e *float.X87, b *[10]byte, ok bool) stop {
	if !ok {
		lin := c.addr(u)
		if c.aligned && lin&7 != 0 { // as of the words that would be written
			return c.misaligned(u, lin, 10)
		}
		return c.x87Stored(u, e, c.probe(u, lin, 10), false)
	}
	return c.x87Stored(u, e, c.writeBytes(u, c.addr(u), b[:]), true)
}

// x87Stored ends an instruction after its store, of which s is the outcome.
func (c *CPU) x87Stored(u *uop, e *float.X87, s stop, pop bool) stop {
	if s > leave {
		return s
	}
	if pop {
		c.fpu.x87Pop(e)
	}
	return max(s, c.x87End(u, e))
}

// fst is FST and FSTP (reg 3) of a float32 (D9) or a float64 (DD).
func (c *CPU) fst(u *uop) stop {
	e := c.x87Env()
	v, ok := c.x87Get(&e, 0)
	size := uint8(4)
	var m uint64
	empty := c.fpu.empty(0)
	if u.imm>>8 == 5 {
		size, m = 8, 0xfff8000000000000
		if !empty {
			m, ok = e.Store64(v)
		}
	} else {
		m = 0xffc00000
		if !empty {
			var m32 uint32
			m32, ok = e.Store32(v)
			m = uint64(m32)
		}
	}
	return c.x87Store(u, &e, size, m, ok, u.d == 3)
}

func (c *CPU) fstp80(u *uop) stop {
	e := c.x87Env()
	v, ok := c.x87Get(&e, 0)
	e.SW &^= float.C1
	var b [10]byte
	binary.LittleEndian.PutUint64(b[:], v.Mant)
	binary.LittleEndian.PutUint16(b[8:], v.SE)
	return c.x87Store80(u, &e, &b, ok)
}

// fist is FIST, FISTP and FISTTP (reg 1) of 16, 32 or 64 bits.
func (c *CPU) fist(u *uop) stop {
	e := c.x87Env()
	size := uint8(4)
	switch op := u.imm >> 8; {
	case op == 5 || op == 7 && u.d == 7:
		size = 8
	case op == 7:
		size = 2
	}
	trunc := u.d == 1
	v, ok := c.x87Get(&e, 0)
	m := int64(-1) << (8*uint(size) - 1)
	if !c.fpu.empty(0) {
		switch size {
		case 2:
			var n int16
			n, ok = e.Int16(v, trunc)
			m = int64(n)
		case 4:
			var n int32
			n, ok = e.Int32(v, trunc)
			m = int64(n)
		default:
			m, ok = e.Int64(v, trunc)
		}
	}
	return c.x87Store(u, &e, size, uint64(m), ok, u.d != 2)
}

func (c *CPU) fbstp(u *uop) stop {
	e := c.x87Env()
	v, ok := c.x87Get(&e, 0)
	b := [10]byte{7: 0xc0, 8: 0xff, 9: 0xff}
	if !c.fpu.empty(0) {
		b, ok = e.StoreBCD(v)
	}
	return c.x87Store80(u, &e, &b, ok)
}

func (c *CPU) fldcw(u *uop) stop {
	v, s := c.read(u, c.addr(u), 2)
	if s != next {
		return s
	}
	c.fpu.setCW(uint16(v))
	return next
}

// setCW loads the control word, of which some bits are fixed, and looks which
// exceptions are now unmasked.
func (f *fpu) setCW(v uint16) {
	f.cw = v&0x1f3f | 0x40
	f.summarize()
}

func (c *CPU) fnstcw(u *uop) stop {
	return c.write(u, c.addr(u), 2, uint64(c.fpu.cw))
}

func (c *CPU) fnstsw(u *uop) stop {
	return c.write(u, c.addr(u), 2, uint64(c.fpu.sw))
}

// fullTags is the tag word with two bits for each register (Intel SDM volume 1,
// section 8.1.7).
func (f *fpu) fullTags() (w uint16) {
	for i := range 8 {
		tag := uint16(3)
		if f.tw>>i&1 != 0 {
			switch e := f.se[i] & 0x7fff; {
			case e == 0 && f.mm[i] == 0:
				tag = 1
			case e == 0 || e == 0x7fff || f.mm[i]>>63 == 0:
				tag = 2
			default:
				tag = 0
			}
		}
		w |= tag << (2 * i)
	}
	return w
}

// putEnv writes the environment of FNSTENV: 28 bytes, or 14 with operands of 16 bits
// (Intel SDM volume 1, figures 8-9 to 8-12).
func (c *CPU) putEnv(p []byte, size uint8) int {
	f, le := &c.fpu, binary.LittleEndian
	words := [7]uint32{uint32(f.cw), uint32(f.sw), uint32(f.fullTags()), uint32(f.fip), uint32(f.fcs), uint32(f.fdp), uint32(f.fds)}
	protected := c.protected()
	if !protected {
		ip, dp := words[3]+words[4]<<4, words[5]+words[6]<<4
		words[3], words[5] = ip&0xffff, dp&0xffff
		words[4], words[6] = ip>>16<<12|uint32(f.fop), dp>>16<<12
	}
	if size == 2 {
		for i, w := range words {
			le.PutUint16(p[2*i:], uint16(w))
		}
		return 14
	}
	if protected {
		words[4] |= uint32(f.fop) << 16
	}
	for i := range 3 {
		words[i] |= 0xffff0000
	}
	words[6] |= 0xffff0000
	for i, w := range words {
		le.PutUint32(p[4*i:], w)
	}
	return 28
}

// getEnv loads it.
func (c *CPU) getEnv(p []byte, size uint8) {
	f, le := &c.fpu, binary.LittleEndian
	var words [7]uint32
	for i := range words {
		if size == 2 {
			words[i] = uint32(le.Uint16(p[2*i:]))
		} else {
			words[i] = le.Uint32(p[4*i:])
		}
	}
	f.sw = uint16(words[1])
	f.tw = 0
	for i := range 8 {
		if words[2]>>(2*i)&3 != 3 {
			f.tw |= 1 << i
		}
	}
	f.fip, f.fdp, f.fcs, f.fds = uint64(words[3]), uint64(words[5]), uint16(words[4]), uint16(words[6])
	if size != 2 {
		f.fop = uint16(words[4]>>16) & 0x7ff
	}
	if !c.protected() {
		f.fip |= uint64(words[4]>>12) << 16
		f.fdp |= uint64(words[6]>>12) << 16
		f.fcs, f.fds = 0, 0
		f.fop = uint16(words[4]) & 0x7ff
	}
	f.setCW(uint16(words[0]))
}

func (c *CPU) fnstenv(u *uop) stop {
	var b [28]byte
	n := c.putEnv(b[:], u.size)
	s := c.writeWords(u, c.addr(u), b[:n], min(u.size, 4))
	if s <= leave {
		c.fpu.cw |= 0x3f // all exceptions are masked then
		c.fpu.summarize()
	}
	return s
}

func (c *CPU) fldenv(u *uop) stop {
	b := c.area[:28]
	if u.size == 2 {
		b = b[:14]
	}
	if s := c.readWords(u, c.addr(u), b, min(u.size, 4)); s != next {
		return s
	}
	c.getEnv(b, u.size)
	return next
}

func (c *CPU) fnsave(u *uop) stop {
	b := c.area[:108]
	n := c.putEnv(b, u.size)
	for i := range uint8(8) {
		v := c.fpu.get(i)
		binary.LittleEndian.PutUint64(b[n:], v.Mant)
		binary.LittleEndian.PutUint16(b[n+8:], v.SE)
		n += 10
	}
	s := c.writeWords(u, c.addr(u), b[:n], min(u.size, 4))
	if s <= leave {
		c.fpu.init()
	}
	return s
}

func (c *CPU) frstor(u *uop) stop {
	n := 28
	if u.size == 2 {
		n = 14
	}
	b := c.area[:n+80]
	if s := c.readWords(u, c.addr(u), b, min(u.size, 4)); s != next {
		return s
	}
	c.getEnv(b, u.size)
	f := &c.fpu
	for i := range uint8(8) {
		r := f.st(i)
		f.mm[r] = binary.LittleEndian.Uint64(b[n:])
		f.se[r] = binary.LittleEndian.Uint16(b[n+8:])
		n += 10
	}
	return next
}
