package nestedkvm

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/nestedkvm/wire"
)

// Cmd is a program to run in a nested host.
type Cmd struct {
	// Path is the program's path inside, or a name looked for in PATH there.
	Path string
	// Args are its arguments, without the program's name.
	Args []string
	// Env is added to the nested host's environment.
	Env []string
	// Dir is the working directory inside; it is made if missing. Empty is /.
	Dir string
	// Files are carried in first.
	Files []File
	// Collect are patterns, as of [filepath.Match], of absolute paths inside to
	// carry out after the program's end, whatever its status; directories go
	// with all below them. Collected gets them as a tar stream.
	Collect   []string
	Collected func(*tar.Reader) error
	// Stdin, Stdout and Stderr are the standard streams; a nil Stdin is empty
	// and a nil output is dropped. Each is used by one goroutine, and a read
	// from Stdin may be outstanding after the program's end.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Signals are passed to the program; SIGINT and SIGHUP, which come from a
	// terminal, to its process group.
	Signals <-chan syscall.Signal
	// Terminal, if not nil, gives the program a terminal of that size; its
	// output is all on Stdout.
	Terminal *Size
	// Resized passes on changes of the terminal's size.
	Resized <-chan Size
}

// Size is the size of a terminal in characters.
type Size = wire.Size

// File is a file or directory of the outer machine to carry in.
type File struct {
	// Path is the file or directory outside. Links to a file are followed.
	Path string
	// Name is the absolute path inside; empty means Path.
	Name string
	// Libraries carries the shared libraries of an ELF program, too.
	Libraries bool
	// Replace removes what is at Name inside first; Path must be a directory.
	Replace bool
}

// killGrace is how long a killed program may take to end.
const killGrace = 20 * time.Second

// Run runs one program to its end. A program that fails gives an *ExitError.
// When ctx is done, the program and all that it started are killed, and the
// error is ctx's.
func (h *Host) Run(ctx context.Context, cmd Cmd) error {
	var p *port
	select {
	case p = <-h.ports:
	case <-h.qemu.exited:
		return h.qemu.explain(ErrHostDied)
	default:
		return ErrBusy
	}
	s := &client{conn: p.conn, stuck: func() {
		h.qemu.kill(fmt.Errorf("%w: a killed program did not end within %v", ErrHostStuck, killGrace))
	}}
	err := s.run(ctx, cmd)
	if s.broken {
		// The agent and we are out of step, or QEMU is gone.
		return h.qemu.explain(err)
	}
	h.ports <- p
	return err
}

// client is our side of one session.
type client struct {
	conn   *wire.Conn
	stuck  func() // ends the transport if the agent does not answer in time
	broken bool   // the transport failed or is out of step

	// A frame for a program must not reach the one after it.
	mu   sync.Mutex
	over bool // the program has ended
}

// write sends a frame to the running program; it reports whether there is any
// use in going on.
func (s *client) write(t wire.Type, p []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.over && s.conn.Write(t, p) == nil
}

func (s *client) signal(sig syscall.Signal, all bool) {
	p, err := json.Marshal(wire.SignalRequest{Signal: int(sig), All: all})
	if err == nil {
		s.write(wire.Signal, p)
	}
}

func (s *client) run(ctx context.Context, cmd Cmd) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// Whatever is under way when ctx is done ends soon, or is stuck.
	ended := make(chan struct{})
	defer close(ended)
	defer context.AfterFunc(ctx, func() {
		select {
		case <-ended:
		case <-time.After(killGrace):
			s.stuck()
		}
	})()
	if len(cmd.Files) > 0 {
		if err := s.send(ctx, cmd.Files); err != nil {
			return err
		}
	}
	err := s.exec(ctx, cmd)
	if len(cmd.Collect) > 0 && !s.broken {
		// The files of a killed program are worth having, too.
		err = errors.Join(err, s.collect(cmd))
	}
	return err
}

// send carries files in.
func (s *client) send(ctx context.Context, files []File) error {
	tw := tar.NewWriter(ctxWriter{ctx, s.conn.Writer(wire.Tar)})
	err := addFiles(tw, files)
	if err == nil {
		err = tw.Close()
	}
	if werr := s.conn.Write(wire.Tar, nil); werr != nil {
		return s.lost(werr)
	}
	rerr := s.result()
	if err != nil {
		return fmt.Errorf("carry files in: %w", err)
	}
	if rerr != nil {
		return fmt.Errorf("carry files in: %w", rerr)
	}
	return nil
}

// ctxWriter fails once ctx is done.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
}

func (w ctxWriter) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	return w.w.Write(p)
}

func addFiles(tw *tar.Writer, files []File) error {
	sent := map[string]bool{}
	for _, f := range files {
		name := f.Name
		if name == "" {
			name = f.Path
		}
		if !filepath.IsAbs(name) {
			return fmt.Errorf("%s: name inside %q is not absolute", f.Path, name)
		}
		real, err := filepath.EvalSymlinks(f.Path)
		if err != nil {
			return err
		}
		if f.Replace {
			if err := wire.Replace(tw, name); err != nil {
				return err
			}
		}
		if err := wire.AddTree(tw, real, name); err != nil {
			return err
		}
		if !f.Libraries {
			continue
		}
		libs, err := debian.Libraries(real)
		if err != nil {
			continue // a script
		}
		for _, lib := range libs {
			if sent[lib] {
				continue
			}
			sent[lib] = true
			if err := wire.AddFile(tw, lib, lib); err != nil {
				return err
			}
		}
	}
	return nil
}

