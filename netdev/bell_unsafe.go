package netdev

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring makes the eventfd readable.
func (b *bell) ring() {
	one := uint64(1)
	_, _, _ = unix.RawSyscall(unix.SYS_WRITE, uintptr(b.fd), uintptr(unsafe.Pointer(&one)), 8)
}

// rung reports whether it was, and makes it unreadable.
func (b *bell) rung() bool {
	var n uint64
	_, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(b.fd), uintptr(unsafe.Pointer(&n)), 8)
	return errno == 0
}
