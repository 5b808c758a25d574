// Package chip is what the platform chips have in common: the host's clock,
// a clock as seen through a machine's inbox, and an interrupt pin that
// remembers its level.
package chip

import (
	"encoding/binary"
	"log/slog"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Sampler reads a clock through a port, so that a recorder sees every value
// that the guest may see. It is not safe for concurrent use: the chip that owns
// it has a lock.
type Sampler struct {
	port device.Port
	read func(p []byte) error
	buf  [8]byte
	last int64
}

// NewSampler returns a sampler of now, in nanoseconds.
func NewSampler(port device.Port, now func() int64) *Sampler {
	return &Sampler{port: port, read: func(p []byte) error {
		binary.LittleEndian.PutUint64(p, uint64(now()))
		return nil
	}}
}

// Now is the time in nanoseconds. If the port cannot tell, it is the last
// time told. It allocates nothing.
func (c *Sampler) Now() int64 {
	if err := c.port.Sample(c.buf[:], c.read); err == nil {
		c.last = int64(binary.LittleEndian.Uint64(c.buf[:]))
	}
	return c.last
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
