package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iocb and event are struct iocb and struct io_event of linux/aio_abi.h.
type iocb struct {
	data     uint64
	key      uint32
	rwFlags  uint32
	opcode   uint16
	priority int16
	fd       uint32
	buf      uint64
	nbytes   uint64
	offset   int64
	reserved uint64
	flags    uint32
	eventFD  uint32
}

type event struct {
	data, obj uint64
	res, res2 int64
}

const (
	opRead  = 0 // IOCB_CMD_PREAD
	opWrite = 1 // IOCB_CMD_PWRITE
)

// aio is a context of Linux native AIO with a fixed number of slots. The
// buffers of requests are not Go memory, so the kernel may hold their addresses.
type aio struct {
	ctx    uintptr
	iocbs  []iocb
	ready  []*iocb
	events []event
	slots  []int
}

func newAIO(depth int) (*aio, error) {
	q := &aio{
		iocbs:  make([]iocb, depth),
		ready:  make([]*iocb, 0, depth),
		events: make([]event, depth),
		slots:  make([]int, 0, depth),
	}
	if _, _, e := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&q.ctx)), 0); e != 0 {
		return nil, fmt.Errorf("io_setup: %w", e)
	}
	return q, nil
}

func (q *aio) prepare(slot, fd int, write bool, p []byte, off int64) {
	c := &q.iocbs[slot]
	*c = iocb{data: uint64(slot), opcode: opRead, fd: uint32(fd), nbytes: uint64(len(p)), offset: off}
	c.buf = uint64(uintptr(unsafe.Pointer(&p[0])))
	if write {
		c.opcode = opWrite
	}
	q.ready = append(q.ready, c)
}

// submit starts what was prepared, all in one call where the kernel takes it.
func (q *aio) submit() error {
	for len(q.ready) > 0 {
		n, _, e := unix.Syscall(unix.SYS_IO_SUBMIT, q.ctx, uintptr(len(q.ready)), uintptr(unsafe.Pointer(&q.ready[0])))
		if e == unix.EAGAIN || e == unix.EINTR {
			continue
		}
		if e != 0 {
			return fmt.Errorf("io_submit: %w", e)
		}
		q.ready = q.ready[:copy(q.ready, q.ready[n:])]
	}
	return nil
}

// wait returns the slots of at least one completed request, each of which must
// have moved want bytes. They are valid until the next call.
func (q *aio) wait(want int) ([]int, error) {
	for {
		n, _, e := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.ctx, 1, uintptr(len(q.events)),
			uintptr(unsafe.Pointer(&q.events[0])), 0, 0)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			return nil, fmt.Errorf("io_getevents: %w", e)
		}
		q.slots = q.slots[:0]
		for _, v := range q.events[:n] {
			if v.res != int64(want) {
				return nil, fmt.Errorf("request ended with %d, want %d", v.res, want)
			}
			q.slots = append(q.slots, int(v.data))
		}
		return q.slots, nil
	}
}

func (q *aio) close() { unix.Syscall(unix.SYS_IO_DESTROY, q.ctx, 0, 0) }
