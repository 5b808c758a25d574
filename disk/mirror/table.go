package mirror

import (
	"slices"
	"sync"
	"sync/atomic"
)

// granule is the unit, in bytes, in which the two sides differ or not.
const (
	granuleShift = 16
	granule      = 1 << granuleShift
)

// span is a change by the guest, or a copy from source to target, that is
// under way or waits to be.
type span struct {
	off, end int64 // bytes
	copies   bool  // a copy
	discards bool  // a change that leaves the target behind, unless table.capped

	// Set when the span starts, and guarded by table.mu.
	both      bool // the change goes to the target as well
	exclusive bool // a copy for which changes wait
	stale     bool // a copy that a change has overtaken
	dstDone   bool // the target has ended its part
	srcDone   bool // the source has
	trails    bool // acknowledged, and the target is still at it
	late      bool // so late that its granules were marked dirty
	ticks     int  // the target's lateness
	over      bool // the wait ended because the table was closed

	wake chan struct{} // one slot
	refs atomic.Int32  // holders

	// Of a change to both sides.
	buf   *buffer // what to write; nil zeroes
	unmap bool
}

var spans = sync.Pool{New: func() any { return &span{wake: make(chan struct{}, 1)} }}

func newSpan(off, n int64) *span {
	s := spans.Get().(*span)
	wake := s.wake
	*s = span{off: off, end: off + n, wake: wake}
	s.refs.Store(1)
	return s
}

// drop says that a holder is done with s.
func (s *span) drop() {
	if s.refs.Add(-1) > 0 {
		return
	}
	if s.buf != nil {
		s.buf.free()
		s.buf = nil
	}
	spans.Put(s)
}

// granules are the first and the last granule of s.
func (s *span) granules() (first, last int64) {
	return s.off >> granuleShift, (s.end - 1) >> granuleShift
}

func (s *span) overlaps(o *span) bool { return s.off < o.end && o.off < s.end }

// table keeps overlapping changes and copies in an order that leaves both sides
// the same, and knows where they are not.
//
// Changes to both sides that overlap by as much as a byte wait for each other.
// A change that is done on the source is acknowledged while the target is still
// at it, and stays in the table: as many may trail like that as the guest has
// had under way at once, so that it writes no faster than the target for long.
// A change within dirty granules goes to the source alone, and waits for
// nothing but an exclusive copy: what the target has there does not count. A
// copy starts when no change overlaps it. A change that comes upon a copy does
// not wait, but makes it stale, so that it will be done again, unless the copy
// is exclusive.
type table struct {
	mu      sync.Mutex
	active  []*span // under way
	waiting []*span // in the order in which they came
	changes int     // those of active that are changes

	trailing int     // those of changes that trail
	trailed  int64   // their bytes
	full     []*span // done on the source, and waiting to trail
	depth    [2]int  // the most changes that did not trail, in this tick and the last

	dirty  bitmap // granules in which the target may differ
	nDirty int64
	marks  *marks // nil without a journal

	capped bool // no change leaves the target behind
	source bool // new changes go to the source alone
	paused bool // new changes wait
	closed bool // new changes belong elsewhere
	hurry  bool // no change waits for the target

	quiet chan struct{} // one slot: changes has become 0
}

// acquire starts s, when nothing stands against it. It returns false if the
// table was closed.
func (t *table) acquire(s *span) bool {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	if t.admit(s, len(t.waiting)) {
		t.mu.Unlock()
		return true
	}
	t.waiting = append(t.waiting, s)
	t.mu.Unlock()
	<-s.wake
	return !s.over
}

// acquireCopy is acquire for a copy, whose wait ends when done is closed.
func (t *table) acquireCopy(s *span, done <-chan struct{}) bool {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return false
	}
	if t.admit(s, len(t.waiting)) {
		t.mu.Unlock()
		return true
	}
	t.waiting = append(t.waiting, s)
	t.mu.Unlock()
	select {
	case <-s.wake:
		return !s.over
	case <-done:
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.Index(t.waiting, s); i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
		t.admitAll()
		return false
	}
	<-s.wake // it was started or sent away at the same time
	if !s.over {
		t.remove(s)
	}
	return false
}

// try starts the copy s if it need not wait.
func (t *table) try(s *span) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.closed && t.admit(s, 0)
}

// admit starts s if neither what is under way nor what waits longer, the first
// k of waiting, stands against it. The caller holds mu.
func (t *table) admit(s *span, k int) bool {
	first, last := s.granules()
	if !s.copies {
		if t.paused || t.marks != nil && !t.marks.touch(s) {
			return false
		}
		s.both = (!s.discards || t.capped) && !t.source && !t.dirty.all(first, last)
	}
	for _, o := range t.active {
		if s.overlaps(o) && (s.copies || o.exclusive || s.both && o.both) {
			return false
		}
	}
	for _, o := range t.waiting[:k] {
		if s.overlaps(o) && (s.copies || o.copies || s.both && (!o.discards || t.capped)) {
			return false
		}
	}
	if !s.copies {
		t.changes++
		t.depth[0] = max(t.depth[0], t.changes-t.trailing)
		for _, o := range t.active {
			if o.copies && s.overlaps(o) {
				o.stale = true
			}
		}
		if !s.both {
			t.soil(s)
		}
	}
	t.active = append(t.active, s)
	return true
}

// soil marks the granules of s dirty. The caller holds mu.
func (t *table) soil(s *span) { t.nDirty += t.dirty.setRange(s.granules()) }

