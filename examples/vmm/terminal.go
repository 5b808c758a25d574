package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// terminal puts the user's terminal into raw mode for a guest console and
// back. restore may be called any number of times, from any goroutine.
type terminal struct {
	fd   int
	old  unix.Termios
	once sync.Once
}

// openTerminal makes f raw. It returns nil, and no error, when f is not a
// terminal.
func openTerminal(f *os.File) (*terminal, error) {
	t := &terminal{fd: int(f.Fd())}
	old, err := unix.IoctlGetTermios(t.fd, unix.TCGETS)
	if err != nil {
		return nil, nil
	}
	t.old = *old
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(t.fd, unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("make the terminal raw: %w", err)
	}
	return t, nil
}

func (t *terminal) restore() {
	if t == nil {
		return
	}
	t.once.Do(func() { _ = unix.IoctlSetTermios(t.fd, unix.TCSETS, &t.old) })
}

// resized calls f with the terminal's size whenever it changes, until ctx is
// done.
func (t *terminal) resized(ctx context.Context, f func(cols, rows uint16)) {
	if t == nil {
		return
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	go func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				f(t.size())
			}
		}
	}()
}

// size is the terminal's columns and rows, 80 by 24 if it does not tell.
func (t *terminal) size() (cols, rows uint16) {
	if t != nil {
		if ws, err := unix.IoctlGetWinsize(t.fd, unix.TIOCGWINSZ); err == nil && ws.Col > 0 {
			return ws.Col, ws.Row
		}
	}
	return 80, 24
}

// escape is Ctrl-A, which introduces a command to the VMM as it does in
// QEMU and screen.
const escape = 0x01

// endOfInput is Ctrl-D, at which a terminal ends its input.
const endOfInput = 0x04

// escapeReader passes on what the user types, except for Ctrl-A and the key
// after it: x calls onExit, h and ? call onHelp, a Ctrl-A sends one Ctrl-A.
//
// With repeatEnd set, the end of r is a Ctrl-D, and another after each such
// time: one that comes before the guest's shell has set up its terminal is
// lost on the shell, and a pipe that has ended stays ended.
type escapeReader struct {
	r         io.Reader
	repeatEnd time.Duration
	ended     bool
	onExit    func()
	onHelp    func()
	pending   bool
}

const escapeHelp = "\r\nvmm: Ctrl-A x leaves, Ctrl-A Ctrl-A sends a Ctrl-A\r\n"

func (e *escapeReader) Read(p []byte) (int, error) {
	for {
		n, err := e.r.Read(p)
		out := 0
		for _, b := range p[:n] {
			switch {
			case e.pending:
				e.pending = false
				switch b {
				case 'x', 'X':
					e.onExit()
				case 'h', '?':
					e.onHelp()
				case escape:
					p[out] = escape
					out++
				}
			case b == escape:
				e.pending = true
			default:
				p[out] = b
				out++
			}
		}
		if err == io.EOF && out == 0 && len(p) > 0 && e.repeatEnd > 0 {
			if e.ended {
				time.Sleep(e.repeatEnd)
			}
			e.ended = true
			p[0] = endOfInput
			out = 1
		}
		if out > 0 {
			return out, nil // r gives its error again
		}
		if err != nil {
			return 0, err
		}
	}
}
