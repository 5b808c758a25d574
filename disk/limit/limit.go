// Package limit bounds how many bytes and requests a second disks may move.
//
// A [Limiter] is a pair of token buckets, which any number of disks share; a
// [Disk] wraps a backend and makes its requests wait for their share:
//
//	l, err := limit.New(limit.Rate{Bytes: 50 << 20, Requests: 2000})
//	a := limit.Wrap(imgA, l)
//	b := limit.Wrap(imgB, l)
//	...
//	err = l.Set(limit.Rate{}) // no limits any more
package limit

import (
	"fmt"
	"sync"
	"time"
)

// Rate is what a [Limiter] lets through.
type Rate struct {
	// Bytes and Requests are per second; 0 means no limit.
	Bytes, Requests int64
	// BurstBytes and BurstRequests are how much may pass at once after a
	// time of rest; 0 means what a tenth of a second brings, and at least one. A request larger than the burst is let through and paid for
	// afterwards.
	BurstBytes, BurstRequests int64
}

const maxRate = 1 << 50

// bucket fills with rate tokens a second, up to burst. It may be overdrawn.
type bucket struct {
	rate, burst float64
	tokens      float64
}

func (b *bucket) set(rate, burst int64) {
	old := b.rate
	b.rate, b.burst = float64(rate), float64(burst)
	if burst == 0 {
		b.burst = max(1, b.rate/10)
	}
	if old == 0 {
		b.tokens = b.burst
	}
	b.tokens = min(b.tokens, b.burst)
}

func (b *bucket) fill(d time.Duration) {
	if b.rate > 0 {
		b.tokens = min(b.burst, b.tokens+b.rate*d.Seconds())
	}
}

// short is how long it takes until there are n tokens, or the burst if that is
// less.
func (b *bucket) short(n int64) time.Duration {
	if b.rate == 0 || n == 0 {
		return 0
	}
	lack := min(float64(n), b.burst) - b.tokens
	if lack <= 0 {
		return 0
	}
	return time.Duration(lack/b.rate*float64(time.Second)) + 1
}

func (b *bucket) take(n int64) {
	if b.rate > 0 {
		b.tokens = min(b.burst, b.tokens-float64(n))
	}
}

// Limiter is a limit that disks share: requests take turns in the order in
// which they came. Its methods may be called from any goroutine.
type Limiter struct {
	mu     sync.Mutex
	rate   Rate
	bytes  bucket
	reqs   bucket
	filled time.Time
	queue  []*waiter
	timer  *time.Timer
}

// waiter is a request that waits for its turn.
type waiter struct {
	bytes int64
	turn  chan struct{}
}

// New returns a limiter.
func New(r Rate) (*Limiter, error) {
	l := &Limiter{filled: time.Now()}
	if err := l.Set(r); err != nil {
		return nil, err
	}
	return l, nil
}

// Set changes the limits; requests that wait already are counted by the new
// ones.
func (l *Limiter) Set(r Rate) error {
	for _, v := range []int64{r.Bytes, r.Requests, r.BurstBytes, r.BurstRequests} {
		if v < 0 || v > maxRate {
			return fmt.Errorf("disk limit: %+v: %d is not 0 to %d", r, v, int64(maxRate))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fill()
	l.rate = r
	l.bytes.set(r.Bytes, r.BurstBytes)
	l.reqs.set(r.Requests, r.BurstRequests)
	l.serve()
	return nil
}

// Rate returns the limits.
func (l *Limiter) Rate() Rate {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate
}

// Waiting is the number of requests that wait.
func (l *Limiter) Waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// fill is called with mu held.
func (l *Limiter) fill() {
	now := time.Now()
	d := now.Sub(l.filled)
	l.filled = now
	l.bytes.fill(d)
	l.reqs.fill(d)
}

// pay takes a request's tokens if there are any. It is called with mu held.
func (l *Limiter) pay(bytes int64) bool {
	if l.bytes.short(bytes) > 0 || l.reqs.short(1) > 0 {
		return false
	}
	l.bytes.take(bytes)
	l.reqs.take(1)
	return true
}

// refund gives back what a request has paid that was not carried out, except
// for some of its bytes.
func (l *Limiter) refund(bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes.take(-bytes)
	l.reqs.take(-1)
	l.serve()
}

// try lets a request through if it need not wait.
func (l *Limiter) try(bytes int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) > 0 {
		return false
	}
	l.fill()
	return l.pay(bytes)
}

// wait waits for a request's turn; it reports false if end is closed before.
func (l *Limiter) wait(bytes int64, end <-chan struct{}) bool {
	if l.try(bytes) {
		return true
	}
	w := &waiter{bytes: bytes, turn: make(chan struct{})}
	l.mu.Lock()
	l.queue = append(l.queue, w)
	l.fill()
	l.serve()
	l.mu.Unlock()
	select {
	case <-w.turn:
		return true
	case <-end:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.queue {
		if o == w {
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			l.serve()
			return false
		}
	}
	return true // its turn came at the same moment
}

// serve lets through whose turn it is and sets the timer for the next. It is
// called with mu held.
func (l *Limiter) serve() {
	for len(l.queue) > 0 && l.pay(l.queue[0].bytes) {
		close(l.queue[0].turn)
		l.queue[0] = nil
		l.queue = l.queue[1:]
	}
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if len(l.queue) == 0 {
		return
	}
	d := max(l.reqs.short(1), l.bytes.short(l.queue[0].bytes))
	l.timer = time.AfterFunc(d, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.fill()
		l.serve()
	})
}
