// Package acpipm is the fixed hardware of ACPI (ACPI 6.5, section 4.8): the
// PM1a event and control registers with the power button, the power management
// timer, general-purpose event block 0, and the reset register.
//
//	pm, err := acpipm.New(acpipm.Config{Inbox: box, Line: sci, OnPowerOff: off})
//	err = ports.Map(acpipm.Base, acpipm.Size, pm)
//	pm.PressPowerButton() // asks the guest to shut down
package acpipm

import (
	"errors"
	"fmt"
	"log/slog"
	"math/bits"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vm/device"
)

// The chip's place on the port bus. Ports of it that are no register read as
// 0xff.
const (
	Base = platform.PortPM1aEvent
	Size = platform.PortGPE0 + platform.GPE0Size - Base
)

// Offsets from Base.
const (
	regStatus    = 0
	regEnable    = 2
	regControl   = platform.PortPM1aControl - Base
	regTimer     = platform.PortPMTimer - Base
	regReset     = platform.PortReset - Base
	regGPEStatus = platform.PortGPE0 - Base
	regGPEEnable = regGPEStatus + platform.GPE0Size/2
)

// Bits of PM1 status and enable (section 4.8.3.1).
const (
	bitTimer       = 1 << 0
	bitGlobal      = 1 << 5
	bitPowerButton = 1 << 8
	bitRTC         = 1 << 10
	bitWake        = 1 << 15 // status only

	statusBits = bitTimer | bitGlobal | bitPowerButton | bitRTC | bitWake
	enableBits = bitTimer | bitGlobal | bitPowerButton | bitRTC
)

// Bits of PM1 control (section 4.8.3.2.1). SLP_EN reads as zero; SCI_EN is
// always set, since there is no SMI_CMD to change it with.
const (
	controlSCI       = 1 << 0
	controlBusMaster = 1 << 1
	controlTypeShift = 10
	controlTypeMask  = 7 << controlTypeShift
	controlSleep     = 1 << 13
	controlKept      = controlBusMaster | controlTypeMask
)

// The timer has 24 bits; its status bit is set each time the highest flips.
const (
	timerMask = 1<<24 - 1
	timerHalf = 1 << 23
)

// GPECount is the number of general-purpose events.
const GPECount = 8 * platform.GPE0Size / 2

// Config says what the chip is wired to.
type Config struct {
	// Inbox is required: the clock and the host's requests pass through it.
	Inbox device.Inbox
	// Name is the chip's name at the inbox; empty means "acpipm".
	Name string
	// Line is the system control interrupt (level-triggered). Nil leaves it
	// unconnected.
	Line device.Line
	// Clock drives the timer; nil means the host's.
	Clock device.Clock
	// OnPowerOff is called when the guest enters S5, OnReset when it writes
	// the reset register: on the CPU's goroutine, possibly many times; they
	// must not block. They may be nil.
	OnPowerOff, OnReset func()
	// Log takes errors of Line; nil drops them.
	Log *slog.Logger
}

// Chip is the fixed hardware. Its methods may be called from any goroutine.
type Chip struct {
	cfg   Config
	port  device.Port
	timer device.Timer

	mu     sync.Mutex
	clock  *chip.Sampler
	sci    *chip.Pin
	state  state
	base   uint64 // the timer's count ...
	ref    int64  // ... at this time of the clock
	seen   int64  // the clock at the last look
	paused bool
}

// state is what is saved. Ticks is the timer without its cut to 24 bits, as
// of the last look at the clock.
type state struct {
	Status    uint16 `json:"status"`
	Enable    uint16 `json:"enable"`
	Control   uint16 `json:"control"`
	GPEStatus uint16 `json:"gpeStatus"`
	GPEEnable uint16 `json:"gpeEnable"`
	Ticks     uint64 `json:"ticks"`
}

var (
	_ device.Handler  = (*Chip)(nil)
	_ device.Stateful = (*Chip)(nil)
	_ device.Receiver = (*Chip)(nil)
)

// Events at the inbox.
const (
	tagTimer       = iota // the timer's high bit may have flipped
	tagPowerButton        // no data
	tagGPE                // data: the event's number, one byte
)

// New returns a chip in its power-on state.
func New(cfg Config) (*Chip, error) {
	if cfg.Inbox == nil {
		return nil, errors.New("acpipm: Config.Inbox is nil")
	}
	if cfg.Name == "" {
		cfg.Name = "acpipm"
	}
	cfg.Clock = chip.OrHost(cfg.Clock)
	c := &Chip{cfg: cfg, sci: chip.NewPin(cfg.Name, cfg.Line, cfg.Log)}
	port, err := cfg.Inbox.Open(cfg.Name, c)
	if err != nil {
		return nil, fmt.Errorf("acpipm: %w", err)
	}
	c.port = port
	c.clock = chip.NewSampler(port, cfg.Clock.Now)
	c.timer = cfg.Clock.NewTimer(func() { port.Post(tagTimer, nil) })
	c.rebase()
	return c, nil
}

// PressPowerButton presses and releases the power button. A guest that
// listens shuts down or asks its user.
func (c *Chip) PressPowerButton() { c.port.Post(tagPowerButton, nil) }

// RaiseGPE sets the status of general-purpose event n, 0 to GPECount-1.
func (c *Chip) RaiseGPE(n int) error {
	if n < 0 || n >= GPECount {
		return fmt.Errorf("acpipm: no general-purpose event %d, the last is %d", n, GPECount-1)
	}
	c.port.Post(tagGPE, []byte{byte(n)})
	return nil
}

