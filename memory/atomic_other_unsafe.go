//go:build !amd64

package memory

import (
	"sync/atomic"
	"unsafe"
)

// Without assembly a 16-bit word is accessed as its half of an aligned 32-bit word, with
// sync/atomic, which is sequentially consistent. Guest memory is aligned and a multiple
// of a page, so that the other half is there. Hosts are little-endian, as all of this
// package needs.

func word(p *byte) (w *uint32, shift uint) {
	low := uintptr(unsafe.Pointer(p)) & 2
	return (*uint32)(unsafe.Add(unsafe.Pointer(p), -int(low))), uint(low * 8)
}

func load16(p *byte) uint16 {
	w, shift := word(p)
	return uint16(atomic.LoadUint32(w) >> shift)
}

func store16(p *byte, v uint16) {
	w, shift := word(p)
	for {
		old := atomic.LoadUint32(w)
		if atomic.CompareAndSwapUint32(w, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return
		}
	}
}

func xchg16(p *byte, v uint16) {
	store16(p, v)
	fence()
}

var fenced atomic.Uint32

// fence is a read-modify-write operation, which sync/atomic orders with all others.
func fence() { fenced.Add(1) }
