package stream

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

// flight is the one fetch of a chunk that all who want it wait for.
type flight struct {
	chunk  image.Chunk
	demand bool
	done   chan struct{}
	// When done is closed, data is the content; or err is why there is none.
	data []byte
	err  error
}

// maxGroup bounds the compressed bytes of one demand request.
const maxGroup = 1 << 20

// errPrefetch is the error of a flight that nobody had asked for.
var errPrefetch = errors.New("prefetch failed")

// await gets pieces that are not there.
func (d *Disk) await(pieces []piece) error {
	begin := time.Now()
	for len(pieces) > 0 {
		flights := make([]*flight, len(pieces))
		var mine []*flight
		d.mu.Lock()
		for i, p := range pieces {
			f := d.flights[p.chunk.Hash]
			if f == nil && !d.here(p.chunk.Hash) {
				f = &flight{chunk: p.chunk, demand: true, done: make(chan struct{})}
				d.flights[p.chunk.Hash] = f
				mine = append(mine, f)
			}
			flights[i] = f
		}
		for own := mine; len(own) > 0; {
			n := run(own, maxGroup)
			g := own[:n]
			own = own[n:]
			d.demands++
			d.work.Go(func() { d.fetch(g) })
			d.sched.missed(g[len(g)-1].chunk.N, d.img.Chunks(), d.cfg.NoPrefetch)
		}
		d.mu.Unlock()
		left := pieces[:0]
		for i, p := range pieces {
			f := flights[i]
			if f == nil {
				// It came a moment ago; or it is damaged, and is forgotten now.
				if !d.local(p) {
					left = append(left, p)
				}
				continue
			}
			select {
			case <-f.done:
			case <-d.ctx.Done():
				return os.ErrClosed
			}
			switch {
			case f.err == nil:
				copy(p.dst, f.data[p.skip:])
				d.touched(p.chunk.N)
			case errors.Is(f.err, errPrefetch), d.early(begin, f, mine):
				left = append(left, p)
			default:
				return f.err
			}
		}
		pieces = left
	}
	return nil
}

// early reports whether a flight that another request began has failed before
// this one's time, that began then, is over.
func (d *Disk) early(begin time.Time, f *flight, mine []*flight) bool {
	return errors.Is(f.err, disk.ErrUnavailable) && !slices.Contains(mine, f) && time.Since(begin) < d.cfg.FailAfter
}

// here reports whether a chunk is there already.
func (d *Disk) here(h image.Hash) bool {
	return d.cfg.Cache != nil && d.cfg.Cache.Has(h) || d.mem.has(h)
}

// run returns how many of the first flights lie one behind the other in a pack,
// within limit bytes, and so take one request.
func run(f []*flight, limit int) int {
	size := f[0].chunk.PackLen
	for i := 1; i < len(f); i++ {
		a, b := f[i-1].chunk, f[i].chunk
		if size += b.PackLen; size > limit || !adjacent(a, b) {
			return i
		}
	}
	return len(f)
}

func adjacent(a, b image.Chunk) bool {
	return a.Pack == b.Pack && a.PackOff+int64(a.PackLen) == b.PackOff
}

// fetch gets the chunks of a run of flights with one request, and tells those
// who wait.
func (d *Disk) fetch(g []*flight) {
	first, last := g[0].chunk, g[len(g)-1].chunk
	demand := g[0].demand
	buf := make([]byte, last.PackOff+int64(last.PackLen)-first.PackOff)
	name := d.img.Pack(first.Pack).Name
	check := func(p []byte) error {
		for _, f := range g {
			if f.data == nil {
				f.data = make([]byte, f.chunk.Len)
			}
			frame := p[f.chunk.PackOff-first.PackOff:][:f.chunk.PackLen]
			if err := image.Decode(f.data, f.chunk, frame); err != nil {
				return err
			}
		}
		return nil
	}
	size := int64(len(buf))
	var err error
	if demand {
		d.rate.begin()
		begin := time.Now()
		err = d.insist(func() error {
			begin = time.Now()
			return d.get(d.demand, name, first.PackOff, buf, check)
		})
		d.rate.end(true, size, time.Since(begin), err)
	} else {
		begin := time.Now()
		err = d.get(d.ahead, name, first.PackOff, buf, check)
		if err == nil || lasting(err) {
			d.worked()
		} else if d.ctx.Err() == nil {
			d.failed(err)
		}
		if err != nil {
			err = fmt.Errorf("%w: %w", errPrefetch, err)
		}
		d.rate.end(false, size, time.Since(begin), err)
	}
	if err != nil {
		d.landed(g, size, err) // so that nobody joins them any more
	} else if !demand {
		d.arrived(size)
	}
	d.account(g, size, err) // first: who has read content finds it in the status
	for _, f := range g {
		if f.err = err; err != nil {
			f.data = nil
		}
		close(f.done)
		if err == nil {
			d.keep(f)
		}
	}
	if err == nil {
		d.landed(g, size, nil)
	}
}

