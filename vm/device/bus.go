package device

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
)

// Handler answers guest accesses to a range of ports or guest-physical
// addresses. off counts from the start of the range and off+len(p) lies
// within it; len(p) is 1, 2, 4 or 8. Calls come from several CPUs at once.
type Handler interface {
	Read(off uint64, p []byte)
	Write(off uint64, p []byte)
}

// Bus routes accesses by address to handlers. The zero value is an empty bus.
// Accesses take no lock and allocate nothing; Map and Unmap may run beside
// them.
type Bus struct {
	mu     sync.Mutex
	ranges atomic.Pointer[[]mapping]
}

type mapping struct {
	base, last uint64
	h          Handler
}

// Map gives the size addresses from base to h. A range that is empty, wraps or
// overlaps another is an error.
func (b *Bus) Map(base, size uint64, h Handler) error {
	last := base + size - 1
	if size == 0 || last < base {
		return fmt.Errorf("bus: bad range at %#x, size %#x", base, size)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.load()
	i := sort.Search(len(old), func(i int) bool { return old[i].last >= base })
	if i < len(old) && old[i].base <= last {
		return fmt.Errorf("bus: range %#x-%#x overlaps %#x-%#x", base, last, old[i].base, old[i].last)
	}
	next := make([]mapping, 0, len(old)+1)
	next = append(next, old[:i]...)
	next = append(next, mapping{base, last, h})
	next = append(next, old[i:]...)
	b.ranges.Store(&next)
	return nil
}

// Unmap removes the range that starts at base and reports whether there was one.
func (b *Bus) Unmap(base uint64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.load()
	for i := range old {
		if old[i].base == base {
			next := make([]mapping, 0, len(old)-1)
			next = append(next, old[:i]...)
			next = append(next, old[i+1:]...)
			b.ranges.Store(&next)
			return true
		}
	}
	return false
}

// Read performs a guest read. Bytes that no handler owns read as 0xff, as on
// a real bus.
func (b *Bus) Read(addr uint64, p []byte) {
	if m := b.find(addr, len(p)); m != nil {
		m.h.Read(addr-m.base, p)
		return
	}
	for i := range p {
		p[i] = 0xff
	}
}

// Write performs a guest write. One that no handler owns is dropped.
func (b *Bus) Write(addr uint64, p []byte) {
	if m := b.find(addr, len(p)); m != nil {
		m.h.Write(addr-m.base, p)
	}
}

func (b *Bus) load() []mapping {
	if p := b.ranges.Load(); p != nil {
		return *p
	}
	return nil
}

// find returns the mapping that holds all n bytes at addr, or nil.
func (b *Bus) find(addr uint64, n int) *mapping {
	r := b.load()
	lo, hi := 0, len(r)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if r[mid].last < addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(r) || r[lo].base > addr || n == 0 || uint64(n)-1 > r[lo].last-addr {
		return nil
	}
	return &r[lo]
}
