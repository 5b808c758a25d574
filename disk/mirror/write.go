package mirror

import (
	"math/bits"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/buffers"
)

// maxPiece is how many bytes of a write are copied and under way at once.
const maxPiece = 1 << 20

// buffer is a pooled copy of what a guest writes, page-aligned as memory from
// the runtime is for these sizes.
type buffer struct {
	p     []byte
	class int
}

// Buffers are of 4 KiB to 1 MiB, in powers of four.
var bufferPools [5]sync.Pool

func newBuffer(n int) *buffer {
	class := max(0, (bits.Len(uint(max(n, 1)-1))-11)/2)
	b, _ := bufferPools[class].Get().(*buffer)
	if b == nil {
		b = &buffer{p: make([]byte, 4096<<(2*class)), class: class}
	}
	b.p = b.p[:n]
	return b
}

func (b *buffer) free() {
	b.p = b.p[:cap(b.p)]
	bufferPools[b.class].Put(b)
}

// gather fills p with what bufs hold from byte skip on.
func gather(p []byte, bufs [][]byte, skip int) {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		n := copy(p, b[skip:])
		if p, skip = p[n:], 0; len(p) == 0 {
			return
		}
	}
}

// writeFrom writes what bufs, meant for off, hold from byte done on. If again,
// the rest is to be written in the disk's next mode.
func (m *move) writeFrom(bufs [][]byte, off int64, done int) (n int, again bool, err error) {
	want := buffers.Len(bufs)
	if !inside(off, want, m.size) {
		return 0, false, m.d.refuse("write", off, want, outside(m.size))
	}
	if want == 0 {
		n, err = disk.WriteV(m.src.Backend, bufs, off)
		return n, false, err
	}
	for at := int64(done); at < want && err == nil; {
		s := newSpan(off+at, min(want-at, maxPiece))
		if !m.table.acquire(s) {
			s.drop()
			return n, m.dead() == nil, m.dead()
		}
		k, size := 0, int(s.end-s.off)
		start := m.clock()
		switch {
		case s.both:
			s.buf = newBuffer(size)
			gather(s.buf.p, bufs, int(at))
			m.toTarget(s)
			k, err = m.src.WriteAt(s.buf.p, s.off)
			m.observe(latWrite, start, size, err)
			m.table.sourceDone(s, err != nil)
			m.mirrored.Add(1)
		case int64(size) == want:
			k, err = disk.WriteV(m.src.Backend, bufs, off)
			m.observe(latWrite, start, size, err)
			m.table.release(s)
		default:
			b := newBuffer(size)
			gather(b.p, bufs, int(at))
			k, err = m.src.WriteAt(b.p, s.off)
			m.table.release(s)
			b.free()
		}
		s.drop()
		n, at = n+k, at+int64(k)
	}
	return n, false, err
}

// zero zeroes on both sides.
func (m *move) zero(off, n int64, mayUnmap bool) (again bool, err error) {
	if n == 0 {
		return false, m.src.WriteZeroes(off, n, mayUnmap)
	}
	s := newSpan(off, n)
	defer s.drop()
	s.unmap = mayUnmap
	if !m.table.acquire(s) {
		return m.dead() == nil, m.dead()
	}
	if !s.both {
		err = m.src.WriteZeroes(off, n, mayUnmap)
		m.table.release(s)
		return false, err
	}
	m.toTarget(s)
	err = m.src.WriteZeroes(off, n, mayUnmap)
	m.table.sourceDone(s, err != nil)
	m.mirrored.Add(1)
	return false, err
}

// discard discards on the source, and leaves it to the copier to do likewise
// with the target: what a discarded byte reads as afterwards is each backend's
// choice, and has to be the same on both sides.
func (m *move) discard(off, n int64) (again bool, err error) {
	if n == 0 {
		return false, m.src.Discard(off, n)
	}
	s := newSpan(off, n)
	defer s.drop()
	s.discards = true
	if !m.table.acquire(s) {
		return m.dead() == nil, m.dead()
	}
	err = m.src.Discard(off, n)
	if !s.both {
		m.table.release(s)
		return false, err
	}
	// With CapWrites the guest waits for that.
	_, e := m.copy(s)
	if e != nil {
		m.targetFailed(e)
	}
	m.table.targetDone(s, e != nil)
	m.table.sourceDone(s, err != nil)
	m.mirrored.Add(1)
	return false, err
}

// toTarget has a worker carry out the target's part of s. Where the guest does
// not wait for that, one change may wait for the next worker to be free, which
// takes it up without having to be woken.
func (m *move) toTarget(s *span) {
	s.refs.Add(1)
	patient := 1
	if m.cfg.CapWrites {
		patient = 0
	}
	select {
	case m.work <- s: // into the hands of an idle worker, if there is one
		if len(m.work) > patient {
			m.workers.Go(m.worker)
		}
	default:
		m.workers.Go(m.worker)
		m.work <- s
	}
}

// worker carries out the target's part of one change after the other. There are
// about as many workers as changes were under way at once.
func (m *move) worker() {
	for {
		var s *span
		select {
		case s = <-m.work:
		case <-m.quit:
			return
		}
		start := m.clock()
		var err error
		if s.buf != nil {
			_, err = m.dst.WriteAt(s.buf.p, s.off)
			m.observe(latTarget, start, len(s.buf.p), err)
		} else {
			err = m.dst.WriteZeroes(s.off, s.end-s.off, s.unmap)
		}
		if err != nil {
			m.targetFailed(err)
		}
		m.table.targetDone(s, err != nil)
		s.drop()
	}
}

// clock is the time, or none for a disk that does not move.
func (m *move) clock() time.Time {
	if m == nil {
		return time.Time{}
	}
	return time.Now()
}

// observe notes how long a request took that the guest has waited for.
func (m *move) observe(kind int, start time.Time, n int, err error) {
	if m != nil && err == nil && n <= 64<<10 {
		m.pace.add(kind, time.Since(start))
	}
}
