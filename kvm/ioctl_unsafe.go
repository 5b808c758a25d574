package kvm

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

func ioctl(fd int, req, arg uintptr) (int, unix.Errno) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	return int(n), errno
}

// ioctlPtr issues o with a pointer to a structure of the kernel's layout, again
// after EINTR. The structure stays on the caller's stack.
func ioctlPtr[T any](h *handle, o *op, p *T) (int, error) {
	return ioctlPointer(h, o, unsafe.Pointer(p))
}

// ioctlPointer is the part of ioctlPtr that is not generic: of an instance made in
// another package, by inlining, the compiler would not know that p does not escape.
func ioctlPointer(h *handle, o *op, p unsafe.Pointer) (int, error) {
	if !h.acquire() {
		return 0, h.closedError(o.name)
	}
	defer h.release()
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(h.fd), o.req, uintptr(p))
		if errno == 0 {
			runtime.KeepAlive(p)
			return int(n), nil
		}
		if errno != unix.EINTR {
			return 0, h.failed(o, errno)
		}
	}
}

// flex is a structure that ends in an array: header H directly followed by
// n elements E, in one block that the kernel can be given. H's size must be a
// multiple of E's alignment.
type flex[H, E any] struct {
	hdr     *H
	entries []E
}

func newFlex[H, E any](n int) flex[H, E] {
	var h H
	var e E
	size := unsafe.Sizeof(h) + uintptr(n)*unsafe.Sizeof(e)
	block := make([]uint64, (size+7)/8)
	base := unsafe.Pointer(unsafe.SliceData(block))
	return flex[H, E]{
		hdr:     (*H)(base),
		entries: unsafe.Slice((*E)(unsafe.Add(base, unsafe.Sizeof(h))), n),
	}
}
