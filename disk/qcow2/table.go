package qcow2

import (
	"encoding/binary"
	"errors"
	"sync/atomic"
)

// l2Table is an L2 table in memory. Its entries are read without a lock and
// changed under Image.mu.
type l2Table struct {
	index int   // in the L1 table
	off   int64 // in the container
	e     []atomic.Uint64
	bad   map[int64]error // entries that must not be followed
	used  atomic.Bool     // since the clock's hand passed

	// Guarded by Image.mu.
	dirty    uint64 // parts that differ from the container
	fresh    bool   // no durable L1 entry refers to it yet
	flushing bool   // parts are on their way to the container
	pins     int    // allocations that will change it
}

// table returns L2 table i, read if needed, or nil if there is none.
func (im *Image) table(i int64) (*l2Table, error) {
	if t := im.tables[i].Load(); t != nil {
		if !t.used.Load() {
			t.used.Store(true)
		}
		return t, nil
	}
	if im.l1[i].Load() == 0 {
		// Not made before it was looked for.
		return im.tables[i].Load(), nil
	}
	return im.loadTable(i)
}

// loadTable reads L2 table i. Loads of different tables do not wait for each
// other.
func (im *Image) loadTable(i int64) (*l2Table, error) {
	l := &im.loads[i%int64(len(im.loads))]
	l.Lock()
	defer l.Unlock()
	if t := im.tables[i].Load(); t != nil {
		return t, nil
	}
	// A table that is not in memory does not move.
	off := int64(im.l1[i].Load() & offsetMask)
	raw := make([]byte, im.cluster)
	if err := readFull(im.file, raw, off); err != nil {
		return nil, err
	}
	t := &l2Table{index: int(i), off: off, e: make([]atomic.Uint64, im.l2Len)}
	t.used.Store(true)
	im.mu.Lock()
	defer im.mu.Unlock()
	for j := range t.e {
		e := binary.BigEndian.Uint64(raw[j*entrySize:])
		if e == 0 {
			continue
		}
		t.e[j].Store(e)
		if err := im.checkEntry(e, off+int64(j)*entrySize); err != nil {
			if t.bad == nil {
				t.bad = map[int64]error{}
			}
			t.bad[int64(j)] = err
		}
	}
	im.keep(t)
	return t, nil
}

// checkEntry checks an L2 entry found at pos. The caller holds mu.
func (im *Image) checkEntry(e uint64, pos int64) error {
	if e&flagCompressed != 0 {
		off, _ := im.compressed(e)
		if e&flagCopied != 0 {
			return corrupt(pos, "L2 entry %#x: compressed and with the copied flag", e)
		}
		if off >= im.file.Size() {
			return corrupt(pos, "L2 entry %#x points to %d, past the end of the file", e, off)
		}
		// The last of the data may lie before what the entry says.
		first, n := im.hostClusters(e)
		for c := first; c < first+n && c<<im.bits < im.file.Size(); c++ {
			if im.meta.has(c) {
				return corrupt(pos, "L2 entry %#x points to %d, where a table is", e, off)
			}
		}
		return nil
	}
	off := int64(e & offsetMask)
	switch {
	case e&reservedL2 != 0 || im.v2 && e&flagZero != 0:
		return corrupt(pos, "L2 entry %#x has reserved bits", e)
	case off&(im.cluster-1) != 0:
		return corrupt(pos, "L2 entry %#x points to %d, which is no cluster", e, off)
	case off == 0 && e&flagZero != 0:
		return nil
	case off == 0:
		return corrupt(pos, "L2 entry %#x points to the header", e)
	case off >= im.up(im.file.Size()):
		return corrupt(pos, "L2 entry %#x points to %d, past the end of the file", e, off)
	case im.meta.has(off >> im.bits):
		return corrupt(pos, "L2 entry %#x points to %d, where a table is", e, off)
	}
	return nil
}

