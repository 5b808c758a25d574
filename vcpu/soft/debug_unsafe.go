package soft

import "unsafe"

// touchSpecial ends touch where no TLB entry is to be made: for registers of devices, and
// while there are breakpoints on data. page is the host's page if gpa is RAM.
func (c *CPU) touchSpecial(lin, gpa uint64, size uint8, kind accessKind, page unsafe.Pointer) (unsafe.Pointer, stop) {
	c.access.gpa = gpa
	if c.watched {
		c.dataAccess(lin, size, kind)
	}
	if page == nil {
		return nil, next
	}
	p := unsafe.Add(page, int(lin&(pageSize-1)))
	if kind == accessWrite && c.e.slowWrite(gpa) {
		return p, c.e.wrote(c, gpa, size)
	}
	return p, next
}
