package qcow2

import (
	"encoding/binary"
	"fmt"

	"github.com/vmkit-go/vmkit/disk"
)

// refcounts are the refcount table and the blocks in memory. All is guarded by
// Image.mu.
type refcounts struct {
	im    *Image
	table []int64 // offsets of blocks; 0: none, all clusters free
	cache map[int64]*refBlock
	order uint // log2 of an entry's bits
	per   int64
	max   uint64
}

// refBlock is a refcount block in memory, as it is in the container.
type refBlock struct {
	index    int64
	off      int64
	data     []byte
	dirty    uint64
	fresh    bool // no durable entry of the refcount table refers to it
	flushing bool
}

// maxRefCache is how much memory clean refcount blocks take, in bytes.
const maxRefCache = 8 << 20

func (r *refcounts) init(im *Image) {
	r.im, r.order, r.cache = im, im.hdr.refOrder, map[int64]*refBlock{}
	r.per = im.cluster * 8 >> r.order
	r.max = 1<<(1<<r.order) - 1
	if r.order == 6 {
		r.max = 1<<64 - 1
	}
}

// block returns block i, read if needed, or nil if there is none.
func (r *refcounts) block(i int64) (*refBlock, error) {
	if b := r.cache[i]; b != nil {
		return b, nil
	}
	if i >= int64(len(r.table)) || r.table[i] == 0 {
		return nil, nil
	}
	b := &refBlock{index: i, off: r.table[i], data: make([]byte, r.im.cluster)}
	if err := readFull(r.im.file, b.data, b.off); err != nil {
		return nil, err
	}
	r.shrink()
	r.cache[i] = b
	return b, nil
}

// shrink drops blocks that need not be in memory, if there are many.
func (r *refcounts) shrink() {
	if len(r.cache)+1 <= max(4, maxRefCache>>r.im.bits) {
		return
	}
	for i, b := range r.cache {
		if b.dirty == 0 && !b.fresh && !b.flushing {
			delete(r.cache, i)
		}
	}
}

