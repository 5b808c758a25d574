package virtio

import (
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/wakeup"
	"github.com/vmkit-go/vmkit/vm/device"
)

// runner runs the notifications of one queue, one at a time, from whatever
// side they come: the goroutine of a doorbell, a CPU's bus write, or Resume.
// It is created with its queue and lives until the device is reset.
type runner struct {
	queue  *Queue
	notify func() // the device's Notify for this queue
	prompt bool   // all is done on the goroutine that rings

	mu      sync.Mutex
	idle    sync.Cond // signalled when running falls
	open    bool      // notifications may run
	running bool      // one is running
	again   bool      // another came meanwhile

	bell   device.Doorbell // nil: notifications come over the bus
	silent bool            // nobody is to wait for the doorbell
	wg     sync.WaitGroup  // the doorbell's goroutine and handed-over drains
}

func newRunner(q *Queue, notify func(), prompt bool) *runner {
	r := &runner{queue: q, notify: notify, prompt: prompt}
	r.idle.L = &r.mu
	return r
}

// listen takes the queue's notifications from a doorbell if there is one, which
// rings event, for the device to wait for, if that is not -1. unlisten must be
// called before the next listen. failed is told if the doorbell stops working.
func (r *runner) listen(d device.Doorbells, event int, addr uint64, size int, match *uint64, failed func(error)) (err error) {
	if d == nil {
		return nil
	}
	wait := func() {}
	var bell device.Doorbell
	switch lent, ok := d.(device.EventDoorbells); {
	case !ok:
		bell, err = d.Doorbell(addr, size, match)
		wait = func() { r.waitBell(bell, failed) }
	case event >= 0:
		bell, err = lent.DoorbellTo(event, addr, size, match)
	default:
		if event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return err
		}
		if bell, err = lent.DoorbellTo(event, addr, size, match); err != nil {
			unix.Close(event)
		}
		wait = func() { r.waitEvent(event, failed) }
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.bell, r.silent = bell, false
	r.mu.Unlock()
	r.wg.Go(wait)
	return nil
}

// waitBell runs notifications until bell is closed.
func (r *runner) waitBell(bell device.Doorbell, failed func(error)) {
	for {
		if err := bell.Wait(); err != nil {
			if !errors.Is(err, os.ErrClosed) {
				failed(err)
			}
			return
		}
		if r.enter() {
			r.run()
		}
	}
}

// waitEvent runs notifications until the runner is silent, and closes event.
func (r *runner) waitEvent(event int, failed func(error)) {
	defer unix.Close(event)
	var loop wakeup.Loop
	var count [8]byte
	poll := []unix.PollFd{{Fd: int32(event), Events: unix.POLLIN}}
	for {
		if errno := loop.Poll(poll); errno != 0 && errno != unix.EINTR {
			failed(errno)
			return
		}
		if _, err := unix.Read(event, count[:]); err != nil {
			continue // EINTR or EAGAIN: it was not rung
		}
		if r.isSilent() {
			return
		}
		if r.enter() {
			r.run()
		}
	}
}

func (r *runner) isSilent() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.silent
}

// unlisten gives the doorbell back and waits for its goroutine. The runner is
// shut meanwhile.
func (r *runner) unlisten() {
	r.mu.Lock()
	bell := r.bell
	r.bell, r.silent = nil, true
	r.mu.Unlock()
	if bell != nil {
		bell.Ring() // so that waitEvent sees that it is to end
		bell.Close()
	}
	r.wg.Wait()
}

// promptDrains is how many drains a prompt notification gets. A guest that
// waits for them can offer a queue's worth at most; it gets more only if it put
// the used ring where its available index is.
const promptDrains = 4

// ring notifies the queue: through the doorbell's goroutine if there is one,
// otherwise on the caller, for one drain at most unless the machine is prompt.
func (r *runner) ring() {
	r.mu.Lock()
	bell := r.bell
	r.mu.Unlock()
	if bell != nil {
		bell.Ring()
		return
	}
	if !r.enter() {
		return
	}
	if r.prompt {
		for n := 1; r.once(); n++ {
			if n == promptDrains {
				r.leave()
				return
			}
		}
		return
	}
	if r.once() {
		// A guest that adds buffers as fast as they are used must not
		// hold the CPU that rang.
		r.wg.Go(r.run)
	}
}

// enter claims the right to run, or leaves word for whoever has it.
func (r *runner) enter() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.open {
		return false
	}
	if r.running {
		r.again = true
		return false
	}
	r.running = true
	return true
}

// run drains the queue for as long as there is more to do. The caller has
// entered.
func (r *runner) run() {
	for r.once() {
	}
}

// drain notifies the queue once on the caller, unless it is notified elsewhere, and
// reports whether the caller is to come back.
func (r *runner) drain() (more bool) {
	if !r.enter() || !r.once() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.running = false
	r.idle.Broadcast()
	return true
}

// once notifies the device once and reports whether it has to be notified
// again; otherwise it leaves.
func (r *runner) once() bool {
	r.queue.beginDrain()
	r.notify()
	more := r.queue.endDrain()
	r.queue.Publish() // malformed chains that Pop answered
	r.mu.Lock()
	defer r.mu.Unlock()
	if (r.again || more) && r.open {
		r.again = false
		return true
	}
	r.leaveLocked()
	return false
}

// leave gives up the right to run.
func (r *runner) leave() {
	r.mu.Lock()
	r.leaveLocked()
	r.mu.Unlock()
}

func (r *runner) leaveLocked() {
	r.again, r.running = false, false
	r.idle.Broadcast()
}

// shut stops notifications and waits for the one that runs. What arrives from
// now on is dropped: whoever opens the runner again rings it.
func (r *runner) shut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open = false
	for r.running {
		r.idle.Wait()
	}
}

func (r *runner) unshut() {
	r.mu.Lock()
	r.open = true
	r.mu.Unlock()
}
