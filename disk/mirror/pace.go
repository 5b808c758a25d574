package mirror

import (
	"sync/atomic"
	"time"
)

// Kinds of requests whose latency the copier watches.
const (
	latRead = iota
	latWrite
	latTarget
	latKinds
)

// Bounds of the copier's width: how many copies are under way at once. Below 1
// it is the share of time in which one is. The copier never stops altogether,
// or a busy guest would keep a move from ending.
const (
	minWidth = 1.0 / 16
	maxWidth = 8
)

// pace decides how hard the copier works: it widens while the guest's requests
// take as long as ever, and narrows quickly when they take longer.
type pace struct {
	n, sum [latKinds]atomic.Int64
	width  atomic.Int64 // in 1/1024

	// Of tick alone.
	low   [2][latKinds]time.Duration // the least mean in this and the last window
	ticks int
}

const (
	paceTick   = 50 * time.Millisecond
	paceWindow = 200                  // ticks
	paceSlack  = 8 * time.Microsecond // less is noise
)

func (p *pace) add(kind int, d time.Duration) {
	p.n[kind].Add(1)
	p.sum[kind].Add(int64(d))
}

func (p *pace) get() float64 { return float64(p.width.Load()) / 1024 }

// tick adapts the width, every paceTick.
func (p *pace) tick() {
	if p.ticks++; p.ticks%paceWindow == 0 {
		p.low[1], p.low[0] = p.low[0], [latKinds]time.Duration{}
	}
	late := false
	for k := range latKinds {
		n, sum := p.n[k].Swap(0), p.sum[k].Swap(0)
		if n < 4 {
			continue
		}
		mean := time.Duration(sum / n)
		if low := &p.low[0][k]; *low == 0 || mean < *low {
			*low = mean
		}
		low := p.low[0][k]
		if l := p.low[1][k]; l != 0 {
			low = min(low, l)
		}
		late = late || mean > low+low/16+paceSlack
	}
	w := p.get()
	if late {
		w = max(w*0.6, minWidth)
	} else {
		w = min(w*1.2, maxWidth)
	}
	p.width.Store(int64(w * 1024))
}
