package stream

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// EventKind is the kind of an [Event].
type EventKind int

// The kinds of events.
const (
	// Unavailable means that content that was asked for cannot be had for
	// now; Err says why. Requests for it wait, or fail after a time.
	Unavailable EventKind = iota + 1
	// Available means that what could not be had has come.
	Available
	// Uncached means that the cache takes no chunks for now; Err says why.
	Uncached
	// ProfileDone means that everything that the profile names is there.
	ProfileDone
	// ProfileUnusable means that the image's profile cannot be used; Err says
	// why.
	ProfileUnusable
	// Completed means that everything is in the cache: the network is not
	// needed any more.
	Completed
)

func (k EventKind) String() string {
	switch k {
	case Unavailable:
		return "content unavailable"
	case Available:
		return "content available again"
	case Uncached:
		return "cache takes no chunks"
	case ProfileDone:
		return "profile fetched"
	case ProfileUnusable:
		return "profile unusable"
	case Completed:
		return "image complete"
	}
	return fmt.Sprintf("event %d", int(k))
}

// Event is something that happened to a [Disk].
type Event struct {
	Kind EventKind
	Time time.Time
	Err  error
}

// maxEvents bounds the events that wait for a slow callback.
const maxEvents = 1024

// eventQueue calls the user back, outside of all locks.
type eventQueue struct {
	d    *Disk
	mu   sync.Mutex
	list []Event
	wake chan struct{}
}

func (q *eventQueue) init(d *Disk) {
	q.d = d
	q.wake = make(chan struct{}, 1)
}

// note tells the user of an event, soon.
func (d *Disk) note(e Event) {
	e.Time = time.Now()
	q := &d.events
	q.mu.Lock()
	if len(q.list) < maxEvents {
		q.list = append(q.list, e)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *eventQueue) run() {
	for {
		q.mu.Lock()
		list := q.list
		q.list = nil
		q.mu.Unlock()
		for _, e := range list {
			if log := q.d.cfg.Log; log != nil {
				log.Info("stream", "disk", q.d.name, "event", e.Kind, "error", e.Err)
			}
			if q.d.cfg.Events != nil {
				q.d.cfg.Events(e)
			}
		}
		if len(list) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-q.d.ctx.Done():
			return
		}
	}
}

// outage keeps attempts apart while content cannot be had: one request tries,
// the others wait for it.
type outage struct {
	mu      sync.Mutex
	err     error // nil: no outage
	wait    time.Duration
	next    time.Time     // of the next attempt
	probing bool          // the attempt is on its way
	up      chan struct{} // closed at the end of the outage
}

// later sets the time of the next attempt. The caller holds mu.
func (o *outage) later() {
	o.next = time.Now().Add(o.wait/2 + rand.N(o.wait/2+1))
}

// failed notes a failed attempt.
func (d *Disk) failed(err error) {
	o := &d.trail
	o.mu.Lock()
	first := o.err == nil
	if first {
		o.wait, o.up = d.cfg.RetryMin, make(chan struct{})
		o.later()
	} else if o.probing {
		o.wait = min(2*o.wait, d.cfg.RetryMax)
		o.later()
	}
	o.err, o.probing = err, false
	o.mu.Unlock()
	if first {
		d.note(Event{Kind: Unavailable, Err: err})
	}
}

// worked notes that the server has answered a request.
func (d *Disk) worked() {
	o := &d.trail
	o.mu.Lock()
	over := o.err != nil
	if over {
		o.err, o.probing = nil, false
		close(o.up)
	}
	o.mu.Unlock()
	if over {
		d.note(Event{Kind: Available})
		d.nudge()
	}
}

// down returns the error of the outage, or nil.
func (d *Disk) down() error {
	d.trail.mu.Lock()
	defer d.trail.mu.Unlock()
	return d.trail.err
}

// probe says whether a request may be sent: always if there is no outage, else
// if it is time for an attempt, which the caller then must make. Otherwise it
// returns how long to wait, unless up is closed first.
func (d *Disk) probe() (ok bool, wait time.Duration, up chan struct{}) {
	o := &d.trail
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.err == nil {
		return true, 0, nil
	}
	wait = time.Until(o.next)
	if o.probing {
		wait = o.wait
	} else if wait <= 0 {
		o.probing = true
		return true, 0, nil
	}
	return false, wait, o.up
}

// unprobe takes back an attempt that probe allowed and that was not made.
func (d *Disk) unprobe() {
	d.trail.mu.Lock()
	d.trail.probing = false
	d.trail.mu.Unlock()
}

// pause waits until it is time to try again, and returns false if the disk is
// closed or the deadline is passed first; zero is no deadline.
func (d *Disk) pause(deadline time.Time) bool {
	for {
		if !deadline.IsZero() && !time.Now().Before(deadline) {
			return false
		}
		ok, wait, up := d.probe()
		if ok {
			return true
		}
		if !deadline.IsZero() {
			wait = min(wait, time.Until(deadline))
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-up:
		case <-d.ctx.Done():
			t.Stop()
			return false
		}
		t.Stop()
	}
}
