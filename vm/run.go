package vm

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// How a guest ends, other than by power-off, which is no error. Run's error
// wraps one of these.
var (
	// ErrReset: the guest asked for a reset. A program that wants a reboot
	// makes the machine anew.
	ErrReset = errors.New("the guest reset the machine")
	// ErrTripleFault: a CPU met a fault that it could not deliver.
	ErrTripleFault = errors.New("triple fault")
	// ErrCrash: the guest reported a crash, see CrashError.
	ErrCrash = errors.New("the guest crashed")
	// ErrClosed: the machine was closed.
	ErrClosed = errors.New("the machine is closed")
)

// errPowerOff marks the one good end inside the machine.
var errPowerOff = errors.New("power-off")

// runState is what a machine's CPUs do.
type runState uint8

const (
	stateNew     runState = iota // never run
	statePaused                  // CPUs out of the guest, devices parked
	stateRunning                 // CPUs in the guest
	stateEnded                   // the guest ended
)

// finish records how the guest ended, once, and gets every CPU out of it. It
// may be called from a CPU's own goroutine.
func (m *Machine) finish(err error) {
	m.endOnce.Do(func() {
		m.end = err
		close(m.done)
		if m.runner == nil {
			return // Run stops it
		}
		for _, l := range m.loops {
			l.Stop() // at once: how soon Run notices depends on the host
		}
	})
}

// yield lets CPUs go on that wait for somebody outside to take what they sent,
// so that they can be stopped.
func (m *Machine) yield() {
	if m.serial != nil {
		m.serial.Pause()
	}
	for _, s := range m.slots {
		s.transport.Yield()
	}
}

// Run runs the guest until it ends or ctx is done. It returns nil after a
// power-off; an error wrapping ErrReset, ErrTripleFault or ErrCrash; ctx's
// error, in which case the machine is paused as it is and Run may be called
// again; or what went wrong in the engine. Pause and Resume may be used from
// other goroutines meanwhile.
func (m *Machine) Run(ctx context.Context) error {
	m.mu.Lock()
	var err error
	switch {
	case m.closed:
		err = ErrClosed
	case m.running:
		err = errors.New("it is running already")
	default:
		err = m.resumeLocked()
		m.running = err == nil
	}
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("vm: run: %w", err)
	}

	var cause error
	select {
	case <-m.done:
		cause = m.end
	case <-ctx.Done():
		cause = context.Cause(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = false
	if !m.closed {
		m.pauseLocked()
	}
	// The guest may have ended while ctx was being noticed: that counts.
	select {
	case <-m.done:
		cause = m.end
		m.state = stateEnded
	default:
	}
	if errors.Is(cause, errPowerOff) {
		return nil
	}
	return fmt.Errorf("vm: run: %w", cause)
}

// Pause takes every CPU out of the guest and parks the devices with no
// request in flight. A paused machine can be saved; Resume lets it go on.
func (m *Machine) Pause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("vm: pause: %w", ErrClosed)
	}
	m.pauseLocked()
	return nil
}

// Resume undoes Pause. On a machine that Run is not running it is an error.
func (m *Machine) Resume() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("vm: resume: %w", ErrClosed)
	}
	if !m.running {
		return errors.New("vm: resume: nothing runs the machine: call Run")
	}
	if err := m.resumeLocked(); err != nil {
		return fmt.Errorf("vm: resume: %w", err)
	}
	return nil
}

// pauseLocked pauses and reports whether the machine was running. CPUs stop
// before devices: what they still ask of a device on the way out is done.
func (m *Machine) pauseLocked() (wasRunning bool) {
	if m.state != stateRunning {
		return false
	}
	m.yield()
	vcpu.PauseAll(m.loops...)
	if m.turns != nil {
		m.turns.Pause()
	}
	for _, p := range m.parts {
		if c, ok := p.dev.(pauser); ok {
			c.Pause()
		}
	}
	m.state = statePaused
	return true
}

func (m *Machine) resumeLocked() error {
	switch m.state {
	case stateNew, statePaused:
		select {
		case <-m.done: // Run has not noticed yet
			return fmt.Errorf("the guest has ended: %w", m.end)
		default:
		}
	case stateRunning:
		return nil
	default:
		return fmt.Errorf("the guest has ended: %w", m.end)
	}
	for _, p := range m.parts {
		if c, ok := p.dev.(pauser); ok {
			c.Resume()
		}
	}
	if m.turns != nil {
		m.turns.Run()
	}
	if !m.started {
		m.started = true
		for _, l := range m.loops {
			m.serving.Add(1)
			go m.serve(l)
		}
	} else {
		for _, l := range m.loops {
			l.Resume()
		}
	}
	m.state = stateRunning
	return nil
}

// serve runs one CPU's loop on a goroutine of its own until the machine is
// closed.
func (m *Machine) serve(l *vcpu.Loop) {
	defer m.serving.Done()
	reason, err := l.Run(m.life)
	switch {
	case m.life.Err() != nil: // Close
	case err != nil:
		m.finish(err)
	case reason == vcpu.ExitShutdown:
		m.finish(ErrTripleFault)
	case reason == vcpu.ExitReset:
		m.finish(ErrReset)
	case reason == vcpu.ExitPowerOff:
		m.finish(errPowerOff)
	case reason == vcpu.ExitCrash:
		m.finish(ErrCrash)
	}
}

// Threads is how many of the machine's goroutines spend their time in system
// calls. On KVM it is one for each CPU, which is in the guest, and one for each
// virtqueue, which waits for its doorbell, or for several that a device waits for
// together. Where the CPUs take turns there are none: one goroutine runs them, and
// there are no doorbells.
//
// Each of them occupies one of the Go scheduler's processors until the runtime
// notices, up to 10 ms later, and on a host with few CPUs that delays disks and
// networks. A program that runs machines and wants them quick calls
//
//	runtime.GOMAXPROCS(runtime.NumCPU() + m.Threads())
//
// with the sum for all its machines. The package leaves that to the program,
// because GOMAXPROCS belongs to the process.
func (m *Machine) Threads() int {
	if m.runner != nil {
		return 0
	}
	n := len(m.loops)
	for _, d := range m.cfg.Devices {
		w, _ := d.(virtio.Waiter)
		events := map[int]bool{}
		for q := range d.QueueSizes() {
			if w != nil && w.EventFD(q) >= 0 {
				events[w.EventFD(q)] = true
			} else {
				n++
			}
		}
		n += len(events)
	}
	return n
}
