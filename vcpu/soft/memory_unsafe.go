package soft

import "unsafe"

// The software TLB turns a guest's access into one compare and a host pointer. An
// entry of dataTLB holds one page; its tags are the page's linear address where
// reads and writes need no further look, or noTag. Adding add to a linear address
// of the page gives its distance from CPU.base.
//
// A write tag is missing as well where the translation lets writes through but they
// must be seen, because the page holds code or is clean in the dirty log. The page is
// in CPU.writable then, so that such a write uses the translation that is there: the host
// says when the dirty log is read, and if the tables were walked again after that, a
// guest that had changed them without INVLPG would tell.
const (
	tlbBits = 9
	tlbSize = 1 << tlbBits
	tlbMask = tlbSize - 1

	pageSize = 4096
	pageMask = ^uint64(pageSize - 1)

	// noTag matches no access: a tag is compared with an address's page and with the
	// bits that say that an operand is misaligned, up to 15, which may be set.
	noTag = 1 << 11
)

type tlbEntry struct {
	rtag, wtag uint64
	add        uint64
}

type dataTLB [tlbSize]tlbEntry

// space says on whose behalf memory is accessed; each has a TLB.
type space uint8

const (
	spaceKernel space = iota // supervisor, user pages out of reach if SMAP is on
	spaceAC                  // supervisor with RFLAGS.AC set
	spaceUser
)

// host returns where the aligned operand at lin lies if the TLB knows that it can be
// read, else nil. low is size-1: a misaligned operand, which may cross into the next
// page, does not match.
func (c *CPU) host(lin, low uint64) unsafe.Pointer {
	e := &c.tlb[lin>>12&tlbMask]
	if e.rtag == lin&(pageMask|low) {
		return unsafe.Add(c.base, int(e.add+lin))
	}
	return nil
}

// hostW is host for writing.
func (c *CPU) hostW(lin, low uint64) unsafe.Pointer {
	e := &c.tlb[lin>>12&tlbMask]
	if e.wtag == lin&(pageMask|low) {
		return unsafe.Add(c.base, int(e.add+lin))
	}
	return nil
}

// read reads size bytes (1, 2, 4 or 8) at a linear address for u.
func (c *CPU) read(u *uop, lin uint64, size uint8) (uint64, stop) {
	c.asker = u
	if c.aligned && lin&uint64(size-1) != 0 {
		return 0, c.misaligned(u, lin, size)
	}
	return c.readIn(c.space, u.ss, lin, size)
}

// misaligned raises #AC, but #GP or #SS for an address that is not canonical.
func (c *CPU) misaligned(u *uop, lin uint64, size uint8) stop {
	if !c.canonicalPair(lin, size) {
		return c.notCanonical(u.ss)
	}
	return c.raiseCode(excAC, 0)
}

// readIn reads in a space. ss says that the operand is on the stack.
func (c *CPU) readIn(sp space, ss bool, lin uint64, size uint8) (uint64, stop) {
	e := &c.tlbs[sp][lin>>12&tlbMask]
	off := lin & (pageSize - 1)
	if off > pageSize-uint64(size) {
		return c.readAcross(sp, ss, lin, size)
	}
	if e.rtag != lin&pageMask {
		p, s := c.touch(sp, ss, lin, size, accessRead)
		if s != next {
			return 0, s
		}
		if p == nil {
			return c.readDevice(size)
		}
		return loadHost(p, size), next
	}
	return loadHost(unsafe.Add(c.base, int(e.add+lin)), size), next
}

// readAcross reads an operand that crosses into another page.
func (c *CPU) readAcross(sp space, ss bool, lin uint64, size uint8) (uint64, stop) {
	// An AMD processor looks at both ends of an operand on the stack first, and at
	// others page by page.
	if ss && !c.canonicalPair(lin, size) {
		return 0, c.notCanonical(ss)
	}
	var v uint64
	for i := range uint64(size) {
		b, s := c.readIn(sp, ss, c.wrap(lin+i), 1)
		if s != next {
			return 0, s
		}
		v |= b << (8 * i)
	}
	return v, next
}

// write writes size bytes at a linear address for u. If it returns leave, the write
// is done and the block must end after the instruction.
func (c *CPU) write(u *uop, lin uint64, size uint8, v uint64) stop {
	c.asker = u
	if c.aligned && lin&uint64(size-1) != 0 {
		return c.misaligned(u, lin, size)
	}
	return c.writeIn(c.space, u.ss, lin, size, v)
}

