package disk

import (
	"sync/atomic"
	"time"
)

// pace guesses whether a transfer through the page cache will be quick, from
// how long those before it took. One that waited, for the disk, for a journal
// or because too much is dirty, sends the next ones elsewhere for a while.
type pace struct {
	n     atomic.Uint32
	sulks atomic.Int32 // transfers still to be refused
}

const (
	paceMax   = 2 << 20 // larger ones are never called quick
	paceSlow  = 2 * time.Millisecond
	paceSulk  = 64
	paceEvery = 4 // only some are timed; looking at the clock has a price
)

func (p *pace) quick(n int64) bool {
	if n > paceMax {
		return false
	}
	if p.sulks.Load() > 0 {
		p.sulks.Add(-1)
		return false
	}
	return true
}

func (p *pace) start() (t time.Time) {
	if p.n.Add(1)%paceEvery == 0 {
		t = time.Now()
	}
	return t
}

func (p *pace) stop(t time.Time) {
	if !t.IsZero() && time.Since(t) > paceSlow {
		p.sulks.Store(paceSulk)
	}
}
