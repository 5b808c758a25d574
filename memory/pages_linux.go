package memory

import (
	"encoding/binary"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

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

// touched sets the bits of pages that have memory.
func (r *Region) touched(words []uint64) error {
	if r.FD < 0 {
		return r.touchedPages(words)
	}
	return r.touchedFile(words)
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

// touchedPages looks into the process's page map.
func (r *Region) touchedPages(words []uint64) error {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer f.Close()
	return inPageMap(f, uint64(hostAddr(r.Host)), r.Size, words)
}

// inPageMap reads the page map of size bytes at addr (Documentation/admin-guide/mm/
// pagemap.rst), which has 8 bytes for each of the host's pages: one has memory if it
// is present or in swap.
func inPageMap(f io.ReaderAt, addr, size uint64, words []uint64) error {
	const inMemory, inSwap = 1 << 63, 1 << 62
	buf := make([]byte, 64<<10)
	at := int64(addr / hostPage * 8)
	each, last := hostPage/PageSize, size/PageSize-1 // of the guest's pages
	pages := last/each + 1
	for done := uint64(0); done < pages; {
		n := min(uint64(len(buf)), 8*(pages-done))
		if _, err := f.ReadAt(buf[:n], at+int64(8*done)); err != nil {
			return err
		}
		for i := range n / 8 {
			if binary.NativeEndian.Uint64(buf[8*i:])&(inMemory|inSwap) == 0 {
				continue
			}
			for p := (done + i) * each; p < (done+i+1)*each && p <= last; p++ {
				words[p/64] |= 1 << (p % 64)
			}
		}
		done += n / 8
	}
	return nil
}
