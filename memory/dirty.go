package memory

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// DirtySource is something that writes guest memory on its own and knows
// which pages: an engine with its log of guest writes. A source is called by
// one goroutine at a time and must not call back into the Memory's
// dirty-tracking, Watch, Hold, AddRegion or Close.
//
// A region added while tracking is on is logged by the source from the moment
// its watcher maps it.
type DirtySource interface {
	// StartDirty begins to log, with no page dirty. StopDirty ends it and
	// forgets the log.
	StartDirty() error
	StopDirty() error
	// HarvestDirty takes the pages of r written since the last call out of
	// the source's log and ORs them into bitmap: bit i%64 of word i/64 is
	// the page at r.Base + i*PageSize. Bits that are set already stay set.
	HarvestDirty(r Region, bitmap []uint64) error
}

// AddDirtySource merges s into [Memory.CollectDirty]. While tracking is on, s
// is started at once, and its error is returned.
func (m *Memory) AddDirtySource(s DirtySource) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if m.tracking.Load() {
		if err := s.StartDirty(); err != nil {
			return fmt.Errorf("start dirty tracking: %w", err)
		}
	}
	m.sources = append(m.sources, s)
	return nil
}

// RemoveDirtySource forgets s without calling it. What s has logged since the
// last CollectDirty is lost; collect first if it matters.
func (m *Memory) RemoveDirtySource(s DirtySource) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := slices.Index(m.sources, s); i >= 0 {
		m.sources = slices.Delete(m.sources, i, i+1)
	}
}

// StartDirty begins to track written pages, with none dirty: what was written
// before it returns may or may not be reported, everything later is. Tracking
// has one user at a time; a second StartDirty fails with [ErrDirtyActive].
func (m *Memory) StartDirty() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if m.tracking.Load() {
		return ErrDirtyActive
	}
	list := m.list()
	for i := range list {
		list[i].startLog()
	}
	m.tracking.Store(true)
	barrier()
	for i, s := range m.sources {
		if err := s.StartDirty(); err != nil {
			errs := []error{err}
			for _, t := range m.sources[:i] {
				errs = append(errs, t.StopDirty())
			}
			m.stopLogs()
			return fmt.Errorf("start dirty tracking: %w", errors.Join(errs...))
		}
	}
	return nil
}

// StopDirty ends tracking and frees the logs. It does nothing while tracking
// is off.
func (m *Memory) StopDirty() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || !m.tracking.Load() {
		return nil
	}
	m.stopLogs()
	var errs []error
	for _, s := range m.sources {
		errs = append(errs, s.StopDirty())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop dirty tracking: %w", err)
	}
	return nil
}

// Tracking reports whether dirty tracking is on.
func (m *Memory) Tracking() bool { return m.tracking.Load() }

func (r *region) startLog() {
	words := make([]uint64, (r.Size/PageSize+63)/64)
	r.log.Store(&words)
}

func (m *Memory) stopLogs() {
	m.tracking.Store(false)
	list := m.list()
	for i := range list {
		list[i].log.Store(nil)
	}
}

// MarkDirty says that n bytes at gpa have been written through a host slice.
// Call it after the write: the order is what makes a page that is being
// collected show up in the next round. Parts outside guest memory are
// ignored.
func (m *Memory) MarkDirty(gpa, n uint64) {
	if n == 0 {
		return
	}
	if w := m.writes.Load(); w != nil {
		(*w)(gpa, n)
	}
	if m.tracking.Load() {
		m.markDirty(gpa, n)
	}
}

// WatchWrites has f told of every write by the VMM, when it is done: of what
// is passed to [Memory.MarkDirty], which Write and its like do themselves. nil
// ends it. There is one watcher at a time: an engine that keeps a translation of
// guest code. f runs on the goroutine that wrote.
func (m *Memory) WatchWrites(f func(gpa, n uint64)) {
	if f == nil {
		m.writes.Store(nil)
		return
	}
	m.writes.Store(&f)
}

func (m *Memory) markDirty(gpa, n uint64) {
	list := m.list()
	for i := range list {
		r := &list[i]
		if gpa < r.Base && r.Base-gpa >= n || gpa >= r.End() {
			continue
		}
		log := r.log.Load()
		if log == nil {
			continue
		}
		off, left := uint64(0), n
		if gpa >= r.Base {
			off = gpa - r.Base
		} else {
			left -= r.Base - gpa
		}
		left = min(left, r.Size-off)
		setBits(*log, off/PageSize, (off+left-1)/PageSize)
	}
}

// setBits atomically sets bits first to last. It does not look before it
// ORs: the locked instruction is also what keeps the data written earlier
// from lingering in the store buffer while a collector takes the bit.
func setBits(words []uint64, first, last uint64) {
	for w := first / 64; w <= last/64; w++ {
		mask := ^uint64(0)
		if w == first/64 {
			mask &= ^uint64(0) << (first % 64)
		}
		if w == last/64 {
			mask &= ^uint64(0) >> (63 - last%64)
		}
		atomic.OrUint64(&words[w], mask)
	}
}

// MarkBitmap marks every page of b dirty again, for pages that were collected
// and could not be sent. While tracking is off it does nothing.
func (m *Memory) MarkBitmap(b *Bitmap) {
	for gpa, n := range b.Runs() {
		m.MarkDirty(gpa, n)
	}
}

// CollectDirty adds to b the pages written since StartDirty or the last
// CollectDirty, by the VMM and by every [DirtySource], and starts the next
// round. b is never cleared here: on an error it holds what was taken so far,
// and a later call goes on from there. While tracking is off it adds nothing.
//
// A page is taken before its contents are read, so whoever copies the pages
// of b afterwards sees either the newest contents or the page in the next
// round.
func (m *Memory) CollectDirty(b *Bitmap) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return ErrClosed
	}
	if !m.tracking.Load() {
		return nil
	}
	list := m.list()
	for i := range list {
		r := &list[i]
		words := b.segment(r.Base, r.Size)
		if log := r.log.Load(); log != nil {
			takeBits(words, *log)
		}
		for _, s := range m.sources {
			err := s.HarvestDirty(r.Region, words)
			// The last word may reach past the region.
			if tail := r.Size / PageSize % 64; tail != 0 {
				words[len(words)-1] &= 1<<tail - 1
			}
			if err != nil {
				return fmt.Errorf("collect dirty pages of the region at %#x: %w", r.Base, err)
			}
		}
	}
	return nil
}

// takeBits moves the bits of log into words.
func takeBits(words, log []uint64) {
	for i := range log {
		if atomic.LoadUint64(&log[i]) != 0 {
			words[i] |= atomic.SwapUint64(&log[i], 0)
		}
	}
}
