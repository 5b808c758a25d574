package soft

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/vm/device"
)

// insnTime is how many nanoseconds of the machine's time an instruction takes.
const insnTime = 4

// never is a time that does not come.
const never = math.MaxInt64

// TSCHz is the frequency of the CPUs' time-stamp counters, which count the
// nanoseconds of the machine's clock.
const TSCHz = 1_000_000_000

// clock is the machine's time: instructions executed and idle time skipped. It
// implements device.Clock. Its methods are for the runner's goroutine, or for any while
// the machine does not run.
type clock struct {
	e       *Engine
	skipped int64 // nanoseconds in which no CPU had anything to do

	mu     sync.Mutex // Close of a timer comes from any goroutine
	timers []*timer   // that are set, the next first
}

var _ device.Clock = (*clock)(nil)

// timer is a device.Timer.
type timer struct {
	c      *clock
	f      func()
	at     int64
	closed bool
}

// Now is the machine's time in nanoseconds. Asked in the middle of an instruction, it
// is that at which the instruction began.
func (k *clock) Now() int64 { return k.at(k.e.instructions()) }

// at is the time at which count instructions had been executed.
func (k *clock) at(count int64) int64 { return count*insnTime + k.skipped }

// countAt is how many instructions will have been executed at a time if no more time is
// skipped, rounded up.
func (k *clock) countAt(t int64) int64 {
	if t == never {
		return never
	}
	d := t - k.skipped
	return d/insnTime + int64(bit(d%insnTime > 0))
}

// NewTimer returns a timer that is not set.
func (k *clock) NewTimer(f func()) device.Timer { return &timer{c: k, f: f} }

// Set implements device.Timer.
func (t *timer) Set(d time.Duration) {
	at := t.c.Now() + max(int64(d), 0)
	if at < 0 { // overflow
		at = never - 1
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.unset()
	if t.closed {
		return
	}
	t.at = at
	// Of those with the same time the one set first goes first.
	i, _ := slices.BinarySearchFunc(t.c.timers, at+1, func(o *timer, at int64) int {
		if o.at < at {
			return -1
		}
		return 1
	})
	t.c.timers = slices.Insert(t.c.timers, i, t)
	t.c.e.retime()
}

// unset takes the timer out of the list.
func (t *timer) unset() {
	if i := slices.Index(t.c.timers, t); i >= 0 {
		t.c.timers = slices.Delete(t.c.timers, i, i+1)
	}
}

// Stop implements device.Timer.
func (t *timer) Stop() {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.unset()
}

// Close implements device.Timer.
func (t *timer) Close() {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	t.closed = true
	t.unset()
}

// next is when the next timer goes off.
func (k *clock) next() int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.timers) == 0 {
		return never
	}
	return k.timers[0].at
}

// fire calls what is due by now.
func (k *clock) fire(now int64) {
	for {
		k.mu.Lock()
		if len(k.timers) == 0 || k.timers[0].at > now {
			k.mu.Unlock()
			return
		}
		t := k.timers[0]
		t.unset()
		k.mu.Unlock()
		t.f()
	}
}
