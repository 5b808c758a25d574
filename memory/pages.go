package memory

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Discard gives the pages of n bytes at gpa back to the host; the range reads
// as zero afterwards. Pages covered only in part are zeroed in that part. The
// range counts as written for dirty tracking.
func (m *Memory) Discard(gpa, n uint64) error {
	release, err := m.Hold()
	if err != nil {
		return err
	}
	defer release()
	list := m.list()
	if !covered(list, gpa, n) {
		return m.rangeError(gpa, n)
	}
	unit := uint64(PageSize)
	if m.huge {
		unit = HugePageSize
	}
	for a, left := gpa, n; left > 0; {
		r := lookup(list, a)
		off := a - r.Base
		c := min(left, r.Size-off)
		first := min((off+unit-1)&^(unit-1), off+c)
		last := max((off+c)&^(unit-1), first)
		clear(r.Host[off:first])
		if last > first {
			if err := r.discard(first, last-first); err != nil {
				return fmt.Errorf("discard guest memory at %#x, length %#x: %w", r.Base+first, last-first, err)
			}
		}
		clear(r.Host[last : off+c])
		a, left = a+c, left-c
	}
	m.MarkDirty(gpa, n)
	return nil
}

// discard frees whole pages.
func (r *Region) discard(off, n uint64) error {
	for {
		var err error
		if r.FD < 0 {
			err = unix.Madvise(r.Host[off:off+n], unix.MADV_DONTNEED)
		} else {
			err = unix.Fallocate(r.FD, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Offset+int64(off), int64(n))
		}
		if err != unix.EINTR {
			return err
		}
	}
}

// CollectTouched adds to b the pages that the host has given memory for. All
// others read as zero, and reading them, unlike this, would take memory too.
// A page touched while this runs may or may not be among them.
func (m *Memory) CollectTouched(b *Bitmap) error {
	release, err := m.Hold()
	if err != nil {
		return err
	}
	defer release()
	for _, r := range m.Regions() {
		words := b.segment(r.Base, r.Size)
		if r.FD < 0 {
			err = r.touchedPages(words)
		} else {
			err = r.touchedFile(words)
		}
		if err != nil {
			return fmt.Errorf("find the touched pages of the region at %#x: %w", r.Base, err)
		}
	}
	return nil
}

// touchedFile walks the data of the memfd.
func (r *Region) touchedFile(words []uint64) error {
	end := r.Offset + int64(r.Size)
	for off := r.Offset; off < end; {
		data, err := unix.Seek(r.FD, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return nil
		}
		if err != nil {
			return err
		}
		hole, err := unix.Seek(r.FD, data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		hole = min(hole, end)
		first, last := uint64(data-r.Offset)/PageSize, uint64(hole-r.Offset-1)/PageSize
		for w := first / 64; w <= last/64; w++ {
			words[w] |= wordMask(w, first, last)
		}
		off = hole
	}
	return nil
}

// touchedPages reads the process's page map (Documentation/admin-guide/mm/
// pagemap.rst): a page has memory if it is present or in swap.
func (r *Region) touchedPages(words []uint64) error {
	const inMemory, inSwap = 1 << 63, 1 << 62
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 64<<10)
	at := int64(hostAddr(r.Host) / PageSize * 8)
	pages := r.Size / PageSize
	for done := uint64(0); done < pages; {
		n := min(uint64(len(buf)), 8*(pages-done))
		if _, err := f.ReadAt(buf[:n], at+int64(8*done)); err != nil {
			return err
		}
		for i := range n / 8 {
			if binary.NativeEndian.Uint64(buf[8*i:])&(inMemory|inSwap) != 0 {
				words[(done+i)/64] |= 1 << ((done + i) % 64)
			}
		}
		done += n / 8
	}
	return nil
}
