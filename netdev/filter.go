package netdev

import "encoding/binary"

// filter is the set of addresses that the guest wants frames for (virtio 1.2,
// sections 5.1.6.5.1 and 5.1.6.5.2). It is not changed once in use.
type filter struct {
	own                         [6]byte
	promisc, allMulti, allUni   bool
	noMulti, noUni, noBroadcast bool
	uni, multi                  table
}

// table is a list of addresses, or all if there are too many.
type table struct {
	all  bool
	macs [][6]byte
}

// maxMACs is the number of addresses that a table holds before it passes all.
const maxMACs = 64

// accepts reports whether the guest wants frames to dst.
func (f *filter) accepts(dst [6]byte) bool {
	switch {
	case f.promisc:
		return true
	case dst == [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}:
		return !f.noBroadcast
	case dst[0]&1 != 0:
		return !f.noMulti && (f.allMulti || f.multi.has(dst))
	}
	return !f.noUni && (f.allUni || dst == f.own || f.uni.has(dst))
}

func (t *table) has(dst [6]byte) bool {
	if t.all {
		return true
	}
	for i := range t.macs {
		if t.macs[i] == dst {
			return true
		}
	}
	return false
}

// parseTable reads a table of addresses at the start of p, which need not
// hold the addresses past maxMACs but is part of a command of n bytes. It
// returns the table's length.
func (t *table) parse(p []byte, n uint64) (length uint64, ok bool) {
	if len(p) < 4 {
		return 0, false
	}
	entries := uint64(binary.LittleEndian.Uint32(p))
	length = 4 + 6*entries
	if length > n {
		return 0, false
	}
	*t = table{all: entries > maxMACs}
	for i := range entries {
		if t.all {
			break
		}
		t.macs = append(t.macs, [6]byte(p[4+6*i:]))
	}
	return length, true
}
