package kvmcpu

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readEvent takes an eventfd's count, or waits for one. It is unix.Read with a
// buffer that does not escape, so that a wake-up allocates nothing.
func readEvent(fd int) error {
	var count uint64
	_, _, errno := unix.Syscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&count)), 8)
	if errno != 0 {
		return errno
	}
	return nil
}

// writeEvent adds one to an eventfd's count.
func writeEvent(fd int) error {
	one := uint64(1)
	_, _, errno := unix.Syscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&one)), 8)
	if errno != 0 {
		return errno
	}
	return nil
}
