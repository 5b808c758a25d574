// Package rtc is a PC's real-time clock and CMOS memory (Motorola MC146818A
// data sheet): time and date, alarm, periodic and update interrupts, 114 bytes
// of memory that keep what the guest stores.
//
//	clock, err := rtc.New(rtc.Config{Inbox: box, Line: irq8})
//	err = ports.Map(rtc.Base, rtc.Size, clock)
//
// The clock shows the time of day, in UTC, of the host or of a clock with a
// start, until the guest sets it, and then keeps the difference, also over save
// and load.
package rtc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vm/device"
)

// The chip's place on the port bus.
const (
	Base = platform.PortRTCIndex
	Size = platform.PortRTCData - platform.PortRTCIndex + 1
)

// Ports, as offsets from Base.
const (
	portIndex = 0 // bit 7 masks NMIs and reads as set here
	portData  = 1
)

// Century is the index of the century byte, for the FADT's CENTURY field.
const Century = regCentury

// Config says what the chip is wired to.
type Config struct {
	// Inbox is required: the time passes through it.
	Inbox device.Inbox
	// Name is the chip's name at the inbox; empty means "rtc".
	Name string
	// Line is the interrupt; nil leaves it unconnected.
	Line device.Line
	// Clock is what time passes by; nil means the host's.
	Clock device.Clock
	// Start is the time of day when Clock showed zero. If it is zero, the
	// time of day is the host's, which may be set and then steps.
	Start time.Time
	// Log takes errors of Line; nil drops them.
	Log *slog.Logger
}

// Chip is the clock. Its methods may be called from any goroutine.
type Chip struct {
	timer device.Timer

	mu     sync.Mutex
	clock  *chip.Sampler
	pin    *chip.Pin
	reg    state
	paused bool
}

var (
	_ device.Handler  = (*Chip)(nil)
	_ device.Stateful = (*Chip)(nil)
	_ device.Receiver = (*Chip)(nil)
)

// New returns a clock that shows the time of day, 24 hours in BCD.
func New(cfg Config) (*Chip, error) {
	if cfg.Inbox == nil {
		return nil, errors.New("rtc: Config.Inbox is nil")
	}
	if cfg.Name == "" {
		cfg.Name = "rtc"
	}
	cfg.Clock = chip.OrHost(cfg.Clock)
	now := func() int64 { return time.Now().UnixNano() }
	if !cfg.Start.IsZero() {
		start := cfg.Start.UnixNano()
		now = func() int64 { return start + cfg.Clock.Now() }
	}
	c := &Chip{pin: chip.NewPin(cfg.Name, cfg.Line, cfg.Log)}
	port, err := cfg.Inbox.Open(cfg.Name, c)
	if err != nil {
		return nil, fmt.Errorf("rtc: %w", err)
	}
	c.clock = chip.NewSampler(port, now)
	c.timer = cfg.Clock.NewTimer(func() {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(now()))
		port.Post(0, b[:])
	})
	c.reg.reset(c.host())
	return c, nil
}

// host is the time of day without what the guest made of it.
func (c *Chip) host() moment { return fromUnixNano(c.clock.Now()) }

// Deliver takes an event from the inbox: the time at which the timer
// went off.
func (c *Chip) Deliver(_ uint64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(data) != 8 || c.paused {
		return // Resume looks again
	}
	host := fromUnixNano(int64(binary.LittleEndian.Uint64(data)))
	c.reg.catchUp(host)
	c.update(host)
}

// update drives the interrupt and sets the timer for the next event that
// the guest waits for.
func (c *Chip) update(host moment) {
	c.pin.Set(c.reg.pending())
	if !c.paused {
		if d, ok := c.reg.next(host); ok {
			c.timer.Set(d)
			return
		}
	}
	c.timer.Stop()
}

// Read answers a port read, one port for each byte.
func (c *Chip) Read(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range p {
		switch off + uint64(i) {
		case portIndex:
			p[i] = c.reg.Index | 0x80
		case portData:
			p[i] = c.read()
		default:
			p[i] = 0xff
		}
	}
}

// read reads the byte that the index selects.
func (c *Chip) read() byte {
	if c.reg.Index >= firstPlain && c.reg.Index != regCentury {
		return c.reg.CMOS[c.reg.Index] // no need to look at the clock
	}
	host := c.host()
	c.reg.catchUp(host)
	v := c.reg.read(host)
	if c.reg.Index == regC {
		c.update(host)
	}
	return v
}

// Write takes a port write, one port for each byte.
func (c *Chip) Write(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, v := range p {
		switch off + uint64(i) {
		case portIndex:
			c.reg.Index = v & 0x7f
		case portData:
			host := c.host()
			c.reg.catchUp(host)
			c.reg.write(host, v)
			c.update(host)
		}
	}
}

// Pause stops the timer, and Resume starts it again. What became due in
// between happens in Resume: the clock itself never stands still.
func (c *Chip) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = true
	c.timer.Stop()
}

// Resume undoes Pause.
func (c *Chip) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.paused {
		return
	}
	c.paused = false
	host := c.host()
	c.reg.catchUp(host)
	c.update(host)
}

// Close stops the timer for good.
func (c *Chip) Close() error {
	c.timer.Close()
	return nil
}

// stateVersion names the layout of state.
const stateVersion = 1

// Save returns the chip's state.
func (c *Chip) Save() (device.State, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return device.EncodeState(stateVersion, &c.reg)
}

// Load takes a state from Save. Events that became due since the save happen
// now.
func (c *Chip) Load(s device.State) error {
	var st state
	if err := s.Decode(stateVersion, &st); err != nil {
		return fmt.Errorf("rtc: %w", err)
	}
	if err := st.check(); err != nil {
		return fmt.Errorf("rtc: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reg = st
	host := c.host()
	c.reg.catchUp(host)
	c.update(host)
	c.pin.Force(c.pin.Level())
	return nil
}
