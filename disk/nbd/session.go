package nbd

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// session is a set of connections to one export that live and die together:
// once one is lost, the server may have been restarted, and what was written
// through the others may be gone too.
type session struct {
	conns []*clientConn
	terms *terms
	began time.Time

	once sync.Once
	dead chan struct{}
	err  error // set before dead is closed

	// answered is set by the first answer: the server is of some use.
	answered atomic.Bool
	users    sync.WaitGroup // requests that have not been dealt with
	routines sync.WaitGroup
}

// now is the time since the session began.
func (s *session) now() int64 { return int64(time.Since(s.began)) }

// connect makes a session. The context only bounds the making.
func connect(ctx context.Context, cfg *ClientConfig) (*session, error) {
	s := &session{began: time.Now(), dead: make(chan struct{})}
	nc, t, err := dialConn(ctx, cfg)
	if err != nil {
		return nil, err
	}
	s.terms = t
	s.conns = append(s.conns, newClientConn(s, nc, t))
	for t.MultiConn && len(s.conns) < cfg.Connections {
		nc, more, err := dialConn(ctx, cfg)
		if err == nil && !same(&t.ExportInfo, &more.ExportInfo) {
			nc.Close()
			err = fmt.Errorf("server describes the export differently from one connection to the next: %+v, %+v", t.ExportInfo, more.ExportInfo)
		}
		if err != nil {
			s.close()
			return nil, err
		}
		s.conns = append(s.conns, newClientConn(s, nc, more))
	}
	for _, c := range s.conns {
		s.routines.Go(c.run)
	}
	if cfg.Timeout > 0 {
		s.routines.Go(func() { s.watch(cfg.Timeout) })
	}
	return s, nil
}

// same compares what the server says of an export on two connections, apart
// from words.
func same(a, b *ExportInfo) bool {
	x, y := *a, *b
	x.Name, x.Description, y.Name, y.Description = "", "", "", ""
	return x == y
}

// fail ends the session. The first error counts.
func (s *session) fail(err error) {
	s.once.Do(func() {
		s.err = err
		close(s.dead)
		s.close()
	})
}

func (s *session) close() {
	for _, c := range s.conns {
		raw(c.nc).Close()
	}
}

// raw is the connection below TLS, whose Close would wait to say goodbye.
func raw(c net.Conn) net.Conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return c
}

var errStalled = fmt.Errorf("no answer: %w", os.ErrDeadlineExceeded)

// watch ends the session when a request has had no answer for too long: there
// is no other way to take it back.
func (s *session) watch(limit time.Duration) {
	tick := time.NewTicker(max(limit/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-s.dead:
			return
		case <-tick.C:
		}
		for _, c := range s.conns {
			if at, any := c.oldest(); any && s.now()-at > int64(limit) {
				s.fail(errStalled)
			}
		}
	}
}

// pick is the connection for the next request.
func (s *session) pick() *clientConn {
	best := s.conns[0]
	if len(s.conns) == 1 {
		return best
	}
	least := -1
	for _, c := range s.conns {
		c.mu.Lock()
		load := c.load
		c.mu.Unlock()
		if least < 0 || load < least {
			best, least = c, load
		}
	}
	return best
}
