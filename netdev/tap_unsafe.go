package netdev

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Header in memory is its wire form: amd64 is little-endian, and there is
// no padding.
var _ [HeaderLen]byte = [unsafe.Sizeof(Header{})]byte{}

// iovec makes h.iov of f, and returns the number of bytes of f's Data.
func (h *tapHalf) iovec(f *Frame) int {
	h.iov = append(h.iov[:0], unix.Iovec{Base: (*byte)(unsafe.Pointer(&f.Header)), Len: HeaderLen})
	n := 0
	for _, p := range f.Data {
		if len(p) != 0 {
			h.iov = append(h.iov, unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))})
			n += len(p)
		}
	}
	return n
}

// Reads and writes do not block and are over sooner than the runtime's
// scheduler could make use of the thread, so it is not told of them.

// readv reads one frame with its header, and returns how many bytes there were
// and the room for the frame.
func (q *tapQueue) readv(h *tapHalf, f *Frame) (n, room int, errno unix.Errno) {
	room = h.iovec(f)
	r, _, errno := unix.RawSyscall(unix.SYS_READV, uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(h.iov))), uintptr(len(h.iov)))
	return int(r), room, errno
}

// writev writes one frame with its header.
func (q *tapQueue) writev(h *tapHalf, f *Frame) unix.Errno {
	h.iovec(f)
	_, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(h.iov))), uintptr(len(h.iov)))
	return errno
}
