package disk

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/vm/virtio"
)

// Within one drain, used buffers are published after this many requests or
// bytes at the latest, so that the guest goes on while the rest is served.
const (
	publishRequests = 8
	publishBytes    = 128 << 10
)

// A read of this many bytes is left to a worker if another request is waiting,
// so that they are copied side by side. Writes to one file exclude each other.
const parallelBytes = 256 << 10

// queue is one request queue of an active device.
type queue struct {
	d     *Device
	s     *session
	index int
	q     *virtio.Queue

	drainMu sync.Mutex // held during a drain
	spare   *request   // for the next Pop; belongs to the drain
	age     uint64     // requests popped; belongs to the drain

	// A drain collects used buffers and publishes them together; whoever
	// completes a request beside it leaves that to the drain as well.
	draining    atomic.Bool
	unpublished atomic.Bool

	busy    atomic.Int32 // requests popped and not yet answered
	waiting atomic.Bool  // quiesce waits for busy to be 0

	mu   sync.Mutex
	cond sync.Cond  // a request advanced
	live []*request // by head
	free *request   // list through next
	io   int        // requests on which a worker works
	dead bool       // abandoned
	held []*request // by age
}

func newQueue(d *Device, s *session, index int, vq *virtio.Queue) *queue {
	q := &queue{d: d, s: s, index: index, q: vq, live: make([]*request, vq.Size())}
	q.cond.L = &q.mu
	q.spare = &request{q: q}
	return q
}

// drain takes all requests that the guest has offered.
func (q *queue) drain() {
	q.drainMu.Lock()
	defer q.drainMu.Unlock()
	for !q.d.stop.Load() && q.q.Retake(&q.spare.chain) {
		q.serve() // held when the machine was saved
	}
	for again := true; again && !q.d.stop.Load(); {
		q.draining.Store(true)
		q.q.SetNotify(false)
		n, bytes := 0, int64(0)
		for !q.d.stop.Load() && q.q.Pop(&q.spare.chain) {
			n, bytes = n+1, bytes+q.serve()
			if n >= publishRequests || bytes >= publishBytes {
				n, bytes = 0, 0
				if q.unpublished.Swap(false) {
					q.q.Publish()
				}
			}
		}
		q.draining.Store(false)
		if q.unpublished.Swap(false) {
			q.q.Publish()
		}
		again = q.q.SetNotify(true)
	}
}

// serve starts the request that was popped into spare, and completes it if
// that needs no waiting. It returns the number of bytes moved.
func (q *queue) serve() (n int64) {
	r := q.spare
	r.posted, r.delivered, r.at, r.read, r.final = 0, 0, 0, 0, false
	r.held, r.waits = false, false
	q.age++
	r.age = q.age
	r.parse()
	n = r.n
	var status byte
	done := false
	if q.s.prompt || r.kind != reqIn || n < parallelBytes || r.early != todo || !q.q.Pending() {
		status, done = q.d.try(r)
	}
	r.ended = done
	tag := q.tag(r, status)
	q.busy.Add(1)
	q.mu.Lock()
	q.live[r.chain.Head] = r
	if done {
		r.posted = 1
	} else {
		q.io++
	}
	// At most as many requests exist as were in flight at once, and one.
	if q.spare = q.free; q.spare != nil {
		q.free = q.spare.next
	} else {
		q.spare = &request{q: q}
	}
	q.mu.Unlock()
	if done {
		q.d.port.Post(tag, nil)
		return n
	}
	q.d.start(r)
	return 0
}

// end says that a worker is done with r and its buffers, and posts the
// outcome. The request may have a new use when it returns.
func (q *queue) end(r *request, status byte) {
	tag := q.tag(r, status)
	q.mu.Lock()
	r.ended = true
	r.posted++
	q.io--
	if q.dead || !q.s.direct {
		q.cond.Broadcast()
	}
	drop := q.dead
	q.mu.Unlock()
	if !drop {
		q.d.port.Post(tag, nil)
	}
}

// postPiece posts the next part of what r reads and waits until the guest has
// it. It reports whether to go on.
func (q *queue) postPiece(r *request, p []byte) bool {
	tag := q.tag(r, statusOK) | tagMore
	q.mu.Lock()
	r.posted++
	q.cond.Broadcast()
	q.mu.Unlock()
	q.d.port.Post(tag, p)
	q.mu.Lock()
	defer q.mu.Unlock()
	for r.delivered < r.posted && !r.final {
		q.cond.Wait()
	}
	return !r.final
}