// Deliver takes an event from the inbox.
func (c *Chip) Deliver(tag uint64, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick() // unless paused: then Resume looks again
	switch tag {
	case tagTimer:
	case tagPowerButton:
		c.state.Status |= bitPowerButton
	case tagGPE:
		if len(data) == 1 && data[0] < GPECount {
			c.state.GPEStatus |= 1 << data[0]
		}
	}
	c.update()
}

// tick brings the timer up to date.
func (c *Chip) tick() {
	if c.paused {
		return
	}
	c.seen = c.clock.Now()
	d := c.seen - c.ref
	if d <= 0 {
		return
	}
	hi, lo := bits.Mul64(uint64(d), platform.PMTimerHz)
	ticks, _ := bits.Div64(hi, lo, uint64(time.Second)) // hi < 2^21: cannot overflow
	before := c.state.Ticks
	c.state.Ticks = c.base + ticks
	if before/timerHalf != c.state.Ticks/timerHalf {
		c.state.Status |= bitTimer
	}
}

// rebase makes the timer go on from its count as of now.
func (c *Chip) rebase() {
	c.seen = c.clock.Now()
	c.base, c.ref = c.state.Ticks, c.seen
}

// due is how long after the last look the timer's high bit flips next. It does
// not depend on when that look was, so that looking changes nothing.
func (c *Chip) due() time.Duration {
	ticks := (c.state.Ticks/timerHalf+1)*timerHalf - c.base
	hi, lo := bits.Mul64(ticks, uint64(time.Second))
	ns, rest := bits.Div64(hi, lo, platform.PMTimerHz) // ticks are so few that an int64 holds their time
	if rest > 0 {
		ns++
	}
	return time.Duration(c.ref + int64(ns) - c.seen)
}

// update drives the interrupt and sets the clock's timer if the guest waits for
// the timer's bit.
func (c *Chip) update() {
	s := &c.state
	c.sci.Set(s.Status&s.Enable&enableBits != 0 || s.GPEStatus&s.GPEEnable != 0)
	if c.paused || s.Enable&bitTimer == 0 || s.Status&bitTimer != 0 {
		c.timer.Stop()
		return
	}
	c.timer.Set(c.due())
}

// Read answers a port read.
func (c *Chip) Read(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	end := off + uint64(len(p))
	// The timer is read at once, so that its bytes belong together; TMR_STS
	// depends on it.
	if off < regEnable || off < regTimer+platform.PMTimerSize && end > regTimer {
		c.tick()
		if c.state.Status&bitTimer != 0 {
			c.update()
		}
	}
	for i := range p {
		p[i] = c.readByte(off + uint64(i))
	}
}

func (c *Chip) readByte(off uint64) byte {
	var v uint16
	switch off &^ 1 {
	case regStatus:
		v = c.state.Status
	case regEnable:
		v = c.state.Enable
	case regControl:
		v = c.state.Control | controlSCI
	case regTimer:
		v = uint16(c.state.Ticks & timerMask)
	case regTimer + 2:
		v = uint16(c.state.Ticks & timerMask >> 16)
	case regGPEStatus:
		v = c.state.GPEStatus
	case regGPEEnable:
		v = c.state.GPEEnable
	default:
		return 0xff
	}
	return byte(v >> (8 * (off & 1)))
}

// Write takes a port write.
func (c *Chip) Write(off uint64, p []byte) {
	powerOff, reset := c.write(off, p)
	if powerOff && c.cfg.OnPowerOff != nil {
		c.cfg.OnPowerOff()
	}
	if reset && c.cfg.OnReset != nil {
		c.cfg.OnReset()
	}
}

func (c *Chip) write(off uint64, p []byte) (powerOff, reset bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tick()
	for i, b := range p {
		o := off + uint64(i)
		shift := 8 * (o & 1)
		v, lane := uint16(b)<<shift, uint16(0xff)<<shift
		switch o &^ 1 {
		case regStatus:
			c.state.Status &^= v
		case regEnable:
			c.state.Enable = (c.state.Enable&^lane | v) & enableBits
		case regControl:
			c.state.Control = (c.state.Control&^lane | v) & controlKept
			if v&controlSleep != 0 && c.state.Control&controlTypeMask == platform.SleepTypeS5<<controlTypeShift {
				powerOff = true
			}
		case regGPEStatus:
			c.state.GPEStatus &^= v
		case regGPEEnable:
			c.state.GPEEnable = c.state.GPEEnable&^lane | v
		}
		if o == regReset && b == platform.ResetValue {
			reset = true
		}
	}
	c.update()
	return powerOff, reset
}

// Pause stops the clock's timer. Resume starts it again; the timer of the guest
// has not moved in between.
func (c *Chip) Pause() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paused {
		return
	}
	c.tick()
	c.paused = true
	c.update()
}

// Resume undoes Pause.
func (c *Chip) Resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.paused {
		return
	}
	// A clock that stood still as well has nothing to be made up for, not
	// even a part of a tick.
	if c.clock.Now() != c.seen {
		c.rebase()
	}
	c.paused = false
	c.update()
}

// Close stops the clock's timer for good.
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
	c.tick()
	return device.EncodeState(stateVersion, c.state)
}

// Load takes a state from Save. The timer goes on from where it was saved.
func (c *Chip) Load(s device.State) error {
	var st state
	if err := s.Decode(stateVersion, &st); err != nil {
		return fmt.Errorf("acpipm: %w", err)
	}
	if st.Status&^statusBits != 0 || st.Enable&^enableBits != 0 || st.Control&^controlKept != 0 {
		return fmt.Errorf("acpipm: saved status %#x, enable %#x or control %#x has unknown bits", st.Status, st.Enable, st.Control)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = st
	c.rebase()
	c.update()
	c.sci.Force(c.sci.Level())
	return nil
}
