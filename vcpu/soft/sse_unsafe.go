package soft

import "unsafe"

// Vector registers as micro-operations name them: 0 to 15 are those of the
// architecture; the temporaries follow.
const (
	xmmT0 = 16 + iota // a source operand from memory
	xmmT1
)

// The temporaries lie behind the registers, so that x reaches both.
var _ [unsafe.Offsetof(CPU{}.xmmT) - unsafe.Offsetof(CPU{}.xmm) - 256]struct{} = [0]struct{}{}

// x is a vector register or a temporary.
func (c *CPU) x(i uint8) *xmm {
	return (*xmm)(unsafe.Add(unsafe.Pointer(&c.xmm), uintptr(i&31)*16))
}

// loadX loads 16 bytes that need not be aligned.
func (c *CPU) loadX(u *uop) stop {
	lin := c.addr(u)
	e := &c.tlb[lin>>12&tlbMask]
	if c.aligned && lin&15 != 0 {
		return c.misaligned(u, lin, 16)
	}
	if e.rtag == lin&pageMask && lin&(pageSize-1) <= pageSize-16 {
		*c.x(u.d) = *(*xmm)(unsafe.Add(c.base, int(e.add+lin)))
		return next
	}
	return c.loadXSlow(u, lin)
}

// loadXA loads 16 bytes, which must be aligned.
func (c *CPU) loadXA(u *uop) stop {
	lin := c.addr(u)
	if p := c.host(lin, 15); p != nil {
		*c.x(u.d) = *(*xmm)(p)
		return next
	}
	if lin&15 != 0 {
		return c.misaligned16(u, lin)
	}
	return c.loadXSlow(u, lin)
}

// storeX stores 16 bytes that need not be aligned.
func (c *CPU) storeX(u *uop) stop {
	lin := c.addr(u)
	e := &c.tlb[lin>>12&tlbMask]
	if c.aligned && lin&15 != 0 {
		return c.misaligned(u, lin, 16)
	}
	if e.wtag == lin&pageMask && lin&(pageSize-1) <= pageSize-16 {
		*(*xmm)(unsafe.Add(c.base, int(e.add+lin))) = *c.x(u.s)
		return next
	}
	return c.storeXSlow(u, lin)
}

// storeXA stores 16 bytes, which must be aligned.
func (c *CPU) storeXA(u *uop) stop {
	lin := c.addr(u)
	if p := c.hostW(lin, 15); p != nil {
		*(*xmm)(p) = *c.x(u.s)
		return next
	}
	if lin&15 != 0 {
		return c.misaligned16(u, lin)
	}
	return c.storeXSlow(u, lin)
}

// loadX64 loads 8 bytes and clears the upper half.
func (c *CPU) loadX64(u *uop) stop {
	lin := c.addr(u)
	if p := c.host(lin, 7); p != nil {
		*c.x(u.d) = xmm{*(*uint64)(p)}
		return next
	}
	return c.loadXPart(u, lin, 8)
}

// loadX32 loads 4 bytes and clears the rest.
func (c *CPU) loadX32(u *uop) stop {
	lin := c.addr(u)
	if p := c.host(lin, 3); p != nil {
		*c.x(u.d) = xmm{uint64(*(*uint32)(p))}
		return next
	}
	return c.loadXPart(u, lin, 4)
}

// storeX64 stores the low half.
func (c *CPU) storeX64(u *uop) stop {
	lin := c.addr(u)
	if p := c.hostW(lin, 7); p != nil {
		*(*uint64)(p) = c.x(u.s)[0]
		return next
	}
	return c.write(u, lin, 8, c.x(u.s)[0])
}
