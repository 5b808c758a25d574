package netdev

import (
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/vm/virtio"
)

// txBatch and batchBytes are how many frames, and how many bytes in them, are sent or
// received before the guest is told: while the next ones are copied, it makes use of
// these, and its TCP has room for more. A connection has as little as two large
// frames on their way.
const (
	txBatch    = 32
	batchBytes = 32 << 10
)

// transmitter sends the frames of one queue.
type transmitter struct {
	d  *Device
	ep Queue

	mu      sync.Mutex  // held while draining
	done    sync.Cond   // signalled when waiting ends
	stop    atomic.Bool // leave soon
	queue   *virtio.Queue
	allowed Offload // what the driver may leave undone
	running bool    // the pair is in use and the device not paused
	// waiting says that a goroutine waits for room in the endpoint. The
	// queue and the fields below are its own until it clears that.
	waiting bool

	chains [txBatch]virtio.Chain
	frames [txBatch]Frame
	owner  [txBatch]int // index in chains of each frame
}

func (t *transmitter) activate(features uint64, q *virtio.Queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = q
	t.allowed = 0
	for _, b := range []struct {
		bit uint64
		o   Offload
	}{
		{featCsum, OffloadChecksum},
		{featHostTSO4, OffloadTSO4},
		{featHostTSO6, OffloadTSO6},
		{featHostECN, OffloadECN},
		{featHostUSO, OffloadUSO},
	} {
		if features&b.bit != 0 {
			t.allowed |= b.o
		}
	}
	t.allowed = t.allowed.sound()
}

func (t *transmitter) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stop.Store(false)
	t.running = true
}

// wait returns when nothing touches the queue. stop is set and the endpoint
// interrupted.
func (t *transmitter) wait() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = false
	for t.waiting {
		t.done.Wait()
	}
}

// notify drains the queue, unless something else does.
func (t *transmitter) notify() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.queue == nil || !t.running || t.waiting {
		return
	}
	if t.drain() {
		t.waiting = true
		go t.drainLater()
	}
}

// drainLater sends frames as the endpoint makes room for them, until the
// queue is empty.
func (t *transmitter) drainLater() {
	for !t.stop.Load() {
		// A frame that waits for room shows when there is some.
		if _, full := t.step(1, true); full {
			continue // interrupted
		}
		if !t.drain() && !t.queue.Pending() {
			break
		}
	}
	t.mu.Lock()
	t.waiting = false
	t.done.Broadcast()
	t.mu.Unlock()
}

// drain sends what there is, with the driver's notifications off meanwhile. It
// reports whether the endpoint is full.
func (t *transmitter) drain() (full bool) {
	t.queue.SetNotify(false)
	for !t.stop.Load() {
		n, full := t.step(txBatch, false)
		if full {
			return true
		}
		if n > 0 {
			continue
		}
		if !t.queue.SetNotify(true) {
			return false
		}
		t.queue.SetNotify(false)
	}
	return false
}

// step sends up to limit frames and returns how many chains it took. What the
// endpoint has no room for goes back into the queue.
func (t *transmitter) step(limit int, wait bool) (n int, full bool) {
	k, bytes := 0, uint32(0)
	for n < limit && bytes < batchBytes && t.queue.Pop(&t.chains[n]) {
		bytes += t.chains[n].ReadLen
		if t.prepare(&t.chains[n], &t.frames[k]) {
			t.owner[k] = n
			k++
		}
		n++
	}
	if n == 0 {
		return 0, false
	}
	if k > 0 && !t.d.link.Load() {
		k = 0
	}
	keep := n
	for sent := 0; sent < k; {
		m, err := t.ep.Write(t.frames[sent:k], wait && sent == 0)
		if err != nil {
			t.d.endpointFailed(err)
			break
		}
		sent += m
		if m == 0 {
			if !t.d.direct.Load() {
				break // dropped: waiting would be an input
			}
			full, keep = true, t.owner[sent]
			break
		}
	}
	for i := range keep {
		t.queue.Push(&t.chains[i], 0)
	}
	for i := n - 1; i >= keep; i-- {
		if !t.queue.Unpop(&t.chains[i]) {
			// A malformed chain after it was answered: this one is lost.
			t.queue.Push(&t.chains[i], 0)
		}
	}
	t.queue.Publish()
	return keep, full
}

// prepare makes a frame of a chain, or reports that there is none worth
// sending. The header is the device's own copy from here on.
func (t *transmitter) prepare(c *virtio.Chain, f *Frame) bool {
	n := int(c.ReadLen) - HeaderLen
	if n < MinFrame || n > MaxFrame {
		return false
	}
	var b [HeaderLen]byte
	c.CopyIn(b[:], 0)
	f.Header.get(b[:])
	f.Header.Flags &= NeedsChecksum
	f.Header.NumBuffers = 0
	if f.Header.problem(n, t.allowed) != "" {
		return false
	}
	f.Data = appendFrom(f.Data[:0], c.Readable, HeaderLen)
	return len(f.Data) <= MaxPieces
}

// appendFrom appends pieces to dst without their first skip bytes.
func appendFrom(dst, pieces [][]byte, skip int) [][]byte {
	for _, p := range pieces {
		if skip >= len(p) {
			skip -= len(p)
			continue
		}
		dst = append(dst, p[skip:])
		skip = 0
	}
	return dst
}

// send sends a frame of the device's own, unless the endpoint is busy.
func (t *transmitter) send(frame []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.waiting && t.d.link.Load() {
		// A lost announcement is no loss: neighbours find out by themselves.
		_, _ = t.ep.Write([]Frame{{Data: [][]byte{frame}}}, false)
	}
}
