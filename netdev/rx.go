package netdev

import (
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/vm/virtio"
)

const (
	// rxBatch is the number of frames that are received before the guest is
	// told, at most.
	rxBatch = 64
	// maxBacklog and maxBacklogBytes bound the frames that wait outside the
	// endpoint for buffers of the guest; one more is dropped.
	maxBacklog      = 128
	maxBacklogBytes = 512 << 10
	// maxPosted is how many frames are on their way through the inbox.
	maxPosted = 32
	// minRoom is the least room for a frame in guest buffers that receive
	// offers to the endpoint, of what there is.
	minRoom = 4096
)

// delivering is the value of receiver.batch while the guest is told.
const delivering = -1

// receiver receives the frames of one queue.
//
// When the host may write to guest memory at any time (direct), its goroutine
// owns the queue: it keeps chains at hand, has the endpoint fill them, and
// answers those that were filled when the inbox delivers the batch. Otherwise
// the goroutine posts frames to the inbox, and the queue belongs to whoever
// holds mu: the inbox's delivery or the guest's notification.
type receiver struct {
	d     *Device
	pair  int
	ep    Queue
	bell  *bell         // nil: kick takes its place
	kick  chan struct{} // 1 slot: the state below may have changed
	stop  atomic.Bool
	ended sync.WaitGroup

	mu        sync.Mutex // guards what follows
	queue     *virtio.Queue
	mergeable bool
	running   bool
	direct    bool     // the goroutine owns the queue
	backlog   [][]byte // frames with their headers, waiting for buffers
	queued    int      // bytes in backlog
	scratch   []byte   // a frame on its way through deliver

	// batch counts the chains that were posted and not yet delivered, or is
	// delivering; posted counts frames for a receiver that is not direct.
	batch, posted atomic.Int32
	late          atomic.Bool // the goroutine waits for the batch

	// chains is a circular list of chains taken from the queue: count of
	// them from head on, of which the first filled hold frames.
	chains  []virtio.Chain
	written []uint32
	head    int
	count   int
	filled  int
	room    int // bytes of those that are not filled

	frame [1]Frame
	spill []byte // what does not fit the chains; or the whole frame
	last  int    // length of recent frames
}

func (r *receiver) activate(features uint64, q *virtio.Queue) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = q
	r.mergeable = features&featMrgRxBuf != 0
	r.head, r.count, r.filled, r.room, r.last = 0, 0, 0, 0, 0
	if q == nil {
		return
	}
	if len(r.chains) != int(q.Size()) {
		r.chains = make([]virtio.Chain, q.Size())
		r.written = make([]uint32, q.Size())
	}
	if r.spill == nil {
		r.spill = make([]byte, HeaderLen+MaxFrame)
		r.scratch = make([]byte, HeaderLen+MaxFrame)
	}
}

// start begins to receive.
func (r *receiver) start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running {
		return
	}
	r.running = true
	r.direct = r.d.direct.Load()
	r.stop.Store(false)
	r.ended.Add(1)
	go r.run()
}

// wait returns when the goroutine has ended. stop is set and the endpoint
// interrupted.
func (r *receiver) wait() {
	r.wake()
	r.ended.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running {
		r.filled = 0 // a batch that was withdrawn
		r.unpop()
	}
	r.running = false
	r.posted.Store(0)
}

// notify is called when the guest has offered buffers.
func (r *receiver) notify() {
	r.flushPosted()
	r.wake()
}

func (r *receiver) run() {
	defer r.ended.Done()
	if r.bell != nil {
		// When the runtime's monitor preempts the goroutine, another thread would
		// go on with it: on another CPU, which may be the guest's.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
	}
	if r.pair == 0 {
		r.d.announceLoaded()
	}
	switch {
	case r.queue == nil:
	case r.direct:
		r.runDirect()
	default:
		r.runPosted()
	}
	for r.bell != nil && !r.stop.Load() {
		r.await() // the transmitter still is to be served
	}
}

