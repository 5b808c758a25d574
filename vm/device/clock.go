package device

import "time"

// Clock is the time of a machine: the host's, or, where an engine makes its
// own, a count of the instructions executed. What a guest sees of time comes
// from here and from nowhere else.
//
// The methods of a clock and of its timers, Close excepted, are called where
// guest accesses are served and events delivered, or while no CPU runs.
type Clock interface {
	// Now is the time in nanoseconds since the machine was made, as the
	// guest sees it pass. It never goes back, and allocates nothing.
	Now() int64
	// NewTimer returns a timer, not set, that calls f. On the host's clock f
	// runs on a goroutine of its own, as soon as the host gets to it; on a
	// clock of the engine's, where the CPUs run, at exactly its time.
	NewTimer(f func()) Timer
}

// Timer calls a function once at some time of a [Clock].
type Timer interface {
	// Set makes the timer go off in d, in place of any earlier setting; at
	// once if d is not above zero, but never before Set returns.
	Set(d time.Duration)
	// Stop forgets the setting. A call of the function that is under way is
	// not waited for.
	Stop()
	// Close stops the timer for good. It may be called from any goroutine.
	Close()
}