// value reads entry k of block data.
func (r *refcounts) value(data []byte, k int64) uint64 {
	switch r.order {
	case 3:
		return uint64(data[k])
	case 4:
		return uint64(binary.BigEndian.Uint16(data[2*k:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(data[4*k:]))
	case 6:
		return binary.BigEndian.Uint64(data[8*k:])
	}
	// Less than a byte: the first entry is in the lowest bits.
	width := uint(1) << r.order
	return uint64(data[k<<r.order/8]) >> (uint(k) * width % 8) & (1<<width - 1)
}

// put writes entry k of block data.
func (r *refcounts) put(data []byte, k int64, v uint64) {
	switch r.order {
	case 3:
		data[k] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(data[2*k:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(data[4*k:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(data[8*k:], v)
	default:
		width := uint(1) << r.order
		shift := uint(k) * width % 8
		p := &data[k<<r.order/8]
		*p = *p&^byte((1<<width-1)<<shift) | byte(v<<shift)
	}
}

// get returns the refcount of a cluster.
func (r *refcounts) get(c int64) (uint64, error) {
	b, err := r.block(c / r.per)
	if b == nil || err != nil {
		return 0, err
	}
	return r.value(b.data, c%r.per), nil
}

// set changes the refcount of a cluster whose block exists.
func (r *refcounts) set(c int64, v uint64) error {
	b, err := r.block(c / r.per)
	if err != nil {
		return err
	}
	if b == nil {
		return corrupt(c<<r.im.bits, "cluster in use that no refcount block covers")
	}
	r.setIn(b, c, v)
	return nil
}

func (r *refcounts) setIn(b *refBlock, c int64, v uint64) {
	k := c % r.per
	r.put(b.data, k, v)
	b.dirty |= r.im.dirtyBit(k << r.order / 8)
	r.im.changed = true
}

// drop takes one from the refcount of a cluster and returns what is left.
func (r *refcounts) drop(c int64) (uint64, error) {
	v, err := r.get(c)
	if err != nil {
		return 0, err
	}
	if v == 0 {
		return 0, corrupt(c<<r.im.bits, "cluster in use with refcount 0")
	}
	return v - 1, r.set(c, v-1)
}

// cover makes sure that block i exists. A new one lies in the first cluster
// that it covers: all clusters that only a missing block covers are free.
func (r *refcounts) cover(i int64) (*refBlock, error) {
	b, err := r.block(i)
	if b != nil || err != nil {
		return b, err
	}
	if i >= int64(len(r.table)) {
		if err := r.growTable(i); err != nil {
			return nil, err
		}
		return r.block(i)
	}
	if err := r.im.alloc.extend((i*r.per + 1) << r.im.bits); err != nil {
		return nil, err
	}
	return r.newBlock(i, i*r.per), nil
}

// newBlock makes block i in cluster c, which it covers.
func (r *refcounts) newBlock(i, c int64) *refBlock {
	b := &refBlock{index: i, off: c << r.im.bits, data: make([]byte, r.im.cluster), fresh: true, dirty: r.im.allDirty()}
	if c/r.per == i {
		r.setIn(b, c, 1)
	}
	r.cache[i], r.table[i] = b, b.off
	r.im.meta.set(c, 1, true)
	r.im.alloc.used(c, 1)
	return b
}

// growTable moves the refcount table to where it has room for block i. All of
// the new blocks and the new table lie behind what the old table covers, so
// nothing else changes, and one write to the header makes them valid.
func (r *refcounts) growTable(i int64) error {
	im := r.im
	first := int64(len(r.table)) * r.per
	want := max(2*int64(len(r.table)), i+1)
	blocks, clusters := int64(0), int64(0)
	for {
		clusters = im.clusters(want * entrySize)
		// As many blocks as cover themselves and the table.
		for blocks = 1; blocks*r.per < blocks+clusters; blocks++ {
		}
		if need := int64(len(r.table)) + blocks; need <= clusters*im.cluster/entrySize {
			break
		}
		want *= 2
	}
	if clusters<<im.bits > maxRefTableBytes {
		return fmt.Errorf("%w: the refcount table cannot grow beyond %d bytes", disk.ErrNoSpace, maxRefTableBytes)
	}
	if err := im.alloc.extend((first + blocks + clusters) << im.bits); err != nil {
		return err
	}
	old, oldClusters := im.hdr.refTable, im.hdr.refTableLen
	oldLen := int64(len(r.table))
	table := make([]int64, clusters*im.cluster/entrySize)
	copy(table, r.table)
	r.table = table
	undo := func(err error) error {
		r.table = table[:oldLen:oldLen]
		for k := range blocks {
			delete(r.cache, oldLen+k)
			im.meta.set(first+k, 1, false)
		}
		return err
	}
	for k := range blocks {
		r.newBlock(oldLen+k, first+k)
	}
	for c := first; c < first+blocks+clusters; c++ {
		r.setIn(r.cache[c/r.per], c, 1)
	}
	for k := range blocks {
		b := r.cache[oldLen+k]
		if _, err := im.file.WriteAt(b.data, b.off); err != nil {
			return undo(err)
		}
	}
	raw := make([]byte, clusters<<im.bits)
	for k, off := range table {
		// A block of the old range that is not durable is entered by the
		// flush that writes it.
		if b := r.cache[int64(k)]; b == nil || !b.fresh || int64(k) >= oldLen {
			binary.BigEndian.PutUint64(raw[k*entrySize:], uint64(off))
		}
	}
	at := (first + blocks) << im.bits
	if _, err := im.file.WriteAt(raw, at); err != nil {
		return undo(err)
	}
	if err := im.file.Flush(); err != nil {
		return undo(err)
	}
	im.hdr.refTable, im.hdr.refTableLen = at, clusters
	if err := im.hdr.write(im.file); err != nil {
		im.hdr.refTable, im.hdr.refTableLen = old, oldClusters
		return undo(err)
	}
	if err := im.file.Flush(); err != nil {
		// Which table counts after a crash is not known: both must stay.
		return err
	}
	for k := range blocks {
		b := r.cache[oldLen+k]
		b.fresh, b.dirty = false, 0
	}
	im.alloc.used(first+blocks, clusters)
	im.meta.set(first+blocks, clusters, true)
	im.meta.set(old>>im.bits, oldClusters, false)
	for c := old >> im.bits; c < old>>im.bits+oldClusters; c++ {
		left, err := r.drop(c)
		if err != nil {
			return err
		}
		if left == 0 {
			im.alloc.freed(c)
		}
	}
	return nil
}

// writeEntry enters a fresh block in the refcount table.
func (r *refcounts) writeEntry(b *refBlock) error {
	var e [entrySize]byte
	binary.BigEndian.PutUint64(e[:], uint64(b.off))
	_, err := r.im.file.WriteAt(e[:], r.im.hdr.refTable+b.index*entrySize)
	return err
}
