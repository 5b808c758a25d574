package netdev

// The backlog holds frames, each after its header in wire form, that left the
// endpoint or the inbox but found no buffers of the guest.

// place copies a frame with its header into chains of the queue, as far as
// finish, and reports whether it is done with the frame. Whoever calls it owns
// the queue.
func (r *receiver) place(b []byte) bool {
	for r.room < len(b) {
		if !r.mergeable && r.room > 0 || !r.take() {
			break
		}
	}
	if r.room < len(b) {
		// Without mergeable buffers it will never fit; nor will it when all
		// chains that there can be are here. It is lost then.
		return !r.mergeable && r.room > 0 || r.count == len(r.chains)
	}
	var h Header
	h.get(b)
	r.scatter(b[HeaderLen:], 0)
	r.finish(&h, len(b)-HeaderLen)
	return true
}

// flushDirect moves the backlog into guest memory, on the goroutine of a
// direct receiver.
func (r *receiver) flushDirect() {
	for !r.stop.Load() {
		r.mu.Lock()
		var b []byte
		if len(r.backlog) > 0 {
			b = r.backlog[0]
		}
		r.mu.Unlock()
		if b == nil || !r.place(b) {
			break
		}
		r.mu.Lock()
		r.shift()
		r.mu.Unlock()
	}
	r.publish()
}

// flush does the same for a receiver that is not direct, whose mu is held.
func (r *receiver) flush() {
	for len(r.backlog) > 0 && r.placeNow(r.backlog[0]) {
		r.shift()
	}
	r.queue.Publish()
}

// flushPosted does the same at any time, if the receiver is not direct.
func (r *receiver) flushPosted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.running && !r.direct && r.queue != nil {
		r.flush()
	}
}

// placeNow places a frame and answers its chains. mu is held, and the receiver
// is not direct.
func (r *receiver) placeNow(b []byte) bool {
	r.queue.SetNotify(false)
	for !r.place(b) {
		// Chains that do not suffice stay out of the queue, so that the
		// driver is asked to notify of the next one and not of these.
		if r.stop.Load() || !r.queue.SetNotify(true) {
			return false
		}
		r.queue.SetNotify(false)
	}
	for i := range r.filled {
		j := (r.head + i) & (len(r.chains) - 1)
		r.queue.Push(&r.chains[j], r.written[j])
	}
	r.head = (r.head + r.filled) & (len(r.chains) - 1)
	r.count -= r.filled
	r.filled = 0
	return true
}

// deliver takes a frame from the inbox.
func (r *receiver) deliver(data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.posted.Load() > 0 && !r.direct {
		r.posted.Add(-1)
	}
	defer r.wake()
	if r.queue == nil || len(data) < HeaderLen+MinFrame || len(data) > HeaderLen+MaxFrame {
		return
	}
	f := Frame{Len: len(data) - HeaderLen}
	f.Header.get(data)
	if !r.admit(&f, [6]byte(data[HeaderLen:])) {
		return
	}
	if len(r.backlog) == 0 && r.running && !r.direct {
		// The header may have changed; data is not ours to change.
		copy(r.scratch, data)
		f.Header.put(r.scratch)
		if r.placeNow(r.scratch[:len(data)]) {
			r.queue.Publish()
			return
		}
	}
	if b := r.hold(len(data)); b != nil {
		copy(b, data)
		f.Header.put(b)
	}
}

// runPosted passes frames to the inbox.
func (r *receiver) runPosted() {
	f := &r.frame[0]
	f.Data = append(f.Data[:0], r.spill[HeaderLen:])
	for !r.stop.Load() {
		r.mu.Lock()
		full := len(r.backlog) > 0
		r.mu.Unlock()
		if full || r.posted.Load() >= maxPosted {
			r.await()
			continue
		}
		r.serve()
		n, err := r.read(true)
		if err != nil {
			r.d.endpointFailed(err)
			return
		}
		if n == 0 {
			continue
		}
		f.Header.NumBuffers = 0
		f.Header.put(r.spill)
		r.posted.Add(1)
		r.d.port.Post(tagFrame|uint64(r.pair), r.spill[:HeaderLen+f.Len])
	}
}

// hold adds a frame of n bytes, header included, to the backlog and returns
// its place, or nil if the backlog is full. mu is held.
func (r *receiver) hold(n int) []byte {
	if len(r.backlog) >= maxBacklog || r.queued+n > maxBacklogBytes {
		return nil
	}
	b := make([]byte, n)
	r.backlog = append(r.backlog, b)
	r.queued += n
	return b
}

// shift removes the first frame of the backlog. mu is held.
func (r *receiver) shift() {
	r.queued -= len(r.backlog[0])
	r.backlog = append(r.backlog[:0], r.backlog[1:]...)
}

// forget drops the backlog. Nothing runs.
func (r *receiver) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.backlog, r.queued = nil, 0
}
