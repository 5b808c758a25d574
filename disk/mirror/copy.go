package mirror

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

const (
	copyChunk = 1 << 20   // most bytes of one copy
	copySmall = 256 << 10 // the same when changes wait for it
	copyBusy  = 128 << 10 // the same while the guest is at work
	copyHole  = 1 << 30   // the same where the source has nothing
	zeroRun   = 16 << 10  // shorter runs of zeroes are written like other data
	zeroUnit  = 4 << 10
	copyRest  = 16 // granules left for when changes wait
)

// copied is the outcome of one copy.
type copied struct {
	err  error
	took time.Duration
	n    int64 // bytes written
}

// copyAll copies until little enough is dirty that the rest can be copied while
// changes wait, or ctx ends.
func (m *move) copyAll(ctx context.Context) error {
	var last time.Duration // that the last copy took
	running, failed, owed := 0, false, int64(0)
	results := make(chan copied, maxWidth)
	reap := func() error {
		select {
		case r := <-results:
			running--
			last = r.took
			m.pace.copied(r.took)
			owed += r.n
			if r.err != nil {
				failed = true
				m.targetFailed(r.err)
			}
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	// The first pass leaves out what changes are at, and what they overtake;
	// for those after it changes wait.
	for pass, backoff := 0, 10*time.Millisecond; ; pass++ {
		failed = false
		for at := int64(0); ; {
			width := m.pace.get()
			for running > 0 && running >= int(width) {
				if err := reap(); err != nil {
					return err
				}
			}
			if width < 1 {
				if err := sleep(ctx, time.Duration(float64(last)*(1/width-1))); err != nil {
					return err
				}
			}
			off, end := m.nextCopy(at, pass)
			if end == 0 {
				break
			}
			at = (end + granule - 1) >> granuleShift
			if err := m.limit(ctx, owed); err != nil {
				return err
			}
			owed = 0
			s := newSpan(off, end-off)
			s.copies, s.exclusive = true, pass > 0
			if pass > 0 && !m.table.acquireCopy(s, ctx.Done()) {
				s.drop()
				return context.Cause(ctx)
			}
			if pass == 0 && !m.table.try(s) {
				s.drop()
				continue
			}
			running++
			m.copies.Go(func() {
				start := time.Now()
				n, err := m.copy(s)
				if m.table.endCopy(s, err == nil) {
					m.progress()
				}
				s.drop()
				results <- copied{err, time.Since(start), n}
			})
		}
		for running > 0 {
			if err := reap(); err != nil {
				return err
			}
		}
		if _, dirty := m.table.still(); dirty == 0 || dirty <= copyRest && pass > 0 && !failed {
			return nil
		}
		if failed {
			if err := sleep(ctx, backoff); err != nil {
				return err
			}
			backoff = min(2*backoff, time.Second)
		}
	}
}

// copyLast copies what is dirty while no change can start, unless that is too
// much for limit. It reports whether nothing is dirty any more.
func (m *move) copyLast(limit time.Time) bool {
	var wg sync.WaitGroup
	for at := int64(0); time.Now().Before(limit); {
		off, end := m.table.nextCopy(at, granule, m.size)
		if end == 0 {
			break
		}
		at = end >> granuleShift
		s := newSpan(off, end-off)
		s.copies = true
		if !m.table.try(s) {
			s.drop()
			break
		}
		wg.Go(func() {
			_, err := m.copy(s)
			if err != nil {
				m.targetFailed(err)
			}
			m.table.endCopy(s, err == nil)
			s.drop()
		})
	}
	wg.Wait()
	_, dirty := m.table.still()
	return dirty == 0
}

// nextCopy picks the bytes of the next copy, from granule at on.
func (m *move) nextCopy(at int64, pass int) (off, end int64) {
	most := m.pace.chunk(pass > 0)
	off, end = m.table.nextCopy(at, most, m.size)
	if end-off >= most && pass == 0 && m.src.mapper != nil {
		// A hint only: the copy looks again when nothing can change.
		if e, err := m.src.mapper.Extent(off); err == nil && e.Zero && e.Len > most {
			off, end = m.table.nextCopy(at, min(e.Len, copyHole), m.size)
		}
	}
	return off, end
}

// limit waits until n bytes more are within Config.Rate.
func (m *move) limit(ctx context.Context, n int64) error {
	if m.cfg.Rate == 0 || n == 0 {
		return context.Cause(ctx)
	}
	now := time.Now()
	if m.due.Before(now.Add(-100 * time.Millisecond)) {
		m.due = now.Add(-100 * time.Millisecond) // no more than this is saved up
	}
	m.due = m.due.Add(time.Duration(float64(n) / float64(m.cfg.Rate) * float64(time.Second)))
	return sleep(ctx, m.due.Sub(now))
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

var copyBuffers = sync.Pool{New: func() any { return new([copyChunk]byte) }}

// copy brings the bytes of s, which nothing else changes, from source to target.
// What reads as zeroes is not written. It returns how many bytes were.
func (m *move) copy(s *span) (written int64, err error) {
	buf := copyBuffers.Get().(*[copyChunk]byte)
	defer copyBuffers.Put(buf)
	for off := s.off; off < s.end; {
		e := disk.Extent{Off: off, Len: s.end - off, Allocated: true}
		if m.src.mapper != nil {
			if e, err = m.src.mapper.Extent(off); err != nil {
				return written, err
			}
			if e.Off != off || e.Len <= 0 {
				return written, fmt.Errorf("disk %s: map at %d returned %d bytes at %d", m.src.Info().Name, off, e.Len, e.Off)
			}
			e.Len = min(e.Len, s.end-off)
		}
		if e.Zero {
			if err := m.zeroTarget(off, e.Len, !e.Allocated); err != nil {
				return written, err
			}
			m.zeroed.Add(e.Len)
			off += e.Len
			continue
		}
		p := buf[:min(e.Len, copyChunk)]
		if n, err := m.src.ReadAt(p, off); n < len(p) {
			return written, fmt.Errorf("copy: %w", err)
		}
		n, err := m.put(p, off)
		written += n
		if err != nil {
			return written, err
		}
		off += int64(len(p))
	}
	return written, nil
}

var zeroes [zeroUnit]byte

// put writes p to the target, except for long runs of zeroes, and returns how many
// bytes it wrote.
func (m *move) put(p []byte, off int64) (written int64, err error) {
	for len(p) > 0 {
		data, zero := split(p)
		if data > 0 {
			if _, err := m.dst.WriteAt(p[:data], off); err != nil {
				return written, err
			}
			written += int64(data)
			m.copied.Add(int64(data))
		}
		if zero > 0 {
			if err := m.zeroTarget(off+int64(data), int64(zero), true); err != nil {
				return written, err
			}
			m.zeroed.Add(int64(zero))
		}
		p, off = p[data+zero:], off+int64(data+zero)
	}
	return written, nil
}

// split returns how many bytes of p come before the first long run of zeroes,
// and how long that is.
func split(p []byte) (data, zero int) {
	for at := 0; at < len(p); {
		n := min(zeroUnit, len(p)-at)
		switch {
		case bytes.Equal(p[at:at+n], zeroes[:n]):
			zero += n
		case zero >= zeroRun:
			return at - zero, zero
		default:
			zero = 0
		}
		at += n
	}
	if zero >= zeroRun {
		return len(p) - zero, zero
	}
	return len(p), 0
}

// zeroTarget zeroes n bytes of the target, where it is not known to be zero.
func (m *move) zeroTarget(off, n int64, mayUnmap bool) error {
	for n > 0 {
		k := n
		if m.dst.mapper != nil {
			e, err := m.dst.mapper.Extent(off)
			if err != nil {
				return err
			}
			if k = min(n, e.Len); k <= 0 {
				return fmt.Errorf("disk %s: map at %d returned %d bytes", m.dst.Info().Name, off, e.Len)
			}
			if e.Zero && (mayUnmap || e.Allocated) {
				off, n = off+k, n-k
				continue
			}
		}
		if err := m.dst.WriteZeroes(off, k, mayUnmap); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}
