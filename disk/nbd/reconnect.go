package nbd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

// Waits between attempts to connect.
const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 5 * time.Second
)

// acquire returns the session, which is then in use, once there is one.
func (c *Client) acquire(deadline time.Time) (*session, error) {
	var timer *time.Timer
	for {
		c.mu.Lock()
		s, changed, reason := c.session, c.changed, c.reason
		if c.closed {
			c.mu.Unlock()
			return nil, os.ErrClosed
		}
		if s != nil {
			select {
			case <-s.dead: // about to be replaced
				reason = s.err
			default:
				s.users.Add(1)
				c.mu.Unlock()
				return s, nil
			}
		}
		c.mu.Unlock()
		if deadline.IsZero() {
			<-changed
			continue
		}
		if timer == nil {
			timer = time.NewTimer(time.Until(deadline))
			defer timer.Stop()
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, c.unavailable(reason)
		}
	}
}

// unavailable is the error of a request that has waited too long.
func (c *Client) unavailable(reason error) error {
	if c.isClosed() {
		return os.ErrClosed
	}
	return fmt.Errorf("%w for %v: %w", disk.ErrUnavailable, c.cfg.Timeout, reason)
}

// roundTrip carries out r, over as many connections as it takes. A change is
// noted before the session can be taken for lost.
func (c *Client) roundTrip(r *request) error {
	var deadline time.Time
	if c.cfg.Timeout > 0 {
		deadline = time.Now().Add(c.cfg.Timeout)
	}
	for {
		s, err := c.acquire(deadline)
		if err != nil {
			return err
		}
		r.reset()
		s.pick().do(r)
		if !r.lost {
			if r.err == nil {
				c.note(r)
			}
			s.users.Done()
			if r.err != nil {
				return r.err
			}
			return nil
		}
		s.users.Done()
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return c.unavailable(s.err)
		}
	}
}

// note remembers a change that was acknowledged.
func (c *Client) note(r *request) {
	switch r.cmd {
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		c.changes.Add(1)
		if c.log != nil {
			c.log.add(logEntry{cmd: r.cmd, flags: r.flags, off: r.off, n: r.n}, r.bufs)
		}
	}
}

// change carries out a change of n bytes at off, by r, whose bufs are set if
// it has a payload.
func (c *Client) change(r *request, cmd, flags uint16, off, n int64) error {
	data := int64(0)
	if cmd == cmdWrite {
		data = n
	}
	if err := c.reserve(data); err != nil {
		return err
	}
	r.cmd, r.flags, r.off, r.n = cmd, flags, off, uint32(n)
	err := c.roundTrip(r)
	if cmd == cmdWrite {
		r.vec = r.bufs[:0]
		clear(r.bufs[:cap(r.bufs)])
		r.bufs = nil
	}
	switch {
	case c.log == nil:
	case err != nil:
		c.log.release(data)
	case c.log.full():
		c.ownFlush()
	}
	return err
}

// reserve takes room in the log, for which it may have to flush.
func (c *Client) reserve(n int64) error {
	for c.log != nil && !c.log.reserve(n) {
		end := c.ownFlush()
		<-end
		c.flushes.Lock()
		err := c.ownErr
		c.flushes.Unlock()
		if err != nil && !isServerError(err) {
			return fmt.Errorf("flush, to have room for unflushed changes: %w", err)
		}
	}
	return nil
}

// isServerError reports whether err is the answer to a request, rather than
// what a server said before it went away.
func isServerError(err error) bool {
	_, ok := err.(*ServerError)
	return ok
}

// ownFlush starts a flush unless one runs, and returns a channel that is
// closed at its end.
func (c *Client) ownFlush() <-chan struct{} {
	c.flushes.Lock()
	defer c.flushes.Unlock()
	if c.ownEnd != nil {
		return c.ownEnd
	}
	end := make(chan struct{})
	c.ownEnd = end
	go func() {
		err := c.flush()
		c.flushes.Lock()
		defer c.flushes.Unlock()
		c.ownErr, c.ownEnd = err, nil
		close(end)
	}()
	return end
}

// Flush implements [disk.Backend]. It covers what was written through all
// connections, and what was made again after a connection was lost.
func (c *Client) Flush() error {
	switch {
	case c.isClosed():
		return c.wrap("flush", 0, 0, os.ErrClosed)
	case c.info.ReadOnly:
		return nil
	}
	return c.wrap("flush", 0, 0, c.flush())
}

func (c *Client) flush() error {
	c.flushes.Lock()
	err := c.sticky
	c.flushes.Unlock()
	if err != nil || !c.first.Flush {
		return err
	}
	var mark uint64
	changes := c.changes.Load()
	if c.log != nil {
		mark = c.log.mark()
	}
	r := c.request()
	defer c.requests.Put(r)
	r.cmd, r.flags, r.off, r.n = cmdFlush, 0, 0, 0
	err = c.roundTrip(r)
	c.flushes.Lock()
	defer c.flushes.Unlock()
	switch {
	case c.sticky != nil:
		return c.sticky
	case err == nil:
		c.clean = max(c.clean, changes)
		if c.log != nil {
			c.log.flushed(mark)
		}
	case isServerError(err):
		// The server may have dropped what it could not write, and a later
		// flush of it would know nothing of that.
		c.sticky = err
		if c.log != nil {
			c.log.drop()
		}
	}
	return err
}

// supervise replaces the session whenever it is lost.
func (c *Client) supervise(s *session) {
	defer close(c.stopped)
	backoff := firstBackoff
	for {
		<-s.dead
		c.mu.Lock()
		c.session, c.reason = nil, s.err
		c.mu.Unlock()
		// Every change that was acknowledged is noted from here.
		s.users.Wait()
		s.routines.Wait()
		if c.isClosed() {
			return
		}
		c.cfg.Log.Warn("NBD connection lost", "disk", c.name, "err", s.err)
		c.lose(s.err)
		if s.answered.Load() {
			backoff = firstBackoff
		}
		for s = nil; s == nil; {
			if !c.sleep(backoff) {
				return
			}
			backoff = min(2*backoff, lastBackoff)
			var err error
			if s, err = c.resume(); err != nil {
				c.mu.Lock()
				c.reason = err
				c.mu.Unlock()
				c.cfg.Log.Warn("NBD server is away", "disk", c.name, "err", err)
			}
		}
		c.mu.Lock()
		c.session, c.reason = s, nil
		closed := c.closed
		c.notify()
		c.mu.Unlock()
		if closed {
			s.fail(os.ErrClosed)
		} else {
			c.cfg.Log.Info("NBD connection made again", "disk", c.name)
		}
	}
}

// sleep waits for about d, and reports whether the client is still open.
func (c *Client) sleep(d time.Duration) bool {
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.ctx.Done():
		return false
	}
}

// lose notes that changes may be lost that no copy was kept of.
func (c *Client) lose(err error) {
	if c.log != nil || !c.first.Flush {
		return
	}
	c.flushes.Lock()
	defer c.flushes.Unlock()
	if c.sticky == nil && c.changes.Load() > c.clean {
		c.sticky = fmt.Errorf("connection lost with unflushed changes: %w", err)
	}
}

// resume connects again and brings the server up to date.
func (c *Client) resume() (*session, error) {
	s, err := connect(c.ctx, &c.cfg)
	if err != nil {
		return nil, err
	}
	err = c.compatible(&s.terms.ExportInfo)
	if err == nil && c.log != nil {
		stop := context.AfterFunc(c.ctx, func() { s.fail(os.ErrClosed) })
		err = s.replay(c.log.snapshot())
		stop()
	}
	if err != nil {
		s.fail(err)
		s.routines.Wait()
		return nil, err
	}
	return s, nil
}

// compatible says why an export is not the one that was opened.
func (c *Client) compatible(now *ExportInfo) error {
	was := &c.first
	switch {
	case now.Size != was.Size:
		return fmt.Errorf("the export now has %d bytes; it had %d", now.Size, was.Size)
	case now.MinBlock > was.MinBlock:
		return fmt.Errorf("the export's minimum block size is now %d; it was %d", now.MinBlock, was.MinBlock)
	case int64(now.MaxPayload) < c.piece:
		return fmt.Errorf("the export's longest payload is now %d; it was %d", now.MaxPayload, was.MaxPayload)
	case now.ReadOnly && !c.info.ReadOnly:
		return errors.New("the export has become read-only")
	case was.Flush && !now.Flush, was.Trim && !now.Trim, was.WriteZeroes && !now.WriteZeroes, was.BlockStatus && !now.BlockStatus:
		return errors.New("the server can do less than it could")
	}
	return nil
}

// replay makes changes again, in their order.
func (s *session) replay(entries []logEntry) error {
	const most = 32
	var rs [most]*request
	conn := s.conns[0]
	for len(entries) > 0 {
		k := independent(entries, most)
		started := 0
		for _, e := range entries[:k] {
			r := rs[started]
			if r == nil {
				r = &request{done: make(chan struct{}, 1)}
				rs[started] = r
			}
			r.cmd, r.flags, r.off, r.n = e.cmd, e.flags, e.off, e.n
			r.bufs = append(r.bufs[:0], e.data)
			r.reset()
			if !conn.start(r) {
				break
			}
			started++
		}
		for _, r := range rs[:started] {
			<-r.done
		}
		for _, r := range rs[:started] {
			if !r.lost && r.err != nil {
				return fmt.Errorf("make %s of %d bytes at %d again: %w", commandName(r.cmd), r.n, r.off, r.err)
			}
		}
		select {
		case <-s.dead:
			return s.err
		default:
		}
		entries = entries[k:]
	}
	return nil
}
