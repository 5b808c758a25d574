package disk

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// HoldEvent says that a [Device] began or ceased to hold requests.
type HoldEvent struct {
	// Held is true when a request is held and none was, or when a Retry or
	// Resume did not help; it is false when all that were held are answered
	// or dropped by a reset.
	Held bool
	// Err is why, if Held is true: the error of the first request.
	Err error
}

// hold keeps requests that the backend cannot serve for now. A held request
// is in flight for the guest, but neither the backend nor a worker has it, and
// a pause does not wait for it.
type hold struct {
	d *Device

	// mu comes before queue.mu.
	mu      sync.Mutex
	open    bool // active and not paused: requests may be issued and answered
	waiting int  // requests that were held and are not answered
	told    bool // Hold has been told of those held now
	expired bool // HoldTimeout is over: requests that come back fail
	fail    bool // Fail was called during a pause
	timer   *time.Timer
	period  int // counts timers, to tell a stale one

	// What Config.Hold shall be told next, and whether a goroutine does.
	news    HoldEvent
	unread  bool
	telling bool
}

// holds reports whether a request that failed with err is to be held.
func (d *Device) holds(err error) bool {
	return err != nil && d.cfg.Hold != nil && (errors.Is(err, ErrNoSpace) || errors.Is(err, ErrUnavailable))
}

// Held is the number of requests that wait for a [Device.Retry], or for its
// outcome.
func (d *Device) Held() int {
	d.hold.mu.Lock()
	defer d.hold.mu.Unlock()
	return d.hold.waiting
}

// Retry issues the requests that are held once more, oldest first. Those that
// still cannot be served are held again, of which Config.Hold is told, so that
// one that failed just before there was space is not forgotten. Call it when
// there is reason to hope, at any time. On a paused device it does nothing,
// since Resume does the same.
func (d *Device) Retry() {
	if d.port != nil && d.port.Prompt() {
		// It touches guest memory, so it has to wait for its turn.
		d.port.Post(uint64(tagRetry)<<tagQueue, nil)
		return
	}
	d.hold.retry()
}

// Fail answers the requests that are held with an error, which the guest sees
// as one of the disk. It may be called at any time; on a paused device it
// takes effect at Resume.
func (d *Device) Fail() {
	d.hold.mu.Lock()
	if !d.hold.open {
		d.hold.fail = d.hold.waiting > 0
		d.hold.mu.Unlock()
		return
	}
	failed := d.hold.take()
	d.hold.mu.Unlock()
	for _, r := range failed {
		r.q.end(r, statusIOErr)
	}
}

// setOpen says whether requests may be issued and answered.
func (h *hold) setOpen(open bool) {
	h.mu.Lock()
	h.open = open
	h.mu.Unlock()
}

// resume tries all held requests again after a pause, or fails them if that
// was wanted meanwhile.
func (h *hold) resume() {
	h.mu.Lock()
	fail := h.fail
	h.fail = false
	h.mu.Unlock()
	if fail {
		h.d.Fail()
	} else {
		h.retry()
	}
}

// retry starts all held requests again, unless the device is paused.
func (h *hold) retry() {
	h.mu.Lock()
	if !h.open {
		h.mu.Unlock()
		return
	}
	h.told = false
	held := h.take()
	h.mu.Unlock()
	// They count as a worker's now, so that a pause or a reset waits for them.
	for _, r := range held {
		h.d.start(r)
	}
}

// take takes all held requests; a worker has them next, or is as good as done
// with them. It is called with mu held, on an open device.
func (h *hold) take() (all []*request) {
	for _, q := range h.d.active.Load().queues {
		if q == nil {
			continue
		}
		q.mu.Lock()
		for _, r := range q.held {
			r.held = false
		}
		q.io += len(q.held)
		q.busy.Add(int32(len(q.held)))
		all = append(all, q.held...)
		clear(q.held)
		q.held = q.held[:0]
		q.mu.Unlock()
	}
	return all
}

// add holds r, which failed with err, and reports whether it did. Otherwise
// the request ends with that error.
func (h *hold) add(r *request, err error) bool {
	q := r.q
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.expired {
		return false
	}
	q.mu.Lock()
	if q.dead || r.final {
		q.mu.Unlock()
		return false
	}
	r.held = true
	if !r.waits {
		r.waits = true
		h.waiting++
	}
	at, _ := slices.BinarySearchFunc(q.held, r.age, func(r *request, age uint64) int {
		return int(int64(r.age - age))
	})
	q.held = slices.Insert(q.held, at, r)
	q.io--
	q.cond.Broadcast() // a delivery, or a reset, may wait for the worker
	q.mu.Unlock()
	if h.timer == nil && h.d.cfg.HoldTimeout > 0 {
		h.period++
		period := h.period
		h.timer = time.AfterFunc(h.d.cfg.HoldTimeout, func() { h.expire(period) })
	}
	if !h.told {
		h.told = true
		h.d.warn("disk requests are held", r, err)
		h.tell(HoldEvent{Held: true, Err: err})
	}
	q.rest()
	return true
}

// unhold takes r, which is held, from the queue. It is called with q.mu held.
func (q *queue) unhold(r *request) {
	q.held = slices.DeleteFunc(q.held, func(o *request) bool { return o == r })
	r.held = false
	q.busy.Add(1)
}

// answered says that one request that was held has been answered.
func (h *hold) answered() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.waiting--; h.waiting == 0 {
		h.end()
	}
}

// drop says that a reset has dropped all of them.
func (h *hold) drop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fail = false
	if h.waiting > 0 {
		h.waiting = 0
		h.end()
	}
}

// end is called with mu held when no request waits any more.
func (h *hold) end() {
	if h.timer != nil {
		h.timer.Stop()
		h.timer = nil
	}
	h.told, h.expired = false, false
	h.tell(HoldEvent{})
}

// expire runs when the HoldTimeout of that period is over.
func (h *hold) expire(period int) {
	h.mu.Lock()
	current := h.timer != nil && h.period == period
	h.expired = h.expired || current
	h.mu.Unlock()
	if current {
		h.d.Fail()
	}
}

// tell passes an event to Config.Hold. It is called with mu held.
func (h *hold) tell(e HoldEvent) {
	h.news, h.unread = e, true
	if h.telling {
		return
	}
	h.telling = true
	go func() {
		for {
			h.mu.Lock()
			e := h.news
			if !h.unread {
				h.telling = false
				h.mu.Unlock()
				return
			}
			h.unread = false
			h.mu.Unlock()
			h.d.cfg.Hold(e)
		}
	}()
}
