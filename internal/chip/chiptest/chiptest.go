// Package chiptest is what the tests of the platform chips share: an
// interrupt line and a clock to look at and move, and a driver that throws
// accesses and saved states at a chip.
package chiptest

import (
	"bytes"
	"encoding/json"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip"
	"github.com/vmkit-go/vmkit/vm/device"
)

// Line is an interrupt line that remembers what was done to it.
type Line struct {
	mu    sync.Mutex
	level bool
	rises int
	err   error
}

// Set drives the line.
func (l *Line) Set(level bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level && !l.level {
		l.rises++
	}
	l.level = level
	return l.err
}

// Fail makes every later Set return an error.
func (l *Line) Fail() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.New("line is broken")
}

// Level is the line's level.
func (l *Line) Level() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.level
}

// Rises counts the rising edges.
func (l *Line) Rises() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rises
}

// Clock is a device.Clock that stands still unless it is moved. Its timers go
// off as they do on the host's clock, whatever it shows.
type Clock struct {
	device.Clock
	now atomic.Int64
}

// NewClock returns a clock that shows zero.
func NewClock() *Clock { return &Clock{Clock: chip.HostClock()} }

// Now is the time.
func (c *Clock) Now() int64 { return c.now.Load() }

// Add moves the clock on, or back.
func (c *Clock) Add(d time.Duration) { c.now.Add(int64(d)) }

// Chip is what every platform chip is.
type Chip interface {
	device.Handler
	device.Stateful
}

// Drive reads script as a program of accesses within size bytes, saves, and
// loads, and runs it on c. Every state that c saves must load again into
// fresh, which is a second chip of the same kind, and save the same. step is
// called with the byte of any other instruction.
func Drive(t *testing.T, c, fresh Chip, size uint64, script []byte, step func(byte)) {
	t.Helper()
	next := func() (b byte) {
		if len(script) > 0 {
			b, script = script[0], script[1:]
		}
		return b
	}
	for n := 0; len(script) > 0 && n < 4096; n++ {
		op := next()
		width := uint64(1) << (op >> 2 & 3)
		off := uint64(next()) % size
		if off+width > size {
			width = 1
		}
		p := make([]byte, width)
		switch op & 3 {
		case 0:
			c.Read(off, p)
		case 1:
			for i := range p {
				p[i] = next()
			}
			c.Write(off, p)
		case 2:
			if op>>2&3 != 0 {
				step(next())
				continue
			}
			s, err := c.Save()
			if err != nil {
				t.Fatalf("save: %v", err)
			}
			if err := fresh.Load(s); err != nil {
				t.Fatalf("a saved state does not load: %v\n%s", err, s.Data)
			}
		case 3:
			if op>>4 != 0 {
				step(op)
				continue
			}
			// The rest of the script is a state of its own.
			s := device.State{Version: 1, Data: json.RawMessage(script)}
			if c.Load(s) == nil {
				if _, err := c.Save(); err != nil {
					t.Fatalf("save after load: %v", err)
				}
			}
			return
		}
	}
}

// BadStates checks that c refuses each of these states, by its version or its
// JSON, and is left as it was.
func BadStates(t *testing.T, c Chip, data ...string) {
	t.Helper()
	before, err := c.Save()
	if err != nil {
		t.Fatal(err)
	}
	wrong := before
	wrong.Version++
	if err := c.Load(wrong); !errors.Is(err, device.ErrStateVersion) {
		t.Errorf("unknown version: %v", err)
	}
	for _, d := range append(data, "", "[", `{"no such field":1}`, string(before.Data)+"{}") {
		if err := c.Load(device.State{Version: before.Version, Data: json.RawMessage(d)}); err == nil {
			t.Errorf("state %q was accepted", d)
		}
	}
	after, err := c.Save()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before.Data, after.Data) {
		t.Errorf("refused states changed the chip:\n%s\n%s", before.Data, after.Data)
	}
}

// In and Out are port accesses of 1, 2 or 4 bytes.
func In(c device.Handler, off uint64, width int) uint32 {
	p := make([]byte, width)
	c.Read(off, p)
	var v uint32
	for i, b := range p {
		v |= uint32(b) << (8 * i)
	}
	return v
}

// Out writes the low width bytes of v.
func Out(c device.Handler, off uint64, width int, v uint32) {
	p := make([]byte, width)
	for i := range p {
		p[i] = byte(v >> (8 * i))
	}
	c.Write(off, p)
}
