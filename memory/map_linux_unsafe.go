//go:build linux

package memory

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping is one mmap of this process.
type mapping struct {
	addr unsafe.Pointer
	size uintptr
}

// bytes is the mapping's memory. It is not Go's: nothing keeps it from being
// unmapped but the rule of Memory.Close.
func (p mapping) bytes() []byte { return unsafe.Slice((*byte)(p.addr), p.size) }

func (p mapping) unmap() error { return unix.MunmapPtr(p.addr, p.size) }

// mmap maps size bytes at an address of this process that is a multiple of
// HugePageSize, as guest-physical addresses of large regions are: only then
// can a huge page back them both.
func mmap(fd int, offset int64, size uintptr, flags int) (mapping, error) {
	const none = unix.MAP_PRIVATE | unix.MAP_ANON | unix.MAP_NORESERVE
	room := size + HugePageSize
	if room < size {
		return mapping{}, unix.ENOMEM
	}
	base, err := unix.MmapPtr(-1, 0, nil, room, unix.PROT_NONE, none)
	if err != nil {
		return mapping{}, err
	}
	// Reserve, put the memory over the aligned part, and give the rest back.
	head := -uintptr(base) & (HugePageSize - 1)
	addr := unsafe.Add(base, head)
	if _, err := unix.MmapPtr(fd, offset, addr, size, unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_FIXED); err != nil {
		return mapping{}, errors.Join(err, mapping{base, room}.unmap())
	}
	if head > 0 {
		err = mapping{base, head}.unmap()
	}
	err = errors.Join(err, mapping{unsafe.Add(addr, size), HugePageSize - head}.unmap())
	if err != nil {
		return mapping{}, fmt.Errorf("trim: %w", errors.Join(err, mapping{addr, size}.unmap()))
	}
	return mapping{addr, size}, nil
}

// hostAddr is where p lies in this process.
func hostAddr(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }
