package nestedkvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/internal/nestedkvm/wire"
)

// Serve lets other processes run programs in h: each connection to l is one
// session of a [Remote]. It returns when ctx is done, when l fails, or when the
// host dies, and closes l.
func (h *Host) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-ctx.Done():
		case <-h.qemu.exited:
			cancel(h.qemu.explain(ErrHostDied))
		}
		l.Close()
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return err
		}
		go h.serveConn(ctx, c)
	}
}

// serveConn gives a connection a port, once one is idle, and keeps the port
// usable whatever the connection does.
func (h *Host) serveConn(ctx context.Context, c net.Conn) {
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	var p *port
	select {
	case p = <-h.ports:
	case <-ctx.Done():
		return
	}
	remote := wire.NewConn(c)
	fromAgent := make(chan error, 1)
	go func() {
		fromAgent <- relayBack(remote, p.conn)
	}()
	if remote.Write(wire.Hello, nil) == nil {
		for {
			t, data, err := remote.Read()
			if err != nil || t == wire.Reset {
				break
			}
			if p.conn.Write(t, data) != nil {
				break
			}
		}
	}
	// Whatever the session left under way ends now.
	if p.conn.Write(wire.Reset, nil) != nil {
		return
	}
	select {
	case err := <-fromAgent:
		if err == nil {
			h.ports <- p
		}
	case <-time.After(killGrace):
		h.qemu.kill(fmt.Errorf("%w: a session did not end within %v", ErrHostStuck, killGrace))
	case <-ctx.Done():
	}
}

// relayBack passes the agent's frames on until ResetOK. A peer that is gone
// does not stop it: the port must be drained.
func relayBack(remote, agent *wire.Conn) error {
	gone := false
	for {
		t, data, err := agent.Read()
		if err != nil {
			return err
		}
		if t == wire.ResetOK {
			return nil
		}
		if !gone && remote.Write(t, data) != nil {
			gone = true
		}
	}
}

// Remote runs programs in a nested host that another process serves.
type Remote struct{ path string }

// NewRemote returns a Remote for the socket at path; see [Host.Serve].
func NewRemote(path string) *Remote { return &Remote{path} }

// Run is [Host.Run] in the served host. If all of the host's ports are in use
// it waits for one.
func (r *Remote) Run(ctx context.Context, cmd Cmd) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", r.path)
	if err != nil {
		return fmt.Errorf("served nested host: %w", err)
	}
	defer c.Close()
	var late atomic.Bool
	s := &client{conn: wire.NewConn(c), stuck: func() { late.Store(true); c.Close() }}
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	t, _, err := s.conn.Read()
	if !stop() && err != nil {
		return ctx.Err()
	}
	_ = c.SetReadDeadline(time.Time{})
	if err == nil && t != wire.Hello {
		err = fmt.Errorf("%w: greeting is a frame %q", wire.ErrProtocol, t)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrHostDied, err)
	}
	err = s.run(ctx, cmd)
	switch {
	case late.Load():
		return fmt.Errorf("%w: %w", ErrHostStuck, err)
	case s.broken && !errors.Is(err, wire.ErrProtocol):
		return fmt.Errorf("%w: %w", ErrHostDied, err)
	}
	return err
}
