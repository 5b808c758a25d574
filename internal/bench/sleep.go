package main

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// preciseThread gives the goroutine a thread whose sleeps the kernel does not
// stretch.
func preciseThread() {
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
}

// preciseSleep sleeps in the kernel; the runtime's timers are as coarse as a
// millisecond.
func preciseSleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}
