package soft

import "encoding/binary"

// FXSAVE, FXRSTOR, XSAVE and XRSTOR with x87 and SSE state (Intel SDM volume 1, sections
// 10.5 and 13.4). As XSAVEERPTR says, the x87's pointers are always saved.

const (
	xcr0X87   = 1 << 0
	xcr0SSE   = 1 << 1
	xcr0Valid = xcr0X87 | xcr0SSE

	fxsaveSize  = 512
	xsaveHeader = 64
	xsaveSize   = fxsaveSize + xsaveHeader

	mxcsrInit = 0x1f80
	// mxcsrValid has the bits of MXCSR that exist.
	mxcsrValid = 0xffff

	offMXCSR = 24
	offST    = 32
	offXMM   = 160
)

// xmms is how many vector registers there are in the current mode.
func (c *CPU) xmms() int {
	if c.is64() {
		return 16
	}
	return 8
}

// putX87 writes the x87 part of an area. wide is the form with pointers of 64 bits.
func (c *CPU) putX87(p []byte, wide bool) {
	f, le := &c.fpu, binary.LittleEndian
	le.PutUint16(p, f.cw)
	le.PutUint16(p[2:], f.sw)
	le.PutUint16(p[4:], uint16(f.tw))
	le.PutUint16(p[6:], f.fop)
	if wide {
		le.PutUint64(p[8:], f.fip)
		le.PutUint64(p[16:], f.fdp)
	} else {
		le.PutUint64(p[8:], uint64(uint32(f.fip))|uint64(f.fcs)<<32)
		le.PutUint64(p[16:], uint64(uint32(f.fdp))|uint64(f.fds)<<32)
	}
	top := int(f.top())
	for i := range 8 {
		r := (top + i) & 7
		q := p[offST+16*i:]
		le.PutUint64(q, f.mm[r])
		le.PutUint64(q[8:], uint64(f.se[r]))
	}
}

func (c *CPU) getX87(p []byte, wide bool) {
	f, le := &c.fpu, binary.LittleEndian
	f.cw = le.Uint16(p)&^0xe080 | 0x40
	f.sw = le.Uint16(p[2:])
	f.tw = p[4]
	f.fop = le.Uint16(p[6:]) & 0x7ff
	f.fip, f.fdp, f.fcs, f.fds = le.Uint64(p[8:]), le.Uint64(p[16:]), 0, 0
	if !wide {
		f.fcs, f.fds = uint16(f.fip>>32), uint16(f.fdp>>32)
		f.fip, f.fdp = uint64(uint32(f.fip)), uint64(uint32(f.fdp))
	}
	top := int(f.top())
	for i := range 8 {
		r := (top + i) & 7
		q := p[offST+16*i:]
		f.mm[r], f.se[r] = le.Uint64(q), le.Uint16(q[8:])
	}
	f.summarize()
}

// summarize makes the error summary and the busy bit follow from the exceptions that are
// pending and not masked.
func (f *fpu) summarize() {
	f.sw &^= 0x8080
	if f.sw&^f.cw&0x3f != 0 {
		f.sw |= 0x8080
	}
}

// putXMM and getXMM move n vector registers.
func (c *CPU) putXMM(p []byte, n int) {
	for i := range n {
		binary.LittleEndian.PutUint64(p[offXMM+16*i:], c.xmm[i][0])
		binary.LittleEndian.PutUint64(p[offXMM+16*i+8:], c.xmm[i][1])
	}
}

func (c *CPU) getXMM(p []byte, n int) {
	for i := range n {
		c.xmm[i][0] = binary.LittleEndian.Uint64(p[offXMM+16*i:])
		c.xmm[i][1] = binary.LittleEndian.Uint64(p[offXMM+16*i+8:])
	}
}

func putMXCSR(p []byte, v uint32) {
	binary.LittleEndian.PutUint32(p[offMXCSR:], v)
	binary.LittleEndian.PutUint32(p[offMXCSR+4:], mxcsrValid)
}

// lowerXSave is 0F AE without prefix: FXSAVE, FXRSTOR, XSAVE, XRSTOR, and with F3 the
// instructions on the bases of FS and GS.
func lowerXSave(l *lowerer) bool {
	in := &l.in
	if !in.Mem {
		return in.Rep == 0xf3 && !in.Op66 && in.Reg&7 < 4 && lowerBaseInstruction(l)
	}
	if in.Op66 || in.Rep != 0 {
		return false
	}
	var f func(*CPU, *uop) stop
	switch in.Reg & 7 {
	case 0:
		f = (*CPU).fxsave
	case 1:
		f = (*CPU).fxrstor
	case 4:
		f = (*CPU).xsave
	case 5:
		f = (*CPU).xrstor
	default:
		return false
	}
	o := l.mem()
	l.call(f).at(o)
	return true
}

// areaAddress checks what FXSAVE and its like need.
func (c *CPU) areaAddress(u *uop, align uint64, xsave bool) (uint64, stop) {
	switch {
	case xsave && c.cr4&cr4OSXSAVE == 0:
		return 0, c.raise(excUD)
	case c.cr0&cr0TS != 0 || !xsave && c.cr0&cr0EM != 0:
		return 0, c.raise(excNM)
	}
	lin := c.addr(u)
	if lin&(align-1) != 0 {
		return 0, c.gp()
	}
	return lin, next
}

func (c *CPU) fxsave(u *uop) stop {
	lin, s := c.areaAddress(u, 16, false)
	if s != next {
		return s
	}
	p := c.area[:fxsaveSize]
	c.putX87(p, u.size == 8)
	putMXCSR(p, c.mxcsr)
	c.putXMM(p, c.xmms())
	return c.writeBytes(u, lin, p[:offXMM+16*c.xmms()])
}

