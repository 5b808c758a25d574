package netdev

import "github.com/vmkit-go/vmkit/vm/virtio"

// pair is a receive and a transmit queue, with the endpoint's of the same
// number.
type pair struct {
	ep Queue
	rx receiver
	tx transmitter
}

func newPair(d *Device, i int) (*pair, error) {
	p := &pair{ep: d.ep.Queue(i)}
	if w, ok := p.ep.(waiter); ok {
		b, err := newBell(w)
		if err != nil {
			return nil, err
		}
		p.rx.bell = b
	}
	p.rx.d, p.rx.pair, p.rx.ep = d, i, p.ep
	p.rx.kick = make(chan struct{}, 1)
	p.tx.d, p.tx.ep = d, p.ep
	p.tx.done.L = &p.tx.mu
	return p, nil
}

func (p *pair) activate(features uint64, rx, tx *virtio.Queue) {
	p.rx.activate(features, rx)
	p.tx.activate(features, tx)
}

func (p *pair) deactivate() { p.activate(0, nil, nil) }

func (p *pair) start() {
	p.ep.Interrupt(false)
	p.tx.start()
	p.rx.start()
}

// interrupt begins to stop the pair, wait ends it.
func (p *pair) interrupt() {
	p.rx.stop.Store(true)
	p.tx.stop.Store(true)
	p.ep.Interrupt(true)
	p.rx.wake()
}

func (p *pair) wait() {
	p.rx.wait()
	p.tx.wait()
}

// close is called once nothing of the pair runs any more.
func (p *pair) close() {
	if p.rx.bell != nil {
		p.rx.bell.close()
	}
}
