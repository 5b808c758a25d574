package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// maxInFlight is the number of requests in flight on one connection.
const maxInFlight = 128

// clientConn is one connection in its transmission phase, seen by the client.
// Requests are sent by the goroutines that make them; one more goroutine
// reads the answers. After an error the connection is of no use.
type clientConn struct {
	session *session
	nc      net.Conn
	terms   *terms

	free chan int // slots of no request

	mu     sync.Mutex
	slots  [maxInFlight]*request
	turn   uint64 // of the next cookie
	load   int
	broken bool // no request gets a slot any more

	sendMu  sync.Mutex
	idle    sync.Cond // signalled when sending becomes false
	sending bool      // some goroutine writes; the others only queue
	failed  bool      // nothing is written any more
	queue   []*request
	batch   []*request
	out     *messageWriter

	in    *bufio.Reader
	head  [structuredLen]byte
	small []byte
	read  func(p []byte) error
}

func newClientConn(s *session, nc net.Conn, t *terms) *clientConn {
	c := &clientConn{session: s, nc: nc, terms: t, free: make(chan int, maxInFlight), out: newMessageWriter(nc)}
	c.idle.L = &c.sendMu
	for i := range maxInFlight {
		c.free <- i
	}
	c.in = bufio.NewReaderSize(nc, 64<<10)
	c.read = func(p []byte) error {
		_, err := io.ReadFull(c.in, p)
		return err
	}
	return c
}

// do carries out r, which has been reset. Afterwards r.lost says whether the
// connection ended before the answer.
func (c *clientConn) do(r *request) {
	if c.start(r) {
		<-r.done
	}
}

// start sends r, whose end is signalled on r.done. It returns false, and r is
// lost, if the connection is no longer there.
func (c *clientConn) start(r *request) bool {
	select {
	case r.slot = <-c.free:
	case <-c.session.dead:
		r.lost = true
		return false
	}
	c.mu.Lock()
	if c.broken {
		c.mu.Unlock()
		r.lost = true
		return false
	}
	c.turn++
	r.cookie = c.turn<<16 | uint64(r.slot)
	r.sent = c.session.now()
	c.slots[r.slot] = r
	c.load++
	c.mu.Unlock()
	appendRequest(r.head[:0], r.flags, r.cmd, r.cookie, uint64(r.off), r.n)

	c.sendMu.Lock()
	c.queue = append(c.queue, r)
	if !c.sending {
		c.sending = true
		c.sendBatch()
		if len(c.queue) > 0 {
			go c.sendRest() // r may be answered: its caller must not wait for others
		} else {
			c.sending = false
			c.idle.Broadcast()
		}
	}
	c.sendMu.Unlock()
	return true
}

// sendRest sends what is queued until nothing is.
func (c *clientConn) sendRest() {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	for len(c.queue) > 0 {
		c.sendBatch()
	}
	c.sending = false
	c.idle.Broadcast()
}

// sendBatch sends what is queued now. The caller holds sendMu, which is free
// meanwhile, and has set sending.
func (c *clientConn) sendBatch() {
	c.batch, c.queue = c.queue, c.batch[:0]
	if !c.failed {
		c.sendMu.Unlock()
		for _, r := range c.batch {
			c.out.add(r.head[:])
			if r.cmd == cmdWrite {
				for _, p := range r.bufs {
					c.out.add(p)
				}
			}
		}
		err := c.out.flush()
		c.sendMu.Lock()
		if err != nil {
			c.failed = true
			c.session.fail(fmt.Errorf("send: %w", err))
		}
	}
	for i, r := range c.batch {
		c.batch[i] = nil
		r.settle()
	}
}

// run reads answers until the connection ends, and then settles the requests
// in flight.
func (c *clientConn) run() {
	err := c.receive()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("server hung up: %w", io.ErrUnexpectedEOF)
	}
	c.session.fail(err)
	c.sendMu.Lock()
	c.failed = true
	for c.sending {
		c.idle.Wait()
	}
	c.sendMu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
	for i, r := range c.slots {
		if r != nil {
			c.slots[i] = nil
			r.lost = true
			r.settle()
		}
	}
}

