package thin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"unicode"
	"unicode/utf8"

	"github.com/vmkit-go/vmkit/disk"
)

// ErrFormat is wrapped by the error for a store whose content is not that of
// a pool. It names the offset.
var ErrFormat = errors.New("bad thin pool")

// Layout says how [Format] lays out a pool.
type Layout struct {
	// ExtentSize is the unit, in bytes, in which disks take space: a power
	// of two from 4 KiB to 16 MiB, and at least the store's block size; 0
	// means 64 KiB.
	ExtentSize int
	// Capacity is the number of bytes that all disks together may take,
	// rounded up to whole extents. 0 means what the store has room for;
	// otherwise a store that is too small is resized if it can be.
	Capacity int64
	// Disks is the most disks that the pool can hold, 1 to 65,536; 0 means
	// 1024. Each takes 512 bytes.
	Disks int
}

const (
	sector    = 512
	entrySize = 8
	// A sector of the table: CRC, its number, entries.
	perSector = (sector - 8) / entrySize

	superA, superB = 0, 4096 // offsets of the superblock's copies
	dirOffset      = 8192

	minExtent, maxExtent = 4 << 10, 16 << 20
	maxTable             = 64 << 10 // bytes of a group's table that are used
	maxDisks             = 1 << 16
	maxExtents           = math.MaxUint32 - 1 // in a pool
	maxName              = 255

	magic   = "vmkit thin pool\n"
	version = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// layout is where things are in a store.
type layout struct {
	extent   int64 // bytes
	extents  int64 // in the pool
	disks    int   // directory slots
	perGroup int64 // extents in a group
	base     int64 // offset of the first group
}

func newLayout(extent, extents int64, disks int) layout {
	l := layout{extent: extent, extents: extents, disks: disks}
	l.perGroup = min(extent, maxTable) / sector * perSector
	l.base = (dirOffset + int64(disks)*sector + extent - 1) &^ (extent - 1)
	return l
}

// group is the offset of group g: its table, and after an extent's size its
// extents.
func (l *layout) group(g int64) int64 { return l.base + g*(l.perGroup+1)*l.extent }

func (l *layout) groups() int64 { return (l.extents + l.perGroup - 1) / l.perGroup }

// data is the offset of extent p.
func (l *layout) data(p uint32) int64 {
	return l.group(int64(p)/l.perGroup) + (1+int64(p)%l.perGroup)*l.extent
}

// joined reports whether extent p lies right behind extent p-1.
func (l *layout) joined(p uint32) bool { return int64(p)%l.perGroup != 0 }

// entrySector is the offset of the sector with the entry of extent p.
func (l *layout) entrySector(p uint32) int64 {
	g, i := int64(p)/l.perGroup, int64(p)%l.perGroup
	return l.group(g) + i/perSector*sector
}

// size is what a store must have.
func (l *layout) size() int64 {
	return l.base + (l.extents+l.groups())*l.extent
}

// fit is how many extents a store of n bytes has room for.
func (l *layout) fit(n int64) int64 {
	slots := max(0, n-l.base) / l.extent
	return min(maxExtents, slots-(slots+l.perGroup)/(l.perGroup+1))
}

// seal puts the number and the checksum into a sector at offset off.
func seal(p []byte, off int64) {
	binary.LittleEndian.PutUint32(p[4:], uint32(off/sector))
	binary.LittleEndian.PutUint32(p, crc32.Checksum(p[4:sector], castagnoli))
}

// sealed checks what seal has put there. A sector never written is all zero.
func sealed(p []byte, off int64) (written bool, err error) {
	zero := true
	for _, b := range p[:sector] {
		if b != 0 {
			zero = false
			break
		}
	}
	switch {
	case zero:
		return false, nil
	case binary.LittleEndian.Uint32(p) != crc32.Checksum(p[4:sector], castagnoli):
		return false, errors.New("wrong checksum")
	case binary.LittleEndian.Uint32(p[4:]) != uint32(off/sector):
		return false, fmt.Errorf("sector says that it is number %d, not %d", binary.LittleEndian.Uint32(p[4:]), uint32(off/sector))
	}
	return true, nil
}

// putSuper encodes the superblock's copy at off.
func (l *layout) putSuper(p []byte, seq uint64, off int64) {
	clear(p[:sector])
	copy(p[8:], magic)
	le := binary.LittleEndian
	le.PutUint32(p[24:], version)
	le.PutUint32(p[28:], uint32(l.extent))
	le.PutUint64(p[32:], uint64(l.extents))
	le.PutUint32(p[40:], uint32(l.disks))
	le.PutUint64(p[48:], seq)
	seal(p, off)
}

func parseSuper(p []byte, off int64) (l layout, seq uint64, err error) {
	le := binary.LittleEndian
	written, err := sealed(p, off)
	switch {
	case err != nil:
		return l, 0, err
	case !written || string(p[8:24]) != magic:
		return l, 0, errors.New("no superblock")
	case le.Uint32(p[24:]) != version:
		return l, 0, fmt.Errorf("version %d, want %d", le.Uint32(p[24:]), version)
	}
	extent, extents, disks := le.Uint32(p[28:]), le.Uint64(p[32:]), le.Uint32(p[40:])
	switch {
	case extent < minExtent || extent > maxExtent || extent&(extent-1) != 0:
		return l, 0, fmt.Errorf("extent size %d", extent)
	case extents < 1 || extents > maxExtents:
		return l, 0, fmt.Errorf("%d extents", extents)
	case disks < 1 || disks > maxDisks:
		return l, 0, fmt.Errorf("room for %d disks", disks)
	}
	return newLayout(int64(extent), int64(extents), int(disks)), le.Uint64(p[48:]), nil
}

// readSuper returns the newest good copy of the superblock.
func readSuper(store disk.Backend) (best layout, seq uint64, err error) {
	var errs []error
	var buf [sector]byte
	found := false
	for _, off := range []int64{superA, superB} {
		if err := readFull(store, buf[:], off); err != nil {
			return best, 0, err
		}
		l, s, err := parseSuper(buf[:], off)
		if err != nil {
			errs = append(errs, fmt.Errorf("superblock at offset %d: %w", off, err))
			continue
		}
		if !found || s > seq {
			best, seq, found = l, s, true
		}
	}
	if !found {
		return best, 0, fmt.Errorf("%w: %w", ErrFormat, errors.Join(errs...))
	}
	if need := best.size(); need > store.Size() {
		return best, 0, fmt.Errorf("%w: %d extents of %d need %d bytes, the store has %d", ErrFormat, best.extents, best.extent, need, store.Size())
	}
	return best, seq, nil
}

// readFull reads all of p.
func readFull(store disk.Backend, p []byte, off int64) error {
	n, err := store.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("%w: the store ends at %d: %w", ErrFormat, off+int64(n), io.ErrUnexpectedEOF)
	}
	return err
}

