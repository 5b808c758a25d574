package stream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/vmkit-go/vmkit/stream/image"
)

// planned is a chunk of the profile.
type planned struct {
	n    int
	size int // in a pack
	at   time.Duration
	seen int
}

// schedule is what to prefetch, in three queues of falling urgency. It is
// guarded by Disk.mu.
type schedule struct {
	near   []int     // neighbours of what was asked for
	plan   []planned // the profile, by deadline
	next   int       // in plan
	runs   int       // of the profile
	fill   int       // next chunk of the rest
	forced int       // Completes that wait for the rest
	told   bool      // ProfileDone was
	full   bool      // Completed was

	requests int
	inFlight int64     // bytes
	keeping  int       // requests whose content is on its way into the cache
	retry    time.Time // after an error
	start    time.Time // of the guest

	lastMiss, window int // of sequential reading
}

// Bounds of reading ahead of sequential misses, in chunks.
const (
	maxWindow = 32
	maxNear   = 256
	lookAhead = 64 // chunks looked at for one request
)

// order sorts the plan by deadline. What few of the runs needed comes last.
func (s *schedule) order() {
	rare := func(p planned) int {
		if 2*p.seen < s.runs {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(s.plan, func(a, b planned) int {
		return cmp.Or(cmp.Compare(rare(a), rare(b)), cmp.Compare(a.at, b.at), cmp.Compare(a.n, b.n))
	})
}

// missed notes a demand fetch that ends with chunk n, and queues its
// neighbours: one at first, more if misses follow one another. While a profile
// is followed, it knows better.
func (s *schedule) missed(n, chunks int, off bool) {
	if off || s.next < len(s.plan) {
		return
	}
	if n > s.lastMiss && n <= s.lastMiss+s.window+1 {
		s.window = min(2*s.window, maxWindow)
	} else {
		s.window = 1
	}
	s.lastMiss = n
	for k := n + 1; k <= n+s.window && k < chunks && len(s.near) < maxNear; k++ {
		s.near = append(s.near, k)
	}
}

// back notes that a prefetch request has failed.
func (s *schedule) back(g []*flight, err error) {
	// Look for what is absent from the beginning, after a while.
	s.retry, s.fill, s.next = time.Now().Add(time.Second), 0, 0
	if lasting(err) {
		return
	}
	// Neighbours are in no list; and somebody must find out when an outage
	// is over.
	for _, f := range g {
		if len(s.near) < maxNear {
			s.near = append(s.near, f.chunk.N)
		}
	}
}

// Start says that the guest starts now: the deadlines of the profile count
// from here. Without it, they count from Open.
func (d *Disk) Start() {
	d.mu.Lock()
	d.sched.start = time.Now()
	d.mu.Unlock()
}

// Backfill says that what is left may be fetched now, for instance because the
// guest's service answers.
func (d *Disk) Backfill() {
	d.mu.Lock()
	d.sched.forced++
	d.mu.Unlock()
	d.nudge()
}

// prefetcher fetches ahead until the disk is closed.
func (d *Disk) prefetcher() {
	for {
		wait := d.launch()
		var later <-chan time.Time
		var t *time.Timer
		if wait > 0 {
			t = time.NewTimer(wait)
			later = t.C
		}
		select {
		case <-d.kick:
		case <-later:
		case <-d.ctx.Done():
		}
		if t != nil {
			t.Stop()
		}
		if d.ctx.Err() != nil {
			return
		}
	}
}

// launch starts the requests for which there is room. It returns when to look
// again, if nothing happens before; 0 is not at all.
func (d *Disk) launch() time.Duration {
	for {
		d.mu.Lock()
		list, from, wait := d.candidates()
		d.mu.Unlock()
		if len(list) == 0 {
			return wait
		}
		if ok, wait, _ := d.probe(); !ok {
			return wait
		}
		chunks := make([]image.Chunk, 0, len(list))
		for _, n := range list {
			c, err := d.img.Chunk(d.ctx, n)
			if err != nil {
				if d.ctx.Err() == nil {
					d.failed(err)
				}
				return time.Second
			}
			if len(chunks) > 0 && !adjacent(chunks[len(chunks)-1], c) {
				break
			}
			chunks = append(chunks, c)
		}
		sent, room := d.start(chunks, from)
		if !sent {
			d.unprobe()
		}
		if !room {
			return time.Second
		}
	}
}

// source is one of the queues of a schedule.
type source int

const (
	fromNear source = iota
	fromPlan
	fromRest
)

// candidates returns chunks that are next to be prefetched, from the most
// urgent queue that has any, if a request may be sent. The caller holds mu.
func (d *Disk) candidates() (list []int, from source, wait time.Duration) {
	s := &d.sched
	if d.cfg.Offline {
		return nil, 0, 0
	}
	if left := time.Until(s.retry); left > 0 {
		return nil, 0, left
	}
	bound, _ := d.rate.room(d.demands > 0)
	if s.requests >= d.cfg.PrefetchRequests || s.keeping > 2*d.cfg.PrefetchRequests || s.inFlight > 0 && s.inFlight >= bound {
		return nil, 0, 0 // the end of a request wakes the prefetcher
	}
	skip := func(n int) bool { return d.chunks.get(n) != absent }
	for len(s.near) > 0 && skip(s.near[0]) {
		s.near = s.near[1:]
	}
	cached := d.caching()
	roomy := cached || d.mem.room()
	if len(s.near) > 0 && roomy {
		return s.near[:min(len(s.near), lookAhead)], fromNear, 0
	}
	for s.next < len(s.plan) && skip(s.plan[s.next].n) {
		s.next++
	}
	if s.next < len(s.plan) {
		if !roomy {
			return nil, 0, time.Second
		}
		for _, p := range s.plan[s.next:min(len(s.plan), s.next+lookAhead)] {
			if len(list) > 0 && skip(p.n) {
				break
			}
			list = append(list, p.n)
		}
		return list, fromPlan, 0
	}
	if s.requests+s.keeping == 0 && !s.told && len(s.plan) > 0 {
		s.told = true
		d.note(Event{Kind: ProfileDone})
	}
	return d.rest(cached)
}

// caching reports whether the cache takes chunks. The caller holds mu.
func (d *Disk) caching() bool {
	c := d.cfg.Cache
	if c == nil || !d.count.uncached {
		return c != nil
	}
	st := c.Stats()
	return !st.Full && !st.Broken
}

// backfillIdle is how long a guest must have touched nothing new before what
// no profile names is fetched.
const backfillIdle = 3 * time.Second

// rest returns chunks that no profile names. The caller holds mu.
func (d *Disk) rest(cached bool) (list []int, from source, wait time.Duration) {
	s := &d.sched
	if d.cfg.Cache == nil || s.forced == 0 && (d.cfg.NoPrefetch || d.cfg.NoBackfill) {
		return nil, 0, 0
	}
	if !cached {
		return nil, 0, time.Second
	}
	if s.forced == 0 {
		// Not before the guest has done what it did in the recorded runs, and
		// comes to rest.
		begin := s.start
		if begin.IsZero() {
			begin = d.opened
		}
		if n := len(s.plan); n > 0 {
			begin = begin.Add(s.plan[n-1].at)
		}
		idle := begin
		if d.count.lastUse.After(idle) {
			idle = d.count.lastUse
		}
		if left := time.Until(idle.Add(backfillIdle)); left > 0 {
			return nil, 0, left
		}
	}
	n := d.img.Chunks()
	for s.fill < n && d.chunks.get(s.fill) != absent {
		s.fill++
	}
	for k := s.fill; k < n && len(list) < lookAhead && d.chunks.get(k) == absent; k++ {
		list = append(list, k)
	}
	if len(list) == 0 && s.requests+s.keeping == 0 && d.demands == 0 && !s.full {
		s.full = true
		d.note(Event{Kind: Completed})
	}
	return list, fromRest, 0
}

// start sends a request for the first of the chunks, as far as it may go. It
// reports whether it did, and whether there is room for more.
func (d *Disk) start(chunks []image.Chunk, from source) (sent, room bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	bound, request := d.rate.room(d.demands > 0)
	var g []*flight
	var size int64
	seen := 0
	for _, c := range chunks {
		if d.flights[c.Hash] != nil || d.here(c.Hash) {
			if len(g) > 0 {
				break
			}
			// It is there, or on its way, by another's number.
			if d.here(c.Hash) && d.chunks.get(c.N) == absent {
				d.chunks.set(c.N, prefetched)
			}
			seen++
			continue
		}
		if n := size + int64(c.PackLen); len(g) > 0 && (n > request || d.sched.inFlight+n > bound) {
			break
		}
		size += int64(c.PackLen)
		g = append(g, &flight{chunk: c, done: make(chan struct{})})
		seen++
	}
	s := &d.sched
	if len(g) > 0 && s.inFlight > 0 && s.inFlight+size > bound {
		return false, false
	}
	switch from {
	case fromNear:
		s.near = s.near[min(seen, len(s.near)):]
	case fromPlan:
		s.next += seen
	case fromRest:
		s.fill += seen
	}
	if len(g) == 0 {
		return false, true
	}
	for _, f := range g {
		d.flights[f.chunk.Hash] = f
	}
	s.inFlight += size
	s.requests++
	d.rate.begin()
	d.work.Go(func() { d.fetch(g) })
	return true, true
}

// Complete fetches everything that is missing into the cache, makes it durable
// and returns: the image needs no network any more. It waits out outages until
// ctx ends.
func (d *Disk) Complete(ctx context.Context) error {
	if !d.enter() {
		return d.wrap("complete", 0, 0, os.ErrClosed)
	}
	defer d.work.Done()
	c := d.cfg.Cache
	if c == nil {
		return d.wrap("complete", 0, 0, errors.New("there is no cache"))
	}
	d.mu.Lock()
	d.sched.forced++
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.sched.forced--
		d.mu.Unlock()
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		missing := 0
		err := d.img.Scan(ctx, func(k image.Chunk) error {
			if c.Has(k.Hash) {
				return nil
			}
			missing++
			d.mu.Lock()
			if d.flights[k.Hash] == nil {
				d.chunks.set(k.N, absent)
				d.sched.fill = min(d.sched.fill, k.N)
			}
			d.mu.Unlock()
			return nil
		})
		if err == nil && missing == 0 {
			return c.Flush()
		}
		if st := c.Stats(); st.Broken || st.Full {
			return d.wrap("complete", 0, 0, fmt.Errorf("%d chunks are missing, and the cache takes no more", missing))
		}
		if err == nil && d.cfg.Offline {
			return d.wrap("complete", 0, 0, fmt.Errorf("%d chunks are missing: %w", missing, errOffline))
		}
		d.nudge()
		for k := 0; ; k++ {
			d.mu.Lock()
			idle := d.sched.requests+d.sched.keeping == 0 && d.sched.fill >= d.img.Chunks()
			d.mu.Unlock()
			if idle || k == 50 {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return d.wrap("complete", 0, 0, context.Cause(ctx))
			case <-d.ctx.Done():
				return d.wrap("complete", 0, 0, os.ErrClosed)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return d.wrap("complete", 0, 0, context.Cause(ctx))
		case <-d.ctx.Done():
			return d.wrap("complete", 0, 0, os.ErrClosed)
		}
	}
}