func (c *CPU) writeIn(sp space, ss bool, lin uint64, size uint8, v uint64) stop {
	e := &c.tlbs[sp][lin>>12&tlbMask]
	off := lin & (pageSize - 1)
	if off > pageSize-uint64(size) {
		return c.writeAcross(sp, ss, lin, size, v)
	}
	if e.wtag != lin&pageMask {
		p, s := c.touch(sp, ss, lin, size, accessWrite)
		if s > leave {
			return s
		}
		if p == nil {
			return c.writeDevice(size, v)
		}
		storeHost(p, size, v)
		return s
	}
	storeHost(unsafe.Add(c.base, int(e.add+lin)), size, v)
	return next
}

// writeAcross makes sure of both pages before it changes the first.
func (c *CPU) writeAcross(sp space, ss bool, lin uint64, size uint8, v uint64) stop {
	if ss && !c.canonicalPair(lin, size) {
		return c.notCanonical(ss)
	}
	if s := c.probeIn(sp, ss, lin, size); s != next {
		return s
	}
	result := next
	for i := range uint64(size) {
		s := c.writeIn(sp, ss, c.wrap(lin+i), 1, v>>(8*i)&0xff)
		if s > leave {
			return s
		}
		result = max(result, s)
	}
	return result
}

// probe makes sure that u's instruction may write size bytes at lin, of up to a page.
func (c *CPU) probe(u *uop, lin uint64, size uint8) stop {
	if c.aligned && size <= 8 && size&(size-1) == 0 && lin&uint64(size-1) != 0 {
		return c.misaligned(u, lin, size)
	}
	return c.probeIn(c.space, u.ss, lin, size)
}

func (c *CPU) probeIn(sp space, ss bool, lin uint64, size uint8) stop {
	last := lin + uint64(size) - 1
	for _, a := range [2]uint64{lin, last & pageMask} { // CR2 is the first byte that faults
		a = c.wrap(a)
		if c.writable[sp][a>>12&tlbMask] != a&pageMask {
			if s := c.check(sp, ss, a, accessWrite); s != next {
				return s
			}
		}
		if lin>>12 == last>>12 {
			break
		}
	}
	return next
}

// readBytes and writeBytes move longer operands, such as FXSAVE areas, in words of 8
// bytes. writeBytes makes sure of every page first.
func (c *CPU) readBytes(u *uop, lin uint64, p []byte) stop { return c.readWords(u, lin, p, 8) }

func (c *CPU) writeBytes(u *uop, lin uint64, p []byte) stop { return c.writeWords(u, lin, p, 8) }

// readWords is readBytes of words of size bytes, which is what has to be aligned if
// alignment is checked.
func (c *CPU) readWords(u *uop, lin uint64, p []byte, size uint8) stop {
	for len(p) >= int(size) {
		v, s := c.read(u, lin, size)
		if s != next {
			return s
		}
		storeBytes(p, v, size)
		lin, p = c.wrap(lin+uint64(size)), p[size:]
	}
	for i := range p {
		v, s := c.read(u, c.wrap(lin+uint64(i)), 1)
		if s != next {
			return s
		}
		p[i] = byte(v)
	}
	return next
}

func (c *CPU) writeWords(u *uop, lin uint64, p []byte, size uint8) stop {
	for off := uint64(0); off < uint64(len(p)); off += pageSize {
		n := min(uint64(len(p))-off, 128)
		if s := c.probe(u, c.wrap(lin+off), uint8(n)); s != next {
			return s
		}
	}
	if n := len(p); n > 0 {
		last := c.wrap(lin + uint64(n) - 1)
		if lin>>12 != last>>12 {
			last &= pageMask
		}
		if s := c.probe(u, last, 1); s != next {
			return s
		}
	}
	result := next
	for len(p) >= int(size) {
		s := c.write(u, lin, size, loadBytes(p, size))
		if s > leave {
			return s
		}
		result = max(result, s)
		lin, p = c.wrap(lin+uint64(size)), p[size:]
	}
	for i, b := range p {
		s := c.write(u, c.wrap(lin+uint64(i)), 1, uint64(b))
		if s > leave {
			return s
		}
		result = max(result, s)
	}
	return result
}

