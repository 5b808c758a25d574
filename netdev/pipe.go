package netdev

import (
	"fmt"
	"sync"
	"sync/atomic"
)

// PipeConfig describes a pipe. Its zero value is one queue pair of 256 KiB
// each way.
type PipeConfig struct {
	// Queues is the number of queue pairs, 1 to 256. 0 means 1.
	Queues int
	// Buffer is how many bytes each queue holds in each direction, headers
	// included, 128 KiB to 64 MiB. 0 means 256 KiB. It is allocated when
	// the first frame comes.
	Buffer int
	// MTU is what Caps says. 0 means none.
	MTU int
}

const (
	minPipeBuffer = 128 << 10
	maxPipeBuffer = 64 << 20
)

// Pipe returns two endpoints joined by a cable: what is written to one is read
// from the other. A full queue takes no more frames until the other end
// reads, so nothing is lost. Checksums and segmentation that the reader does
// not accept are done in software by the writer. Closing one end takes the
// link of the other down.
func Pipe(cfg PipeConfig) (a, b Endpoint, err error) {
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	if cfg.Buffer == 0 {
		cfg.Buffer = 256 << 10
	}
	switch {
	case cfg.Queues < 1 || cfg.Queues > 256:
		return nil, nil, fmt.Errorf("pipe: %d queues, want 1 to 256", cfg.Queues)
	case cfg.Buffer < minPipeBuffer || cfg.Buffer > maxPipeBuffer:
		return nil, nil, fmt.Errorf("pipe: buffer of %d bytes, want %d to %d", cfg.Buffer, minPipeBuffer, maxPipeBuffer)
	case cfg.MTU < 0 || cfg.MTU > 65535:
		return nil, nil, fmt.Errorf("pipe: MTU %d, want 0 to 65535", cfg.MTU)
	}
	x, y := newPipeEnd(cfg), newPipeEnd(cfg)
	x.peer, y.peer = y, x
	for i := range x.queues {
		x.queues[i].end, y.queues[i].end = x, y
		x.queues[i].index, y.queues[i].index = i, i
	}
	return x, y, nil
}

type pipeEnd struct {
	caps   Caps
	peer   *pipeEnd
	queues []pipeQueue
	accept atomic.Uint32 // Offload that this end's reader takes
	active atomic.Int32  // queues that it reads
	closed atomic.Bool
	once   sync.Once

	linkMu sync.Mutex
	link   func(up bool)
}

func newPipeEnd(cfg PipeConfig) *pipeEnd {
	e := &pipeEnd{
		caps:   Caps{Queues: cfg.Queues, Offload: OffloadAll, MTU: cfg.MTU},
		queues: make([]pipeQueue, cfg.Queues),
	}
	e.active.Store(1)
	for i := range e.queues {
		e.queues[i].in.init(cfg.Buffer)
	}
	return e
}

func (e *pipeEnd) Caps() Caps        { return e.caps }
func (e *pipeEnd) Queue(i int) Queue { return &e.queues[i] }

func (e *pipeEnd) Configure(s Settings) error {
	if e.closed.Load() {
		return fmt.Errorf("pipe: %w", ErrClosed)
	}
	if s.Queues < 1 || s.Queues > len(e.queues) {
		return fmt.Errorf("pipe: %d queues in use, have %d", s.Queues, len(e.queues))
	}
	e.accept.Store(uint32(s.Offload.sound()))
	e.active.Store(int32(s.Queues))
	e.wake() // writers may have to turn to another queue
	return nil
}

// wake makes everyone who waits for a ring of this end look again.
func (e *pipeEnd) wake() {
	for i := range e.queues {
		e.queues[i].in.wake()
	}
}

func (e *pipeEnd) WatchLink(f func(up bool)) bool {
	e.linkMu.Lock()
	defer e.linkMu.Unlock()
	e.link = f
	return !e.peer.closed.Load()
}

func (e *pipeEnd) Close() error {
	e.once.Do(func() {
		e.closed.Store(true)
		for i := range e.queues {
			e.queues[i].in.close()
		}
		e.peer.wake() // writers of this end
		e.peer.linkMu.Lock()
		defer e.peer.linkMu.Unlock()
		if f := e.peer.link; f != nil && !e.peer.closed.Load() {
			f(false)
		}
	})
	return nil
}

// pipeQueue is one queue of one end.
type pipeQueue struct {
	end   *pipeEnd
	index int
	in    ring

	wrMu    sync.Mutex
	quit    atomic.Bool
	seg     segmenter
	scratch []byte
}

// Interrupt implements [Queue].
func (q *pipeQueue) Interrupt(on bool) {
	q.quit.Store(on)
	if on {
		q.in.wake()
		q.end.peer.wake()
	}
}

// Read implements [Queue].
func (q *pipeQueue) Read(frames []Frame, wait bool) (int, error) {
	n := 0
	q.in.mu.Lock()
	defer q.in.mu.Unlock()
	for n < len(frames) {
		if q.end.closed.Load() {
			return n, fmt.Errorf("pipe: read: %w", ErrClosed)
		}
		if q.in.pop(&frames[n]) {
			n++
			continue
		}
		if n > 0 || !wait || q.quit.Load() {
			break
		}
		q.in.readable.Wait()
	}
	if n > 0 {
		q.in.writable.Broadcast()
	}
	return n, nil
}

