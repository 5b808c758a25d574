package inbox

import (
	"sync"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Turns is the inbox of a machine whose CPUs take turns. While the machine
// runs, events wait and are delivered where the engine interjects them,
// between two instructions, in the order in which they were posted. While it
// does not, before Run and after Pause, they are delivered at once. Its ports
// are prompt and not direct. Its methods may be called from any goroutine, but
// Run and Pause not from a receiver.
type Turns struct {
	names     names
	interject func(f func())
	drain     func() // b.deliver, made once

	mu      sync.Mutex
	quiet   sync.Cond // passing has become 0
	running bool
	passing int // deliveries at once that are under way
	waiting []event
	data    []byte // of those that wait

	// What deliver works on, kept for the next time.
	deliverMu sync.Mutex
	spare     []event
	spareData []byte
}

// event is one that waits; its data is data[from:to].
type event struct {
	r        device.Receiver
	tag      uint64
	from, to int
}

var _ device.Inbox = (*Turns)(nil)

// NewTurns returns an inbox of a machine that does not run, without ports.
// interject is that of the machine's engine, see [vcpu.Turns].
func NewTurns(interject func(f func())) *Turns {
	b := &Turns{interject: interject}
	b.quiet.L = &b.mu
	b.drain = b.deliver
	return b
}

// Open registers a source, as Inbox.Open does.
func (b *Turns) Open(name string, r device.Receiver) (device.Port, error) {
	if err := b.names.take(name); err != nil {
		return nil, err
	}
	return &turnsPort{b, r}, nil
}

// Run makes events wait for the engine from now on. It waits for deliveries
// under way. The CPUs may run afterwards.
func (b *Turns) Run() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.passing > 0 {
		b.quiet.Wait()
	}
	b.running = true
}

// Pause delivers what waits, and makes events be delivered at once from now
// on. The CPUs have stopped before.
func (b *Turns) Pause() {
	for {
		b.deliver()
		b.mu.Lock()
		// Not before all are delivered: none may overtake them.
		if len(b.waiting) == 0 {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.mu.Unlock()
	}
}

// deliver delivers what waits. It is what the engine runs.
func (b *Turns) deliver() {
	b.deliverMu.Lock()
	defer b.deliverMu.Unlock()
	for {
		b.mu.Lock()
		events, data := b.waiting, b.data
		b.waiting, b.data = b.spare[:0], b.spareData[:0]
		b.mu.Unlock()
		for _, e := range events {
			e.r.Deliver(e.tag, data[e.from:e.to:e.to])
		}
		clear(events) // keeps no receiver alive
		b.spare, b.spareData = events[:0], data[:0]
		if cap(data) > maxKept {
			b.spareData = nil
		}
		if len(events) == 0 {
			return
		}
	}
}

// maxKept is how much room for data is kept for later events.
const maxKept = 1 << 20

// post hands an event over.
func (b *Turns) post(r device.Receiver, tag uint64, data []byte) {
	b.mu.Lock()
	if !b.running {
		b.passing++
		b.mu.Unlock()
		r.Deliver(tag, data)
		b.mu.Lock()
		if b.passing--; b.passing == 0 {
			b.quiet.Broadcast()
		}
		b.mu.Unlock()
		return
	}
	first := len(b.waiting) == 0
	from := len(b.data)
	b.data = append(b.data, data...)
	b.waiting = append(b.waiting, event{r, tag, from, len(b.data)})
	b.mu.Unlock()
	if first {
		b.interject(b.drain)
	}
}

type turnsPort struct {
	b *Turns
	r device.Receiver
}

func (p *turnsPort) Post(tag uint64, data []byte) {
	if p.r != nil {
		p.b.post(p.r, tag, data)
	}
}

func (p *turnsPort) Sample(b []byte, read func([]byte) error) error { return read(b) }

func (p *turnsPort) Direct() bool { return false }

func (p *turnsPort) Prompt() bool { return true }
