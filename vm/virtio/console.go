package virtio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Console feature bits (virtio 1.2, section 5.3.3).
const (
	consoleSize      uint64 = 1 << 0
	consoleMultiport uint64 = 1 << 1
	consoleEmergency uint64 = 1 << 2
)

// Queues of the control channel (virtio 1.2, section 5.3.2).
const (
	consoleCtrlRx = 2
	consoleCtrlTx = 3
)

const (
	consoleQueueSize = 128
	maxConsolePorts  = 31
	maxPortName      = 128

	// portBuffer is how many bytes a port buffers in each direction before
	// it stops taking more.
	portBuffer = 64 << 10
)

var errNoInbox = errors.New("the machine has no inbox")

// ConsoleConfig configures a console device.
type ConsoleConfig struct {
	// In is what is typed at the console and Out takes what the guest
	// prints; nil means nothing ever typed, and output dropped.
	In  io.Reader
	Out io.Writer
	// Cols and Rows are the size of the terminal, 0 if it has none. It
	// changes with Console.Resize.
	Cols, Rows uint16
	// Ports are further byte streams, at most 30. The guest finds each
	// under its name, a Linux guest as /dev/virtio-ports/NAME.
	Ports []ConsolePort
}

// ConsolePort is one byte stream between guest and host.
type ConsolePort struct {
	// Name is unique in the device, 1 to 128 bytes without a zero byte.
	Name string
	// In is read for what the guest receives once it has opened the port.
	// Up to 64 KiB are read ahead, from when the guest has set the device
	// up. Out takes what the guest sends.
	// Nil means nothing to receive, and output dropped.
	In  io.Reader
	Out io.Writer
	// CloseAtEOF closes the host's side of the port at the end of In, when
	// the guest has got all of it: the guest then reads an end of file, and
	// what it writes waits. Otherwise the end of In means no more input.
	CloseAtEOF bool
	// Opened, if not nil, is told when the guest opens and closes the port.
	// It must return soon and not call the device.
	Opened func(open bool)
}

// Console is a console device (virtio 1.2, section 5.3) with any number of
// further named ports. Nothing that either side sends is lost while the
// other is slow: the guest's buffers wait, and In is not read further.
//
// A reader blocked in a Read of In does not keep Close from returning; the
// owner of In ends it by closing In. Close gives up output that an Out does not
// take for a second.
type Console struct {
	ports []*consolePort
	multi bool // MULTIPORT is offered
	sizes []uint16

	inbox device.Port
	log   *slog.Logger
	host  *Host

	// mu is held while guest memory or the fields below are touched.
	mu         sync.Mutex
	queues     []*Queue // nil: not active
	multiport  bool     // negotiated
	paused     bool
	closed     bool
	cols, rows uint16
	chain      Chain
	msg        [8 + maxPortName]byte
}

var (
	_ Device          = (*Console)(nil)
	_ Yielder         = (*Console)(nil)
	_ device.Receiver = (*Console)(nil)
)

// NewConsole returns a console device.
func NewConsole(cfg ConsoleConfig) (*Console, error) {
	if len(cfg.Ports) >= maxConsolePorts {
		return nil, fmt.Errorf("%w: console: %d ports, at most %d", ErrDevice, len(cfg.Ports), maxConsolePorts-1)
	}
	d := &Console{cols: cfg.Cols, rows: cfg.Rows, multi: len(cfg.Ports) != 0}
	d.ports = append(d.ports, newConsolePort(0, ConsolePort{In: cfg.In, Out: cfg.Out}))
	seen := make(map[string]bool)
	for i, p := range cfg.Ports {
		if p.Name == "" || len(p.Name) > maxPortName || seen[p.Name] {
			return nil, fmt.Errorf("%w: console: bad or repeated port name %q", ErrDevice, p.Name)
		}
		for _, c := range []byte(p.Name) {
			if c == 0 {
				return nil, fmt.Errorf("%w: console: port name %q with a zero byte", ErrDevice, p.Name)
			}
		}
		seen[p.Name] = true
		d.ports = append(d.ports, newConsolePort(i+1, p))
	}
	n := 2
	if d.multi {
		n = 2 + 2*len(d.ports)
	}
	for range n {
		d.sizes = append(d.sizes, consoleQueueSize)
	}
	return d, nil
}