// remove ends s and starts what has waited for it. The caller holds mu.
func (t *table) remove(s *span) {
	for i, o := range t.active {
		if o == s {
			last := len(t.active) - 1
			t.active[i] = t.active[last]
			t.active[last] = nil
			t.active = t.active[:last]
			break
		}
	}
	if !s.copies {
		if t.changes--; t.changes == 0 {
			select {
			case t.quiet <- struct{}{}:
			default:
			}
		}
	}
	t.admitAll()
}

// admitAll starts whatever can start. The caller holds mu.
func (t *table) admitAll() {
	for i := 0; i < len(t.waiting); {
		s := t.waiting[i]
		if !t.admit(s, i) {
			i++
			continue
		}
		t.waiting = append(t.waiting[:i], t.waiting[i+1:]...)
		s.wake <- struct{}{}
	}
}

// release ends s.
func (t *table) release(s *span) {
	t.mu.Lock()
	t.remove(s)
	t.mu.Unlock()
}

// endCopy ends the copy s, which failed unless ok, and reports whether its
// granules are clean now.
func (t *table) endCopy(s *span, ok bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	ok = ok && !s.stale
	if ok {
		t.nDirty -= t.dirty.clearRange(s.granules())
	}
	t.remove(s)
	return ok
}

// sourceDone says that the source has ended its part of s, a change to both
// sides, and returns when s counts as done.
func (t *table) sourceDone(s *span, failed bool) {
	if t.mustWait(s, failed) {
		<-s.wake
	}
}

func (t *table) mustWait(s *span, failed bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.srcDone = true
	if failed {
		t.soil(s) // the sides may differ in it
	}
	switch {
	case s.dstDone:
		t.remove(s)
		return false
	case t.hurry:
		t.pass(s)
		return false
	case t.capped:
		return true
	case t.trailing < max(t.depth[0], t.depth[1]):
		t.trail(s)
		return false
	}
	t.full = append(t.full, s)
	return true
}

// trail lets s count as done before the target is. The caller holds mu.
func (t *table) trail(s *span) {
	s.trails = true
	t.trailing++
	t.trailed += s.end - s.off
}

// pass lets s count as done, and leaves what it has changed to the copier. The
// caller holds mu.
func (t *table) pass(s *span) {
	t.soil(s)
	s.late = true
	if !s.trails {
		t.trail(s)
	}
}

// targetDone says that the target has ended its part of s.
func (t *table) targetDone(s *span, failed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.dstDone = true
	if failed {
		t.soil(s)
	}
	if !s.srcDone {
		return
	}
	if i := slices.Index(t.full, s); i >= 0 {
		t.full = slices.Delete(t.full, i, i+1)
	}
	if s.trails {
		t.trailing--
		t.trailed -= s.end - s.off
		if len(t.full) > 0 {
			next := t.full[0]
			t.full = slices.Delete(t.full, 0, 1)
			t.trail(next)
			next.wake <- struct{}{}
		}
	} else {
		s.wake <- struct{}{}
	}
	t.remove(s)
}

// lapse gives up on targets that are later than ticks calls of it: their
// changes count as done, and their granules as dirty. While some of them are
// outstanding, new changes pass the target by. With all set it waits for none.
func (t *table) lapse(ticks int, all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if all {
		t.hurry = true
	} else {
		t.depth[1], t.depth[0] = t.depth[0], t.changes-t.trailing
	}
	late := false
	for _, s := range t.active {
		if !s.both || s.dstDone || !s.srcDone {
			continue
		}
		if s.ticks++; !s.late && (all || ticks > 0 && s.ticks > ticks) {
			waits := !s.trails
			t.pass(s)
			if waits {
				if i := slices.Index(t.full, s); i >= 0 {
					t.full = slices.Delete(t.full, i, i+1)
				}
				s.wake <- struct{}{}
			}
		}
		late = late || s.late
	}
	t.source = late || t.hurry
}

// mirroring reports whether the target is at a change.
func (t *table) mirroring() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.active, func(s *span) bool { return s.both && !s.dstDone })
}

// pause lets no change start until resume.
func (t *table) pause() {
	t.mu.Lock()
	t.paused = true
	select {
	case <-t.quiet:
	default:
	}
	t.mu.Unlock()
}

func (t *table) resume() {
	t.mu.Lock()
	t.paused = false
	t.admitAll()
	t.mu.Unlock()
}

// still returns how many changes are under way and granules dirty.
func (t *table) still() (changes int, dirty int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changes, t.nDirty
}

// behind returns how many bytes of changes trail on their way to the target.
func (t *table) behind() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trailed
}

// close sends all changes that wait, and all later ones, elsewhere.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, s := range t.waiting {
		s.over = true
		s.wake <- struct{}{}
	}
	t.waiting = nil
}

// nextCopy finds the next dirty bytes from granule at on, at most most bytes,
// that no copy is at. It returns an empty range if there are none.
func (t *table) nextCopy(at, most, size int64) (off, end int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
again:
	g := t.dirty.next(at)
	if g < 0 {
		return 0, 0
	}
	end = t.dirty.run(g, min(g+max(1, most>>granuleShift), (size+granule-1)>>granuleShift))
	for _, o := range t.active {
		if !o.copies {
			continue
		}
		switch first, last := o.granules(); {
		case g >= first && g <= last:
			at = last + 1
			goto again
		case first > g && first < end:
			end = first
		}
	}
	return g << granuleShift, min(end<<granuleShift, size)
}