// deliver takes an event for the request with that head. It may come before
// the I/O has ended when a tape is the source; then it waits, since the guest
// must not have its buffers back earlier.
func (q *queue) deliver(head uint16, status byte, more bool, data []byte) bool {
	q.mu.Lock()
	if int(head) >= len(q.live) || q.live[head] == nil {
		q.mu.Unlock()
		return false
	}
	r := q.live[head]
	if !more {
		r.final = true
		if r.held {
			q.unhold(r) // the disk had it sooner where the tape was made
			r.ended = true
		}
		if !r.ended {
			q.cond.Broadcast()
		}
	}
	for !r.ended && !r.held && (!more || r.posted == r.delivered) && !q.dead {
		q.cond.Wait()
	}
	if q.dead {
		q.mu.Unlock()
		return true
	}
	if r.kind == reqIn && len(data) > 0 && r.at < r.n {
		r.at += int64(r.chain.CopyOut(data[:min(int64(len(data)), r.n-r.at)], int(r.at)))
	}
	r.delivered++
	if more {
		q.cond.Broadcast()
		q.mu.Unlock()
		return true
	}
	r.answer(status)
	q.live[head] = nil
	q.q.Push(&r.chain, r.chain.WriteLen)
	waited := r.waits
	r.next, q.free = q.free, r
	q.unpublished.Store(true)
	q.mu.Unlock()
	// Either this sees that no drain is under way, or the drain, which first
	// says that it ends and then looks, sees the mark.
	if !q.draining.Load() && q.unpublished.Swap(false) {
		q.q.Publish()
	}
	if waited {
		q.d.hold.answered()
	}
	// Not before the interrupt is raised: a pause must not overtake it.
	q.rest()
	return true
}

// rest says that a request is not in flight any more.
func (q *queue) rest() {
	if q.busy.Add(-1) == 0 && q.waiting.Load() {
		q.mu.Lock()
		q.cond.Broadcast()
		q.mu.Unlock()
	}
}

// quiesce waits until no drain runs and no request is in flight, except those
// held, which the queue shall keep.
func (q *queue) quiesce() {
	q.drainMu.Lock()
	defer q.drainMu.Unlock()
	q.waiting.Store(true)
	defer q.waiting.Store(false)
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.busy.Load() > 0 {
		q.cond.Wait()
	}
	heads := make([]uint16, len(q.held))
	for i, r := range q.held {
		heads[i] = r.chain.Head
	}
	q.q.Keep(heads)
}

// abandon waits until no worker works on a request and drops those whose
// outcome was not delivered.
func (q *queue) abandon() {
	q.drainMu.Lock()
	defer q.drainMu.Unlock()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dead = true
	for _, r := range q.live {
		if r != nil {
			r.final = true // whoever waits for a delivery waits no more
		}
	}
	q.cond.Broadcast()
	for q.io > 0 {
		q.cond.Wait()
	}
	clear(q.live)
	q.held = nil
}

// Layout of the tag of an event. A tape keeps it.
const (
	tagStatus     = 0xff   // status byte
	tagMore       = 1 << 8 // part of a read; more follows
	tagHead       = 16     // 16 bits: descriptor head
	tagQueue      = 32     // 16 bits: queue, or
	tagCapacity   = 0xffff // a change of capacity, or
	tagRetry      = 0xfffe // on a prompt machine, a Retry
	tagEpoch      = 48     // 16 bits: activation
	capacityBytes = 8      // length of a capacity event
)

func (q *queue) tag(r *request, status byte) uint64 {
	return uint64(q.s.epoch)<<tagEpoch | uint64(q.index)<<tagQueue | uint64(r.chain.Head)<<tagHead | uint64(status)
}

// warn logs what became of a request.
func (d *Device) warn(what string, r *request, err error) {
	if dropped, ok := d.log.allow(time.Now().Unix()); ok {
		d.host.Log.Warn(what, "disk", d.info.Name, "request", r.kind.String(),
			"offset", r.off, "bytes", r.n, "err", err, "unreported", dropped)
	}
}