func (d *Disk) get(src image.Source, name string, off int64, buf []byte, check func([]byte) error) error {
	if d.cfg.Offline {
		return fmt.Errorf("%s: %w", name, errOffline)
	}
	return src.Fetch(d.ctx, name, off, buf, check)
}

// account notes what has come of a run of flights.
func (d *Disk) account(g []*flight, size int64, err error) {
	if err == nil {
		for _, f := range g {
			if f.demand {
				d.chunks.set(f.chunk.N, fetched)
			} else if d.chunks.get(f.chunk.N) == absent {
				d.chunks.set(f.chunk.N, prefetched)
			}
		}
	}
	d.mu.Lock()
	d.count.add(g, size, err)
	d.mu.Unlock()
}

// keep puts a chunk where later reads find it.
func (d *Disk) keep(f *flight) {
	if c := d.cfg.Cache; c != nil {
		err := c.Put(f.chunk.Hash, f.data)
		d.mu.Lock()
		news := err != nil && !d.count.uncached
		d.count.uncached = err != nil
		d.mu.Unlock()
		if news {
			d.note(Event{Kind: Uncached, Err: err})
		}
		if err == nil {
			return
		}
	}
	d.mem.put(f.chunk.Hash, f.data)
}

// landed takes a run of flights out of the books.
func (d *Disk) landed(g []*flight, size int64, err error) {
	d.mu.Lock()
	for _, f := range g {
		delete(d.flights, f.chunk.Hash)
	}
	if g[0].demand {
		d.demands--
		d.count.lastUse = time.Now()
	} else if err != nil {
		d.sched.inFlight -= size
		d.sched.requests--
		d.sched.back(g, err)
	} else {
		d.sched.keeping--
	}
	d.mu.Unlock()
	d.nudge()
}

// arrived lets another prefetch request go: the link shall not wait for a cache
// that takes its time.
func (d *Disk) arrived(size int64) {
	d.mu.Lock()
	d.sched.inFlight -= size
	d.sched.requests--
	d.sched.keeping++
	d.mu.Unlock()
	d.nudge()
}

// nudge makes the prefetcher look for work.
func (d *Disk) nudge() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// lasting reports whether a request failed for what the server holds, rather
// than for the server.
func lasting(err error) bool {
	_, ok := errors.AsType[*fetch.Error](err)
	return ok && !fetch.Temporary(err) || errors.Is(err, image.ErrDamaged) || errors.Is(err, image.ErrInvalid) ||
		errors.Is(err, errOffline)
}

// tries is what one request has been through.
type tries struct {
	n        int
	lasting  bool
	deadline time.Time
}

// again waits until a request that failed with err may be tried again. If it
// may not, it returns the error for those who wait.
func (t *tries) again(d *Disk, err error) error {
	if d.ctx.Err() != nil {
		return os.ErrClosed
	}
	if t.n++; t.n == 1 && d.cfg.FailAfter > 0 {
		t.deadline = time.Now().Add(d.cfg.FailAfter)
	}
	var ok bool
	if lasting(err) {
		// The server answers, and others may fare better; this one waits on
		// its own.
		d.worked()
		if !t.lasting {
			d.note(Event{Kind: Unavailable, Err: err})
		}
		t.lasting = true
		ok = d.sleep(min(d.cfg.RetryMin<<min(t.n-1, 10), d.cfg.RetryMax), t.deadline)
	} else {
		d.failed(err)
		ok = d.pause(t.deadline)
	}
	switch {
	case ok:
		return nil
	case d.ctx.Err() != nil:
		return os.ErrClosed
	}
	return fmt.Errorf("%w: %w", disk.ErrUnavailable, err)
}

// done notes that the request has worked.
func (t *tries) done(d *Disk) {
	if t.lasting {
		d.note(Event{Kind: Available})
	}
	d.worked()
}

// sleep waits, and returns false if the disk is closed or the deadline, if any,
// would be passed.
func (d *Disk) sleep(wait time.Duration, deadline time.Time) bool {
	late := false
	if !deadline.IsZero() {
		if left := time.Until(deadline); left < wait {
			wait, late = left, true
		}
	}
	ctx, cancel := context.WithTimeout(d.ctx, wait)
	defer cancel()
	<-ctx.Done()
	return d.ctx.Err() == nil && !late
}
