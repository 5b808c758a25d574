package nbd

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/disk"
)

// Limits on one reply.
const (
	maxMessage   = 8 << 10 // bytes of an error chunk or block status
	maxErrors    = 64      // error chunks
	maxFragments = 1024    // parts of a read that do not touch each other
)

// ServerError is an error that the server answered a request with.
type ServerError struct {
	Errno   Errno
	Message string // the server's words, if any
}

func (e *ServerError) Error() string {
	if e.Message != "" {
		return fmt.Sprintf("server: %v (%q)", e.Errno, e.Message)
	}
	return fmt.Sprintf("server: %v", e.Errno)
}

// Is makes ENOSPC a disk.ErrNoSpace and ENOTSUP an errors.ErrUnsupported.
func (e *ServerError) Is(target error) bool {
	return e.Errno == ENOSPC && target == disk.ErrNoSpace || e.Errno == ENOTSUP && target == errors.ErrUnsupported
}

// span is a range of bytes within a request.
type span struct{ from, to uint32 }

// request is one request to a server, while it waits for a connection and
// while it is in flight. Its buffers belong to it until done is signalled.
type request struct {
	cmd, flags uint16
	off        int64
	n          uint32
	bufs       [][]byte // a WRITE's payload or a READ's room: n bytes

	slot   int
	cookie uint64
	sent   int64 // when it was put in the queue to be sent, for the watchdog
	head   [requestLen]byte

	// open counts what has still to happen: that the request is sent and
	// that it is answered, or that neither will be.
	open atomic.Int32
	done chan struct{}

	// The answer. The connection's reader owns these until done.
	lost      bool // the connection ended before the answer was complete
	err       *ServerError
	errChunks int
	covered   []span // what has been read, sorted, no two touching
	extent    span   // from is the length, to the flags
	hasExtent bool

	vec [][]byte  // room for bufs
	one [1][]byte // likewise
}

// reset prepares r to be sent, perhaps again.
func (r *request) reset() {
	r.open.Store(2)
	r.lost, r.err, r.errChunks, r.hasExtent = false, nil, 0, false
	r.covered = r.covered[:0]
}

// settle notes that the request was sent or answered, or will not be.
func (r *request) settle() {
	if r.open.Add(-1) == 0 {
		r.done <- struct{}{}
	}
}

// cover notes that bytes from..to have been read. It reports whether none of
// them had been, and whether the reply is still in few enough pieces.
func (r *request) cover(from, to uint32) (fresh, few bool) {
	c := r.covered
	// Replies mostly come in order.
	i := len(c)
	if i > 0 && from < c[i-1].to {
		i, _ = slices.BinarySearchFunc(c, from, func(s span, from uint32) int {
			if s.from < from {
				return -1
			}
			return 1
		})
		if i > 0 && c[i-1].to > from || i < len(c) && c[i].from < to {
			return false, true
		}
	}
	before, after := i > 0 && c[i-1].to == from, i < len(c) && c[i].from == to
	switch {
	case before && after:
		c[i-1].to = c[i].to
		c = slices.Delete(c, i, i+1)
	case before:
		c[i-1].to = to
	case after:
		c[i].from = from
	case len(c) == maxFragments:
		return true, false
	default:
		c = slices.Insert(c, i, span{from, to})
	}
	r.covered = c
	return true, true
}

// whole reports whether all of a READ has been read.
func (r *request) whole() bool {
	return len(r.covered) == 1 && r.covered[0] == span{0, r.n}
}

// room calls fn with each buffer of what is at from..to within the request.
func (r *request) room(from, to uint32, fn func(p []byte) error) error {
	at := uint32(0)
	for _, p := range r.bufs {
		end := at + uint32(len(p))
		if from < end && from < to {
			part := p[from-at : min(end, to)-at]
			if err := fn(part); err != nil {
				return err
			}
			from += uint32(len(part))
		}
		at = end
	}
	return nil
}