// record is a disk in the directory.
type record struct {
	id    uint32 // 0: an empty slot
	size  int64
	name  string
	ended bool // deleted, but may have extents
}

// put encodes the record for the directory's sector at off.
func (r *record) put(p []byte, off int64) {
	clear(p[:sector])
	le := binary.LittleEndian
	if r.id != 0 {
		le.PutUint32(p[8:], r.id)
		if r.ended {
			p[12] = 1
		}
		p[13] = byte(len(r.name))
		le.PutUint64(p[16:], uint64(r.size))
		copy(p[24:], r.name)
	}
	seal(p, off)
}

func (l *layout) parseRecord(p []byte, off int64) (r record, err error) {
	written, err := sealed(p, off)
	if !written || err != nil {
		return r, err
	}
	le := binary.LittleEndian
	r.id = le.Uint32(p[8:])
	if r.id == 0 {
		return record{}, nil
	}
	r.ended = p[12] != 0
	r.size = int64(le.Uint64(p[16:]))
	r.name = string(p[24 : 24+int(p[13])])
	if err := checkName(r.name); err != nil {
		return r, err
	}
	return r, l.checkSize(r.size)
}

func checkName(name string) error {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) {
		return fmt.Errorf("disk name %q: not 1 to %d bytes of UTF-8", name, maxName)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("disk name %q: not printable", name)
		}
	}
	return nil
}