// loadBytes and storeBytes are loadHost and storeHost of the engine's own bytes.
func loadBytes(p []byte, size uint8) (v uint64) {
	for i, b := range p[:size] {
		v |= uint64(b) << (8 * i)
	}
	return v
}

func storeBytes(p []byte, v uint64, size uint8) {
	for i := range p[:size] {
		p[i] = byte(v >> (8 * i))
	}
}

func loadHost(p unsafe.Pointer, size uint8) uint64 {
	switch size {
	case 1:
		return uint64(*(*uint8)(p))
	case 2:
		return uint64(*(*uint16)(p))
	case 4:
		return uint64(*(*uint32)(p))
	}
	return *(*uint64)(p)
}

func storeHost(p unsafe.Pointer, size uint8, v uint64) {
	switch size {
	case 1:
		*(*uint8)(p) = uint8(v)
	case 2:
		*(*uint16)(p) = uint16(v)
	case 4:
		*(*uint32)(p) = uint32(v)
	default:
		*(*uint64)(p) = v
	}
}

// touch is the slow path of an access within one page: it walks the page tables,
// fills the TLB, and returns where the operand lies, or nil if that is no RAM but a
// device's register, whose address is then in c.access.gpa. For a write to a page
// with code it drops what was made of the bytes, and returns leave if that concerns
// the running block.
func (c *CPU) touch(sp space, ss bool, lin uint64, size uint8, kind accessKind) (unsafe.Pointer, stop) {
	i := lin >> 12 & tlbMask
	e := &c.tlbs[sp][i]
	if kind == accessWrite && c.writable[sp][i] == lin&pageMask {
		p := unsafe.Add(c.base, int(e.add+lin))
		return p, c.seen(e, lin, c.e.address(p), size)
	}
	gpa, how, s := c.translate(sp, ss, lin, kind)
	if s != next {
		return nil, s
	}
	page := c.e.ram(gpa)
	if page == nil || c.watched {
		return c.touchSpecial(lin, gpa, size, kind, page)
	}
	e.add = uint64(uintptr(page)) - uint64(uintptr(c.base)) - lin&pageMask
	p := unsafe.Add(page, int(lin&(pageSize-1)))
	if kind == accessRead {
		if e.rtag != lin&pageMask {
			e.rtag, e.wtag, c.writable[sp][i] = lin&pageMask, noTag, noTag
		}
		if how&mayWrite != 0 {
			c.writable[sp][i] = lin & pageMask
			if !c.e.slowWrite(gpa) {
				e.wtag = lin & pageMask
			}
		}
		return p, next
	}
	if how&mayRead != 0 {
		e.rtag = lin & pageMask
	} else {
		e.rtag = noTag
	}
	e.wtag, c.writable[sp][i] = noTag, lin&pageMask
	return p, c.seen(e, lin, gpa, size)
}

// seen is what a write to gpa brings about for which there is a translation, but no
// write tag.
func (c *CPU) seen(e *tlbEntry, lin, gpa uint64, size uint8) stop {
	if c.e.slowWrite(gpa) {
		return c.e.wrote(c, gpa, size)
	}
	e.wtag = lin & pageMask
	return next
}

// flushTLB forgets all translations.
func (c *CPU) flushTLB() {
	for i := range c.tlbs {
		t := &c.tlbs[i]
		for j := range t {
			t[j].rtag, t[j].wtag, c.writable[i][j] = noTag, noTag, noTag
		}
	}
	for i := range c.itlbs {
		clear(c.itlbs[i][:])
	}
}

// flushPage forgets the translation of one page.
func (c *CPU) flushPage(lin uint64) {
	i := lin >> 12 & tlbMask
	for j := range c.tlbs {
		c.tlbs[j][i].rtag, c.tlbs[j][i].wtag, c.writable[j][i] = noTag, noTag, noTag
	}
	for j := range c.itlbs {
		c.itlbs[j][lin>>12&itlbMask] = itlbEntry{}
	}
}

// flushWrites makes the next write to each page take the slow path.
func (c *CPU) flushWrites() {
	for i := range c.tlbs {
		t := &c.tlbs[i]
		for j := range t {
			t[j].wtag = noTag
		}
	}
}
