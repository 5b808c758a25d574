package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/vmkit-go/vmkit/disk"
)

const (
	sparseBytes    = 64 << 10 // reads below this are not looked at for holes
	maxChunks      = 32       // in the reply to a READ
	maxDescriptors = 512      // in the reply to a BLOCK_STATUS
	maxLookups     = 4096     // extents merged into those
)

// allowed are the flags that go with each command.
var allowed = [...]uint16{
	cmdRead:        cmdFlagFUA | cmdFlagDF,
	cmdWrite:       cmdFlagFUA,
	cmdFlush:       cmdFlagFUA,
	cmdTrim:        cmdFlagFUA,
	cmdCache:       cmdFlagFUA,
	cmdWriteZeroes: cmdFlagFUA | cmdFlagNoHole | cmdFlagFastZero,
	cmdBlockStatus: cmdFlagFUA | cmdFlagReqOne,
}

// validate checks a request against the protocol and the disk. off is the
// offset as it came.
func (c *serverConn) validate(t *task, off uint64) Errno {
	if int(t.cmd) >= len(allowed) || t.flags&^allowed[t.cmd] != 0 {
		return EINVAL
	}
	if t.flags&cmdFlagDF != 0 && !c.structured || t.flags&cmdFlagFastZero != 0 && !c.export.FastZero {
		return EINVAL
	}
	change := t.cmd == cmdWrite || t.cmd == cmdTrim || t.cmd == cmdWriteZeroes
	size := uint64(c.size)
	switch {
	case change && c.readOnly:
		return EPERM
	case t.cmd == cmdFlush:
		if off != 0 || t.n != 0 {
			return EINVAL
		}
	case off > size || uint64(t.n) > size-off:
		if change {
			return ENOSPC
		}
		return EINVAL
	case t.cmd == cmdRead && t.n > defaultMaxPayload:
		return EINVAL
	case t.cmd == cmdBlockStatus && (!c.status || t.n == 0):
		return EINVAL
	}
	return 0
}

// try answers a request that needs no waiting, and reports whether it did.
func (c *serverConn) try(t *task) bool {
	if c.immediate == nil || t.n > inlineBytes {
		return false
	}
	var err error
	var k int
	switch {
	case t.cmd == cmdRead && c.isData(t):
		c.buffer(t, int(t.n))
		t.one[0] = t.data
		k, err = c.immediate.TryReadVAt(t.one[:], t.off)
	case t.cmd == cmdWrite && t.flags&cmdFlagFUA == 0:
		t.one[0] = t.data
		k, err = c.immediate.TryWriteVAt(t.one[:], t.off)
	default:
		return false
	}
	if err == disk.ErrWouldBlock {
		t.done = k
		return false
	}
	c.conclude(t, err)
	return true
}

// isData reports whether a READ is worth no look for holes, or has none.
func (c *serverConn) isData(t *task) bool {
	if !c.sparse(t) {
		return true
	}
	e, err := c.mapper.Extent(t.off)
	return err == nil && !e.Zero && e.Len >= int64(t.n)
}

// sparse reports whether a READ may be answered with holes.
func (c *serverConn) sparse(t *task) bool {
	return c.structured && t.flags&cmdFlagDF == 0 && t.n >= sparseBytes && c.mapper != nil
}

// execute carries out a request on a worker.
func (c *serverConn) execute(t *task) {
	var err error
	switch t.cmd {
	case cmdRead:
		if c.sparse(t) && t.done == 0 {
			err = c.readSparse(t)
			break
		}
		if t.buf == nil {
			c.buffer(t, int(t.n))
		}
		_, err = c.backend.ReadAt(t.data[t.done:], t.off+int64(t.done))
	case cmdWrite:
		_, err = c.backend.WriteAt(t.data[t.done:], t.off+int64(t.done))
	case cmdFlush:
		err = c.flush()
	case cmdTrim:
		err = c.backend.Discard(t.off, int64(t.n))
	case cmdWriteZeroes:
		err = c.backend.WriteZeroes(t.off, int64(t.n), t.flags&cmdFlagNoHole == 0)
	case cmdCache:
		err = c.cache(t)
	case cmdBlockStatus:
		err = c.blockStatus(t)
	}
	if err == nil && t.flags&cmdFlagFUA != 0 {
		switch t.cmd {
		case cmdWrite, cmdTrim, cmdWriteZeroes:
			err = c.backend.Flush()
		}
	}
	c.conclude(t, err)
}