// runDirect receives into guest memory.
func (r *receiver) runDirect() {
	for limit := 1; !r.stop.Load(); {
		r.serve()
		if r.flushDirect(); !r.fill() {
			r.rest()
			limit = 1
			continue
		}
		frames, bytes := 0, 0
		for frames < limit && bytes < batchBytes && !r.stop.Load() {
			got, err := r.receive(frames == 0 && limit == 1)
			if err != nil {
				r.publish()
				r.d.endpointFailed(err)
				return
			}
			if !got {
				break
			}
			frames++
			bytes += r.frame[0].Len
			if !r.fill() {
				break
			}
		}
		r.publish()
		// The first frame after a pause goes to the guest at once, and
		// those that came meanwhile follow together.
		if frames == 0 {
			limit = 1
		} else {
			limit = rxBatch
		}
	}
}

// rest waits until the guest offers buffers.
func (r *receiver) rest() {
	if !r.queue.SetNotify(true) && !r.queue.Pending() {
		r.await()
	}
}

// want is the room that the next frame shall have: reading into few buffers is
// quicker, but what they do not hold is copied.
func (r *receiver) want() int {
	return min(max(4*r.last, minRoom), HeaderLen+MaxFrame)
}

// fill takes chains from the queue until there is room for a frame like recent
// ones, and reports whether there is any room and no backlog.
func (r *receiver) fill() bool {
	want := 1
	if r.mergeable {
		want = r.want()
	}
	r.queue.SetNotify(false)
	for r.room < want {
		if !r.take() {
			break
		}
	}
	r.mu.Lock()
	waiting := len(r.backlog) > 0
	r.mu.Unlock()
	return r.room > 0 && !waiting
}

// take takes one more chain. One that cannot hold even a byte of a frame is
// answered empty.
func (r *receiver) take() bool {
	for r.count < len(r.chains) && !r.stop.Load() {
		c := &r.chains[(r.head+r.count)&(len(r.chains)-1)]
		if !r.queue.Pop(c) {
			return false
		}
		if c.WriteLen > HeaderLen && len(c.Writable) < MaxPieces {
			r.count++
			r.room += int(min(c.WriteLen, HeaderLen+MaxFrame))
			return true
		}
		r.queue.Push(c, 0)
		r.queue.Publish()
	}
	return false
}

// chain is the i-th chain that holds no frame yet.
func (r *receiver) chain(i int) *virtio.Chain {
	return &r.chains[(r.head+r.filled+i)&(len(r.chains)-1)]
}

func (r *receiver) unfilled() int { return r.count - r.filled }

// receive has the endpoint fill the next chains, and reports whether there
// was a frame.
func (r *receiver) receive(wait bool) (bool, error) {
	f := &r.frame[0]
	f.Data = appendFrom(f.Data[:0], r.chain(0).Writable, HeaderLen)
	room := int(r.chain(0).WriteLen) - HeaderLen
	if r.mergeable {
		for i := 1; i < r.unfilled() && room < HeaderLen+MaxFrame; i++ {
			c := r.chain(i)
			if len(f.Data)+len(c.Writable) >= MaxPieces {
				break
			}
			f.Data = append(f.Data, c.Writable...)
			room += int(c.WriteLen)
		}
	}
	f.Data = append(f.Data, r.spill[HeaderLen:]) // so that nothing is cut off
	n, err := r.read(wait)
	if n == 0 || err != nil {
		return false, err
	}
	r.last = max(f.Len, r.last-r.last/8)
	if !r.admit(f, dstOf(f)) {
		return true, nil
	}
	if f.Len <= room {
		r.finish(&f.Header, f.Len)
		return true, nil
	}
	// It did not fit the chains that were at hand.
	over := r.spill[HeaderLen : HeaderLen+f.Len-room]
	if !r.mergeable {
		return true, nil // it never will
	}
	have := r.room - HeaderLen
	for have < f.Len && r.take() {
		have = r.room - HeaderLen
	}
	if have < f.Len {
		r.keep(f)
		return true, nil
	}
	r.scatter(over, room)
	r.finish(&f.Header, f.Len)
	return true, nil
}

