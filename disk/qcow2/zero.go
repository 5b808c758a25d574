package qcow2

import (
	"fmt"
	"os"

	"github.com/vmkit-go/vmkit/disk"
)

// Discard implements [disk.Backend]. Whole clusters read as zeroes afterwards
// and are given back with the next flush. In a version 2 image with a backing
// file it does nothing: there the backing file's content would show.
func (im *Image) Discard(off, n int64) error {
	return im.zero("discard", off, n, func() error {
		if im.v2 && im.backing != nil {
			return nil
		}
		first, last := im.whole(off, n)
		return im.change(first, last, false, im.discarded)
	})
}

// WriteZeroes implements [disk.Backend]. Whole clusters of a version 3 image
// take no I/O.
func (im *Image) WriteZeroes(off, n int64, mayUnmap bool) error {
	return im.zero("write zeroes", off, n, func() error {
		if im.v2 && (im.backing != nil || !mayUnmap) {
			return im.plainZeroes(off, n, mayUnmap)
		}
		first, last := im.whole(off, n)
		if first > last {
			return im.plainZeroes(off, n, mayUnmap)
		}
		if head := first<<im.bits - off; head > 0 {
			if err := im.plainZeroes(off, head, mayUnmap); err != nil {
				return err
			}
		}
		if tail := off + n - (last+1)<<im.bits; tail > 0 {
			if err := im.plainZeroes((last+1)<<im.bits, tail, mayUnmap); err != nil {
				return err
			}
		}
		return im.change(first, last, im.backing != nil, func(e uint64) uint64 { return im.zeroed(e, mayUnmap) })
	})
}

func (im *Image) zero(op string, off, n int64, fn func() error) error {
	err := func() error {
		e := im.enter()
		defer im.requests.leave(e)
		if err := im.check(off, n); err != nil || n == 0 {
			return err
		}
		return fn()
	}()
	if err == nil {
		err = im.relieve()
	}
	if err != nil {
		return im.fail(op, off, n, err)
	}
	return nil
}

// whole returns the first and the last cluster that lie in n bytes at off. The
// last one of the disk may be a part of one.
func (im *Image) whole(off, n int64) (first, last int64) {
	first, last = im.clusters(off), (off+n)>>im.bits-1
	if off+n == im.size.Load() {
		last = im.clusters(off+n) - 1
	}
	return first, last
}

// discarded is what becomes of an L2 entry that is discarded.
func (im *Image) discarded(e uint64) uint64 {
	if k := kindOf(e); k == kindHole || k == kindZero && e&offsetMask == 0 {
		return e
	}
	if im.backing != nil {
		return flagZero
	}
	return 0
}

// zeroed is what becomes of an L2 entry that is zeroed.
func (im *Image) zeroed(e uint64, mayUnmap bool) uint64 {
	switch k := kindOf(e); {
	case k == kindHole && im.backing == nil:
		return e
	case !mayUnmap && (k == kindData || k == kindZero):
		return e | flagZero
	case im.v2:
		return 0
	}
	return flagZero
}

// change applies fn to the L2 entries of clusters first to last of the disk,
// and drops what they referred to. Tables that do not exist are made only if
// holes is set. The caller is a request, or holds lock.
func (im *Image) change(first, last int64, holes bool, fn func(e uint64) uint64) error {
	for first <= last {
		i := first / im.l2Len
		end := min(last, (i+1)*im.l2Len-1)
		t, err := im.table(i)
		if err != nil {
			return err
		}
		base := i * im.l2Len
		if t == nil && !holes || t != nil && !t.changes(first-base, end-base, fn) {
			first = end + 1
			continue
		}
		if t, err = im.writableTable(i); err != nil {
			return err
		}
		for a := im.overlapping(first, end); a != nil; a = im.overlapping(first, end) {
			if a.first <= first {
				im.wait(a)
				t = nil
				break
			}
			end = a.first - 1
		}
		if t == nil {
			continue
		}
		for j := first - base; j <= end-base; j++ {
			e := t.e[j].Load()
			if t.bad != nil && t.bad[j] != nil {
				im.mu.Unlock()
				return t.bad[j]
			}
			next := fn(e)
			if next == e {
				continue
			}
			im.setEntry(t, j, next)
			if e&flagCompressed != 0 || e&offsetMask != 0 && next&offsetMask == 0 {
				im.drop(e)
			}
		}
		im.mu.Unlock()
		first = end + 1
	}
	return nil
}

// changes reports whether fn changes any of entries first to last.
func (t *l2Table) changes(first, last int64, fn func(e uint64) uint64) bool {
	for j := first; j <= last; j++ {
		if e := t.e[j].Load(); fn(e) != e {
			return true
		}
	}
	return false
}

// maxZeroes is how many zeroes one write has.
const maxZeroes = 1 << 20

// plainZeroes zeroes n bytes at off that need not be whole clusters. The
// caller is a request, or holds lock.
func (im *Image) plainZeroes(off, n int64, mayUnmap bool) error {
	for n > 0 {
		m, err := im.lookup(off, n, false)
		switch {
		case err != nil:
			return err
		case m.kind == kindData:
			err = im.file.WriteZeroes(m.host, m.n, mayUnmap)
		case im.readsZero(m.entry):
		default:
			m.n = min(m.n, maxZeroes)
			v := getVec()
			v.addZeroes(m.n)
			_, _, err = im.writeRuns(v.b, off, m.n, false)
			v.put()
		}
		if err != nil {
			return err
		}
		off, n = off+m.n, n-m.n
	}
	return nil
}

// Extent implements [disk.Mapper]. What the image leaves to its backing disk
// is not allocated, and zero if that disk says so.
func (im *Image) Extent(off int64) (disk.Extent, error) {
	id := im.enter()
	defer im.requests.leave(id)
	e, err := im.extent(off)
	if err != nil {
		return disk.Extent{}, im.fail("map", off, 1, err)
	}
	return e, nil
}

func (im *Image) extent(off int64) (disk.Extent, error) {
	size := im.size.Load()
	switch {
	case im.closed.Load():
		return disk.Extent{}, os.ErrClosed
	case off < 0 || off >= size:
		return disk.Extent{}, fmt.Errorf("%w: size is %d", disk.ErrRange, size)
	}
	e := disk.Extent{Off: off}
	for at := off; at < size; {
		m, err := im.lookup(at, size-at, false)
		if err != nil {
			return e, err
		}
		allocated := m.kind != kindHole && m.kind != kindZero
		zero := im.readsZero(m.entry)
		if e.Len > 0 && (allocated != e.Allocated || zero != e.Zero) {
			break
		}
		e.Allocated, e.Zero = allocated, zero
		at += m.n
		e.Len = at - off
		if m.kind == kindHole && im.backing != nil {
			return im.below(e, off)
		}
	}
	return e, nil
}

// below narrows a hole down by what the backing disk knows.
func (im *Image) below(e disk.Extent, off int64) (disk.Extent, error) {
	size := im.backing.Size()
	if off >= size {
		e.Zero = true
		return e, nil
	}
	e.Len = min(e.Len, size-off)
	m, ok := im.backing.(disk.Mapper)
	if !ok {
		return e, nil
	}
	b, err := m.Extent(off)
	if err != nil {
		return e, err
	}
	e.Len, e.Zero = min(e.Len, b.Len), b.Zero
	return e, nil
}
