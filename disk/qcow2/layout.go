package qcow2

import "math/bits"

// Flags and fields of L1 and L2 entries (qcow2 specification, "Cluster
// mapping").
const (
	flagCopied     = 1 << 63 // refcount is exactly one: may be written in place
	flagCompressed = 1 << 62
	flagZero       = 1 // version 3: reads as zeroes, whatever the offset is

	offsetMask   = 1<<56 - 1<<9
	reservedL1   = 1<<63 - 1<<56 | 1<<9 - 1
	reservedL2   = 1<<62 - 1<<56 | 1<<9 - 2
	maxHost      = 1 << 56 // container offsets lie below
	sectorSize   = 512
	entrySize    = 8
	minClusterLg = 9
	maxClusterLg = 21
)

// Limits on tables, so that a hostile image cannot make the host allocate
// without end. They are QEMU's.
const (
	maxL1Bytes       = 32 << 20
	maxRefTableBytes = 8 << 20
	maxSnapshots     = 65536
	maxSnapshotBytes = 64 << 20
	maxBackingName   = 1023
)

// layout is what follows from the cluster size.
type layout struct {
	bits    uint  // log2 of the cluster size
	cluster int64 // bytes
	l2Len   int64 // entries of an L2 table
	l1Shift uint  // log2 of the bytes that an L2 table maps
	v2      bool
}

func newLayout(clusterBits uint, version uint32) layout {
	return layout{
		bits: clusterBits, cluster: 1 << clusterBits, l2Len: 1 << (clusterBits - 3),
		l1Shift: 2*clusterBits - 3, v2: version == 2,
	}
}

// l1Len is the number of L1 entries that size bytes need.
func (l *layout) l1Len(size int64) int64 {
	n := size >> l.l1Shift
	if size&(1<<l.l1Shift-1) != 0 {
		n++
	}
	return n
}

// clusters is the number of clusters that hold n bytes.
func (l *layout) clusters(n int64) int64 { return (n + l.cluster - 1) >> l.bits }

// up rounds n up to whole clusters.
func (l *layout) up(n int64) int64 { return (n + l.cluster - 1) &^ (l.cluster - 1) }

// kind says what an L2 entry means.
type kind uint8

const (
	kindHole       kind = iota // not allocated: the backing file's content, or zeroes
	kindZero                   // reads as zeroes
	kindData                   // a cluster that may be written in place
	kindShared                 // a cluster that must not be written
	kindCompressed             // compressed data
)

func kindOf(e uint64) kind {
	switch {
	case e == 0:
		return kindHole
	case e&flagCompressed != 0:
		return kindCompressed
	case e&flagZero != 0:
		return kindZero
	case e&flagCopied != 0:
		return kindData
	}
	return kindShared
}

// compressed returns where the data of a compressed cluster starts, and its
// length in bytes at most.
func (l *layout) compressed(e uint64) (off, n int64) {
	shift := 62 - (l.bits - 8)
	off = int64(e & (1<<shift - 1))
	sectors := int64(e>>shift&(1<<(l.bits-8)-1)) + 1
	return off, sectors*sectorSize - off%sectorSize
}

// compressedEntry is the entry for n bytes of compressed data at off.
func (l *layout) compressedEntry(off, n int64) uint64 {
	shift := 62 - (l.bits - 8)
	sectors := (off+n-1)/sectorSize - off/sectorSize
	return flagCompressed | uint64(sectors)<<shift | uint64(off)
}

// hostClusters returns the first of the container's clusters that an L2 entry
// refers to, and their number.
func (l *layout) hostClusters(e uint64) (first, n int64) {
	if e&flagCompressed != 0 {
		off, k := l.compressed(e)
		first = off >> l.bits
		return first, (off+k-1)>>l.bits - first + 1
	}
	if off := int64(e & offsetMask); off != 0 {
		return off >> l.bits, 1
	}
	return 0, 0
}

// dirtyUnit is how many bytes of a table one bit of a dirty mask stands for.
func (l *layout) dirtyUnit() int64 { return max(sectorSize, l.cluster/64) }

// dirtyBit is the bit for the byte at off in a table.
func (l *layout) dirtyBit(off int64) uint64 { return 1 << (off / l.dirtyUnit()) }

// allDirty is the mask for a whole table.
func (l *layout) allDirty() uint64 {
	return ^uint64(0) >> (64 - min(64, l.cluster/l.dirtyUnit()))
}

// dirtyRuns calls fn for each run of bytes that mask marks.
func (l *layout) dirtyRuns(mask uint64, fn func(off, n int64)) {
	for at := 0; mask != 0; {
		skip := bits.TrailingZeros64(mask)
		mask >>= skip
		run := bits.TrailingZeros64(^mask)
		fn(int64(at+skip)*l.dirtyUnit(), int64(run)*l.dirtyUnit())
		if run == 64 {
			return
		}
		mask >>= run
		at += skip + run
	}
}
