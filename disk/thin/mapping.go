package thin

import "sync/atomic"

// mapping says where a disk's extents lie in the store: a tree over the 32-bit
// numbers of logical extents, of which only what is needed exists. It is read
// without a lock. Set belongs to whoever has claimed the extent.
type mapping struct {
	root atomic.Pointer[[1 << rootBits]atomic.Pointer[middle]]
}

const (
	leafBits = 11
	midBits  = 10
	rootBits = 32 - leafBits - midBits
)

type (
	middle [1 << midBits]atomic.Pointer[leaf]
	leaf   [1 << leafBits]atomic.Uint32 // physical extent + 1, or 0
)

// leaf returns the leaf with extent l, or nil.
func (m *mapping) leaf(l uint32) *leaf {
	root := m.root.Load()
	if root == nil {
		return nil
	}
	mid := root[l>>(leafBits+midBits)].Load()
	if mid == nil {
		return nil
	}
	return mid[l>>leafBits%(1<<midBits)].Load()
}

// get returns the physical extent of l, if it has one.
func (m *mapping) get(l uint32) (p uint32, ok bool) {
	lf := m.leaf(l)
	if lf == nil {
		return 0, false
	}
	v := lf[l%(1<<leafBits)].Load()
	return v - 1, v != 0
}

// set maps l to p.
func (m *mapping) set(l, p uint32) {
	root := load(&m.root)
	mid := load(&root[l>>(leafBits+midBits)])
	load(&mid[l>>leafBits%(1<<midBits)])[l%(1<<leafBits)].Store(p + 1)
}

// drop unmaps l.
func (m *mapping) drop(l uint32) {
	if lf := m.leaf(l); lf != nil {
		lf[l%(1<<leafBits)].Store(0)
	}
}

// load returns what p points to, which it makes if there is nothing.
func load[T any](p *atomic.Pointer[T]) *T {
	for {
		if v := p.Load(); v != nil {
			return v
		}
		p.CompareAndSwap(nil, new(T))
	}
}

// next returns the first mapped extent in [l, end), or end.
func (m *mapping) next(l, end int64) int64 {
	for l < end {
		if root := m.root.Load(); root == nil {
			return end
		} else if root[l>>(leafBits+midBits)].Load() == nil {
			l = (l>>(leafBits+midBits) + 1) << (leafBits + midBits)
			continue
		}
		if m.leaf(uint32(l)) == nil {
			l = (l>>leafBits + 1) << leafBits
			continue
		}
		if _, ok := m.get(uint32(l)); ok {
			return l
		}
		l++
	}
	return end
}
