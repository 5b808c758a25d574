// Package serial is a 16550A UART (National Semiconductor PC16550D data
// sheet): FIFOs, interrupts, modem control and loopback, as a PC's COM1.
//
//	com1, err := serial.New(serial.Config{Inbox: box, Name: "serial0", Line: irq4, Output: os.Stdout})
//	err = ports.Map(serial.Base, serial.Size, com1)
//	n, err := com1.Input(ctx, keys)
//
// The line has no speed: a byte sent has left at once, and the transmitter is
// always ready. A goroutine carries output to Config.Output; when that is
// slow, the CPU that sends waits, which the guest cannot see.
package serial

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/internal/chip"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vm/device"
)

// The place of COM1 on the port bus.
const (
	Base = platform.PortCOM1
	Size = platform.COM1Size
)

// Limits of what the host keeps, in bytes. Input waits while the guest has not
// read inputMax bytes, sending CPUs wait while Output has not taken outputMax.
const (
	inputMax  = 64 << 10
	outputMax = 64 << 10
	inputStep = 4 << 10 // most that one event at the inbox carries
)

// closeWait is how long Close waits for Output.
const closeWait = time.Second

// ErrClosed is wrapped by errors of a closed UART.
var ErrClosed = errors.New("serial port is closed")

// Config says what the UART is wired to.
type Config struct {
	// Inbox is required: input passes through it.
	Inbox device.Inbox
	// Name is the port's name at the inbox; empty means "serial0".
	Name string
	// Line is the interrupt; nil leaves it unconnected.
	Line device.Line
	// Output takes what the guest sends; nil discards it. After an error of
	// Output the rest is discarded.
	Output io.Writer
	// Log takes errors of Line and Output; nil drops them.
	Log *slog.Logger
}

// UART is the chip. Its methods may be called from any goroutine.
type UART struct {
	cfg  Config
	port device.Port
	out  *output

	mu  sync.Mutex
	pin *chip.Pin
	reg state

	// Input waits for room here. pending counts posted bytes that the guest
	// has not taken, delivered or not.
	pending int
	room    chan struct{} // closed and replaced when pending falls
	closed  bool
}

var (
	_ device.Handler  = (*UART)(nil)
	_ device.Stateful = (*UART)(nil)
	_ device.Receiver = (*UART)(nil)
)

// New returns a UART after its master reset. Close stops its goroutine.
func New(cfg Config) (*UART, error) {
	if cfg.Inbox == nil {
		return nil, errors.New("serial: Config.Inbox is nil")
	}
	if cfg.Name == "" {
		cfg.Name = "serial0"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	u := &UART{cfg: cfg, pin: chip.NewPin(cfg.Name, cfg.Line, cfg.Log), room: make(chan struct{})}
	u.reg.reset()
	port, err := cfg.Inbox.Open(cfg.Name, u)
	if err != nil {
		return nil, fmt.Errorf("serial: %w", err)
	}
	u.port = port
	u.out = newOutput(cfg)
	return u, nil
}

// Input hands p to the guest as received bytes and returns how many it has
// taken. It blocks while the guest leaves too much unread.
func (u *UART) Input(ctx context.Context, p []byte) (int, error) {
	n := 0
	for n < len(p) {
		c, err := u.reserve(ctx, min(len(p)-n, inputStep))
		if err != nil {
			return n, err
		}
		u.port.Post(0, p[n:n+c])
		n += c
	}
	return n, nil
}

// reserve waits for room and takes up to n bytes of it.
func (u *UART) reserve(ctx context.Context, n int) (int, error) {
	for {
		u.mu.Lock()
		if u.closed {
			u.mu.Unlock()
			return 0, fmt.Errorf("serial input: %w", ErrClosed)
		}
		if err := ctx.Err(); err != nil {
			u.mu.Unlock()
			return 0, fmt.Errorf("serial input: %w", err)
		}
		if c := min(n, inputMax-u.pending); c > 0 {
			u.pending += c
			u.mu.Unlock()
			return c, nil
		}
		room := u.room
		u.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
	}
}

// taken says that the guest has n bytes of input fewer before it.
func (u *UART) taken(n int) {
	u.pending = max(u.pending-n, 0)
	close(u.room)
	u.room = make(chan struct{})
}

// Deliver takes input from the inbox.
func (u *UART) Deliver(_ uint64, data []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	// A tape may hold more than Input would have let through.
	n := min(len(data), inputMax-len(u.reg.Queue))
	u.reg.Queue = append(u.reg.Queue, data[:n]...)
	if n < len(data) {
		u.taken(len(data) - n)
	}
	u.update()
}

// Read answers a port read, one register for each byte.
func (u *UART) Read(off uint64, p []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range p {
		if off+uint64(i) >= Size {
			p[i] = 0xff
			continue
		}
		p[i] = u.reg.read(int(off) + i)
		u.update()
	}
}

// Write takes a port write, one register for each byte.
func (u *UART) Write(off uint64, p []byte) {
	for i, v := range p {
		if off+uint64(i) >= Size {
			return
		}
		u.mu.Lock()
		sent := u.reg.write(int(off)+i, v)
		u.update()
		u.mu.Unlock()
		if sent {
			u.out.put(v) // may wait, so without the lock
		}
	}
}

// update moves queued input into the receiver and drives the interrupt.
func (u *UART) update() {
	if n := u.reg.receive(); n > 0 {
		u.taken(n)
	}
	u.pin.Set(u.reg.cause() != causeNone)
}

// Pause lets CPUs that wait for Output go on, so that they can be parked.
// What they have sent is kept. Resume makes them wait again.
func (u *UART) Pause() { u.out.setPaused(true) }

// Resume undoes Pause.
func (u *UART) Resume() { u.out.setPaused(false) }

// Flush waits until Output has taken everything sent so far.
func (u *UART) Flush(ctx context.Context) error { return u.out.flush(ctx) }

// Close stops the UART. It gives Output a moment (closeWait) to take the last
// bytes, and fails if it does not; Flush before to wait longer. An Output that
// never returns keeps one goroutine.
func (u *UART) Close() error {
	u.mu.Lock()
	if !u.closed {
		u.closed = true
		close(u.room)
		u.room = make(chan struct{})
	}
	u.mu.Unlock()
	u.out.close()
	ctx, cancel := context.WithTimeout(context.Background(), closeWait)
	defer cancel()
	return u.out.flush(ctx)
}
