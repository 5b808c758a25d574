// Package wire is the protocol between a nested host's agent and the program
// that drives it: frames of a type byte, a little-endian 32-bit length and that
// many bytes, over a virtio-serial port. One port carries one session at a
// time; a session is a sequence of requests, each answered before the next.
//
//	host                         agent
//	                             Hello (once, when the port opens)
//	Tar... Tar(empty)            Done: files are unpacked below /
//	Run                          Stdout, Stderr... Exit
//	  Stdin (empty is its end)   StdinOK for each
//	  Signal, Resize
//	Get                          Tar... Tar(empty), Done
//	Reset                        ResetOK: whatever ran is dead
//	Ping                         Pong
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Type is the kind of a frame.
type Type byte

// The frames. Those marked JSON hold the value named.
const (
	Hello   Type = 'H'
	Tar     Type = 'T'
	Run     Type = 'R' // JSON: Command
	Stdin   Type = 'I'
	StdinOK Type = 'K'
	Signal  Type = 'S' // JSON: SignalRequest
	Stdout  Type = 'O'
	Stderr  Type = 'E'
	Exit    Type = 'X' // JSON: ExitStatus
	Get     Type = 'G' // JSON: GetRequest
	Done    Type = 'D' // JSON: Result
	Reset   Type = 'Z'
	ResetOK Type = 'z'
	Ping    Type = 'P'
	Pong    Type = 'p'
	Resize  Type = 'W' // JSON: Size, the terminal's; there is no answer
)

// MaxPayload bounds a frame's payload in bytes.
const MaxPayload = 256 << 10

// ErrProtocol is wrapped by errors for frames that break the protocol.
var ErrProtocol = errors.New("nested host protocol error")

// Command is a program to run.
type Command struct {
	Path string   `json:"path"` // absolute, or looked for in PATH
	Args []string `json:"args"` // without the program's name
	Env  []string `json:"env"`  // added to the agent's own
	Dir  string   `json:"dir"`  // made if missing; empty is /
	// Terminal gives the program a terminal of that size as its standard input
	// and output instead of pipes.
	Terminal *Size `json:"terminal,omitempty"`
}

// Size is the size of a terminal in characters.
type Size struct {
	Rows    uint16 `json:"rows"`
	Columns uint16 `json:"columns"`
}

// SignalRequest is a signal for the running program.
type SignalRequest struct {
	Signal int `json:"signal"`
	// All sends it to every process that the program started, too.
	All bool `json:"all,omitempty"`
}

// ExitStatus is how a program ended.
type ExitStatus struct {
	Code   int    `json:"code"`             // exit status, if Signal is 0
	Signal int    `json:"signal,omitempty"` // the signal that killed it
	Error  string `json:"error,omitempty"`  // why it could not be started
}

// GetRequest asks for files. Patterns are as in path/filepath.Match; a
// directory means all below it; what does not exist is left out.
type GetRequest struct {
	Patterns []string `json:"patterns"`
}

// Result answers a request that has no result of its own.
type Result struct {
	Error string `json:"error,omitempty"`
}

// Conn reads and writes frames. One goroutine may read while others write.
type Conn struct {
	r   io.Reader
	buf []byte

	mu  sync.Mutex
	w   io.Writer
	out []byte
}

// NewConn returns a Conn over rw.
func NewConn(rw io.ReadWriter) *Conn { return &Conn{r: rw, w: rw} }

// Read returns the next frame. The payload is valid until the next Read.
func (c *Conn) Read() (Type, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.LittleEndian.Uint32(head[1:])
	if n > MaxPayload {
		return 0, nil, fmt.Errorf("%w: frame %q of %d bytes", ErrProtocol, head[0], n)
	}
	if cap(c.buf) < int(n) {
		c.buf = make([]byte, n)
	}
	p := c.buf[:n]
	if _, err := io.ReadFull(c.r, p); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Type(head[0]), p, nil
}

// Write sends one frame; p must not exceed MaxPayload.
func (c *Conn) Write(t Type, p []byte) error {
	if len(p) > MaxPayload {
		return fmt.Errorf("%w: frame %q of %d bytes", ErrProtocol, t, len(p))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// One write per frame: a port has no other way to keep it whole.
	c.out = append(c.out[:0], byte(t))
	c.out = binary.LittleEndian.AppendUint32(c.out, uint32(len(p)))
	c.out = append(c.out, p...)
	_, err := c.w.Write(c.out)
	return err
}

// WriteJSON sends v as the payload of one frame.
func (c *Conn) WriteJSON(t Type, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.Write(t, p)
}

// Writer returns a writer that sends what it gets in frames of type t.
func (c *Conn) Writer(t Type) io.Writer { return frameWriter{c, t} }

type frameWriter struct {
	c *Conn
	t Type
}

func (w frameWriter) Write(p []byte) (int, error) {
	sent := 0
	for len(p) > 0 {
		n := min(len(p), 64<<10)
		if err := w.c.Write(w.t, p[:n]); err != nil {
			return sent, err
		}
		sent += n
		p = p[n:]
	}
	return sent, nil
}
