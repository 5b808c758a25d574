// Package inbox has the two free-running kinds of [device.Inbox]. [Inbox]
// delivers every event on the goroutine that posts it, at once:
//
//	box := inbox.New()
//	port, err := box.Open("net0", dev)
//	port.Post(0, frame) // dev.Deliver(0, frame) has returned
//
// [Turns] delivers between two instructions of a machine whose CPUs take turns
// on one goroutine. Both take every sample from the host.
package inbox

import (
	"errors"
	"fmt"
	"sync"

	"github.com/vmkit-go/vmkit/vm/device"
)

// ErrName is wrapped by the error of Open for a name that is empty or taken.
var ErrName = errors.New("bad inbox port name")

// names are the names of an inbox's ports.
type names struct {
	mu    sync.Mutex
	taken map[string]bool
}

// take takes a name for good.
func (n *names) take(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if name == "" {
		return fmt.Errorf("%w: empty", ErrName)
	}
	if n.taken[name] {
		return fmt.Errorf("%w: %q is taken", ErrName, name)
	}
	if n.taken == nil {
		n.taken = make(map[string]bool)
	}
	n.taken[name] = true
	return nil
}

// Inbox delivers at once. The zero Inbox is ready for use; it must not be
// copied. Its methods may be called from any goroutine.
type Inbox struct{ names names }

var _ device.Inbox = (*Inbox)(nil)

// New returns an Inbox without ports.
func New() *Inbox { return new(Inbox) }

// Open registers a source. A source that only samples may have no receiver;
// posting to its port then does nothing. A name is taken for good.
func (b *Inbox) Open(name string, r device.Receiver) (device.Port, error) {
	if err := b.names.take(name); err != nil {
		return nil, err
	}
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

func (p *port) Prompt() bool { return false }
