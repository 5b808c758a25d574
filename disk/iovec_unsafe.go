package disk

import (
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How many buffers go into one system call. The kernel takes 1024; these fit
// the stack, and the small one costs little to clear.
const (
	fewIovecs = 8
	maxIovecs = 256
)

// maxTransfer is what one call moves at most (MAX_RW_COUNT in the kernel).
const maxTransfer = 0x7ffff000

// transfer runs preadv2 or pwritev2 until limit bytes or all of bufs are done.
// A read that finds the end of the file first returns io.ErrUnexpectedEOF. It
// allocates nothing.
func (f *File) transfer(trap uintptr, bufs [][]byte, off, limit int64, flags int) (int, error) {
	if len(bufs) <= fewIovecs {
		var iov [fewIovecs]unix.Iovec
		return f.transferBy(iov[:], trap, bufs, off, limit, flags)
	}
	return f.transferMany(trap, bufs, off, limit, flags)
}

//go:noinline
func (f *File) transferMany(trap uintptr, bufs [][]byte, off, limit int64, flags int) (int, error) {
	var iov [maxIovecs]unix.Iovec
	return f.transferBy(iov[:], trap, bufs, off, limit, flags)
}

func (f *File) transferBy(iov []unix.Iovec, trap uintptr, bufs [][]byte, off, limit int64, flags int) (int, error) {
	done, skip := 0, 0 // skip: bytes of bufs[0] done
	for limit > 0 {
		n, bytes := 0, int64(0)
		aligned := uint64(off)
		for i, p := range bufs {
			if i == 0 {
				p = p[skip:]
			}
			if len(p) == 0 {
				continue
			}
			if n == len(iov) || bytes == limit || bytes >= maxTransfer {
				break
			}
			k := min(int64(len(p)), limit-bytes, maxTransfer-bytes)
			iov[n] = unix.Iovec{Base: &p[0], Len: uint64(k)}
			if f.direct != nil {
				// One word collects every bit that breaks an alignment.
				aligned |= uint64(k)
				if uint64(uintptr(unsafe.Pointer(&p[0])))&(f.dioMem-1) != 0 {
					aligned |= 1
				}
			}
			bytes += k
			n++
		}
		if n == 0 {
			return done, nil
		}
		fd := f.fd
		if f.direct != nil && aligned&(f.dioOff-1) == 0 {
			fd = f.directFD
		}
		var r uintptr
		var e unix.Errno
		if flags&unix.RWF_NOWAIT != 0 {
			// A copy: the scheduler could make no use of the thread, and its
			// monitor would take the processor away in large ones.
			r, _, e = unix.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(n),
				uintptr(off), 0, uintptr(flags))
		} else {
			r, _, e = unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&iov[0])), uintptr(n),
				uintptr(off), 0, uintptr(flags))
		}
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return done, errno(e)
		}
		if r == 0 {
			if trap == unix.SYS_PREADV2 {
				return done, io.ErrUnexpectedEOF
			}
			return done, io.ErrShortWrite
		}
		done, off, limit = done+int(r), off+int64(r), limit-int64(r)
		skip += int(r)
		for len(bufs) > 0 && skip >= len(bufs[0]) {
			skip -= len(bufs[0])
			bufs = bufs[1:]
		}
	}
	return done, nil
}

// errno makes an error without allocating for those that are no failure.
func errno(e unix.Errno) error {
	switch e {
	case unix.EAGAIN:
		return errEAGAIN
	case unix.EOPNOTSUPP:
		return errEOPNOTSUPP
	}
	return e
}

var (
	errEAGAIN     error = unix.EAGAIN
	errEOPNOTSUPP error = unix.EOPNOTSUPP
)