func (c *serverConn) flush() error {
	if c.readOnly {
		return nil
	}
	return c.backend.Flush()
}

// cache reads what will soon be wanted.
func (c *serverConn) cache(t *task) error {
	b := getBuffer(1 << 20)
	defer b.put()
	for done := int64(0); done < int64(t.n); {
		p := b.mem[:min(int64(len(b.mem)), int64(t.n)-done)]
		if _, err := c.backend.ReadAt(p, t.off+done); err != nil {
			return err
		}
		done += int64(len(p))
	}
	return nil
}

// conclude makes the reply.
func (c *serverConn) conclude(t *task, err error) {
	if err == nil {
		c.succeed(t)
		return
	}
	if err == io.EOF {
		err = fmt.Errorf("the disk has become smaller: %w", io.ErrUnexpectedEOF)
	}
	c.log.Warn("NBD request failed", "export", c.export.Name, "command", commandName(t.cmd), "err", err)
	c.fail(t, errnoOf(err, t.cmd))
}

// succeed makes the reply for success. Some requests have part of it already.
func (c *serverConn) succeed(t *task) {
	switch {
	case len(t.reply) > 0:
	case t.cmd == cmdRead && c.structured && t.n > 0:
		t.heads = appendChunk(t.heads, replyFlagDone, replyOffsetData, t.cookie, 8+t.n)
		t.heads = binary.BigEndian.AppendUint64(t.heads, uint64(t.off))
		t.reply = append(t.reply, t.heads, t.data)
	case t.cmd == cmdRead && c.structured:
		t.heads = appendChunk(t.heads, replyFlagDone, replyNone, t.cookie, 0)
		t.reply = append(t.reply, t.heads)
	default:
		t.heads = appendSimple(t.heads, 0, t.cookie)
		t.reply = append(t.reply, t.heads)
		if t.cmd == cmdRead {
			t.reply = append(t.reply, t.data)
		}
	}
}

// fail makes the reply for failure. What went wrong in detail is the server's
// business: it may name files.
func (c *serverConn) fail(t *task, errno Errno) {
	t.reply, t.heads = t.reply[:0], t.heads[:0]
	if c.structured {
		t.heads = appendChunk(t.heads, replyFlagDone, replyError, t.cookie, 6)
		t.heads = binary.BigEndian.AppendUint32(t.heads, uint32(errno))
		t.heads = binary.BigEndian.AppendUint16(t.heads, 0)
	} else {
		t.heads = appendSimple(t.heads, errno, t.cookie)
	}
	t.reply = append(t.reply, t.heads)
}

func appendSimple(b []byte, errno Errno, cookie uint64) []byte {
	be := binary.BigEndian
	b = be.AppendUint32(b, magicSimple)
	b = be.AppendUint32(b, uint32(errno))
	return be.AppendUint64(b, cookie)
}

func appendChunk(b []byte, flags, typ uint16, cookie uint64, n uint32) []byte {
	be := binary.BigEndian
	b = be.AppendUint32(b, magicStructured)
	b = be.AppendUint16(b, flags)
	b = be.AppendUint16(b, typ)
	b = be.AppendUint64(b, cookie)
	return be.AppendUint32(b, n)
}

