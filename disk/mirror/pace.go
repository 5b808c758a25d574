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

// Bounds of how long one copy takes, as far as its size decides that: a request
// of the guest waits no longer for it where a device serves one at a time.
const (
	copySlice     = 8 * time.Millisecond
	copySliceBusy = time.Millisecond
)

// pace decides how hard the copier works: it widens while the guest's requests
// take as long as ever, and narrows quickly when they take longer. Its copies
// are small while the guest has any.
type pace struct {
	n, sum [latKinds]atomic.Int64
	width  atomic.Int64 // in 1/1024
	busy   atomic.Bool  // the guest had requests in the last tick
	size   int64        // bytes of a copy that takes long enough; of the copier alone

	// Of tick alone.
	low   [2][latKinds]time.Duration // the least mean in this and the last window
	ticks int
}

const (
	paceTick   = 50 * time.Millisecond
	paceWindow = 200                  // ticks
	paceSlack  = 4 * time.Microsecond // less is noise
)

func (p *pace) add(kind int, d time.Duration) {
	p.n[kind].Add(1)
	p.sum[kind].Add(int64(d))
}

// chunk is how many bytes the next copy has at most.
func (p *pace) chunk(awaited bool) int64 {
	most := int64(copyChunk)
	switch {
	case p.busy.Load():
		most = copyBusy
	case awaited:
		most = copySmall
	}
	p.size = min(max(p.size, granule), most)
	return p.size
}

// copied notes how long a copy took.
func (p *pace) copied(took time.Duration) {
	slice := copySlice
	if p.busy.Load() {
		slice = copySliceBusy
	}
	switch {
	case took > slice:
		p.size /= 2
	case took < slice/2:
		p.size *= 2
	}
}

func (p *pace) get() float64 { return float64(p.width.Load()) / 1024 }

// tick adapts the width, every paceTick.
func (p *pace) tick() {
	if p.ticks++; p.ticks%paceWindow == 0 {
		p.low[1], p.low[0] = p.low[0], [latKinds]time.Duration{}
	}
	late, busy := false, false
	for k := range latKinds {
		n, sum := p.n[k].Swap(0), p.sum[k].Swap(0)
		busy = busy || n > 0
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
		late = late || mean > low+low/32+paceSlack
	}
	p.busy.Store(busy)
	w := p.get()
	if late {
		w = max(w*0.6, minWidth)
	} else {
		w = min(w*1.2, maxWidth)
	}
	p.width.Store(int64(w * 1024))
}
