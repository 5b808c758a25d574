package main

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// link is a shaped network link in front of a server: what the server sends
// passes one queue at a fixed rate, first come first served, and both ways take
// half of the round trip. A new connection costs a round trip more.
type link struct {
	bps  float64 // bytes per second
	trip time.Duration

	mu    sync.Mutex
	free  time.Time // when all that was queued will have passed
	bytes atomic.Int64
}

const (
	// linkPiece is what goes through the queue at once: a few packets.
	linkPiece = 6 << 10
	// linkWindow is what a connection may have in the queue, as TCP's window.
	linkWindow = 256 << 10
)

func newLink(mbit float64, trip time.Duration) *link {
	return &link{bps: mbit * 1e6 / 8, trip: trip}
}

// pass books n bytes and returns when they will have passed.
func (l *link) pass(n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / l.bps * float64(time.Second)))
	l.bytes.Add(int64(n))
	return l.free
}

// linkListener makes connections that lie behind the link.
type linkListener struct {
	net.Listener
	link *link
}

func (l linkListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	s := &linkConn{Conn: c, link: l.link, in: make(chan delivery, 64), out: make(chan delivery, linkWindow/linkPiece), gone: make(chan struct{})}
	go s.receive(time.Now().Add(l.link.trip))
	go s.send()
	return s, nil
}

// delivery is what arrives at a time.
type delivery struct {
	at   time.Time
	data []byte
}

type linkConn struct {
	net.Conn
	link *link
	in   chan delivery
	rest []byte
	out  chan delivery
	once sync.Once
	gone chan struct{}
}

// receive reads what the client sends, which arrives later.
func (c *linkConn) receive(from time.Time) {
	defer close(c.in)
	for {
		p := make([]byte, 4<<10)
		n, err := c.Conn.Read(p)
		at := time.Now()
		if at.Before(from) {
			at = from
		}
		select {
		case c.in <- delivery{at.Add(c.link.trip / 2), p[:n]}:
		case <-c.gone:
			return
		}
		if err != nil {
			return
		}
	}
}

func (c *linkConn) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		select {
		case d, ok := <-c.in:
			if !ok {
				return 0, io.EOF
			}
			time.Sleep(time.Until(d.at))
			c.rest = d.data
		case <-c.gone:
			return 0, net.ErrClosed
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

func (c *linkConn) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(linkPiece, len(p)-done)
		d := delivery{c.link.pass(n).Add(c.link.trip / 2), append([]byte(nil), p[done:done+n]...)}
		select {
		case c.out <- d:
		case <-c.gone:
			return done, net.ErrClosed
		}
		done += n
	}
	return len(p), nil
}

// send gives the client what has passed the link.
func (c *linkConn) send() {
	for {
		select {
		case d := <-c.out:
			time.Sleep(time.Until(d.at))
			if _, err := c.Conn.Write(d.data); err != nil {
				c.Close()
				return
			}
		case <-c.gone:
			return
		}
	}
}

func (c *linkConn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

// Deadlines would be about the real connection, which is not what waits.
func (c *linkConn) SetDeadline(time.Time) error      { return nil }
func (c *linkConn) SetReadDeadline(time.Time) error  { return nil }
func (c *linkConn) SetWriteDeadline(time.Time) error { return nil }
