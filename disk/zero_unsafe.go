package disk

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// discardBlock discards the whole sectors in a range of a block device.
func (f *File) discardBlock(off, n int64) error {
	unit := int64(f.dioOff)
	end := (off + n) &^ (unit - 1)
	off = (off + unit - 1) &^ (unit - 1)
	if off >= end {
		return nil
	}
	r := [2]uint64{uint64(off), uint64(end - off)}
	return retry(func() error {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&r)))
		if e != 0 {
			return e
		}
		return nil
	})
}
