package netdev

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/wakeup"
)

// bell is what a receiver's goroutine waits for where the endpoint is a waiter: an
// eventfd that stands for the doorbells of both queues and for receiver.wake. The
// goroutine then serves the transmitter too. One thread for both directions matters
// where CPUs are few: data and acknowledgements need no wake-up of each other's.
type bell struct {
	ep   waiter
	fd   int
	poll [1]unix.PollFd
	loop wakeup.Loop
}

func newBell(ep waiter) (*bell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &bell{ep: ep, fd: fd, poll: [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}}, nil
}

func (b *bell) close() { unix.Close(b.fd) }

// wake makes the goroutine look at everything again.
func (r *receiver) wake() {
	if r.bell != nil {
		r.bell.ring()
		return
	}
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// await waits for a wake-up.
func (r *receiver) await() {
	if r.bell == nil {
		<-r.kick
		return
	}
	_ = r.bell.loop.Poll(r.bell.poll[:]) // EINTR is as good as a wake-up
	r.serve()
}

// read is the endpoint's Read of one frame. With wait it may return none, too: on a
// wake-up.
func (r *receiver) read(wait bool) (int, error) {
	if r.bell == nil {
		return r.ep.Read(r.frame[:], wait)
	}
	n, err := r.ep.Read(r.frame[:], false)
	if wait && n == 0 && err == nil {
		err = r.bell.ep.Wait(r.bell.fd)
	}
	return n, err
}

// serve does what the doorbells ask for, if they were rung.
func (r *receiver) serve() {
	if r.bell == nil || !r.bell.rung() {
		return
	}
	r.flushPosted()
	if r.d.host.Drain != nil && r.d.host.Drain(2*r.pair+1) {
		r.bell.ring() // after the frames to the guest
	}
}
