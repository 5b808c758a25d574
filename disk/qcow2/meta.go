package qcow2

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
)

// metaClusters knows which of the container's clusters hold tables, so that
// no entry of an image, damaged or hostile, makes a guest's write land there.
type metaClusters struct {
	sorted  []int64 // as of Open
	changes map[int64]bool
}

func (m *metaClusters) has(cluster int64) bool {
	if v, ok := m.changes[cluster]; ok {
		return v
	}
	_, ok := slices.BinarySearch(m.sorted, cluster)
	return ok
}

// set notes that n clusters from first on hold tables now, or no longer do.
func (m *metaClusters) set(first, n int64, table bool) {
	for c := first; c < first+n; c++ {
		m.changes[c] = table
	}
}

// owner is one cluster and the table that lies in it.
type owner struct {
	cluster int64
	what    string // with a verb for index
	index   int
}

func (o owner) String() string { return fmt.Sprintf(o.what, o.index) }

// load reads the L1 and the refcount table, checks where all tables lie, and
// that no two lie in one place.
func (m *metaClusters) load(im *Image, refcounts bool) error {
	m.changes = map[int64]bool{}
	h := im.hdr
	owners := []owner{{0, "the header%.0d", 0}}
	add := func(off, n int64, what string, index int) {
		for c := off >> im.bits; n > 0 && c < (off+n+im.cluster-1)>>im.bits; c++ {
			owners = append(owners, owner{c, what, index})
		}
	}
	// L1 table.
	if need := im.l1Len(h.size); h.l1Len < need {
		return corrupt(hdrL1Len, "L1 table of %d entries for a disk that needs %d", h.l1Len, need)
	}
	raw, err := im.readTable(h.l1Off, h.l1Len*entrySize, maxL1Bytes, hdrL1Off, "L1 table")
	if err != nil {
		return err
	}
	add(h.l1Off, h.l1Len*entrySize, "the L1 table%.0d", 0)
	im.l1 = make([]atomic.Uint64, h.l1Len)
	for i := range im.l1 {
		e := binary.BigEndian.Uint64(raw[i*entrySize:])
		if e == 0 {
			continue
		}
		off := int64(e & offsetMask)
		if err := im.checkTable(off, e&reservedL1, h.l1Off+int64(i)*entrySize, "L1 entry", i, e); err != nil {
			return err
		}
		im.l1[i].Store(e)
		add(off, 1, "L2 table %d", i)
	}
	// Refcounts. A reader has no need of them.
	if refcounts {
		if h.refTableLen == 0 || h.refTableLen > maxRefTableBytes>>im.bits {
			return corrupt(hdrRefTableLen, "refcount table of %d clusters", h.refTableLen)
		}
		raw, err = im.readTable(h.refTable, h.refTableLen<<im.bits, maxRefTableBytes, hdrRefTable, "refcount table")
		if err != nil {
			return err
		}
		add(h.refTable, h.refTableLen<<im.bits, "the refcount table%.0d", 0)
		im.refs.table = make([]int64, len(raw)/entrySize)
		for i := range im.refs.table {
			e := binary.BigEndian.Uint64(raw[i*entrySize:])
			if e == 0 {
				continue
			}
			off := int64(e & offsetMask)
			if err := im.checkTable(off, e&^offsetMask, h.refTable+int64(i)*entrySize, "refcount table entry", i, e); err != nil {
				return err
			}
			im.refs.table[i] = off
			add(off, 1, "refcount block %d", i)
		}
	}
	snaps, err := im.readSnapshots()
	if err != nil {
		return err
	}
	for i, s := range snaps.list {
		add(s.l1Off, s.l1Len*entrySize, "the L1 table of snapshot %d", i)
	}
	add(h.snapshotOff, snaps.size, "the snapshot table%.0d", 0)

	slices.SortFunc(owners, func(a, b owner) int { return cmp.Compare(a.cluster, b.cluster) })
	m.sorted = make([]int64, 0, len(owners))
	for i, o := range owners {
		if i > 0 && owners[i-1].cluster == o.cluster {
			return corrupt(o.cluster<<im.bits, "%v and %v are in one place", owners[i-1], o)
		}
		m.sorted = append(m.sorted, o.cluster)
	}
	return nil
}

// readTable reads n bytes at off, of a table that the header names in field.
func (im *Image) readTable(off, n, most, field int64, what string) ([]byte, error) {
	switch {
	case n > most:
		return nil, corrupt(field, "%s of %d bytes, more than %d", what, n, most)
	case n == 0:
		return nil, nil
	case off == 0 || off&(im.cluster-1) != 0:
		return nil, corrupt(field, "%s at %d, which is no cluster for it", what, off)
	case off > im.file.Size()-n:
		return nil, corrupt(field, "%s of %d bytes at %d, past the end of the file", what, n, off)
	}
	p := make([]byte, n)
	return p, readFull(im.file, p, off)
}

// checkTable checks where an entry at pos of the L1 or refcount table points.
func (im *Image) checkTable(off int64, reserved uint64, pos int64, what string, i int, e uint64) error {
	switch {
	case reserved != 0:
		return corrupt(pos, "%s %d is %#x, with reserved bits", what, i, e)
	case off == 0 || off&(im.cluster-1) != 0:
		return corrupt(pos, "%s %d points to %d, which is no cluster for a table", what, i, off)
	case off > im.file.Size()-im.cluster:
		return corrupt(pos, "%s %d points to %d, past the end of the file", what, i, off)
	}
	return nil
}