// Type is TypeConsole.
func (d *Console) Type() Type { return TypeConsole }

// Features are SIZE, EMERG_WRITE and, with more than one port, MULTIPORT.
func (d *Console) Features() uint64 {
	f := consoleSize | consoleEmergency
	if d.multi {
		f |= consoleMultiport
	}
	return f
}

// QueueSizes is two queues for each port and, with more than one port, two
// for control messages.
func (d *Console) QueueSizes() []uint16 { return d.sizes }

// ReadConfig reads cols, rows and max_nr_ports (section 5.3.4).
func (d *Console) ReadConfig(off uint32, p []byte) {
	clear(p)
	var b [12]byte
	if off >= uint32(len(b)) {
		return
	}
	d.mu.Lock()
	binary.LittleEndian.PutUint16(b[0:], d.cols)
	binary.LittleEndian.PutUint16(b[2:], d.rows)
	d.mu.Unlock()
	binary.LittleEndian.PutUint32(b[4:], uint32(len(d.ports)))
	copy(p, b[off:])
}

// WriteConfig takes an emergency write: one character to the console, even
// before the device is set up (section 5.3.4).
func (d *Console) WriteConfig(off uint32, p []byte) {
	if off != 8 || len(p) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if port := d.ports[0]; !d.closed && port.room() {
		port.send(p[:1])
	}
}

// Attach opens the inbox port.
func (d *Console) Attach(h *Host) error {
	inbox, err := openPort(h, d)
	if err != nil {
		return err
	}
	d.inbox, d.log, d.host = inbox, h.Log, h
	for _, p := range d.ports {
		p.prompt = inbox.Prompt()
		p.startWriting(d)
	}
	return nil
}

// Activate takes the queues, and begins to read ahead when it is the first time.
func (d *Console) Activate(features uint64, queues []*Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queues = queues
	d.multiport = features&consoleMultiport != 0
	if !d.multiport {
		d.ports[0].ready, d.ports[0].guestOpen = true, true
	}
	// Not before: what a saved machine had read comes first.
	for _, p := range d.ports {
		p.startReading(d)
	}
	return nil
}

// Notify serves one queue.
func (d *Console) Notify(q int) {
	d.mu.Lock()
	var event func()
	switch port, tx := d.portOf(q); {
	case !d.live():
	case q == consoleCtrlRx && d.multiport:
		d.sendControl()
	case q == consoleCtrlTx && d.multiport:
		event = d.takeControl()
	case port == nil:
	case tx:
		d.transmit(port)
	default:
		d.receive(port)
	}
	d.mu.Unlock()
	if event != nil {
		event()
	}
}

// live reports whether guest memory may be touched.
func (d *Console) live() bool { return d.queues != nil && !d.paused && !d.closed }

// portOf returns the port of a queue and whether it is the transmit queue.
func (d *Console) portOf(q int) (p *consolePort, tx bool) {
	n := 0
	if q >= 4 {
		n = q/2 - 1
	} else if q >= 2 {
		return nil, false
	}
	if n >= len(d.ports) || n > 0 && !d.multiport {
		return nil, false
	}
	return d.ports[n], q%2 == 1
}

// Resize changes the terminal's size.
func (d *Console) Resize(cols, rows uint16) {
	if d.inbox == nil {
		d.mu.Lock()
		d.cols, d.rows = cols, rows
		d.mu.Unlock()
		return
	}
	var b [4]byte
	binary.LittleEndian.PutUint16(b[0:], cols)
	binary.LittleEndian.PutUint16(b[2:], rows)
	d.inbox.Post(consoleTag(0, eventResize), b[:])
}

// Events that come through the inbox: the tag holds the port and one of these.
const (
	eventData   = iota // bytes of In
	eventEOF           // In has ended
	eventRoom          // Out has taken so many bytes: 4 bytes
	eventResize        // 4 bytes
)

func consoleTag(port, kind int) uint64 { return uint64(port)<<8 | uint64(kind) }

