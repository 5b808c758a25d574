package qcow2

import "sync/atomic"

// epochs tell when requests that may still use a cluster have all ended. A
// request looks clusters up without a lock and then does I/O on them; a cluster
// that it found may be freed meanwhile, and must not get another use before the
// request ends.
//
// A request belongs to the epoch in which it started. An epoch ends only when
// no request of the one before it is left. So what was freed in epoch e is used
// by nobody in epoch e+2.
type epochs struct {
	now    atomic.Uint64
	active [2]atomic.Int64
}

// enter starts a request and returns its epoch, for leave.
func (e *epochs) enter() uint64 {
	for {
		n := e.now.Load()
		e.active[n&1].Add(1)
		if e.now.Load() == n {
			return n
		}
		e.active[n&1].Add(-1) // too late: the epoch may be over already
	}
}

func (e *epochs) leave(n uint64) { e.active[n&1].Add(-1) }

// advance begins a new epoch if it may, and returns the present one. One
// goroutine calls it at a time.
func (e *epochs) advance() uint64 {
	n := e.now.Load()
	if e.active[(n+1)&1].Load() == 0 {
		e.now.Store(n + 1)
	}
	return e.now.Load()
}
