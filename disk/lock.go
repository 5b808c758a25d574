package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Image files are locked with open file description locks on the bytes that
// QEMU uses (its block/file-posix.c), so that the two keep each other out:
// byte 100+p is locked by who uses permission p, byte 200+p by who does not
// share it.
const (
	lockFirst = 100
	lockLen   = 200 // everything that QEMU may ever use

	lockRead    = 100 // reads and relies on what it read
	lockWrite   = 101
	lockResize  = 103
	denyRead    = 200
	denyWrite   = 201
	denyResize  = 203
	lockTooMany = 1 << 16 // descriptors to look at when naming the holder
)

// lockImage locks the image open at fd: exclusively, or shared with other
// readers. The lock goes by unlockImage, or when the
// process ends in whatever way.
func lockImage(fd int, readOnly bool) error {
	err := takeLocks(fd, readOnly)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		if who := lockHolder(fd); who != "" {
			return fmt.Errorf("%w by %s", ErrLocked, who)
		}
		return fmt.Errorf("%w by another process or another open in this one", ErrLocked)
	default:
		return fmt.Errorf("lock: %w", err)
	}
}

// unlockImage gives the locks of fd back. A close alone does not while a copy
// of the descriptor exists, and a process that any goroutine is just starting
// has one until it executes its program.
func unlockImage(fd int) {
	// It is closed next, which does the same a moment later.
	_ = ofdLock(fd, unix.F_OFD_SETLK, unix.F_UNLCK, lockFirst, lockLen)
}

func takeLocks(fd int, readOnly bool) error {
	if !readOnly {
		return ofdLock(fd, unix.F_OFD_SETLK, unix.F_WRLCK, lockFirst, lockLen)
	}
	for _, b := range []int64{lockRead, denyWrite, denyResize} {
		if err := ofdLock(fd, unix.F_OFD_SETLK, unix.F_RDLCK, b, 1); err != nil {
			return err
		}
	}
	// QEMU's writers hold shared locks, which ours do not collide with, so
	// look. Whoever takes its locks second sees the first.
	for _, b := range []int64{lockWrite, lockResize, denyRead} {
		if err := ofdLock(fd, unix.F_OFD_GETLK, unix.F_WRLCK, b, 1); err != nil {
			return err
		}
	}
	return nil
}

// ofdLock sets or tests a lock; a test that finds another's returns EAGAIN.
func ofdLock(fd, cmd int, typ int16, off, n int64) error {
	l := unix.Flock_t{Type: typ, Whence: io.SeekStart, Start: off, Len: n}
	err := retry(func() error { return unix.FcntlFlock(uintptr(fd), cmd, &l) })
	if err == nil && cmd == unix.F_OFD_GETLK && l.Type != unix.F_UNLCK {
		err = unix.EAGAIN
	}
	return err
}

// lockHolder names a process that has the file at fd open with such a lock,
// as far as /proc shows it. The kernel does not name holders of these locks.
func lockHolder(fd int) string {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return ""
	}
	self := os.Getpid()
	left := lockTooMany
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // gone, or another user's
		}
		for _, e := range fds {
			if left--; left < 0 {
				return ""
			}
			pid, _ := strconv.Atoi(filepath.Base(dir))
			if pid == self && e.Name() == strconv.Itoa(fd) {
				continue
			}
			var o unix.Stat_t
			if unix.Stat(dir+"/fd/"+e.Name(), &o) != nil || o.Ino != st.Ino || o.Dev != st.Dev || o.Rdev != st.Rdev {
				continue
			}
			info, err := os.ReadFile(dir + "/fdinfo/" + e.Name())
			if err != nil || !bytes.Contains(info, []byte("OFDLCK")) {
				continue
			}
			if pid == self {
				return "this process"
			}
			comm, _ := os.ReadFile(dir + "/comm")
			return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(comm)))
		}
	}
	return ""
}
