package qcow2

import (
	"fmt"

	"github.com/vmkit-go/vmkit/disk"
)

// How much the container grows at once: an eighth of its size, within these.
const (
	minGrow = 16 << 20
	maxGrow = 256 << 20
)

// allocator finds free clusters. All is guarded by Image.mu.
type allocator struct {
	im *Image
	// hint is a cluster below which none is free.
	hint int64
	// blank is a cluster from which on all have never been written, since the
	// container grew there in this session: they read as zeroes.
	blank int64
	// end is the least cluster behind all that were in use since Open, and
	// opened the size of the container at Open: what to cut off at Close.
	end, opened int64
}

func (a *allocator) init(im *Image) {
	a.im = im
	a.opened = im.file.Size()
	a.blank = im.clusters(a.opened)
	a.end = a.blank
}

// used notes that n clusters from first on are used.
func (a *allocator) used(first, n int64) {
	a.blank = max(a.blank, first+n)
	a.end = max(a.end, first+n)
}

// freed notes that cluster c is free.
func (a *allocator) freed(c int64) { a.hint = min(a.hint, c) }

// extend makes the container at least size bytes long.
func (a *allocator) extend(size int64) error {
	now := a.im.file.Size()
	if size <= now {
		return nil
	}
	if size > maxHost {
		return fmt.Errorf("%w: the format ends at %d bytes", disk.ErrNoSpace, int64(maxHost))
	}
	if a.im.grow == nil {
		return fmt.Errorf("%w: the container has %d bytes and cannot grow", disk.ErrNoSpace, now)
	}
	step := a.im.up(min(max(size, now+min(max(now/8, minGrow), maxGrow)), maxHost))
	err := a.im.grow.Resize(step)
	if err != nil && step > size {
		err = a.im.grow.Resize(size)
	}
	return err
}

// take finds up to want free clusters in a row and gives them refcount 1.
// blank reports whether they are known to read as zeroes.
func (a *allocator) take(want int64) (first, got int64, blank bool, err error) {
	r := &a.im.refs
	for c := a.hint; ; {
		b, err := r.cover(c / r.per)
		if err != nil {
			return 0, 0, false, err
		}
		end := (c/r.per + 1) * r.per
		for c < end && r.value(b.data, c%r.per) != 0 {
			c++
		}
		a.hint = c
		if c == end {
			continue
		}
		first = c
		for c < end && c-first < want && r.value(b.data, c%r.per) == 0 {
			c++
		}
		if err := a.extend(c << a.im.bits); err != nil {
			// Fewer may fit.
			fit := a.im.file.Size()>>a.im.bits - first
			if fit <= 0 {
				return 0, 0, false, err
			}
			c = min(c, first+fit)
		}
		for k := first; k < c; k++ {
			r.setIn(b, k, 1)
		}
		blank = first >= a.blank
		a.hint = c
		a.used(first, c-first)
		return first, c - first, blank, nil
	}
}

// takeRow finds n free clusters in a row for a table, and gives them refcount 1.
func (a *allocator) takeRow(n int64) (int64, error) {
	r := &a.im.refs
	if n >= r.per/2 {
		return a.takeLongRow(n)
	}
	first := a.hint
	for c := first; c-first < n; c++ {
		b, err := r.cover(c / r.per)
		if err != nil {
			return 0, err
		}
		if r.value(b.data, c%r.per) != 0 {
			first = c + 1
		}
	}
	if err := a.extend((first + n) << a.im.bits); err != nil {
		return 0, err
	}
	return first, a.claim(first, n)
}

// takeLongRow is takeRow for a row that may not fit between two refcount
// blocks: it lies behind all blocks there are, and those that it needs lie
// together before it.
func (a *allocator) takeLongRow(n int64) (int64, error) {
	r := &a.im.refs
	blocks := int64(1)
	for blocks*r.per < blocks+n {
		blocks++
	}
	i := int64(len(r.table))
	for ; i > 0 && r.table[i-1] == 0; i-- {
	}
	if i+blocks > int64(len(r.table)) {
		if err := r.growTable(i + blocks); err != nil {
			return 0, err
		}
		for i = int64(len(r.table)); r.table[i-1] == 0; i-- {
		}
	}
	first := i * r.per
	if err := a.extend((first + blocks + n) << a.im.bits); err != nil {
		return 0, err
	}
	for k := range blocks {
		r.newBlock(i+k, first+k)
	}
	return first + blocks, a.claim(first, blocks+n)
}

// claim gives n free clusters refcount 1.
func (a *allocator) claim(first, n int64) error {
	for c := first; c < first+n; c++ {
		if err := a.im.refs.set(c, 1); err != nil {
			return err
		}
	}
	a.used(first, n)
	return nil
}

// giveBack frees n clusters that no table ever referred to.
func (a *allocator) giveBack(first, n int64) {
	for c := first; c < first+n; c++ {
		if left, err := a.im.refs.drop(c); err == nil && left == 0 {
			a.freed(c)
		} // else leaked, which does no harm
	}
}

// trim cuts off what the container grew and did not use.
func (a *allocator) trim() error {
	want := max(a.opened, a.end<<a.im.bits)
	if a.im.grow == nil || a.im.file.Size() <= want {
		return nil
	}
	return a.im.grow.Resize(want)
}

// allocation is a run of the disk's clusters that are being written for the
// first time. Other changes to them wait.
type allocation struct {
	first, last int64 // clusters of the disk
	done        chan struct{}
}

// overlapping returns an allocation that has clusters in common with first to
// last. The caller holds mu.
func (im *Image) overlapping(first, last int64) *allocation {
	for _, a := range im.pending {
		if a.first <= last && first <= a.last {
			return a
		}
	}
	return nil
}

// wait gives up mu, and waits for a to end.
func (im *Image) wait(a *allocation) {
	if a.done == nil {
		a.done = make(chan struct{})
	}
	done := a.done
	im.mu.Unlock()
	<-done
}

// begin makes other changes to clusters first to last wait until end. The
// caller holds mu.
func (im *Image) begin(first, last int64) *allocation {
	a := &allocation{first: first, last: last}
	im.pending = append(im.pending, a)
	return a
}

// end lets others go on. The caller holds mu.
func (im *Image) end(a *allocation) {
	for i, b := range im.pending {
		if a == b {
			last := len(im.pending) - 1
			im.pending[i], im.pending[last] = im.pending[last], nil
			im.pending = im.pending[:last]
			break
		}
	}
	if a.done != nil {
		close(a.done)
	}
}