// Deliver takes an event from outside.
func (d *Console) Deliver(tag uint64, data []byte) {
	if tag>>8 >= uint64(len(d.ports)) {
		return
	}
	p := d.ports[tag>>8]
	d.mu.Lock()
	changed := false
	switch tag & 0xff {
	case eventData:
		p.pending = append(p.pending, data...)
		if d.live() {
			d.receive(p)
		}
	case eventEOF:
		p.ended = true
		if d.live() {
			d.receive(p)
		}
	case eventRoom:
		if len(data) == 4 {
			p.credit = min(p.credit+int(binary.LittleEndian.Uint32(data)), portBuffer)
		}
		if d.live() {
			d.transmit(p)
		}
	case eventResize:
		if len(data) == 4 {
			d.cols, d.rows = binary.LittleEndian.Uint16(data), binary.LittleEndian.Uint16(data[2:])
			changed = true
			d.ports[0].announce(sendResize)
			if d.live() && d.multiport {
				d.sendControl()
			}
		}
	}
	d.mu.Unlock()
	if changed {
		d.host.ConfigChanged()
	}
}

// receive moves pending input to the guest. mu is held.
func (d *Console) receive(p *consolePort) {
	q := d.queues[p.rxQueue()]
	if q == nil || !p.guestOpen {
		return
	}
	done := 0
	for n := q.Size(); n > 0 && done < len(p.pending) && q.Pop(&d.chain); n-- {
		k := d.chain.CopyOut(p.pending[done:], 0)
		q.Push(&d.chain, uint32(k))
		done += k
	}
	q.Publish()
	if done > 0 {
		p.pending = p.pending[:copy(p.pending, p.pending[done:])]
		p.consumed(done)
	}
	if p.ended && len(p.pending) == 0 && p.cfg.CloseAtEOF && p.hostOpen {
		p.hostOpen = false
		p.announce(sendOpen)
		if d.multiport {
			d.sendControl()
		}
	}
}

// transmit moves the guest's output to the port's buffer as far as there is
// room. mu is held.
func (d *Console) transmit(p *consolePort) {
	q := d.queues[p.rxQueue()+1]
	if q == nil {
		return
	}
	for p.room() && q.Pop(&d.chain) {
		skip := int(p.txDone)
		for _, b := range d.chain.Readable {
			if skip >= len(b) {
				skip -= len(b)
				continue
			}
			b = b[skip:]
			skip = 0
			for len(b) > 0 && p.room() {
				k := min(len(b), p.credit)
				p.send(b[:k])
				p.txDone += uint32(k)
				b = b[k:]
			}
			if len(b) > 0 {
				break
			}
		}
		if p.txDone < d.chain.ReadLen {
			q.Unpop(&d.chain) // goes on at txDone
			break
		}
		p.txDone = 0
		q.Push(&d.chain, 0)
	}
	q.Publish()
}

// Yield lets a CPU go on that waits, on a machine where output is prompt, for an
// Out that takes nothing. The output waits in the guest until Resume.
func (d *Console) Yield() {
	for _, p := range d.ports {
		p.setYielding(true)
	}
}

// Pause waits for what touches guest memory now. Then it gives every Out the
// time to take what the guest has sent, so that a machine that stopped, or was
// saved, has said all it had to say; one that takes nothing for half a second is
// not waited for.
func (d *Console) Pause() {
	d.mu.Lock()
	d.paused = true
	d.mu.Unlock()
	for _, p := range d.ports {
		if p.out.done != nil {
			p.flush(pauseGrace)
		}
	}
}

// Resume ends Pause and Yield.
func (d *Console) Resume() {
	for _, p := range d.ports {
		p.setYielding(false)
	}
	d.mu.Lock()
	d.paused = false
	d.mu.Unlock()
}

// Reset forgets the guest's side. Input that the guest has not got stays.
func (d *Console) Reset() {
	d.mu.Lock()
	d.queues, d.multiport = nil, false
	var closed []func(bool)
	for _, p := range d.ports {
		if p.guestOpen && p.cfg.Opened != nil {
			closed = append(closed, p.cfg.Opened)
		}
		p.ready, p.guestOpen, p.toSend, p.txDone = false, false, 0, 0
	}
	d.mu.Unlock()
	for _, f := range closed {
		f(false)
	}
}

// Close ends the streams' goroutines, see Console.
func (d *Console) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	for _, p := range d.ports {
		p.stop()
	}
	for _, p := range d.ports {
		p.wait()
	}
	return nil
}
