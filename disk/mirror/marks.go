package mirror

// markAhead is how many regions are marked at once, so that a guest that writes
// in sequence seldom waits for the journal.
const markAhead = 8

// marks is the journal's bitmap: regions in which the two sides may differ
// after a crash. A change starts only when its regions are marked durably. A
// mark is taken back when nothing in its region is dirty or was changed for a
// while and both sides have been flushed.
//
// The table's mu guards all of it.
type marks struct {
	shift   uint  // log2 of a region's size
	n       int64 // regions
	set     bitmap
	wanted  bitmap // to be set
	leaving bitmap // of set: taken back soon, unless touched
	touched bitmap // changed since the last checkpoint
	commits int    // since the last checkpoint
	off     bool   // nothing is marked any more
	kick    chan struct{}
}

func newMarks(r record, set bitmap) *marks {
	n := r.regions()
	return &marks{
		shift: r.shift, n: n, set: set, wanted: newBitmap(n), leaving: newBitmap(n), touched: newBitmap(n),
		kick: make(chan struct{}, 1),
	}
}

// regions are the first and the last region of s.
func (k *marks) regions(s *span) (first, last int64) { return s.off >> k.shift, (s.end - 1) >> k.shift }

// touch reports whether s may start. If not, its regions will be marked.
func (k *marks) touch(s *span) bool {
	first, last := k.regions(s)
	if k.off {
		return true
	}
	if k.set.all(first, last) {
		k.leaving.clearRange(first, last)
		k.touched.setRange(first, last)
		return true
	}
	k.wanted.setRange(first, min(last+markAhead-1, k.n-1))
	select {
	case k.kick <- struct{}{}:
	default:
	}
	return false
}

// mark marks what is wanted, and lets those start that wait for it.
func (m *move) mark() error {
	t, k := &m.table, m.table.marks
	m.marking.Lock()
	defer m.marking.Unlock()
	t.mu.Lock()
	fresh, next := newBitmap(k.n), newBitmap(k.n)
	any := uint64(0)
	for i := range fresh {
		fresh[i] = k.wanted[i] &^ k.set[i]
		next[i] = k.set[i] | k.wanted[i]
		any |= fresh[i]
	}
	clear(k.wanted)
	t.mu.Unlock()
	var err error
	if any != 0 {
		err = m.journal.writeBits(m.rec.move, next, fresh, true)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		return err // what waits goes on waiting, for giveUp
	}
	for i := range fresh {
		k.set[i] |= fresh[i]
		k.touched[i] |= fresh[i]
	}
	k.commits++
	t.admitAll()
	return nil
}

// stay chooses the marks to take back: those of regions that have been left
// alone since the last call. It reports whether there are any.
func (t *table) stay(size int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.marks
	for _, list := range [][]*span{t.active, t.waiting} {
		for _, s := range list {
			k.touched.setRange(k.regions(s))
		}
	}
	found := false
	for r := k.set.next(0); r >= 0 && r < k.n; r = k.set.next(r + 1) {
		first := r << (k.shift - granuleShift)
		last := min((r+1)<<(k.shift-granuleShift), (size+granule-1)>>granuleShift) - 1
		if !k.touched.has(r) && !t.dirty.any(first, last) {
			k.leaving.set(r)
			found = true
		}
	}
	clear(k.touched)
	k.commits = 0
	return found
}

// unmark takes back the marks that stay has chosen and nobody has touched
// since. Both sides were flushed in between.
func (m *move) unmark() error {
	t, k := &m.table, m.table.marks
	m.marking.Lock()
	defer m.marking.Unlock()
	t.mu.Lock()
	gone := append(bitmap(nil), k.leaving...)
	for i := range gone {
		k.set[i] &^= gone[i]
	}
	clear(k.leaving)
	next := append(bitmap(nil), k.set...)
	t.mu.Unlock()
	// Not flushed: a mark too many does no harm.
	return m.journal.writeBits(m.rec.move, next, gone, false)
}
