package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/vmkit-go/vmkit/internal/nestedkvm/wire"
)

// session serves one port.
type session struct {
	id    int
	conn  *wire.Conn
	env   []string
	runs  int
	child *child // the running program, if any
	tar   *unpacker
}

// serve answers requests until the port closes.
func (s *session) serve() error {
	if err := s.conn.Write(wire.Hello, nil); err != nil {
		return err
	}
	for {
		t, p, err := s.conn.Read()
		if err != nil {
			s.stop()
			return err
		}
		if err := s.frame(t, p); err != nil {
			s.stop()
			return err
		}
	}
}

// stop ends whatever the session has under way.
func (s *session) stop() {
	if s.child != nil {
		s.child.kill()
		<-s.child.done
		s.child = nil
	}
	if s.tar != nil {
		s.tar.abort()
		s.tar = nil
	}
}

func (s *session) frame(t wire.Type, p []byte) error {
	switch t {
	case wire.Reset:
		s.stop()
		return s.conn.Write(wire.ResetOK, nil)
	case wire.Tar:
		if s.tar == nil {
			s.tar = newUnpacker("/")
		}
		if len(p) > 0 {
			s.tar.write(p)
			return nil
		}
		err := s.tar.close()
		s.tar = nil
		return s.result(err)
	case wire.Get:
		var req wire.GetRequest
		if err := json.Unmarshal(p, &req); err != nil {
			return fmt.Errorf("%w: %w", wire.ErrProtocol, err)
		}
		w := s.conn.Writer(wire.Tar)
		err := wire.Pack(w, req.Patterns)
		if werr := s.conn.Write(wire.Tar, nil); werr != nil {
			return werr
		}
		return s.result(err)
	case wire.Run:
		var cmd wire.Command
		if err := json.Unmarshal(p, &cmd); err != nil {
			return fmt.Errorf("%w: %w", wire.ErrProtocol, err)
		}
		if s.child != nil {
			select {
			case <-s.child.done:
			default:
				return fmt.Errorf("%w: a program is running already", wire.ErrProtocol)
			}
		}
		s.runs++
		c, err := start(s, cmd)
		if err != nil {
			return s.conn.WriteJSON(wire.Exit, wire.ExitStatus{Code: 127, Error: err.Error()})
		}
		s.child = c
		return nil
	case wire.Stdin:
		if s.child != nil {
			s.child.stdin(p)
		}
		return nil
	case wire.Ping:
		return s.conn.Write(wire.Pong, nil)
	case wire.Resize:
		var size wire.Size
		if err := json.Unmarshal(p, &size); err != nil {
			return fmt.Errorf("%w: %w", wire.ErrProtocol, err)
		}
		if s.child != nil {
			s.child.resize(size)
		}
		return nil
	case wire.Signal:
		var req wire.SignalRequest
		if err := json.Unmarshal(p, &req); err != nil {
			return fmt.Errorf("%w: %w", wire.ErrProtocol, err)
		}
		if s.child != nil {
			s.child.signal(req)
		}
		return nil
	}
	return fmt.Errorf("%w: frame %q", wire.ErrProtocol, t)
}

func (s *session) result(err error) error {
	var r wire.Result
	if err != nil {
		r.Error = err.Error()
	}
	return s.conn.WriteJSON(wire.Done, r)
}

// errAborted ends an unpacker whose session was reset.
var errAborted = errors.New("session was reset")

// unpacker extracts the tar stream of Tar frames.
type unpacker struct {
	w    *io.PipeWriter
	done chan error
}

func newUnpacker(root string) *unpacker {
	r, w := io.Pipe()
	u := &unpacker{w: w, done: make(chan error, 1)}
	go func() {
		err := wire.Extract(r, root)
		// What follows an error is read and dropped, until the sender ends.
		_, _ = io.Copy(io.Discard, r)
		u.done <- err
	}()
	return u
}

func (u *unpacker) write(p []byte) { _, _ = u.w.Write(p) }

func (u *unpacker) close() error {
	u.w.Close()
	return <-u.done
}

func (u *unpacker) abort() {
	u.w.CloseWithError(errAborted)
	<-u.done
}
