package wakeup

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ppoll waits without limit until one of fds is ready.
func ppoll(fds []unix.PollFd) unix.Errno {
	_, _, errno := unix.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), 0, 0, 0, 0)
	return errno
}

// ppollHeld is ppoll for a while, unknown to the scheduler. A collection of garbage
// that wants all processors to stop interrupts it with a signal.
func ppollHeld(fds []unix.PollFd, d time.Duration) (n int, errno unix.Errno) {
	t := unix.NsecToTimespec(int64(d))
	r, _, errno := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(&t)), 0, 0, 0)
	return int(r), errno
}
