package qcow2

import (
	"sync"
	"sync/atomic"
)

// epochs count the requests under way. They tell when requests that may still
// use a cluster have all ended: a request looks clusters up without a lock and
// then does I/O on them; a cluster that it found may be freed meanwhile, and
// must not get another use before the request ends. And they let one caller
// have the image for itself.
//
// A request belongs to the epoch in which it started. An epoch ends only when
// no request of the one before it is left. So what was freed in epoch e is used
// by nobody in epoch e+2.
type epochs struct {
	now     atomic.Uint64
	active  [2]atomic.Int64
	stopped atomic.Bool

	mu   sync.Mutex
	cond *sync.Cond // a request ended while stopped
}

func (e *epochs) init() { e.cond = sync.NewCond(&e.mu) }

// enter starts a request and returns its epoch, for leave. It fails if
// requests are stopped.
func (e *epochs) enter() (uint64, bool) {
	for {
		n := e.now.Load()
		e.active[n&1].Add(1)
		if e.now.Load() == n && !e.stopped.Load() {
			return n, true
		}
		e.leave(n) // too late: the epoch may be over already
		if e.stopped.Load() {
			return 0, false
		}
	}
}

func (e *epochs) leave(n uint64) {
	e.active[n&1].Add(-1)
	if e.stopped.Load() {
		e.mu.Lock()
		e.cond.Broadcast()
		e.mu.Unlock()
	}
}

// stop keeps requests from starting and waits for those under way.
func (e *epochs) stop() {
	e.stopped.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.active[0].Load()+e.active[1].Load() > 0 {
		e.cond.Wait()
	}
}

func (e *epochs) start() { e.stopped.Store(false) }

// advance begins a new epoch if it may, and returns the present one. One
// goroutine calls it at a time.
func (e *epochs) advance() uint64 {
	n := e.now.Load()
	if e.active[(n+1)&1].Load() == 0 {
		e.now.Store(n + 1)
	}
	return e.now.Load()
}

// enter starts a request, which ends with im.requests.leave.
func (im *Image) enter() uint64 {
	for {
		if n, ok := im.requests.enter(); ok {
			return n
		}
		im.pause()
	}
}

// pause waits until whoever has the image is done.
func (im *Image) pause() {
	im.gate.RLock()
	defer im.gate.RUnlock()
}

// lock gives the caller the image alone: no request and no flush is under way.
func (im *Image) lock() {
	im.gate.Lock()
	im.requests.stop()
}

func (im *Image) unlock() {
	im.requests.start()
	im.gate.Unlock()
}
