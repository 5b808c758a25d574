// Package i8042 is the part of a PC's keyboard controller that resets the
// machine. There is no keyboard and, as far as a driver can tell, no
// controller either.
//
// The status register always reads "output buffer full, input buffer empty".
// Linux's probe (i8042_flush) reads the buffer 16 times, finds it still full
// and gives up within a millisecond; a wait for the input buffer, as before
// the reset command (kbd_wait in arch/x86/kernel/reboot.c), ends at once.
//
//	kbd := i8042.New(i8042.Config{OnReset: reset})
//	err := ports.Map(i8042.Base, i8042.Size, kbd)
package i8042

import (
	"fmt"
	"sync"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vm/device"
)

// The chip's place on the port bus. Ports between data and command belong to
// other chips on a PC and read as 0xff here.
const (
	Base = platform.PortI8042Data
	Size = platform.PortI8042Command - platform.PortI8042Data + 1
)

const (
	regData    = 0
	regCommand = platform.PortI8042Command - platform.PortI8042Data

	// Status: output buffer full, system flag, keyboard not locked.
	status = 0x01 | 0x04 | 0x10

	cmdWriteOutput = 0xd1 // the next data byte is the output port
	cmdPulse       = 0xf0 // 0xf0-0xff: pulse the output lines whose bits 0-3 are 0
	lineReset      = 0x01 // output line 0, active low
)

// Config says what the chip is wired to.
type Config struct {
	// OnReset is called when the guest pulls the reset line, on the CPU's
	// goroutine and possibly many times; it must not block. It may be nil.
	OnReset func()
}

// Chip is the controller. Its methods may be called from any goroutine.
type Chip struct {
	cfg Config

	mu    sync.Mutex
	state state
}

type state struct {
	// Output is set while the next data byte goes to the output port.
	Output bool `json:"output"`
}

var (
	_ device.Handler  = (*Chip)(nil)
	_ device.Stateful = (*Chip)(nil)
)

// New returns a controller.
func New(cfg Config) *Chip { return &Chip{cfg: cfg} }

// Read answers a port read.
func (c *Chip) Read(off uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
		if off+uint64(i) == regCommand {
			p[i] = status
		}
	}
}

// Write takes a port write.
func (c *Chip) Write(off uint64, p []byte) {
	for i, v := range p {
		if c.write(off+uint64(i), v) && c.cfg.OnReset != nil {
			c.cfg.OnReset()
		}
	}
}

// write takes one byte and reports whether it pulled the reset line.
func (c *Chip) write(off uint64, v byte) (reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch off {
	case regData:
		reset = c.state.Output && v&lineReset == 0
		c.state.Output = false
	case regCommand:
		c.state.Output = v == cmdWriteOutput
		reset = v >= cmdPulse && v&lineReset == 0
	}
	return reset
}

// stateVersion names the layout of state.
const stateVersion = 1

// Save returns the chip's state.
func (c *Chip) Save() (device.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return device.EncodeState(stateVersion, c.state)
}

// Load takes a state from Save.
func (c *Chip) Load(s device.State) error {
	var st state
	if err := s.Decode(stateVersion, &st); err != nil {
		return fmt.Errorf("i8042: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = st
	return nil
}
