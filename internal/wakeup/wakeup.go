// Package wakeup keeps goroutines that wait in system calls quick to wake.
//
// A goroutine that waits in read(2) or ppoll(2) keeps its processor (a P of the Go
// scheduler) until the runtime's monitor takes it away: after 10 ms if nothing
// else wants it. But the monitor also looks at how long the goroutine has not
// been scheduled anew, and a loop of short waits never is. After 10 ms of it, the
// monitor takes the processor at every wait, and every event then wakes
// three threads instead of one: the waiter, the monitor, and one that looks for
// work in vain. Going through the scheduler now and then prevents it.
package wakeup

import (
	"runtime"
	"time"
)

const (
	// short is a wait after which the goroutine still has its processor.
	short = 8 * time.Millisecond
	// often is how long a processor stays with a goroutine unscheduled; it is
	// below the runtime's 10 ms.
	often = 4 * time.Millisecond
)

// Loop is the state of one goroutine that waits over and over. The zero value
// is ready.
type Loop struct {
	woke, scheduled time.Time
}

// Woke is to be called after every wait.
func (l *Loop) Woke() {
	now := time.Now()
	if now.Sub(l.woke) < short && now.Sub(l.scheduled) > often {
		runtime.Gosched()
		l.scheduled = now
	}
	l.woke = now
}