func (c *CPU) fxrstor(u *uop) stop {
	lin, s := c.areaAddress(u, 16, false)
	if s != next {
		return s
	}
	p := c.area[:offXMM+16*c.xmms()]
	if s := c.readBytes(u, lin, p); s != next {
		return s
	}
	mxcsr := binary.LittleEndian.Uint32(p[offMXCSR:])
	if mxcsr&^mxcsrValid != 0 {
		return c.gp()
	}
	c.getX87(p, u.size == 8)
	c.mxcsr = mxcsr
	c.getXMM(p, c.xmms())
	return next
}

// inUse are the state components that are not in their initial configuration.
func (c *CPU) inUse() uint64 {
	var v uint64
	f := &c.fpu
	var any uint64
	for i := range f.mm {
		any |= f.mm[i] | uint64(f.se[i])
	}
	if any != 0 || f.cw != 0x37f || f.sw != 0 || f.tw != 0 || f.fop != 0 || f.fip|f.fdp != 0 || f.fcs|f.fds != 0 {
		v |= xcr0X87
	}
	any = 0
	for i := range c.xmms() {
		any |= c.xmm[i][0] | c.xmm[i][1]
	}
	if any != 0 {
		v |= xcr0SSE
	}
	return v
}

// requested are the components that XSAVE or XRSTOR works on.
func (c *CPU) requested() uint64 {
	return c.xcr0 & (uint64(uint32(c.r[regRAX])) | c.r[regRDX]<<32)
}

func (c *CPU) xsave(u *uop) stop {
	lin, s := c.areaAddress(u, 64, true)
	if s != next {
		return s
	}
	rfbm := c.requested()
	bv, s := c.read(u, c.wrap(lin+fxsaveSize), 8)
	if s != next {
		return s
	}
	bv = bv&^rfbm | c.inUse()&rfbm
	// All of it must be writable before the first part is written. An area of 64
	// bytes' alignment lies in at most two pages.
	for _, off := range [...]uint64{0, offXMM, fxsaveSize} {
		if s := c.probe(u, c.wrap(lin+off), 64); s != next {
			return s
		}
	}
	p := c.area[:fxsaveSize]
	result := next
	put := func(from, to int) bool {
		s := c.writeBytes(u, c.wrap(lin+uint64(from)), p[from:to])
		result = max(result, s)
		return s <= leave
	}
	if rfbm&xcr0X87 != 0 {
		c.putX87(p, u.size == 8)
		if !put(0, offMXCSR) || !put(offST, offXMM) {
			return result
		}
	}
	if rfbm&xcr0SSE != 0 {
		putMXCSR(p, c.mxcsr)
		c.putXMM(p, c.xmms())
		if !put(offMXCSR, offST) || !put(offXMM, offXMM+16*c.xmms()) {
			return result
		}
	}
	s = c.write(u, c.wrap(lin+fxsaveSize), 8, bv)
	return max(result, s)
}

func (c *CPU) xrstor(u *uop) stop {
	lin, s := c.areaAddress(u, 64, true)
	if s != next {
		return s
	}
	rfbm := c.requested()
	p := c.area[:xsaveSize]
	if s := c.readBytes(u, c.wrap(lin+fxsaveSize), p[fxsaveSize:fxsaveSize+24]); s != next {
		return s
	}
	bv := binary.LittleEndian.Uint64(p[fxsaveSize:])
	compact := binary.LittleEndian.Uint64(p[fxsaveSize+8:])
	if bv&^c.xcr0 != 0 || compact != 0 || binary.LittleEndian.Uint64(p[fxsaveSize+16:]) != 0 {
		return c.gp()
	}
	if rfbm&bv&xcr0X87 != 0 {
		if s := c.readBytes(u, lin, p[:offMXCSR]); s != next {
			return s
		}
		if s := c.readBytes(u, c.wrap(lin+offST), p[offST:offXMM]); s != next {
			return s
		}
	}
	if rfbm&xcr0SSE != 0 {
		if s := c.readBytes(u, c.wrap(lin+offMXCSR), p[offMXCSR:offST]); s != next {
			return s
		}
		if bv&xcr0SSE != 0 {
			if s := c.readBytes(u, c.wrap(lin+offXMM), p[offXMM:offXMM+16*c.xmms()]); s != next {
				return s
			}
		}
		mxcsr := binary.LittleEndian.Uint32(p[offMXCSR:])
		if mxcsr&^mxcsrValid != 0 {
			return c.gp()
		}
		c.mxcsr = mxcsr
		if bv&xcr0SSE != 0 {
			c.getXMM(p, c.xmms())
		} else {
			clear(c.xmm[:c.xmms()])
		}
	}
	if rfbm&xcr0X87 != 0 {
		if bv&xcr0X87 != 0 {
			c.getX87(p, u.size == 8)
		} else {
			c.fpu = fpu{}
			c.fpu.init()
		}
	}
	return next
}

func (c *CPU) xgetbv(*uop) stop {
	if c.cr4&cr4OSXSAVE == 0 {
		return c.raise(excUD)
	}
	if uint32(c.r[regRCX]) != 0 {
		return c.gp()
	}
	c.r[regRAX], c.r[regRDX] = c.xcr0&0xffffffff, c.xcr0>>32
	return next
}

func (c *CPU) xsetbv(u *uop) stop {
	if c.cr4&cr4OSXSAVE == 0 {
		return c.raise(excUD)
	}
	v := uint64(uint32(c.r[regRAX])) | c.r[regRDX]<<32
	if c.cpl != 0 || uint32(c.r[regRCX]) != 0 || v&xcr0X87 == 0 || v&^xcr0Valid != 0 {
		return c.gp()
	}
	c.xcr0 = v
	c.rip = c.nextRIP(u)
	return event
}