// lost notes that the transport failed.
func (s *client) lost(err error) error {
	s.broken = true
	return fmt.Errorf("connection to the nested host: %w", err)
}

// result reads the answer Done.
func (s *client) result() error {
	t, p, err := s.conn.Read()
	if err != nil {
		return s.lost(err)
	}
	return s.done(t, p)
}

func (s *client) done(t wire.Type, p []byte) error {
	var r wire.Result
	if t != wire.Done {
		return s.lost(fmt.Errorf("%w: frame %q", wire.ErrProtocol, t))
	}
	if err := json.Unmarshal(p, &r); err != nil {
		return s.lost(fmt.Errorf("%w: %w", wire.ErrProtocol, err))
	}
	if r.Error != "" {
		return errors.New(r.Error)
	}
	return nil
}

// exec runs the program and passes its streams on.
func (s *client) exec(ctx context.Context, cmd Cmd) error {
	err := s.conn.WriteJSON(wire.Run, wire.Command{
		Path: cmd.Path, Args: cmd.Args, Env: cmd.Env, Dir: cmd.Dir,
		Terminal: cmd.Terminal,
	})
	if err != nil {
		return s.lost(err)
	}
	finished := make(chan struct{})
	ready := make(chan struct{}, 1) // the agent wants the next chunk of input
	helpers := make(chan struct{})
	go func() {
		defer close(helpers)
		s.control(ctx, cmd, finished)
	}()
	go s.feed(cmd.Stdin, ready, finished)
	err = s.output(cmd, ready)
	close(finished)
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	<-helpers
	if cerr := ctx.Err(); cerr != nil && err != nil {
		if s.broken {
			return err
		}
		return fmt.Errorf("%w (the program was killed)", context.Cause(ctx))
	}
	return err
}

// control passes signals on, and kills the program when ctx is done.
func (s *client) control(ctx context.Context, cmd Cmd, finished <-chan struct{}) {
	done := ctx.Done()
	for {
		select {
		case <-finished:
			return
		case sig, ok := <-cmd.Signals:
			if !ok {
				cmd.Signals = nil
				continue
			}
			all := sig == syscall.SIGINT || sig == syscall.SIGHUP
			s.signal(sig, all)
		case <-done:
			done = nil
			s.signal(syscall.SIGKILL, true)
		case size, ok := <-cmd.Resized:
			if !ok {
				cmd.Resized = nil
			} else if p, err := json.Marshal(size); err == nil {
				s.write(wire.Resize, p)
			}
		}
	}
}

// feed sends standard input, one chunk at a time.
func (s *client) feed(r io.Reader, ready, finished <-chan struct{}) {
	buf := make([]byte, 32<<10)
	for r != nil {
		n, err := r.Read(buf)
		if n > 0 {
			if !s.write(wire.Stdin, buf[:n]) {
				return
			}
			select {
			case <-ready:
			case <-finished:
				return
			}
		}
		if err != nil {
			break
		}
	}
	s.write(wire.Stdin, nil)
}

// output passes the program's output on until its end.
func (s *client) output(cmd Cmd, ready chan<- struct{}) error {
	var outErr error
	pass := func(w io.Writer, p []byte) {
		// The program's end must be waited for even if nobody hears it.
		if w != nil && outErr == nil {
			_, outErr = w.Write(p)
		}
	}
	for {
		t, p, err := s.conn.Read()
		if err != nil {
			return s.lost(err)
		}
		switch t {
		case wire.Stdout:
			pass(cmd.Stdout, p)
		case wire.Stderr:
			pass(cmd.Stderr, p)
		case wire.StdinOK:
			select {
			case ready <- struct{}{}:
			default:
			}
		case wire.Exit:
			var st wire.ExitStatus
			if err := json.Unmarshal(p, &st); err != nil {
				return s.lost(fmt.Errorf("%w: %w", wire.ErrProtocol, err))
			}
			if st.Error != "" {
				return fmt.Errorf("start %s in the nested host: %s", cmd.Path, st.Error)
			}
			if st.Code != 0 || st.Signal != 0 {
				return errors.Join(&ExitError{Code: st.Code, Signal: st.Signal}, outErr)
			}
			return outErr
		default:
			return s.lost(fmt.Errorf("%w: frame %q", wire.ErrProtocol, t))
		}
	}
}

// collect carries files out.
func (s *client) collect(cmd Cmd) error {
	if err := s.conn.WriteJSON(wire.Get, wire.GetRequest{Patterns: cmd.Collect}); err != nil {
		return s.lost(err)
	}
	pr, pw := io.Pipe()
	used := make(chan error, 1)
	go func() {
		var err error
		if cmd.Collected != nil {
			err = cmd.Collected(tar.NewReader(pr))
		}
		_, _ = io.Copy(io.Discard, pr)
		used <- err
	}()
	for {
		t, p, err := s.conn.Read()
		if err == nil && t != wire.Tar {
			err = fmt.Errorf("%w: frame %q", wire.ErrProtocol, t)
		}
		if err != nil {
			pw.CloseWithError(err)
			<-used
			return s.lost(err)
		}
		if len(p) == 0 {
			break
		}
		_, _ = pw.Write(p)
	}
	pw.Close()
	uerr := <-used
	if err := errors.Join(uerr, s.result()); err != nil {
		return fmt.Errorf("carry files out: %w", err)
	}
	return nil
}
