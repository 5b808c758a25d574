package memory

import (
	"encoding/binary"
)

// list returns the regions, in order; none once closed.
func (m *Memory) list() []region {
	if p := m.regions.Load(); p != nil {
		return *p
	}
	return nil
}

// lookup returns the region that holds gpa, or nil.
func lookup(list []region, gpa uint64) *region {
	lo, hi := 0, len(list)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if gpa-list[mid].Base < list[mid].Size { // false for gpa < Base too: it wraps
			return &list[mid]
		}
		if list[mid].Base < gpa {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return nil
}

// covered reports whether every one of n bytes at gpa is RAM.
func covered(list []region, gpa, n uint64) bool {
	for n > 0 {
		r := lookup(list, gpa)
		if r == nil {
			return false
		}
		c := min(n, r.Size-(gpa-r.Base))
		gpa, n = gpa+c, n-c // cannot wrap: regions end by MaxAddr
	}
	return true
}

// rangeError is the error for an access that found no memory.
func (m *Memory) rangeError(gpa, n uint64) error {
	if m.regions.Load() == nil {
		return ErrClosed
	}
	return &RangeError{Addr: gpa, Len: n}
}

// Lookup returns the region that holds gpa.
func (m *Memory) Lookup(gpa uint64) (Region, bool) {
	if r := lookup(m.list(), gpa); r != nil {
		return r.Region, true
	}
	return Region{}, false
}

// Contains reports whether every one of n bytes at gpa is RAM. No bytes
// always are.
func (m *Memory) Contains(gpa, n uint64) bool { return covered(m.list(), gpa, n) }

// Slice returns the n bytes at gpa in place. They must lie in one region. The
// slice is valid until m closes, see [Memory.Close]; the guest may change the
// bytes at any moment. Whoever writes to it calls [Memory.MarkDirty]
// afterwards.
func (m *Memory) Slice(gpa, n uint64) ([]byte, error) {
	if b := slice(m.list(), gpa, n); b != nil {
		return b, nil
	}
	if n == 0 && m.regions.Load() != nil {
		return []byte{}, nil
	}
	return nil, m.rangeError(gpa, n)
}

// slice is Slice with nil for an error.
func slice(list []region, gpa, n uint64) []byte {
	r := lookup(list, gpa)
	if r == nil {
		return nil
	}
	off := gpa - r.Base
	if n > r.Size-off {
		return nil
	}
	return r.Host[off : off+n : off+n]
}

// AppendSlices appends the n bytes at gpa to dst, in place as with
// [Memory.Slice], as one slice for each region that they touch. On an error
// dst is returned as it was. It allocates only to grow dst.
func (m *Memory) AppendSlices(dst [][]byte, gpa, n uint64) ([][]byte, error) {
	list := m.list()
	if list == nil {
		return dst, ErrClosed
	}
	have := len(dst)
	for a, left := gpa, n; left > 0; {
		r := lookup(list, a)
		if r == nil {
			return dst[:have], m.rangeError(gpa, n)
		}
		off := a - r.Base
		c := min(left, r.Size-off)
		dst = append(dst, r.Host[off:off+c:off+c])
		a, left = a+c, left-c
	}
	return dst, nil
}

// Read fills p from guest memory at gpa. If any byte of the range is no RAM,
// nothing is read.
func (m *Memory) Read(gpa uint64, p []byte) error {
	list := m.list()
	n := uint64(len(p))
	if b := slice(list, gpa, n); b != nil {
		copy(p, b)
		return nil
	}
	if list == nil || !covered(list, gpa, n) {
		return m.rangeError(gpa, n)
	}
	for len(p) > 0 {
		r := lookup(list, gpa)
		c := copy(p, r.Host[gpa-r.Base:])
		p, gpa = p[c:], gpa+uint64(c)
	}
	return nil
}

// Write copies p to guest memory at gpa and marks it dirty. If any byte of
// the range is no RAM, nothing is written.
func (m *Memory) Write(gpa uint64, p []byte) error {
	list := m.list()
	n := uint64(len(p))
	if b := slice(list, gpa, n); b != nil {
		copy(b, p)
		m.MarkDirty(gpa, n)
		return nil
	}
	if list == nil || !covered(list, gpa, n) {
		return m.rangeError(gpa, n)
	}
	for a, rest := gpa, p; len(rest) > 0; {
		r := lookup(list, a)
		c := copy(r.Host[a-r.Base:], rest)
		rest, a = rest[c:], a+uint64(c)
	}
	m.MarkDirty(gpa, n)
	return nil
}

// Uint8, Uint16, Uint32 and Uint64 load a little-endian number from any
// address. A naturally aligned one is loaded in one access, with no ordering
// against others; see [LoadAcquire16] for ring indices.
func (m *Memory) Uint8(gpa uint64) (uint8, error) {
	if b := slice(m.list(), gpa, 1); b != nil {
		return b[0], nil
	}
	return 0, m.rangeError(gpa, 1)
}

// Uint16 loads 2 bytes; see [Memory.Uint8].
func (m *Memory) Uint16(gpa uint64) (uint16, error) {
	if b := slice(m.list(), gpa, 2); b != nil {
		return binary.LittleEndian.Uint16(b), nil
	}
	v, err := m.loadSplit(gpa, 2)
	return uint16(v), err
}

// Uint32 loads 4 bytes; see [Memory.Uint8].
func (m *Memory) Uint32(gpa uint64) (uint32, error) {
	if b := slice(m.list(), gpa, 4); b != nil {
		return binary.LittleEndian.Uint32(b), nil
	}
	v, err := m.loadSplit(gpa, 4)
	return uint32(v), err
}

// Uint64 loads 8 bytes; see [Memory.Uint8].
func (m *Memory) Uint64(gpa uint64) (uint64, error) {
	if b := slice(m.list(), gpa, 8); b != nil {
		return binary.LittleEndian.Uint64(b), nil
	}
	return m.loadSplit(gpa, 8)
}

// PutUint8, PutUint16, PutUint32 and PutUint64 store a little-endian number
// at any address, a naturally aligned one in one access, and mark it dirty.
func (m *Memory) PutUint8(gpa uint64, v uint8) error {
	b := slice(m.list(), gpa, 1)
	if b == nil {
		return m.rangeError(gpa, 1)
	}
	b[0] = v
	m.MarkDirty(gpa, 1)
	return nil
}

// PutUint16 stores 2 bytes; see [Memory.PutUint8].
func (m *Memory) PutUint16(gpa uint64, v uint16) error {
	b := slice(m.list(), gpa, 2)
	if b == nil {
		return m.storeSplit(gpa, uint64(v), 2)
	}
	binary.LittleEndian.PutUint16(b, v)
	m.MarkDirty(gpa, 2)
	return nil
}

// PutUint32 stores 4 bytes; see [Memory.PutUint8].
func (m *Memory) PutUint32(gpa uint64, v uint32) error {
	b := slice(m.list(), gpa, 4)
	if b == nil {
		return m.storeSplit(gpa, uint64(v), 4)
	}
	binary.LittleEndian.PutUint32(b, v)
	m.MarkDirty(gpa, 4)
	return nil
}

// PutUint64 stores 8 bytes; see [Memory.PutUint8].
func (m *Memory) PutUint64(gpa uint64, v uint64) error {
	b := slice(m.list(), gpa, 8)
	if b == nil {
		return m.storeSplit(gpa, v, 8)
	}
	binary.LittleEndian.PutUint64(b, v)
	m.MarkDirty(gpa, 8)
	return nil
}

// loadSplit and storeSplit serve numbers that lie across a region border.
func (m *Memory) loadSplit(gpa uint64, n int) (uint64, error) {
	var b [8]byte
	if err := m.Read(gpa, b[:n]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

func (m *Memory) storeSplit(gpa, v uint64, n int) error {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	return m.Write(gpa, b[:n])
}
