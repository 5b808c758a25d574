// Package wakeup keeps goroutines that wait in system calls quick to wake.
//
// A goroutine that waits in read(2) or ppoll(2) keeps its processor (a P of the Go
// scheduler) until the runtime's monitor takes it away: after 10 ms if nothing
// else wants it. But the monitor also looks at how long the goroutine has not
// been scheduled anew, and a loop of short waits never is. After 10 ms of it, the
// monitor takes the processor at every wait, and every event then wakes
// three threads instead of one: the waiter, the monitor, and one that looks for
// work in vain. Going through the scheduler now and then prevents it.
//
// And whenever the monitor has taken a processor, or is roused by a goroutine whose
// processor was taken, it wakes some 58 times in the next 10 ms. On a host with few
// CPUs each of these pushes a guest away. [Loop.Poll] therefore waits without telling the
// scheduler while events are frequent, so that there is nothing to take:
//
//	var loop wakeup.Loop
//	for loop.Poll(fds) == 0 {
//		...
//	}
//
// It does so only with processors that a program has beyond the host's CPUs, see
// Machine.Threads in package vm; without them, and once nothing has happened for a
// while, it is an ordinary wait.
package wakeup

import (
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// short is a wait after which the goroutine still has its processor.
	short = 8 * time.Millisecond
	// often is how long a processor stays with a goroutine unscheduled; it is
	// below the runtime's 10 ms.
	often = 4 * time.Millisecond
	// busy is how long after an event another is expected soon.
	busy = 50 * time.Millisecond
)

// Loop is the state of one goroutine that waits over and over. The zero value
// is ready.
type Loop struct {
	woke, scheduled time.Time
}

// woken is called after every wait that the scheduler knows of.
func (l *Loop) woken() {
	now := time.Now()
	if now.Sub(l.woke) < short && now.Sub(l.scheduled) > often {
		runtime.Gosched()
		l.scheduled = now
	}
	l.woke = now
}

// holders counts the goroutines that wait unknown to the scheduler.
var holders atomic.Int32

// hold claims a processor to wait with, of those that a program has beyond the
// host's CPUs: the others are for goroutines that have something to do.
func hold() bool {
	if int(holders.Add(1)) <= runtime.GOMAXPROCS(0)-runtime.NumCPU() {
		return true
	}
	holders.Add(-1)
	return false
}

// Poll waits without limit until one of fds is ready, and sets their Revents. It
// returns EINTR now and then, as ppoll(2) does.
func (l *Loop) Poll(fds []unix.PollFd) unix.Errno {
	for now := time.Now(); now.Sub(l.woke) < busy && hold(); now = time.Now() {
		n, errno := ppollHeld(fds, often)
		holders.Add(-1)
		if n > 0 {
			l.woke = time.Now()
		}
		if n > 0 || errno != 0 {
			return errno
		}
	}
	errno := ppoll(fds)
	l.woken()
	return errno
}
