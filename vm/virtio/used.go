package virtio

import "sync/atomic"

// Push answers chain c: written is the number of bytes that the device has
// stored in its writable buffers, counted from their start. The driver sees it
// after the next Publish. Push marks the writable buffers as changed by the
// VMM. A chain that is not in flight is ignored, and written is cut to
// WriteLen. The chain may be reused when Push returns; its buffers belong to
// the driver again.
func (q *Queue) Push(c *Chain, written uint32) {
	if c.Head >= q.size {
		return
	}
	m := q.cfg.Memory
	for _, w := range c.writes {
		m.MarkDirty(w.addr, uint64(w.len))
	}
	written = min(written, c.WriteLen)
	bit := uint32(1) << (c.Head % 32)

	q.mu.Lock()
	defer q.mu.Unlock()
	if atomic.AndUint32(&q.inFlight[c.Head/32], ^bit)&bit == 0 || q.state.Load() != queueLive {
		return
	}
	q.setUsedEntry(q.usedIdx, c.Head, written)
	m.MarkDirty(q.cfg.Used+4+8*uint64(q.usedIdx&q.mask), 8)
	q.usedIdx++
}

// Publish makes all pushed chains visible to the driver and interrupts it if
// it asked for that. One Publish after a batch of Push calls costs one index
// store and at most one interrupt.
func (q *Queue) Publish() {
	q.mu.Lock()
	old, idx := q.published, q.usedIdx
	if old == idx || q.state.Load() != queueLive {
		q.mu.Unlock()
		return
	}
	q.published = idx
	q.setUsedIdx(idx)
	q.cfg.Memory.MarkDirty(q.cfg.Used+2, 2)
	var want bool
	if q.eventIdx {
		// virtio 1.2, section 2.7.7.2: the event index lies in what was
		// published now.
		want = idx-q.usedEvent()-1 < idx-old
	} else {
		want = q.availFlags()&availNoInterrupt == 0
	}
	want = want || q.signalAll
	q.signalAll = false
	q.mu.Unlock()
	if want && q.cfg.Interrupt != nil {
		q.cfg.Interrupt()
	}
}
