package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

// Export is a disk that a [Server] offers.
type Export struct {
	// Name is what clients ask for. It has at most 4096 bytes.
	Name string
	// Description is for people who ask for a list.
	Description string
	// Backend is the disk. The server does not close it, and it must stay
	// open, and keep its size, while the server serves.
	Backend disk.Backend
	// ReadOnly refuses changes to a writable disk.
	ReadOnly bool
	// FastZero tells clients that WriteZeroes costs less than writing
	// zeroes, as it does on files and in memory.
	FastZero bool
}

// Server exports disks to NBD clients. Its fields must not change once it
// serves; its methods are safe for concurrent use. A server without exports
// is of no use, all else may be left zero.
//
// An acknowledged write is a completed one of the [disk.Backend]: it survives
// the end of the process if the Backend's does. FLUSH and FUA are acknowledged
// after a Flush of the Backend. As there is one Backend behind all connections
// to an export, a flush on one of them covers the writes acknowledged on any,
// and clients are told so (multi-conn).
//
// Clients are not trusted: what one connection can make the server hold is
// limited by MaxRequests and MaxBytes, and a client that breaks the protocol
// is cut off.
type Server struct {
	// Exports are offered in this order; the first is the default, for
	// clients that name none.
	Exports []Export
	// TLS, if not nil, is required of clients, unless TLSOptional is set.
	// To know who they are, set ClientAuth and ClientCAs in it.
	TLS         *tls.Config
	TLSOptional bool

	// MaxConnections limits the connections at any time; more are closed
	// at once. 0 means 1024.
	MaxConnections int
	// MaxRequests and MaxBytes limit what is in flight on one connection:
	// the number of requests and the bytes that they carry. A connection at
	// a limit is not read from. 0 means 128, and 32 MiB; MaxBytes does not
	// keep a single request of up to 32 MiB back.
	MaxRequests int
	MaxBytes    int64
	// HandshakeTimeout bounds the time until a client has chosen its
	// export. 0 means 10 s.
	HandshakeTimeout time.Duration
	// Log is told who comes and goes, and which requests fail. nil
	// discards it.
	Log *slog.Logger

	mu        sync.Mutex
	listeners map[net.Listener]struct{}
	conns     map[*serverConn]struct{}
	ending    bool          // no new connections
	drained   chan struct{} // closed when ending and conns is empty
}

// ErrServerClosed is returned by Serve after Shutdown or Close.
var ErrServerClosed = errors.New("NBD server is closed")

// Serve accepts connections from l and serves them, until l fails or the
// server is ended; then it returns ErrServerClosed. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if err := s.check(); err != nil {
		return err
	}
	s.mu.Lock()
	if s.ending {
		s.mu.Unlock()
		return ErrServerClosed
	}
	if s.listeners == nil {
		s.listeners = map[net.Listener]struct{}{}
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.listeners, l)
	}()
	wait := time.Duration(0)
	for {
		nc, err := l.Accept()
		if err == nil {
			wait = 0
			go func() {
				// It is logged where it arises.
				_ = s.ServeConn(nc)
			}()
			continue
		}
		if s.isEnding() {
			return ErrServerClosed
		}
		// Out of descriptors, say: others may leave.
		if !isTemporary(err) {
			return err
		}
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		s.log().Warn("NBD server cannot accept connections", "err", err)
		time.Sleep(wait)
	}
}

// ServeConn serves one connection until it ends, and closes it. The error is
// nil if the client left in good order, or was told to at the server's end.
func (s *Server) ServeConn(nc net.Conn) error {
	defer nc.Close()
	if err := s.check(); err != nil {
		return err
	}
	c := &serverConn{srv: s, nc: nc, raw: nc, log: s.log().With("client", nc.RemoteAddr().String())}
	if err := s.enter(c); err != nil {
		c.log.Warn("NBD client turned away", "err", err)
		return err
	}
	defer s.exit(c)
	err := c.serve()
	if s.isEnding() && isTimeout(err) {
		err = nil
	}
	if err != nil {
		c.log.Warn("NBD client cut off", "err", err)
	} else {
		c.log.Debug("NBD client left")
	}
	return err
}

// check finds mistakes in the configuration.
func (s *Server) check() error {
	if len(s.Exports) == 0 {
		return errors.New("NBD server without exports")
	}
	names := map[string]bool{}
	for i := range s.Exports {
		e := &s.Exports[i]
		switch {
		case e.Backend == nil:
			return fmt.Errorf("NBD export %q has no backend", e.Name)
		case len(e.Name) > maxString || len(e.Description) > maxString:
			return fmt.Errorf("NBD export %.20q...: name or description is longer than %d bytes", e.Name, maxString)
		case names[e.Name]:
			return fmt.Errorf("two NBD exports with the name %q", e.Name)
		}
		names[e.Name] = true
	}
	return nil
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func (s *Server) isEnding() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending
}

func (s *Server) enter(c *serverConn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := s.MaxConnections
	if most <= 0 {
		most = 1024
	}
	switch {
	case s.ending:
		return ErrServerClosed
	case len(s.conns) >= most:
		return fmt.Errorf("there are %d connections already", most)
	}
	if s.conns == nil {
		s.conns = map[*serverConn]struct{}{}
	}
	s.conns[c] = struct{}{}
	return nil
}

func (s *Server) exit(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.checkDrained()
}

// checkDrained is called with mu held.
func (s *Server) checkDrained() {
	if s.ending && len(s.conns) == 0 {
		select {
		case <-s.drained:
		default:
			close(s.drained)
		}
	}
}

// Shutdown ends the server in good order: no connection is accepted, no
// further request read, those that have been are answered, and what clients
// wrote is flushed. If the context ends first, connections are cut off.
func (s *Server) Shutdown(ctx context.Context) error {
	drained := s.end()
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		err = context.Cause(ctx)
		s.cut()
	}
	for i := range s.Exports {
		if e := &s.Exports[i]; !e.ReadOnly && !e.Backend.Info().ReadOnly {
			err = errors.Join(err, e.Backend.Flush())
		}
	}
	return err
}

// Close ends the server at once. Requests that a Backend is working on go on
// until they are done, unanswered; Close does not wait for them.
func (s *Server) Close() error {
	s.end()
	s.cut()
	return nil
}

// end lets nothing new in, and returns a channel that is closed when all that
// was there is gone.
func (s *Server) end() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ending {
		s.ending = true
		s.drained = make(chan struct{})
	}
	for l := range s.listeners {
		// Serve closes it again, and says what is wrong with it.
		_ = l.Close()
	}
	for c := range s.conns {
		// What is wrong with a connection shows where it is used.
		_ = c.raw.SetReadDeadline(time.Unix(1, 0))
	}
	s.checkDrained()
	return s.drained
}

func (s *Server) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.raw.Close()
	}
}

// export finds an export by the name that a client gives.
func (s *Server) export(name string) *Export {
	for i := range s.Exports {
		if s.Exports[i].Name == name {
			return &s.Exports[i]
		}
	}
	if name == "" {
		return &s.Exports[0]
	}
	return nil
}

// isTemporary reports whether a later Accept may succeed.
func isTemporary(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}
