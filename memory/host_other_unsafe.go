//go:build !linux

package memory

import (
	"errors"
	"fmt"
	"time"
	"unsafe"
)

// On systems other than Linux guest memory is a slice of Go's, whose pages the system
// gives as they are touched. There is no descriptor to share it by and there are no huge
// pages; a region's FD is -1, and Config.Anonymous changes nothing.

// hostPage is the unit of discard, which is any here.
const hostPage = PageSize

// mapping is the memory of one region, kept alive by the slice.
type mapping struct{ p []byte }

func (p mapping) bytes() []byte { return p.p }

func (p mapping) unmap() error { return nil }

func (m *Memory) openFile() error {
	if m.huge {
		return fmt.Errorf("huge pages: %w", errors.ErrUnsupported)
	}
	return nil
}

func closeFile(int) error { return nil }

// allocate makes the memory of a region, aligned to a page.
func (m *Memory) allocate(size uint64) (mapping, error) {
	if m.huge {
		return mapping{}, fmt.Errorf("huge pages: %w", errors.ErrUnsupported)
	}
	p := make([]byte, size+PageSize)
	head := -uintptr(unsafe.Pointer(unsafe.SliceData(p))) & (PageSize - 1)
	return mapping{p[head:][:size:size]}, nil
}

// discard zeroes pages. The host does not get them back.
func (r *Region) discard(off, n uint64) error {
	clear(r.Host[off : off+n])
	return nil
}

// touched takes every page that is not zero for touched: nothing tells more.
func (r *Region) touched(words []uint64) error {
	var zero [PageSize]byte
	for i := range r.Size / PageSize {
		if [PageSize]byte(r.Host[i*PageSize:]) != zero {
			words[i/64] |= 1 << (i % 64)
		}
	}
	return nil
}

// barrier waits until the store buffers of all processors have drained, which takes
// microseconds.
func barrier() { time.Sleep(time.Millisecond) }
