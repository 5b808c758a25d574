package soft

import (
	"unsafe"

	"github.com/vmkit-go/vmkit/memory"
)

// ramRegion is one region of guest memory as the engine sees it.
type ramRegion struct {
	base, size uint64
	host       unsafe.Pointer
	host0      []byte // the same as a slice
	// code has the page of each 2 MiB in which there is or was code.
	code []*[512]*codePage
	// dirty has a bit for each page written since the last harvest, or is nil.
	dirty []uint64
}

func newRegion(r memory.Region) *ramRegion {
	return &ramRegion{
		base: r.Base, size: r.Size, host: unsafe.Pointer(&r.Host[0]), host0: r.Host,
		code: make([]*[512]*codePage, (r.Size+1<<21-1)>>21),
	}
}

// region returns the region that holds gpa, or nil.
func (e *Engine) region(gpa uint64) *ramRegion {
	for _, r := range e.regions {
		if gpa-r.base < r.size {
			return r
		}
	}
	return nil
}

// ram returns the host address of the page that holds gpa, or nil if that is no RAM.
func (e *Engine) ram(gpa uint64) unsafe.Pointer {
	r := e.region(gpa)
	if r == nil {
		return nil
	}
	return unsafe.Add(r.host, int((gpa-r.base)&pageMask))
}

// address is the inverse of ram: the guest-physical address of a byte of RAM.
func (e *Engine) address(p unsafe.Pointer) uint64 {
	for _, r := range e.regions {
		if off := uint64(uintptr(p)) - uint64(uintptr(r.host)); off < r.size {
			return r.base + off
		}
	}
	panic("soft: a TLB entry leads out of guest memory")
}

// load64 and its like access guest-physical memory as the page walker does. The
// operand is aligned.
func (e *Engine) load64(gpa uint64) (uint64, bool) {
	p := e.ram(gpa)
	if p == nil {
		return 0, false
	}
	return *(*uint64)(unsafe.Add(p, int(gpa&(pageSize-8)))), true
}

func (e *Engine) load32(gpa uint64) (uint32, bool) {
	p := e.ram(gpa)
	if p == nil {
		return 0, false
	}
	return *(*uint32)(unsafe.Add(p, int(gpa&(pageSize-4)))), true
}

func (e *Engine) store64(gpa, v uint64) {
	if p := e.ram(gpa); p != nil {
		*(*uint64)(unsafe.Add(p, int(gpa&(pageSize-8)))) = v
		e.wrote(nil, gpa, 8)
	}
}

func (e *Engine) store32(gpa uint64, v uint32) {
	if p := e.ram(gpa); p != nil {
		*(*uint32)(unsafe.Add(p, int(gpa&(pageSize-4)))) = v
		e.wrote(nil, gpa, 4)
	}
}

// slowWrite reports whether a write to gpa's page must be seen: there is code in the
// page, or it is clean and writes are logged.
func (e *Engine) slowWrite(gpa uint64) bool {
	r := e.region(gpa)
	off := (gpa - r.base) >> 12
	if r.dirty != nil && r.dirty[off/64]>>(off%64)&1 == 0 {
		return true
	}
	p := r.codePage(off)
	return p != nil && p.live > 0
}

// codePage returns the code page with number off in the region, or nil.
func (r *ramRegion) codePage(off uint64) *codePage {
	if t := r.code[off>>9]; t != nil {
		return t[off&511]
	}
	return nil
}

// wrote logs a write of size bytes and drops the blocks made of them. It returns
// leave if c runs one of these.
func (e *Engine) wrote(c *CPU, gpa uint64, size uint8) stop {
	r := e.region(gpa)
	off := (gpa - r.base) >> 12
	if r.dirty != nil {
		r.dirty[off/64] |= 1 << (off % 64)
	}
	p := r.codePage(off)
	if p == nil || p.live == 0 || !p.overlaps(gpa&(pageSize-1), uint64(size)) {
		return next
	}
	e.code.dropRange(p, gpa&(pageSize-1), uint64(size))
	if c != nil && c.cur != nil && c.cur.dead() {
		return leave
	}
	return next
}

// page returns the code page of gpa, made if need be, or nil if that is no RAM.
func (e *Engine) page(gpa uint64) *codePage {
	r := e.region(gpa)
	if r == nil {
		return nil
	}
	off := (gpa - r.base) >> 12
	t := r.code[off>>9]
	if t == nil {
		t = new([512]*codePage)
		r.code[off>>9] = t
	}
	p := t[off&511]
	if p == nil {
		p = &codePage{gpa: gpa & pageMask, bytes: r.host0[off<<12:][:pageSize:pageSize]}
		t[off&511] = p
		e.code.pages = append(e.code.pages, p)
		e.code.uops += pageUops
	}
	return p
}
