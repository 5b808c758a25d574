package virtio

import (
	"crypto/rand"
	"io"
	"log/slog"
	"sync"

	"github.com/vmkit-go/vmkit/vm/device"
)

// rngChunk is the most entropy that one request gets; the driver asks again
// if it wants more (virtio 1.2, section 5.4.6).
const rngChunk = 4096

// RNGConfig configures an entropy device.
type RNGConfig struct {
	// Source is where the entropy comes from; nil means crypto/rand.
	Source io.Reader
}

// RNG is an entropy device (virtio 1.2, section 5.4). Each request is answered
// with at most 4096 bytes, all of them from the host through the machine's
// inbox, so that a recorded machine gets the same ones again.
type RNG struct {
	source io.Reader

	mu     sync.Mutex // held while guest memory is touched
	port   device.Port
	log    *slog.Logger
	queue  *Queue
	chain  Chain
	paused bool
	buf    [rngChunk]byte
	read   func([]byte) error
	failed bool
}

var _ Device = (*RNG)(nil)

// NewRNG returns an entropy device.
func NewRNG(cfg RNGConfig) (*RNG, error) {
	if cfg.Source == nil {
		cfg.Source = rand.Reader
	}
	d := &RNG{source: cfg.Source}
	d.read = func(p []byte) error {
		_, err := io.ReadFull(d.source, p)
		return err
	}
	return d, nil
}

// Type is TypeEntropy.
func (d *RNG) Type() Type { return TypeEntropy }

// Features are none.
func (d *RNG) Features() uint64 { return 0 }

// QueueSizes is one queue.
func (d *RNG) QueueSizes() []uint16 { return []uint16{64} }

// ReadConfig reads zeroes: there is no configuration.
func (d *RNG) ReadConfig(_ uint32, p []byte) { clear(p) }

// WriteConfig does nothing.
func (d *RNG) WriteConfig(uint32, []byte) {}

// Attach opens the device's inbox port.
func (d *RNG) Attach(h *Host) error {
	port, err := openPort(h, nil)
	d.port, d.log = port, h.Log
	return err
}

// Activate takes the queue.
func (d *RNG) Activate(_ uint64, queues []*Queue) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.queue = queues[0]
	return nil
}

// Notify answers the requests in the queue.
func (d *RNG) Notify(int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.queue == nil || d.paused {
		return
	}
	for d.queue.Pop(&d.chain) {
		// Sampled outside guest memory: what the guest gets and what a
		// tape holds must be the same.
		p := d.buf[:min(d.chain.WriteLen, rngChunk)]
		if err := d.port.Sample(p, d.read); err != nil {
			if !d.failed {
				d.failed = true
				d.log.Warn("virtio: entropy source, further errors are not logged", "error", err)
			}
			p = nil
		}
		d.queue.Push(&d.chain, uint32(d.chain.CopyOut(p, 0)))
	}
	d.queue.Publish()
}

// Pause waits for a request being answered.
func (d *RNG) Pause() { d.setPaused(true) }

// Resume ends Pause.
func (d *RNG) Resume() { d.setPaused(false) }

func (d *RNG) setPaused(v bool) {
	d.mu.Lock()
	d.paused = v
	d.mu.Unlock()
}

// Reset forgets the queue.
func (d *RNG) Reset() {
	d.mu.Lock()
	d.queue = nil
	d.mu.Unlock()
}

// Close does nothing: the source is the caller's.
func (d *RNG) Close() error { return nil }

type rngState struct{}

// Save returns the state, of which there is none.
func (d *RNG) Save() (device.State, error) { return device.EncodeState(1, rngState{}) }

// Load accepts what Save returned.
func (d *RNG) Load(s device.State) error {
	var st rngState
	return s.Decode(1, &st)
}

// openPort opens h's inbox under the device's name.
func openPort(h *Host, r device.Receiver) (device.Port, error) {
	if h.Inbox == nil {
		return nil, errNoInbox
	}
	return h.Inbox.Open(h.Name, r)
}
