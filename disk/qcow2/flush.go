package qcow2

import (
	"encoding/binary"
	"os"
	"slices"
	"sync"
	"sync/atomic"
)

// group runs a function for callers who need a run that starts after they
// called; those who wait share one.
type group struct {
	mu       sync.Mutex
	cond     sync.Cond
	started  uint64 // runs
	finished uint64
	err      error // of the last run finished
	running  bool
}

func (g *group) init() { g.cond.L = &g.mu }

func (g *group) do(fn func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for want := g.started + 1; ; g.cond.Wait() {
		if g.finished >= want {
			return g.err
		}
		if g.running {
			continue
		}
		g.running = true
		g.started++
		g.mu.Unlock()
		err := fn()
		g.mu.Lock()
		g.running = false
		g.finished, g.err = g.started, err
		g.cond.Broadcast()
		return err
	}
}

// Flush implements [disk.Backend]. Where tables have changed it flushes the
// container twice: what new entries refer to must be durable before them.
func (im *Image) Flush() error {
	im.gate.RLock()
	defer im.gate.RUnlock()
	err := error(os.ErrClosed)
	if !im.closed.Load() {
		if im.info.ReadOnly {
			return nil
		}
		err = im.sync.do(func() error { return im.flushTables(false) })
	}
	if err != nil {
		return im.fail("flush", 0, 0, err)
	}
	return nil
}

// relieve flushes if much is waiting for it: a guest that never does must not
// fill the host's memory or the container.
func (im *Image) relieve() error {
	im.mu.Lock()
	full := len(im.cached) > 2*im.limit || len(im.freed) > maxFreed
	im.mu.Unlock()
	if !full {
		return nil
	}
	im.gate.RLock()
	defer im.gate.RUnlock()
	if im.closed.Load() {
		return nil // Close has flushed
	}
	return im.sync.do(func() error { return im.flushTables(false) })
}

// maxFreed is how many freed clusters wait for a flush at most.
const maxFreed = 4096

// part is a piece of a table on its way to the container.
type part struct {
	off int64
	p   []byte
}

// work is what one flush writes: the state of the tables at one moment.
type work struct {
	first  []part      // what others refer to: refcounts and new L2 tables
	blocks []*refBlock // of first, that the refcount table does not know yet
	second []part      // entries in L2 tables and the L1 table

	freed []uint64

	// To be put back if the flush fails.
	refMask map[*refBlock]uint64
	l2Mask  map[*l2Table]uint64
	l1      []int64
}

// flushTables makes durable all that returned before: the data, and the tables
// in an order that leaves a consistent image at any moment. With all set,
// refcounts are written although they are lazy. One call runs at a time.
func (im *Image) flushTables(all bool) error {
	im.mu.Lock()
	if im.changed && !im.marked && !im.v2 {
		if err := im.mark(); err != nil {
			im.mu.Unlock()
			return err
		}
	}
	w := im.collect(all)
	im.mu.Unlock()
	err := im.writeTables(w)
	im.mu.Lock()
	for b := range w.refMask {
		b.flushing = false
		if err != nil {
			b.dirty |= w.refMask[b]
		}
	}
	for t := range w.l2Mask {
		t.flushing = false
		if err != nil {
			t.dirty |= w.l2Mask[t]
		} else {
			t.fresh = false
		}
	}
	if err != nil {
		for _, s := range w.l1 {
			im.l1Dirty[s] = true
		}
		im.freed = append(w.freed, im.freed...)
	}
	im.mu.Unlock()
	if err != nil {
		return err
	}
	if len(w.freed) > 0 {
		im.reclaiming = append(im.reclaiming, retired{im.requests.now.Load(), w.freed})
	}
	return im.reclaim()
}

// mark sets the dirty bit. The caller holds mu.
func (im *Image) mark() error {
	im.hdr.incompat |= incompatDirty
	err := im.hdr.write(im.file)
	if err == nil {
		err = im.file.Flush()
	}
	im.marked = err == nil
	return err
}

// ruin notes that the image contradicts itself: it is marked corrupt, and from
// now on only read.
func (im *Image) ruin(err error) {
	if !im.ruined.CompareAndSwap(nil, &err) || im.v2 {
		return
	}
	im.hdr.incompat |= incompatCorrupt
	if werr := im.hdr.write(im.file); werr == nil {
		_ = im.file.Flush() // changes fail anyhow, with err
	}
}

// lazy reports whether refcounts are written at the end only. The dirty bit
// makes whoever opens the image after a crash compute them.
func (im *Image) lazy() bool { return im.marked && im.hdr.compat&compatLazy != 0 }

