package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/nestedkvm/wire"
)

// child is a running program.
type child struct {
	proc     *os.Process
	cgroup   string
	terminal *os.File      // the master of its terminal, if it has one
	input    chan []byte   // one chunk at a time; nil is the end
	fed      chan struct{} // closed when nothing more is read from input
	over     chan struct{} // closed when no process of the program is left
	done     chan struct{} // closed when its exit status is about to be sent
}

// start runs a program; its output and exit status go to the session's
// connection.
func start(s *session, spec wire.Command) (*child, error) {
	env := append(append(os.Environ()[:0:0], s.env...), spec.Env...)
	dir := spec.Dir
	if dir == "" {
		dir = "/"
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path, err := lookPath(spec.Path, dir, env)
	if err != nil {
		return nil, err
	}
	cgroup := filepath.Join(cgroupRoot, fmt.Sprintf("port%d-run%d", s.id, s.runs))
	if err := os.Mkdir(cgroup, 0o755); err != nil {
		return nil, err
	}
	cg, err := os.Open(cgroup)
	if err != nil {
		return nil, err
	}
	defer cg.Close()

	cmd := &exec.Cmd{Path: path, Args: append([]string{spec.Path}, spec.Args...), Env: env, Dir: dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(cg.Fd())}
	c := &child{cgroup: cgroup, input: make(chan []byte, 1),
		fed: make(chan struct{}), over: make(chan struct{}), done: make(chan struct{})}
	io, err := newStdio(cmd, spec)
	if err != nil {
		os.Remove(cgroup)
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		io.closeAll()
		os.Remove(cgroup)
		return nil, err
	}
	c.proc = cmd.Process
	if spec.Terminal != nil {
		c.terminal = io.in
	}
	io.closeChildEnds()
	go c.feed(s.conn, io.in)
	go c.wait(s.conn, cmd, io)
	return c, nil
}

// stdio is the agent's side of a program's standard streams.
type stdio struct {
	in       *os.File
	out, err *os.File // err is nil on a terminal
	theirs   []*os.File
}

func newStdio(cmd *exec.Cmd, spec wire.Command) (*stdio, error) {
	if spec.Terminal != nil {
		return newTerminal(cmd, spec)
	}
	var s stdio
	var ends [6]*os.File
	for i := 0; i < 6; i += 2 {
		r, w, err := os.Pipe()
		if err != nil {
			for _, f := range ends[:i] {
				f.Close()
			}
			return nil, err
		}
		ends[i], ends[i+1] = r, w
	}
	s.in, s.out, s.err = ends[1], ends[2], ends[4]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = ends[0], ends[3], ends[5]
	s.theirs = []*os.File{ends[0], ends[3], ends[5]}
	return &s, nil
}

func (s *stdio) closeChildEnds() {
	for _, f := range s.theirs {
		f.Close()
	}
}

func (s *stdio) closeAll() {
	s.closeChildEnds()
	s.in.Close()
	s.out.Close()
	if s.err != nil {
		s.err.Close()
	}
}

// feed writes the chunks of standard input, and asks for the next after each.
func (c *child) feed(conn *wire.Conn, in *os.File) {
	defer close(c.fed)
	defer in.Close()
	for {
		select {
		case p := <-c.input:
			if p == nil {
				return
			}
			// An error means that nobody reads any more; the host hears of the
			// exit in time.
			_, _ = in.Write(p)
			if err := conn.Write(wire.StdinOK, nil); err != nil {
				return
			}
		case <-c.over:
			return
		}
	}
}

// stdin takes one chunk; the host sends the next only after StdinOK.
func (c *child) stdin(p []byte) {
	var chunk []byte
	if len(p) > 0 {
		chunk = append(chunk, p...)
	}
	select {
	case c.input <- chunk:
	case <-c.fed:
	}
}

// wait passes output on until the program and all that it left behind are gone.
func (c *child) wait(conn *wire.Conn, cmd *exec.Cmd, io *stdio) {
	var wg sync.WaitGroup
	wg.Go(func() { copyOut(conn.Writer(wire.Stdout), io.out) })
	if io.err != nil {
		wg.Go(func() { copyOut(conn.Writer(wire.Stderr), io.err) })
	}
	err := cmd.Wait()
	// A process left in the background would hold the pipes open, and disturb
	// the programs after this one.
	c.killGroup()
	wg.Wait()
	reap(cmd.Process.Pid)
	for range 100 {
		if os.Remove(c.cgroup) == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
		reap(cmd.Process.Pid)
	}
	// No StdinOK may follow Exit.
	close(c.over)
	<-c.fed
	var st wire.ExitStatus
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		ws := exit.Sys().(syscall.WaitStatus)
		if ws.Signaled() {
			st.Signal = int(ws.Signal())
		} else {
			st.Code = ws.ExitStatus()
		}
	case err != nil:
		st = wire.ExitStatus{Code: 127, Error: err.Error()}
	}
	close(c.done)
	_ = conn.WriteJSON(wire.Exit, st)
}

func copyOut(w io.Writer, f *os.File) {
	defer f.Close()
	// A terminal's master reads as EIO when the last process closes it.
	_, _ = io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{f}, make([]byte, 32<<10))
}

func (c *child) signal(req wire.SignalRequest) {
	sig := syscall.Signal(req.Signal)
	switch {
	case req.All && sig == syscall.SIGKILL:
		c.kill()
	case req.All:
		_ = syscall.Kill(-c.proc.Pid, sig)
	default:
		_ = c.proc.Signal(sig)
	}
}

// resize changes the size of the program's terminal, if it has one.
func (c *child) resize(size wire.Size) {
	if c.terminal == nil {
		return
	}
	// SyscallConn keeps the descriptor open meanwhile: feed closes it.
	if raw, err := c.terminal.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = resize(int(fd), size) })
	}
}

// kill kills the program and everything that it started.
func (c *child) kill() { c.killGroup() }

func (c *child) killGroup() {
	_ = os.WriteFile(filepath.Join(c.cgroup, "cgroup.kill"), []byte("1"), 0)
}

// reap waits for orphans: dead processes that became children of this one and
// that no session waits for. The session's own child is past that already;
// those of other sessions lead a session (setsid) and are left alone.
func reap(int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		// pid (comm) state ppid pgrp session
		i := strings.LastIndexByte(string(data), ')')
		if i < 0 {
			continue
		}
		f := strings.Fields(string(data[i+1:]))
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if len(f) < 4 || f[0] != "Z" || f[1] != "1" || f[3] == strconv.Itoa(pid) {
			continue
		}
		_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
	}
}

// lookPath finds a program as a shell would.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	for i := len(env) - 1; i >= 0; i-- {
		list, ok := strings.CutPrefix(env[i], "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(list) {
			p := filepath.Join(d, name)
			if fi, err := os.Stat(p); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
				return p, nil
			}
		}
		break
	}
	return "", fmt.Errorf("%s: not found in PATH", name)
}