// keep makes t the table for its index, and drops another one if there are too
// many. The caller holds mu.
func (im *Image) keep(t *l2Table) {
	if old := im.tables[t.index].Swap(t); old != nil {
		for k, c := range im.cached {
			if c == old {
				im.cached[k] = t
				return
			}
		}
	}
	im.cached = append(im.cached, t)
	for range 2 * len(im.cached) {
		if len(im.cached) <= im.limit {
			return
		}
		im.hand %= len(im.cached)
		c := im.cached[im.hand]
		switch {
		case c == t || c.fresh || c.flushing || c.dirty != 0 || c.pins > 0:
			im.hand++
		case c.used.Swap(false):
			im.hand++
		default:
			im.tables[c.index].Store(nil)
			last := len(im.cached) - 1
			im.cached[im.hand], im.cached[last] = im.cached[last], nil
			im.cached = im.cached[:last]
		}
	}
}

// setEntry changes entry j of t. The caller holds mu.
func (im *Image) setEntry(t *l2Table, j int64, e uint64) {
	t.e[j].Store(e)
	t.dirty |= im.dirtyBit(j * entrySize)
	im.changed = true
}

// writableTable returns L2 table i with mu held, after making it if there is
// none and copying it if a snapshot shares it.
func (im *Image) writableTable(i int64) (*l2Table, error) {
	for {
		t, err := im.table(i)
		if err != nil {
			return nil, err
		}
		im.mu.Lock()
		if im.tables[i].Load() != t || t == nil && im.l1[i].Load() != 0 {
			im.mu.Unlock() // dropped, or made, or made and dropped meanwhile
			continue
		}
		if t != nil && im.l1[i].Load()&flagCopied != 0 {
			return t, nil
		}
		c, _, _, err := im.alloc.take(1)
		if err != nil {
			im.mu.Unlock()
			return nil, err
		}
		n := &l2Table{index: int(i), off: c << im.bits, e: make([]atomic.Uint64, im.l2Len), fresh: true}
		n.used.Store(true)
		if t != nil {
			for j := range n.e {
				n.e[j].Store(t.e[j].Load())
			}
			n.bad = t.bad
			// As an L2 entry: one reference to one cluster.
			im.freed = append(im.freed, uint64(t.off))
		}
		im.meta.set(c, 1, true)
		im.keep(n)
		im.l1[i].Store(uint64(n.off) | flagCopied)
		im.l1Dirty[i*entrySize/sectorSize] = true
		im.changed = true
		return n, nil
	}
}

// mapping says where a part of the disk is.
type mapping struct {
	kind  kind
	entry uint64 // the L2 entry of its first cluster
	host  int64  // offset in the container, for data
	n     int64  // bytes
}

// lookup maps at most n bytes at off, as far as they are of one kind and, if
// data, in one piece. With cached set it fails with errNotCached rather than
// read a table.
func (im *Image) lookup(off, n int64, cached bool) (mapping, error) {
	i := off >> im.l1Shift
	n = min(n, (i+1)<<im.l1Shift-off)
	t := im.tables[i].Load()
	if t == nil {
		if cached && im.l1[i].Load() != 0 {
			return mapping{}, errNotCached
		}
		var err error
		if t, err = im.table(i); err != nil {
			return mapping{}, err
		}
		if t == nil {
			return mapping{n: n}, nil
		}
	} else if !t.used.Load() {
		t.used.Store(true)
	}
	j := off >> im.bits & (im.l2Len - 1)
	in := off & (im.cluster - 1)
	e := t.e[j].Load()
	m := mapping{kind: kindOf(e), entry: e, n: min(n, im.cluster-in)}
	if t.bad != nil {
		if err := t.bad[j]; err != nil {
			return m, err
		}
		n = m.n
	}
	switch m.kind {
	case kindCompressed:
		return m, nil
	case kindData, kindShared:
		m.host = int64(e&offsetMask) + in
	}
	for m.n < n {
		j++
		next := t.e[j].Load()
		if kindOf(next) != m.kind || m.host != 0 && int64(next&offsetMask) != m.host+m.n {
			break
		}
		m.n = min(n, m.n+im.cluster)
	}
	return m, nil
}

var errNotCached = errors.New("table not in memory")