// Write implements [Queue].
func (q *pipeQueue) Write(frames []Frame, wait bool) (int, error) {
	q.wrMu.Lock()
	defer q.wrMu.Unlock()
	for {
		n, err := q.write(q.target(), frames, wait)
		if n > 0 || err != nil || len(frames) == 0 || !wait || q.quit.Load() {
			return n, err
		}
	}
}

// target is the ring that the peer reads. A queue that it does not read shares
// those that it does.
func (q *pipeQueue) target() *ring {
	peer := q.end.peer
	return &peer.queues[q.index%int(peer.active.Load())].in
}

// write writes to out, and waits for room there once.
func (q *pipeQueue) write(out *ring, frames []Frame, wait bool) (n int, err error) {
	peer := q.end.peer
	out.mu.Lock()
	defer out.mu.Unlock()
	for n < len(frames) {
		if q.end.closed.Load() {
			err = fmt.Errorf("pipe: write: %w", ErrClosed)
			break
		}
		if !peer.closed.Load() && !q.push(out, &frames[n], Offload(peer.accept.Load())) {
			break
		}
		n++
	}
	switch {
	case n > 0:
		out.readable.Broadcast()
	case err == nil && wait && !q.quit.Load() && len(frames) > 0 && q.target() == out:
		out.writable.Wait()
	}
	return n, err
}

// push puts one frame into out, or several if it must be segmented. It reports
// false if there is no room for all of it.
func (q *pipeQueue) push(out *ring, f *Frame, accept Offload) bool {
	size := 0
	for _, p := range f.Data {
		size += len(p)
	}
	if f.Header.problem(size, OffloadAll) != "" {
		return true // dropped
	}
	if f.Header.Needs()&^accept == 0 {
		if !out.begin(&f.Header, size) {
			return false
		}
		for _, p := range f.Data {
			out.put(p)
		}
		out.commit()
		return true
	}
	q.scratch = q.scratch[:0]
	for _, p := range f.Data {
		q.scratch = append(q.scratch, p...)
	}
	if q.seg.reset(&f.Header, q.scratch) != nil {
		return true
	}
	var complete Header
	for {
		p := q.seg.next()
		if p == nil {
			break
		}
		if !out.begin(&complete, len(p)) {
			out.rollback()
			// Segments so small that an empty ring cannot hold them all
			// would block the queue for good.
			return out.head == out.tail
		}
		out.put(p)
	}
	out.commit()
	return true
}

// ring is a bounded queue of frames in one block of memory. A record is a
// header, the frame's length and the frame, wrapping around anywhere.
type ring struct {
	mu                 sync.Mutex
	readable, writable sync.Cond
	size               int
	buf                []byte
	head, tail         int // read and committed write positions, modulo 2*size
	cursor             int // write position
	hdr                [HeaderLen + 4]byte
}

func (r *ring) init(size int) {
	r.size = size
	r.readable.L, r.writable.L = &r.mu, &r.mu
}

func (r *ring) used(end int) int {
	n := end - r.head
	if n < 0 {
		n += 2 * r.size
	}
	return n
}

// begin starts a record after the cursor, for a frame of n bytes.
func (r *ring) begin(h *Header, n int) bool {
	if r.buf == nil {
		r.buf = make([]byte, r.size)
	}
	if len(r.hdr)+n > r.size-r.used(r.cursor) {
		return false
	}
	h.put(r.hdr[:])
	r.hdr[12], r.hdr[13], r.hdr[14], r.hdr[15] = byte(n), byte(n>>8), byte(n>>16), byte(n>>24)
	r.put(r.hdr[:])
	return true
}

func (r *ring) put(p []byte) {
	for len(p) > 0 {
		n := copy(r.buf[r.cursor%r.size:], p)
		p = p[n:]
		r.cursor = (r.cursor + n) % (2 * r.size)
	}
}

func (r *ring) commit()   { r.tail = r.cursor }
func (r *ring) rollback() { r.cursor = r.tail }

func (r *ring) get(p []byte) {
	for len(p) > 0 {
		n := copy(p, r.buf[r.head%r.size:])
		p = p[n:]
		r.head = (r.head + n) % (2 * r.size)
	}
}

// pop takes one frame out of the ring, if there is one.
func (r *ring) pop(f *Frame) bool {
	if r.head == r.tail {
		return false
	}
	r.get(r.hdr[:])
	f.Header.get(r.hdr[:])
	n := int(r.hdr[12]) | int(r.hdr[13])<<8 | int(r.hdr[14])<<16 | int(r.hdr[15])<<24
	f.Len = 0
	for _, p := range f.Data {
		k := min(len(p), n)
		r.get(p[:k])
		f.Len += k
		n -= k
		if n == 0 {
			break
		}
	}
	r.head = (r.head + n) % (2 * r.size)
	return true
}

// wake makes every waiter look again.
func (r *ring) wake() {
	r.mu.Lock()
	r.readable.Broadcast()
	r.writable.Broadcast()
	r.mu.Unlock()
}

// close drops what is in the ring.
func (r *ring) close() {
	r.mu.Lock()
	r.head, r.tail, r.cursor, r.buf = 0, 0, 0, nil
	r.readable.Broadcast()
	r.writable.Broadcast()
	r.mu.Unlock()
}
