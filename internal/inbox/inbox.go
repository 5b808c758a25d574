// Package inbox is the free-running [device.Inbox]: every event is delivered
// on the goroutine that posts it, at once, and every sample is taken from the
// host.
//
//	box := inbox.New()
//	port, err := box.Open("net0", dev)
//	port.Post(0, frame) // dev.Deliver(0, frame) has returned
package inbox

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vmkit-go/vmkit/vm/device"
)

// ErrName is wrapped by the error of Open for a name that is empty or taken.
var ErrName = errors.New("bad inbox port name")

// Inbox delivers at once. The zero Inbox is ready for use; it must not be
// copied. Its methods may be called from any goroutine.
type Inbox struct {
	mu    sync.Mutex
	names map[string]bool
}

var _ device.Inbox = (*Inbox)(nil)

// New returns an Inbox without ports.
func New() *Inbox { return new(Inbox) }

// Open registers a source. A source that only samples may have no receiver;
// posting to its port then does nothing. A name is taken for good.
func (b *Inbox) Open(name string, r device.Receiver) (device.Port, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name == "" {
		return nil, fmt.Errorf("%w: empty", ErrName)
	}
	if b.names[name] {
		return nil, fmt.Errorf("%w: %q is taken", ErrName, name)
	}
	if b.names == nil {
		b.names = make(map[string]bool)
	}
	b.names[name] = true
	return &port{r}, nil
}

type port struct{ r device.Receiver }

func (p *port) Post(tag uint64, data []byte) {
	if p.r != nil {
		p.r.Deliver(tag, data)
	}
}

func (p *port) Sample(b []byte, read func([]byte) error) error { return read(b) }

func (p *port) Direct() bool { return true }
