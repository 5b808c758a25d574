// Package chip is what the platform chips have in common: the host's clock
// as seen through a machine's inbox, a host timer, and an interrupt pin
// that remembers its level.
package chip

import (
	"encoding/binary"
	"log/slog"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Clock reads a clock of the host through a port, so that a recorder sees
// every value that the guest may see. It is not safe for concurrent use: the
// chip that owns it has a lock.
type Clock struct {
	port device.Port
	read func(p []byte) error
	buf  [8]byte
	last int64
}

// NewClock returns a clock over now, in nanoseconds.
func NewClock(port device.Port, now func() int64) *Clock {
	return &Clock{port: port, read: func(p []byte) error {
		binary.LittleEndian.PutUint64(p, uint64(now()))
		return nil
	}}
}

// Now is the time in nanoseconds. If the port cannot tell, it is the last
// time told. It allocates nothing.
func (c *Clock) Now() int64 {
	if err := c.port.Sample(c.buf[:], c.read); err == nil {
		c.last = int64(binary.LittleEndian.Uint64(c.buf[:]))
	}
	return c.last
}

// Timer calls a function once at some time on a goroutine of its own. All
// methods may be called from any goroutine.
type Timer struct {
	fire func()

	mu     sync.Mutex
	timer  *time.Timer
	gen    uint64 // of the setting; a call that finds another is too late
	closed bool
}

// NewTimer returns a timer that is not set.
func NewTimer(fire func()) *Timer { return &Timer{fire: fire} }

// Set makes the timer fire in d, in place of any earlier setting.
func (t *Timer) Set(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.halt()
	if t.closed {
		return
	}
	gen := t.gen
	t.timer = time.AfterFunc(max(d, 0), func() {
		t.mu.Lock()
		late := gen != t.gen
		t.mu.Unlock()
		if !late {
			t.fire()
		}
	})
}

// Stop forgets the setting. A call that is already running is not waited for.
func (t *Timer) Stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.halt()
}

// Close stops the timer for good.
func (t *Timer) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.halt()
}

func (t *Timer) halt() {
	t.gen++
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
}

// Pin drives an interrupt line, only when its level changes. It is not safe
// for concurrent use.
type Pin struct {
	line  device.Line
	log   *slog.Logger
	name  string
	level bool
}

// NewPin returns a low pin of the chip called name. Without a line it leads
// nowhere; without a log, errors of the line are dropped.
func NewPin(name string, line device.Line, log *slog.Logger) *Pin {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Pin{line: line, log: log, name: name}
}

// Set drives the line to level unless it is there already.
func (p *Pin) Set(level bool) {
	if level != p.level {
		p.Force(level)
	}
}

// Level is the level that was last set.
func (p *Pin) Level() bool { return p.level }

// Force drives the line to level, as is needed after a load.
func (p *Pin) Force(level bool) {
	p.level = level
	if p.line == nil {
		return
	}
	if err := p.line.Set(level); err != nil {
		p.log.Error("interrupt line", "chip", p.name, "level", level, "err", err)
	}
}
