package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/vmkit-go/vmkit/disk"
)

const (
	taskCost     = 4096 // what a request counts for beside its payload
	inlineBytes  = 256 << 10
	pendingBytes = 256 << 10 // of replies held back while requests are at hand
)

// serverConn is one connection, seen by the server. One goroutine reads
// requests and answers those that a Backend can answer at once; the others
// go to workers. Whoever has an answer while nobody writes, writes.
type serverConn struct {
	srv    *Server
	raw    net.Conn
	nc     net.Conn // raw, or TLS over it
	log    *slog.Logger
	agreed serverHandshake

	// As chosen in the handshake.
	export             *Export
	backend            disk.Backend
	immediate          disk.Immediate
	mapper             disk.Mapper
	size               int64
	readOnly           bool
	structured, status bool

	in      *bufio.Reader
	head    [requestLen]byte
	tasks   chan *task
	workers sync.WaitGroup
	started int // workers
	held    int // bytes of replies that the reader holds back

	mu      sync.Mutex
	room    sync.Cond // signalled when requests or bytes falls
	inUse   int       // requests in flight
	bytes   int64     // that they count for
	replies []*task
	batch   []*task
	writing bool
	failed  bool
	out     *messageWriter
	spare   []*task
}

// task is one request and its reply. It owns its buffer until the reply has
// been sent.
type task struct {
	cmd, flags uint16
	cookie     uint64
	off        int64
	n          uint32
	buf        *buffer
	data       []byte // n bytes of buf
	done       int    // bytes already read or written
	cost       int64

	reply [][]byte // what to send
	heads []byte   // parts of reply that are no data
	one   [1][]byte
}

// serve runs the connection.
func (c *serverConn) serve() error {
	if err := c.handshake(); err != nil {
		if errors.Is(err, errLeft) {
			return nil
		}
		return err
	}
	c.log.Debug("NBD client", "export", c.export.Name)
	c.in = bufio.NewReaderSize(c.nc, 64<<10)
	c.out = newMessageWriter(c.nc)
	c.tasks = make(chan *task)
	c.room.L = &c.mu
	err := c.requests()
	c.send()
	close(c.tasks)
	c.workers.Wait()
	return err
}

// limits of what may be in flight.
func (c *serverConn) limits() (requests int, bytes int64) {
	requests, bytes = c.srv.MaxRequests, c.srv.MaxBytes
	if requests <= 0 {
		requests = 128
	}
	if bytes <= 0 {
		bytes = 32 << 20
	}
	return requests, bytes
}

// requests reads requests until the client leaves.
func (c *serverConn) requests() error {
	be := binary.BigEndian
	requests, bytes := c.limits()
	for {
		if c.in.Buffered() < requestLen || c.held > pendingBytes {
			c.send()
		}
		if _, err := io.ReadFull(c.in, c.head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil // not polite, but common
			}
			return err
		}
		if m := be.Uint32(c.head[:]); m != magicRequest {
			return violation("request begins with %#08x", m)
		}
		flags, cmd := be.Uint16(c.head[4:]), be.Uint16(c.head[6:])
		if cmd == cmdDisc {
			return nil
		}
		n := be.Uint32(c.head[24:])
		payload := int64(0)
		if cmd == cmdWrite || cmd == cmdRead {
			payload = int64(n)
		}
		if cmd == cmdWrite && n > defaultMaxPayload {
			// There is no telling data from requests any more.
			return violation("WRITE of %d bytes: the most is %d", n, defaultMaxPayload)
		}
		if payload > defaultMaxPayload {
			payload = 0 // refused
		}
		t, ok := c.admit(payload+taskCost, requests, bytes)
		if !ok {
			return io.ErrClosedPipe
		}
		t.cmd, t.flags, t.cookie = cmd, flags, be.Uint64(c.head[8:])
		off := be.Uint64(c.head[16:])
		t.off, t.n = int64(off), n
		if cmd == cmdWrite && n > 0 {
			c.buffer(t, int(n))
			if c.in.Buffered() < int(n) {
				c.send()
			}
			if _, err := io.ReadFull(c.in, t.data); err != nil {
				c.finish(t)
				return fmt.Errorf("payload of a WRITE: %w", err)
			}
		}
		if errno := c.validate(t, off); errno != 0 {
			c.fail(t, errno)
			c.later(t)
			continue
		}
		if c.try(t) {
			c.later(t)
			continue
		}
		c.hand(t)
	}
}

// admit waits until a request that counts for cost bytes fits in. It returns
// false once nothing can be sent any more.
func (c *serverConn) admit(cost int64, requests int, bytes int64) (*task, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.inUse > 0 && (c.inUse >= requests || c.bytes+cost > bytes) {
		if len(c.replies) > 0 && !c.writing {
			c.write() // what the reader itself held back
			continue
		}
		c.room.Wait()
	}
	if c.failed {
		return nil, false
	}
	c.inUse++
	c.bytes += cost
	var t *task
	if k := len(c.spare); k > 0 {
		t, c.spare = c.spare[k-1], c.spare[:k-1]
	} else {
		t = &task{}
	}
	t.cost = cost
	return t, true
}

func (c *serverConn) buffer(t *task, n int) {
	t.buf = getBuffer(n)
	t.data = t.buf.mem[:n]
}

// finish lets go of a task.
func (c *serverConn) finish(t *task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recycle(t)
	c.room.Broadcast()
}

// recycle is finish with mu held, and without waking.
func (c *serverConn) recycle(t *task) {
	if t.buf != nil {
		t.buf.put()
	}
	clear(t.reply)
	c.inUse--
	c.bytes -= t.cost
	*t = task{reply: t.reply[:0], heads: t.heads[:0]}
	c.spare = append(c.spare, t)
}

// later puts a reply into the queue of those to send. Only the reader calls
// it, which sends before it waits for anything.
func (c *serverConn) later(t *task) {
	c.held += len(t.data) + structuredLen
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replies = append(c.replies, t)
}

// send sends what is in the queue, unless somebody is at it.
func (c *serverConn) send() {
	c.held = 0
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.writing && len(c.replies) > 0 {
		c.write()
	}
}

// write sends until the queue is empty. It is called with mu held and gives
// it up meanwhile.
func (c *serverConn) write() {
	c.writing = true
	for len(c.replies) > 0 {
		c.batch, c.replies = c.replies, c.batch[:0]
		if !c.failed {
			c.mu.Unlock()
			for _, t := range c.batch {
				for _, p := range t.reply {
					c.out.add(p)
				}
			}
			err := c.out.flush()
			c.mu.Lock()
			if err != nil {
				c.failed = true
				// The reader may wait for the client.
				c.raw.Close()
			}
		}
		for i, t := range c.batch {
			c.batch[i] = nil
			c.recycle(t)
		}
		c.room.Broadcast()
	}
	c.writing = false
}

// hand gives a task to a worker.
func (c *serverConn) hand(t *task) {
	select {
	case c.tasks <- t:
		return
	default:
	}
	c.send() // what follows may take its time
	if requests, _ := c.limits(); c.started < requests {
		c.started++
		c.workers.Add(1)
		go c.work(t)
		return
	}
	c.tasks <- t
}

// work carries out tasks.
func (c *serverConn) work(t *task) {
	defer c.workers.Done()
	for ok := true; ok; t, ok = <-c.tasks {
		c.execute(t)
		c.mu.Lock()
		c.replies = append(c.replies, t)
		if !c.writing {
			c.write()
		}
		c.mu.Unlock()
	}
}