// leave says goodbye, if that can be done at once.
func (c *clientConn) leave() {
	// This also ends a write that is stuck.
	if c.nc.SetWriteDeadline(time.Now().Add(100*time.Millisecond)) != nil {
		return
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	for c.sending {
		c.idle.Wait()
	}
	if !c.failed {
		c.failed = true
		// The connection is closed next, heard or not.
		_, _ = c.nc.Write(appendRequest(nil, 0, cmdDisc, 0, 0, 0))
	}
}

// oldest returns when the request in flight that has waited longest was sent.
func (c *clientConn) oldest() (at int64, any bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.slots {
		if r != nil && (!any || r.sent < at) {
			at, any = r.sent, true
		}
	}
	return at, any
}

// find returns the request in flight with a cookie.
func (c *clientConn) find(cookie uint64) (*request, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := cookie & 0xffff; i < maxInFlight {
		if r := c.slots[i]; r != nil && r.cookie == cookie {
			return r, nil
		}
	}
	return nil, violation("reply to a request that is not in flight (cookie %#x)", cookie)
}

// finish ends r, whose answer is complete.
func (c *clientConn) finish(r *request) error {
	if r.err == nil {
		switch {
		case r.cmd == cmdRead && !r.whole():
			return violation("READ of %d bytes at %d: the reply lacks a part", r.n, r.off)
		case r.cmd == cmdBlockStatus && !r.hasExtent:
			return violation("BLOCK_STATUS at %d: the reply has no status", r.off)
		}
	} else if r.err.Errno == ESHUTDOWN {
		// Asked to go, and to ask another time.
		return fmt.Errorf("%w", r.err)
	}
	slot := r.slot
	c.mu.Lock()
	c.slots[slot] = nil
	c.load--
	c.mu.Unlock()
	c.session.answered.Store(true)
	r.settle()
	c.free <- slot
	return nil
}

// receive reads replies.
func (c *clientConn) receive() error {
	be := binary.BigEndian
	for {
		if err := c.read(c.head[:simpleLen]); err != nil {
			return err
		}
		switch magic := be.Uint32(c.head[:]); magic {
		case magicSimple:
			if err := c.simple(Errno(be.Uint32(c.head[4:])), be.Uint64(c.head[8:])); err != nil {
				return err
			}
		case magicStructured:
			if !c.terms.Structured {
				return violation("structured reply, which was not agreed on")
			}
			if err := c.read(c.head[simpleLen:]); err != nil {
				return err
			}
			if err := c.chunk(); err != nil {
				return err
			}
		default:
			return violation("reply begins with %#08x", magic)
		}
	}
}

// simple handles a simple reply, whose header has been read.
func (c *clientConn) simple(errno Errno, cookie uint64) error {
	r, err := c.find(cookie)
	switch {
	case err != nil:
		return err
	case c.terms.Structured && (r.cmd == cmdRead || r.cmd == cmdBlockStatus):
		return violation("simple reply to a %s", commandName(r.cmd))
	case r.errChunks > 0 || len(r.covered) > 0:
		return violation("simple reply after a chunk of a structured one")
	case errno != 0:
		r.err = &ServerError{Errno: errno}
	case r.cmd == cmdRead:
		if err := r.room(0, r.n, c.read); err != nil {
			return err
		}
		r.cover(0, r.n)
	}
	return c.finish(r)
}

// chunk handles a chunk of a structured reply, whose header has been read.
func (c *clientConn) chunk() error {
	be := binary.BigEndian
	flags, typ := be.Uint16(c.head[4:]), be.Uint16(c.head[6:])
	n := be.Uint32(c.head[16:])
	r, err := c.find(be.Uint64(c.head[8:]))
	if err != nil {
		return err
	}
	bad := func() error {
		return violation("%s of %d bytes at %d: reply chunk of type %#x with %d bytes", commandName(r.cmd), r.n, r.off, typ, n)
	}
	done := flags&replyFlagDone != 0
	switch {
	case typ == replyNone:
		if n != 0 || !done {
			return bad()
		}
	case typ == replyOffsetData && r.cmd == cmdRead && n > 8:
		if err := c.read(c.head[:8]); err != nil {
			return err
		}
		from, to, err := c.place(r, be.Uint64(c.head[:]), n-8)
		if err != nil {
			return err
		}
		if err := r.room(from, to, c.read); err != nil {
			return err
		}
	case typ == replyOffsetHole && r.cmd == cmdRead && n == 12:
		if err := c.read(c.head[:12]); err != nil {
			return err
		}
		from, to, err := c.place(r, be.Uint64(c.head[:]), be.Uint32(c.head[8:]))
		if err != nil {
			return err
		}
		if err := r.room(from, to, func(p []byte) error { clear(p); return nil }); err != nil {
			return err
		}
	case typ == replyBlockStatus && r.cmd == cmdBlockStatus && n >= 12 && n%8 == 4 && n <= maxMessage && !r.hasExtent:
		b, err := c.message(n)
		if err != nil {
			return err
		}
		if id := be.Uint32(b); id != c.terms.context {
			return violation("block status of the unknown metadata context %d", id)
		}
		// One was asked for; others are in order, and not needed.
		r.extent = span{be.Uint32(b[4:]), be.Uint32(b[8:])}
		if r.extent.from == 0 {
			return violation("BLOCK_STATUS at %d: extent of length 0", r.off)
		}
		r.hasExtent = true
	case typ&replyErrorBit != 0 && n >= 6 && n <= maxMessage && r.errChunks < maxErrors:
		b, err := c.message(n)
		if err != nil {
			return err
		}
		errno, size := be.Uint32(b), int(be.Uint16(b[4:]))
		if errno == 0 || size > len(b)-6 {
			return bad()
		}
		if r.err == nil {
			r.err = &ServerError{Errno: Errno(errno), Message: clean(string(b[6:][:size]))}
		}
		r.errChunks++
	default:
		return bad()
	}
	if !done {
		return nil
	}
	return c.finish(r)
}

// place checks that a chunk of n bytes at off lies within r, and apart from
// what came before.
func (c *clientConn) place(r *request, off uint64, n uint32) (from, to uint32, err error) {
	if off < uint64(r.off) || n == 0 || n > r.n || off-uint64(r.off) > uint64(r.n-n) {
		return 0, 0, violation("READ of %d bytes at %d: the reply has %d bytes at %d", r.n, r.off, n, off)
	}
	from = uint32(off - uint64(r.off))
	to = from + n
	fresh, few := r.cover(from, to)
	if !fresh {
		return 0, 0, violation("READ of %d bytes at %d: the reply has %d bytes at %d twice", r.n, r.off, n, off)
	}
	if !few {
		return 0, 0, violation("READ of %d bytes at %d: the reply is in more than %d pieces", r.n, r.off, maxFragments)
	}
	return from, to, nil
}

// message reads n bytes, valid until the next call.
func (c *clientConn) message(n uint32) ([]byte, error) {
	if cap(c.small) < int(n) {
		c.small = make([]byte, maxMessage)
	}
	b := c.small[:n]
	return b, c.read(b)
}
