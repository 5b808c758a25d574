package soft

import "unsafe"

// stringBulk does up to n iterations of MOVS or STOS at once where they go upwards
// within one page each, and returns how many it did. 0 means that the plain way has to
// take the next one.
func (c *CPU) stringBulk(u *uop, n uint64) uint64 {
	if c.flags&flagDF != 0 || u.cc != strMovs && u.cc != strStos || !c.is64() || u.x != 8 || n < 2 || c.aligned {
		return 0
	}
	size := uint64(u.size)
	dst := c.r[regRDI]
	e := &c.tlb[dst>>12&tlbMask]
	if e.wtag != dst&pageMask {
		return 0
	}
	n = min(n, (pageSize-dst&(pageSize-1))/size)
	if n == 0 {
		return 0
	}
	to := unsafe.Slice((*byte)(unsafe.Add(c.base, int(e.add+dst))), n*size)
	if u.cc == strStos {
		fill(to, u.size, c.r[regRAX])
		c.r[regRDI] += n * size
		return n
	}
	src := c.r[regRSI]
	if u.seg >= segFS {
		src += c.seg[u.seg].Base
	}
	f := &c.tlb[src>>12&tlbMask]
	if f.rtag != src&pageMask {
		return 0
	}
	n = min(n, (pageSize-src&(pageSize-1))/size)
	if n == 0 {
		return 0
	}
	from := unsafe.Slice((*byte)(unsafe.Add(c.base, int(f.add+src))), n*size)
	to = to[:n*size]
	if d := uint64(uintptr(unsafe.Pointer(&to[0])) - uintptr(unsafe.Pointer(&from[0]))); d > 0 && d < n*size {
		// What is written is read again further on: a pattern repeats.
		if d < size {
			return 0
		}
		for at := uint64(0); at < n*size; at += d {
			copy(to[at:min(at+d, n*size)], from[at:])
		}
	} else {
		copy(to, from)
	}
	c.r[regRSI] += n * size
	c.r[regRDI] += n * size
	return n
}

// fill repeats the low size bytes of v.
func fill(p []byte, size uint8, v uint64) {
	if v&maskOf(size) == 0 {
		clear(p)
		return
	}
	n := int(size)
	storeHost(unsafe.Pointer(&p[0]), size, v)
	for n < len(p) {
		n += copy(p[n:], p[:n])
	}
}