// collect takes the state of all that changed. The caller holds mu.
func (im *Image) collect(all bool) *work {
	w := &work{refMask: map[*refBlock]uint64{}, l2Mask: map[*l2Table]uint64{}, freed: im.freed}
	im.freed = nil
	if all || !im.lazy() {
		for _, b := range im.refs.cache {
			if b.dirty == 0 {
				continue
			}
			im.dirtyRuns(b.dirty, func(off, n int64) {
				w.first = append(w.first, part{b.off + off, slices.Clone(b.data[off : off+n])})
			})
			if b.fresh {
				w.blocks = append(w.blocks, b)
			}
			w.refMask[b], b.dirty, b.flushing = b.dirty, 0, true
		}
	}
	for _, t := range im.cached {
		switch {
		case t.fresh:
			w.first = append(w.first, part{t.off, im.encodeEntries(t.e, 0, im.cluster)})
		case t.dirty != 0:
			im.dirtyRuns(t.dirty, func(off, n int64) {
				w.second = append(w.second, part{t.off + off, im.encodeEntries(t.e, off, n)})
			})
		default:
			continue
		}
		w.l2Mask[t], t.dirty, t.flushing = t.dirty, 0, true
	}
	for s := range im.l1Dirty {
		off := s * sectorSize
		n := min(sectorSize, int64(len(im.l1))*entrySize-off)
		w.second = append(w.second, part{im.hdr.l1Off + off, im.encodeEntries(im.l1, off, n)})
		w.l1 = append(w.l1, s)
	}
	clear(im.l1Dirty)
	return w
}

// unsaved reports whether tables differ from what is in the container.
func (im *Image) unsaved() bool {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, b := range im.refs.cache {
		if b.dirty != 0 {
			return true
		}
	}
	for _, t := range im.cached {
		if t.dirty != 0 || t.fresh {
			return true
		}
	}
	return len(im.l1Dirty) > 0 || len(im.freed) > 0
}

// writeTables writes w in order.
func (im *Image) writeTables(w *work) error {
	for _, p := range w.first {
		if _, err := im.file.WriteAt(p.p, p.off); err != nil {
			return err
		}
	}
	if len(w.blocks) > 0 {
		// A block must be there before the table refers to it.
		if err := im.file.Flush(); err != nil {
			return err
		}
		im.mu.Lock()
		for _, b := range w.blocks {
			if err := im.refs.writeEntry(b); err != nil {
				im.mu.Unlock()
				return err
			}
			// From now on a move of the table takes this entry along.
			b.fresh = false
		}
		im.mu.Unlock()
	}
	if err := im.file.Flush(); err != nil || len(w.second) == 0 {
		return err
	}
	for _, p := range w.second {
		if _, err := im.file.WriteAt(p.p, p.off); err != nil {
			return err
		}
	}
	return im.file.Flush()
}

// retired are L2 entries that no durable table holds since an epoch.
type retired struct {
	epoch   uint64
	entries []uint64
}

// reclaim gives back what no request uses any more. One call runs at a time.
func (im *Image) reclaim() error {
	if len(im.reclaiming) == 0 {
		return nil
	}
	im.requests.advance()
	now := im.requests.advance()
	for len(im.reclaiming) > 0 && im.reclaiming[0].epoch+2 <= now {
		if err := im.giveBack(im.reclaiming[0].entries); err != nil {
			return err
		}
		im.reclaiming = im.reclaiming[1:]
	}
	return nil
}

// giveBack drops the references that entries were. Clusters that are free
// then lose their content first, while nobody else can have them.
func (im *Image) giveBack(entries []uint64) error {
	im.mu.Lock()
	refs := map[int64]uint64{}
	for _, e := range entries {
		first, n := im.hostClusters(e)
		for c := first; c < first+n; c++ {
			refs[c]++
		}
	}
	var free []int64
	for c, n := range refs {
		v, err := im.refs.get(c)
		if err == nil && v < n {
			err = corrupt(c<<im.bits, "cluster with refcount %d in use %d times", v, n)
			im.ruin(err)
		}
		if err != nil {
			im.mu.Unlock()
			return err
		}
		if v == n {
			free = append(free, c)
		}
	}
	im.mu.Unlock()
	slices.Sort(free)
	size := im.file.Size()
	for i := 0; i < len(free); {
		k := i + 1
		for k < len(free) && free[k] == free[k-1]+1 {
			k++
		}
		off := free[i] << im.bits
		if n := min(int64(k-i)<<im.bits, size-off); n > 0 {
			// A hint: what it cannot do does no harm.
			_ = im.file.Discard(off, n)
		}
		i = k
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	for c, n := range refs {
		for ; n > 0; n-- {
			left, err := im.refs.drop(c)
			if err != nil {
				return err
			}
			if left > 0 {
				continue
			}
			if im.meta.has(c) {
				im.meta.set(c, 1, false)
			}
			if c == im.blob.off>>im.bits {
				im.blob.off = 0
			}
			im.alloc.freed(c)
		}
	}
	return nil
}

// encodeEntries is n bytes at off of a table.
func (im *Image) encodeEntries(e []atomic.Uint64, off, n int64) []byte {
	p := make([]byte, n)
	for k := range n / entrySize {
		binary.BigEndian.PutUint64(p[k*entrySize:], e[off/entrySize+k].Load())
	}
	return p
}