func (l *layout) checkSize(size int64) error {
	// Logical extents have 32-bit numbers.
	if most := int64(maxExtents) * l.extent; size < 0 || size > most {
		return fmt.Errorf("%w: size %d, at most %d", disk.ErrRange, size, most)
	}
	return nil
}

// Format makes store an empty pool. What the store held is gone, and all of it
// that the pool uses reads as zeroes.
func Format(store disk.Backend, cfg Layout) error {
	info := store.Info()
	fail := func(err error) error { return fmt.Errorf("thin pool %s: format: %w", info.Name, err) }
	if cfg.ExtentSize == 0 {
		cfg.ExtentSize = max(64<<10, info.BlockSize)
	}
	if cfg.Disks == 0 {
		cfg.Disks = 1024
	}
	switch e := cfg.ExtentSize; {
	case e < minExtent || e > maxExtent || e&(e-1) != 0 || e < info.BlockSize:
		return fail(fmt.Errorf("extent size %d is not a power of two from %d to %d, and at least %d", e, minExtent, maxExtent, info.BlockSize))
	case cfg.Disks < 1 || cfg.Disks > maxDisks:
		return fail(fmt.Errorf("%d disks, want 1 to %d", cfg.Disks, maxDisks))
	case cfg.Capacity < 0:
		return fail(fmt.Errorf("capacity %d", cfg.Capacity))
	}
	l := newLayout(int64(cfg.ExtentSize), 0, cfg.Disks)
	if cfg.Capacity == 0 {
		l.extents = l.fit(store.Size())
	} else {
		l.extents = (cfg.Capacity-1)/l.extent + 1
	}
	if l.extents < 1 || l.extents > maxExtents {
		return fail(fmt.Errorf("room for %d extents of %d bytes, want 1 to %d", l.extents, l.extent, int64(maxExtents)))
	}
	if err := enlarge(store, l.size()); err != nil {
		return fail(err)
	}
	// Nothing that looks like a pool may be found halfway.
	var p [superB + sector]byte
	if _, err := store.WriteAt(p[:], superA); err != nil {
		return fail(err)
	}
	if err := store.Flush(); err != nil {
		return fail(err)
	}
	if err := zero(store, dirOffset, l.size()-dirOffset); err != nil {
		return fail(err)
	}
	l.putSuper(p[superA:], 1, superA)
	l.putSuper(p[superB:], 1, superB)
	if err := store.Flush(); err != nil {
		return fail(err)
	}
	if _, err := store.WriteAt(p[:], superA); err != nil {
		return fail(err)
	}
	if err := store.Flush(); err != nil {
		return fail(err)
	}
	return nil
}

// enlarge makes the store at least size bytes.
func enlarge(store disk.Backend, size int64) error {
	if store.Size() >= size {
		return nil
	}
	r, ok := store.(disk.Resizer)
	if !ok {
		return fmt.Errorf("store has %d bytes, needs %d, and cannot be resized", store.Size(), size)
	}
	return r.Resize(size)
}

// zero makes a range of the store read as zeroes, where it may not already.
func zero(store disk.Backend, off, n int64) error {
	const step = 1 << 30
	m, _ := store.(disk.Mapper)
	for end := off + n; off < end; {
		k := min(step, end-off)
		if m != nil {
			e, err := m.Extent(off)
			if err != nil {
				return err
			}
			if k = min(k, e.Len); e.Zero {
				off += min(e.Len, end-off)
				continue
			}
		}
		if err := store.WriteZeroes(off, k, true); err != nil {
			return err
		}
		off += k
	}
	return nil
}
