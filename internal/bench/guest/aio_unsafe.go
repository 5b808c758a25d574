package main

import (
	"fmt"
	"math/rand/v2"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iocb is struct iocb of include/uapi/linux/aio_abi.h.
type iocb struct {
	data   uint64
	_      uint32 // key
	_      uint32 // rw_flags
	opcode uint16
	_      int16 // reqprio
	fd     uint32
	buf    uint64
	bytes  uint64
	offset int64
	_      uint64 // reserved2
	_      uint32 // flags
	_      uint32 // resfd
}

// event is struct io_event.
type event struct {
	data, obj uint64
	res, res2 int64
}

const (
	opPread  = 0
	opPwrite = 1
)

// workload is one measurement: requests of block bytes, depth of them in
// flight.
type workload struct {
	name   string
	block  int
	depth  int
	random bool
	write  bool

	fd   int
	size int64
}

// run returns requests per second.
func (w workload) run(d time.Duration) (float64, error) {
	bufs, free, err := buffers(w.depth, w.block)
	if err != nil {
		return 0, err
	}
	defer free()
	var ctx uintptr
	if _, _, e := unix.RawSyscall(unix.SYS_IO_SETUP, uintptr(w.depth), uintptr(unsafe.Pointer(&ctx)), 0); e != 0 {
		return 0, fmt.Errorf("io_setup: %w", e)
	}
	defer unix.RawSyscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
	cbs := make([]iocb, w.depth)
	queue := make([]*iocb, 0, w.depth)
	events := make([]event, w.depth)
	rng := rand.New(rand.NewPCG(1, 2))
	blocks := w.size / int64(w.block)
	var at int64
	next := func(i int) {
		cb := &cbs[i]
		*cb = iocb{data: uint64(i), fd: uint32(w.fd), buf: uint64(uintptr(unsafe.Pointer(&bufs[i][0]))), bytes: uint64(w.block)}
		if w.write {
			cb.opcode = opPwrite
		}
		if w.random {
			cb.offset = rng.Int64N(blocks) * int64(w.block)
		} else {
			cb.offset = at % blocks * int64(w.block)
			at++
		}
		queue = append(queue, cb)
	}
	for i := range cbs {
		next(i)
	}
	var done int
	var start, now time.Time
	const warmUp = 16 // requests
	for {
		for q := queue; len(q) > 0; {
			n, _, e := unix.RawSyscall(unix.SYS_IO_SUBMIT, ctx, uintptr(len(q)), uintptr(unsafe.Pointer(&q[0])))
			if e != 0 {
				return 0, fmt.Errorf("io_submit: %w", e)
			}
			q = q[n:]
		}
		queue = queue[:0]
		// The only thread there is may as well block without the scheduler's help.
		n, _, e := unix.RawSyscall6(unix.SYS_IO_GETEVENTS, ctx, 1, uintptr(len(events)), uintptr(unsafe.Pointer(&events[0])), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return 0, fmt.Errorf("io_getevents: %w", e)
		}
		for _, v := range events[:n] {
			if v.res != int64(w.block) {
				return 0, fmt.Errorf("request at %#x: result %d", cbs[v.data].offset, v.res)
			}
		}
		done += int(n)
		now = time.Now()
		if start.IsZero() {
			if done >= warmUp {
				start, done = now, 0
			}
		} else if now.Sub(start) >= d {
			break
		}
		for _, v := range events[:n] {
			next(int(v.data))
		}
	}
	unix.RawSyscall(unix.SYS_IO_DESTROY, ctx, 0, 0)
	return float64(done) / now.Sub(start).Seconds(), nil
}

// alignment is how far b is from the next multiple of n.
func alignment(b []byte, n uintptr) uintptr {
	return -uintptr(unsafe.Pointer(&b[0])) & (n - 1)
}