// admit reports whether the guest wants a frame to dst and can make sense of
// it, and takes out of its header what the guest did not ask for.
func (r *receiver) admit(f *Frame, dst [6]byte) bool {
	h := &f.Header
	accept := Offload(r.d.accept.Load())
	h.Flags &= NeedsChecksum | DataValid
	if accept&OffloadChecksum == 0 {
		h.Flags &^= DataValid
	}
	return h.problem(f.Len, accept) == "" && r.d.link.Load() && r.d.filter.Load().accepts(dst)
}

// dstOf reads the destination address of a received frame.
func dstOf(f *Frame) (dst [6]byte) {
	n := 0
	for _, p := range f.Data {
		if n += copy(dst[n:], p); n == len(dst) {
			break
		}
	}
	return dst
}

// scatter copies p to the unfilled chains, from byte off of the frame on.
func (r *receiver) scatter(p []byte, off int) {
	off += HeaderLen
	for i := 0; i < r.unfilled() && len(p) > 0; i++ {
		c := r.chain(i)
		if off >= int(c.WriteLen) {
			off -= int(c.WriteLen)
			continue
		}
		p = p[c.CopyOut(p, off):]
		off = 0
	}
}

// finish completes a frame of n bytes that lies in the unfilled chains.
func (r *receiver) finish(h *Header, n int) {
	first := r.chain(0)
	left := n + HeaderLen
	used := 0
	for left > 0 {
		c := r.chain(0)
		w := min(left, int(c.WriteLen))
		r.written[(r.head+r.filled)&(len(r.chains)-1)] = uint32(w)
		r.room -= int(min(c.WriteLen, HeaderLen+MaxFrame))
		left -= w
		r.filled++
		used++
	}
	h.NumBuffers = uint16(used)
	var b [HeaderLen]byte
	h.put(b[:])
	first.CopyOut(b[:], 0)
}

// keep puts a frame for which the guest has too few buffers into the backlog.
// Its first part is in those that it has.
func (r *receiver) keep(f *Frame) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b := r.hold(HeaderLen + f.Len)
	if b == nil {
		return
	}
	f.Header.NumBuffers = 0
	f.Header.put(b)
	n := HeaderLen
	for _, p := range f.Data {
		n += copy(b[n:], p)
	}
}

// publish answers the chains that were filled, by way of the inbox.
func (r *receiver) publish() {
	if r.filled == 0 {
		return
	}
	n := int32(r.filled)
	r.batch.Store(n)
	r.d.port.Post(tagBatch|uint64(r.pair), nil)
	if r.batch.Load() != 0 && !r.awaitBatch(n) {
		return // stopped: run gives the chains back
	}
	r.head = (r.head + r.filled) & (len(r.chains) - 1)
	r.count -= r.filled
	r.filled = 0
}

// awaitBatch waits for a batch that the inbox did not deliver at once. It
// reports false if the device is to stop and the batch was withdrawn.
func (r *receiver) awaitBatch(n int32) bool {
	r.late.Store(true)
	defer r.late.Store(false)
	for r.batch.Load() != 0 {
		if r.stop.Load() {
			if r.batch.CompareAndSwap(n, 0) {
				return false
			}
			runtime.Gosched() // it is being delivered right now
			continue
		}
		r.await()
	}
	return true
}

// complete is called by the inbox: the guest may see the batch.
func (r *receiver) complete() {
	n := r.batch.Load()
	if n <= 0 || !r.batch.CompareAndSwap(n, delivering) {
		return
	}
	for i := range int(n) {
		j := (r.head + i) & (len(r.chains) - 1)
		r.queue.Push(&r.chains[j], r.written[j])
	}
	r.queue.Publish()
	r.batch.Store(0)
	if r.late.Load() {
		r.wake()
	}
}

// unpop returns the chains that hold no frame to the queue. Where a malformed
// one after them was answered already they cannot go back, and are answered
// empty.
func (r *receiver) unpop() {
	for ; r.count > r.filled; r.count-- {
		c := &r.chains[(r.head+r.count-1)&(len(r.chains)-1)]
		if !r.queue.Unpop(c) {
			r.queue.Push(c, 0)
		}
	}
	r.queue.Publish()
	r.room = 0
}
