package virtiotest

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Inbox is a device.Inbox that delivers at once, or, while Hold is in force,
// only when told: as a machine that is recording does. The zero value is ready
// for use.
type Inbox struct {
	// Prompt is what ports say to that question. It is set before Open.
	Prompt bool

	mu     sync.Mutex
	names  map[string]bool
	hold   bool
	events []event
}

type event struct {
	r    device.Receiver
	tag  uint64
	data []byte
}

type port struct {
	b *Inbox
	r device.Receiver
}

// Open registers a source.
func (b *Inbox) Open(name string, r device.Receiver) (device.Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name == "" || b.names[name] {
		return nil, fmt.Errorf("bad inbox port name %q", name)
	}
	if b.names == nil {
		b.names = make(map[string]bool)
	}
	b.names[name] = true
	return &port{b, r}, nil
}

// Hold makes events wait for Deliver, and ports not direct.
func (b *Inbox) Hold(on bool) {
	b.mu.Lock()
	b.hold = on
	b.mu.Unlock()
}

// Deliver hands over the events that wait, and returns their number.
func (b *Inbox) Deliver() int {
	b.mu.Lock()
	events := b.events
	b.events = nil
	b.mu.Unlock()
	for _, e := range events {
		if e.r != nil {
			e.r.Deliver(e.tag, e.data)
		}
	}
	return len(events)
}

func (p *port) Post(tag uint64, data []byte) {
	p.b.mu.Lock()
	if p.b.hold {
		p.b.events = append(p.b.events, event{p.r, tag, append([]byte(nil), data...)})
		p.b.mu.Unlock()
		return
	}
	p.b.mu.Unlock()
	if p.r != nil {
		p.r.Deliver(tag, data)
	}
}

func (p *port) Sample(b []byte, read func([]byte) error) error { return read(b) }

func (p *port) Direct() bool {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	return !p.b.hold
}

func (p *port) Prompt() bool { return p.b.Prompt }

// Interrupts records what a transport signals: it is both the machine's MSI
// and its interrupt line. The zero value is ready for use.
type Interrupts struct {
	mu    sync.Mutex
	level bool
	edges int
	msgs  map[uint32]int
	wake  chan struct{}
}

// Set is device.Line.
func (i *Interrupts) Set(level bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if level && !i.level {
		i.edges++
		i.signal()
	}
	i.level = level
	return nil
}

// Signal is device.MSI.
func (i *Interrupts) Signal(_ uint64, data uint32) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.msgs == nil {
		i.msgs = make(map[uint32]int)
	}
	i.msgs[data]++
	i.signal()
	return nil
}

func (i *Interrupts) signal() {
	if i.wake != nil {
		close(i.wake)
		i.wake = nil
	}
}

// Changed returns a channel that is closed at the next interrupt.
func (i *Interrupts) Changed() <-chan struct{} {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.wake == nil {
		i.wake = make(chan struct{})
	}
	return i.wake
}

// Level is the state of the line, and Edges how often it rose.
func (i *Interrupts) Level() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.level
}

// Edges is how often the line rose.
func (i *Interrupts) Edges() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.edges
}

// Messages is how many messages with the given data were sent.
func (i *Interrupts) Messages(data uint32) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.msgs[data]
}

// doorbells is a device.Doorbells for the machine's own writes.
type doorbells struct {
	mu sync.Mutex
	m  map[bellKey]*bell
}

type bellKey struct {
	addr  uint64
	size  int
	any   bool
	value uint64
}

type bell struct {
	d      *doorbells
	key    bellKey
	event  int // an eventfd instead of c, or -1
	c      chan struct{}
	closed chan struct{}
	once   sync.Once
}

func (d *doorbells) Doorbell(addr uint64, size int, match *uint64) (device.Doorbell, error) {
	return d.claim(-1, addr, size, match)
}

// eventDoorbells are doorbells that can ring eventfds.
type eventDoorbells struct{ *doorbells }

func (d eventDoorbells) DoorbellTo(event int, addr uint64, size int, match *uint64) (device.Doorbell, error) {
	return d.claim(event, addr, size, match)
}

func (d *doorbells) claim(event int, addr uint64, size int, match *uint64) (device.Doorbell, error) {
	k := bellKey{addr: addr, size: size, any: match == nil}
	if match != nil {
		k.value = *match
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m[k] != nil {
		return nil, fmt.Errorf("doorbell at %#x: %w", addr, os.ErrExist)
	}
	if d.m == nil {
		d.m = make(map[bellKey]*bell)
	}
	b := &bell{d: d, key: k, event: event, c: make(chan struct{}, 1), closed: make(chan struct{})}
	d.m[k] = b
	return b, nil
}

// take rings the bell that claims a write, if there is one.
func (d *doorbells) take(addr uint64, size int, v uint64) bool {
	d.mu.Lock()
	b := d.m[bellKey{addr: addr, size: size, any: true}]
	if b == nil {
		b = d.m[bellKey{addr: addr, size: size, value: v}]
	}
	d.mu.Unlock()
	if b == nil {
		return false
	}
	b.Ring()
	return true
}

func (d *doorbells) len() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.m)
}

var errBellClosed = fmt.Errorf("doorbell: %w", os.ErrClosed)

func (b *bell) Wait() error {
	select {
	case <-b.closed:
		return errBellClosed
	default:
	}
	select {
	case <-b.c:
		return nil
	case <-b.closed:
		return errBellClosed
	}
}

func (b *bell) Ring() {
	if b.event >= 0 {
		b.d.mu.Lock()
		defer b.d.mu.Unlock()
		if b.d.m[b.key] == b { // not closed, and so event is not either
			_, _ = unix.Write(b.event, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		}
		return
	}
	select {
	case b.c <- struct{}{}:
	default:
	}
}

func (b *bell) Close() error {
	err := errors.New("doorbell closed twice")
	b.once.Do(func() {
		close(b.closed)
		b.d.mu.Lock()
		delete(b.d.m, b.key)
		b.d.mu.Unlock()
		err = nil
	})
	return err
}