// readSparse reads, and leaves out what the disk knows to be zero.
func (c *serverConn) readSparse(t *task) error {
	// The parts of the reply point into heads, which must not move.
	if cap(t.heads) < maxChunks*(structuredLen+12) {
		t.heads = make([]byte, 0, maxChunks*(structuredLen+12))
	}
	be := binary.BigEndian
	end := t.off + int64(t.n)
	for off, chunks := t.off, 1; off < end; chunks++ {
		e := disk.Extent{Off: off, Len: end - off}
		if chunks < maxChunks {
			var err error
			if e, err = c.mapper.Extent(off); err != nil {
				return err
			}
			if e.Len < 4096 {
				// Small pieces cost more than they save.
				e.Len, e.Zero = 4096, false
			}
			e.Len = min(e.Len, end-off)
		}
		flags := uint16(0)
		if off+e.Len == end {
			flags = replyFlagDone
		}
		at := len(t.heads)
		if e.Zero {
			t.heads = appendChunk(t.heads, flags, replyOffsetHole, t.cookie, 12)
			t.heads = be.AppendUint64(t.heads, uint64(off))
			t.heads = be.AppendUint32(t.heads, uint32(e.Len))
			t.reply = append(t.reply, t.heads[at:])
		} else {
			if t.buf == nil {
				c.buffer(t, int(t.n))
			}
			p := t.data[off-t.off:][:e.Len]
			if _, err := c.backend.ReadAt(p, off); err != nil {
				return err
			}
			t.heads = appendChunk(t.heads, flags, replyOffsetData, t.cookie, 8+uint32(e.Len))
			t.heads = be.AppendUint64(t.heads, uint64(off))
			t.reply = append(t.reply, t.heads[at:], p)
		}
		off += e.Len
	}
	return nil
}

// blockStatus describes what the disk knows to be zero or absent.
func (c *serverConn) blockStatus(t *task) error {
	be := binary.BigEndian
	most := maxDescriptors
	if t.flags&cmdFlagReqOne != 0 {
		most = 1
	}
	// The chunk's header comes first, and its length is known last.
	t.heads = append(t.heads, make([]byte, structuredLen)...)
	t.heads = be.AppendUint32(t.heads, contextID)
	end := t.off + int64(t.n)
	n, last := 0, uint32(0)
	for off, lookups := t.off, 0; off < end && lookups < maxLookups; lookups++ {
		e := disk.Extent{Off: off, Len: end - off, Allocated: true}
		if c.mapper != nil {
			var err error
			if e, err = c.mapper.Extent(off); err != nil {
				return err
			}
			e.Len = min(e.Len, end-off)
		}
		state := uint32(0)
		if !e.Allocated {
			state |= stateHole
		}
		if e.Zero {
			state |= stateZero
		}
		if n > 0 && state == last {
			at := t.heads[len(t.heads)-8:]
			be.PutUint32(at, be.Uint32(at)+uint32(e.Len))
		} else {
			if n == most {
				break
			}
			t.heads = be.AppendUint32(t.heads, uint32(e.Len))
			t.heads = be.AppendUint32(t.heads, state)
			n, last = n+1, state
		}
		off += e.Len
	}
	appendChunk(t.heads[:0], replyFlagDone, replyBlockStatus, t.cookie, uint32(len(t.heads)-structuredLen))
	t.reply = append(t.reply, t.heads)
	return nil
}

// errnoOf is the error value for what a Backend says.
func errnoOf(err error, cmd uint16) Errno {
	switch {
	case errors.Is(err, disk.ErrReadOnly):
		return EPERM
	case errors.Is(err, disk.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return ENOSPC
	case errors.Is(err, disk.ErrRange):
		if cmd == cmdWrite || cmd == cmdWriteZeroes || cmd == cmdTrim {
			return ENOSPC
		}
		return EINVAL
	case errors.Is(err, errors.ErrUnsupported):
		return ENOTSUP
	case errors.Is(err, os.ErrClosed):
		return ESHUTDOWN
	}
	return EIO
}
