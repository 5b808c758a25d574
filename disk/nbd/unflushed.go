package nbd

import (
	"slices"
	"sync"
)

const (
	slabSize  = 1 << 20
	entryCost = 256 // what an entry counts for beside its data
	maxSpare  = 16  // slabs kept for later
)

// logEntry is a change that the server has acknowledged.
type logEntry struct {
	cmd, flags uint16
	off        int64
	n          uint32
	data       []byte // of a WRITE: n bytes, part of slab
	slab       *slab
	cost       int64 // what it counts for
}

// slab is memory for the data of some entries, filled from its start.
type slab struct {
	buf  []byte
	used int
	refs int // entries, and one for the log while it is filled
}

// unflushed holds the changes that the server has acknowledged since the last
// flush, in their order, so that they can be made again should the server
// have lost them. Its memory is bounded: writers reserve room first.
type unflushed struct {
	mu      sync.Mutex
	limit   int64
	off     bool  // nothing is held any more
	block   int   // writes are cut at multiples of this, a power of two
	used    int64 // reserved or by entries
	entries []logEntry
	base    uint64 // position of entries[0]
	fill    *slab
	spare   []*slab
}

// reserve takes room for an entry with n bytes of data, if there is any.
func (l *unflushed) reserve(n int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.off && l.used > 0 && l.used+entryCost+n > l.limit {
		return false
	}
	l.used += entryCost + n
	return true
}

// release gives back what reserve took.
func (l *unflushed) release(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.used -= entryCost + n
}

// full reports whether it is time for a flush.
func (l *unflushed) full() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.off && l.used > l.limit/2
}

// add adds a change, whose room was reserved. The data of bufs is copied.
func (l *unflushed) add(e logEntry, bufs [][]byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.off {
		return
	}
	e.cost = entryCost
	if e.cmd != cmdWrite {
		l.entries = append(l.entries, e)
		return
	}
	// A write that does not fit into the slab becomes several.
	for end := e.off + int64(e.n); e.off < end; e.off += int64(e.n) {
		left := end - e.off
		e.slab = l.slab(left)
		room := e.slab.buf[e.slab.used:]
		e.n = uint32(min(left, int64(len(room)&^(l.block-1))))
		e.data = room[:0:e.n]
		for len(e.data) < int(e.n) {
			k := min(len(bufs[0]), int(e.n)-len(e.data))
			e.data = append(e.data, bufs[0][:k]...)
			if bufs[0] = bufs[0][k:]; len(bufs[0]) == 0 {
				bufs = bufs[1:]
			}
		}
		e.slab.used += int(e.n)
		e.slab.refs++
		e.cost += int64(e.n)
		l.entries = append(l.entries, e)
		e.cost = 0
	}
}

// slab returns one with room for n bytes, or for at least a block of them.
func (l *unflushed) slab(n int64) *slab {
	if l.fill != nil {
		if len(l.fill.buf)-l.fill.used >= int(min(n, int64(l.block))) {
			return l.fill
		}
		l.unref(l.fill)
	}
	if k := len(l.spare); k > 0 {
		l.fill, l.spare = l.spare[k-1], l.spare[:k-1]
	} else {
		l.fill = &slab{buf: make([]byte, slabSize)}
	}
	l.fill.refs = 1
	return l.fill
}

func (l *unflushed) unref(s *slab) {
	if s.refs--; s.refs == 0 && len(l.spare) < maxSpare {
		s.used = 0
		l.spare = append(l.spare, s)
	}
}

// mark is the position of the next entry.
func (l *unflushed) mark() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.base + uint64(len(l.entries))
}

// flushed drops the entries before the position mark.
func (l *unflushed) flushed(mark uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.off || mark <= l.base {
		return // a later flush was quicker
	}
	k := int(mark - l.base)
	for i := range l.entries[:k] {
		e := &l.entries[i]
		l.used -= e.cost
		if e.slab != nil {
			l.unref(e.slab)
		}
	}
	l.entries = slices.Delete(l.entries, 0, k)
	l.base = mark
}

// drop lets go of everything, for good.
func (l *unflushed) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.off, l.entries, l.fill, l.spare = true, nil, nil, nil
}

// snapshot returns the entries. Their data is valid as long as nothing is
// flushed.
func (l *unflushed) snapshot() []logEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.entries)
}

// independent returns how many of the first entries, at most most, do not
// overlap each other, so that their order does not matter.
func independent(entries []logEntry, most int) int {
	for i := range entries {
		if i == most {
			return i
		}
		a := &entries[i]
		for _, b := range entries[:i] {
			if a.off < b.off+int64(b.n) && b.off < a.off+int64(a.n) {
				return i
			}
		}
	}
	return len(entries)
}
