package stream

import (
	"sync"
	"time"
)

// rate watches the link and bounds what is prefetched at once, so that what
// the guest asks for does not queue behind it: while requests take no longer
// than an idle link would make them, the bound grows by a little with each
// (additive increase); when they do, it shrinks by a factor (multiplicative
// decrease).
type rate struct {
	mu    sync.Mutex
	bound float64 // bytes of prefetch in flight
	limit float64

	trip     time.Duration // shortest time of a request of late
	bps      float64       // bytes per second that the link has shown
	busy     int           // requests in flight
	mark     time.Time     // start of the running measurement
	moved    int64         // bytes since then
	cutAt    time.Time     // of the last decrease; until the first, the bound doubles with each trip
	total    int64
	tripSeen time.Time
}

const (
	startBound = 128 << 10
	minBound   = 16 << 10
	growBound  = 16 << 10
	// minSample is the shortest time over which bandwidth is measured.
	minSample = 150 * time.Millisecond
	// tripAge is how long the shortest time is believed.
	tripAge = 30 * time.Second
	// maxQueue is the least queueing that counts, whatever the round trip.
	maxQueue = 3 * time.Millisecond
)

func newRate(limit int64) *rate {
	return &rate{bound: min(startBound, float64(limit)), limit: float64(limit)}
}

// begin notes the start of a request.
func (r *rate) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy == 0 {
		r.mark, r.moved = time.Now(), 0
	}
	r.busy++
}

// end notes the end of a request of size bytes after took.
func (r *rate) end(demand bool, size int64, took time.Duration, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.busy--
	if err != nil {
		r.bound = max(minBound, r.bound/2)
		return
	}
	r.total += size
	r.moved += size
	if d := now.Sub(r.mark); d >= minSample {
		got := float64(r.moved) / d.Seconds()
		if got > r.bps {
			r.bps = got
		} else if r.busy > 0 {
			// The link may have become slower; or there is little to do.
			r.bps += (got - r.bps) / 32
		}
		r.mark, r.moved = now, 0
	}
	transfer := r.transfer(size)
	if r.trip == 0 || took < r.trip || now.Sub(r.tripSeen) > tripAge {
		r.trip, r.tripSeen = took, now
	}
	queue := took - transfer - r.trip
	allowed := max(maxQueue, r.trip/4)
	switch {
	case queue <= allowed:
		switch {
		case demand:
		case r.cutAt.IsZero():
			r.bound = min(r.limit, r.bound+float64(size))
		default:
			r.bound = min(r.limit, r.bound+growBound)
		}
	case now.Sub(r.cutAt) > r.trip+transfer:
		r.cutAt = now
		r.bound = max(minBound, min(r.bound, r.holds(2.25)), r.bound*0.7)
	}
}

// holds is what the link holds at once when it is at work and nothing queues,
// in bytes, times times. Requests take longer than the round trip, for what
// both ends do and since they are whole: about twice as much keeps it at work. The caller holds mu.
func (r *rate) holds(times float64) float64 { return times * r.bps * r.trip.Seconds() }

// transfer is how long size bytes take on the link. The caller holds mu.
func (r *rate) transfer(size int64) time.Duration {
	if r.bps == 0 {
		return 0
	}
	return time.Duration(float64(size) / r.bps * float64(time.Second))
}

// room returns the bytes of prefetch that may be in flight, and of those in one
// request. Beside demand that is half of the usual, but not less than keeps the
// link at work.
func (r *rate) room(demand bool) (inFlight, request int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	bound := r.bound
	if demand {
		bound = min(bound, max(bound/2, r.holds(1.25)))
	}
	return int64(bound), int64(min(max(r.bound/4, minBound), maxGroup))
}

// bandwidth is the link's, in bytes per second; 0 is not known yet.
func (r *rate) bandwidth() float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bps
}
