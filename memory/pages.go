package memory

import (
	"fmt"
)

// Discard gives the pages of n bytes at gpa back to the host; the range reads
// as zero afterwards. Pages covered only in part are zeroed in that part, where
// the host's pages count, which may be larger than the guest's. The range counts
// as written for dirty tracking.
func (m *Memory) Discard(gpa, n uint64) error {
	release, err := m.Hold()
	if err != nil {
		return err
	}
	defer release()
	list := m.list()
	if !covered(list, gpa, n) {
		return m.rangeError(gpa, n)
	}
	unit := uint64(hostPage)
	if m.huge {
		unit = HugePageSize
	}
	for a, left := gpa, n; left > 0; {
		r := lookup(list, a)
		off := a - r.Base
		c := min(left, r.Size-off)
		first := min((off+unit-1)&^(unit-1), off+c)
		last := max((off+c)&^(unit-1), first)
		clear(r.Host[off:first])
		if last > first {
			if err := r.discard(first, last-first); err != nil {
				return fmt.Errorf("discard guest memory at %#x, length %#x: %w", r.Base+first, last-first, err)
			}
		}
		clear(r.Host[last : off+c])
		a, left = a+c, left-c
	}
	m.MarkDirty(gpa, n)
	return nil
}

// CollectTouched adds to b the pages that the host has given memory for. All
// others read as zero, and reading them, unlike this, would take memory too.
// A page touched while this runs may or may not be among them.
func (m *Memory) CollectTouched(b *Bitmap) error {
	release, err := m.Hold()
	if err != nil {
		return err
	}
	defer release()
	for _, r := range m.Regions() {
		words := b.segment(r.Base, r.Size)
		if err := r.touched(words); err != nil {
			return fmt.Errorf("find the touched pages of the region at %#x: %w", r.Base, err)
		}
	}
	return nil
}
