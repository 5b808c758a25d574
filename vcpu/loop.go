package vcpu

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// Bus serves the accesses of a CPU. [*device.Bus] is one.
type Bus interface {
	Read(addr uint64, p []byte)
	Write(addr uint64, p []byte)
}

// ErrRunning is wrapped by the error of a second Run beside the first.
var ErrRunning = errors.New("the CPU is already running")

// LoopConfig says what serves a CPU's exits.
type LoopConfig struct {
	// Ports and Memory serve port accesses and accesses to addresses
	// without memory. Without one, reads give 0xff and writes are dropped.
	Ports, Memory Bus
	// Debug, if set, is called on the CPU's goroutine for each single step
	// or breakpoint, and says whether to go on. Otherwise, or when it says
	// no, Run returns ExitDebug.
	Debug func(CPU, *Exit) bool
}

// Loop runs one CPU and serves its exits. The CPUs of a machine have one each:
//
//	l := vcpu.NewLoop(cpu, vcpu.LoopConfig{Ports: &ports, Memory: &mmio})
//	go func() { reason, err := l.Run(ctx); ... }()
//	l.Pause()  // the CPU is out of the guest
//	err = l.Do(func(c vcpu.CPU) error { return c.State(&state) })
//	l.Resume()
//
// All methods may be called from any goroutine, but Pause, Do and Step not
// from a bus handler of a CPU or from the function given to Do, since they
// wait for it.
type Loop struct {
	cpu    CPU
	config LoopConfig

	mu     sync.Mutex
	cond   sync.Cond
	active bool // Run has begun and not ended
	parked bool // Run waits in attend, out of the guest
	direct bool // a caller of Do uses the CPU while no Run is active
	pauses int
	stop   bool
	ctx    context.Context // of the Run that is active
	jobs   []*job
}

type job struct {
	f    func(CPU) error
	err  error
	done bool
}

// NewLoop makes the loop of a CPU.
func NewLoop(cpu CPU, config LoopConfig) *Loop {
	if config.Ports == nil {
		config.Ports = floating{}
	}
	if config.Memory == nil {
		config.Memory = floating{}
	}
	l := &Loop{cpu: cpu, config: config}
	l.cond.L = &l.mu
	return l
}

// CPU returns the loop's CPU. It must be used only as [CPU] allows; Kick is
// always safe.
func (l *Loop) CPU() CPU { return l.cpu }

// Run runs the CPU on the calling goroutine, locked to its thread, until the
// guest ends it, and returns the reason: ExitShutdown, ExitReset, ExitPowerOff,
// ExitCrash, ExitHalt (nothing can wake the CPU) or ExitDebug. After Stop it
// returns ExitNone. An error means that the CPU cannot go on, or wraps the
// context's cause when ctx is done. Whatever ended it, no access is left half
// done, and Run may be called again.
func (l *Loop) Run(ctx context.Context) (Reason, error) {
	l.mu.Lock()
	if l.active {
		l.mu.Unlock()
		return ExitNone, fmt.Errorf("cpu %d: %w", l.cpu.ID(), ErrRunning)
	}
	l.active = true
	for l.direct {
		l.cond.Wait()
	}
	l.ctx = ctx
	l.mu.Unlock()

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// It may still be on its way when another Run has begun, so it says
	// nothing but "look".
	unwatch := context.AfterFunc(ctx, func() {
		l.mu.Lock()
		l.cond.Broadcast()
		l.mu.Unlock()
		l.cpu.Kick()
	})
	a, attaches := l.cpu.(Attacher)
	if attaches {
		a.Attach()
	}
	reason, err := l.run()
	unwatch()
	if attaches {
		a.Detach()
	}

	l.mu.Lock()
	stopped := l.stop
	l.stop = false
	l.runJobs()
	l.active, l.ctx = false, nil
	l.cond.Broadcast()
	l.mu.Unlock()
	if err == nil && reason == ExitNone && !stopped {
		return ExitNone, fmt.Errorf("cpu %d: %w", l.cpu.ID(), context.Cause(ctx))
	}
	return reason, err
}

// run is the hot path: it takes no lock and allocates nothing between kicks.
// Requests are looked at only after ExitKick, because only then is no access
// half done; Kick makes certain that it comes.
func (l *Loop) run() (Reason, error) {
	if l.attend() {
		return ExitNone, nil
	}
	var exit Exit
	for {
		if err := l.cpu.Run(&exit); err != nil {
			return ExitNone, fmt.Errorf("cpu %d: %w", l.cpu.ID(), err)
		}
		switch exit.Reason {
		case ExitIO:
			l.servePort(&exit)
		case ExitMMIO:
			l.serveMemory(&exit)
		case ExitKick:
			if l.attend() {
				return ExitNone, nil
			}
		case ExitDebug:
			if l.config.Debug == nil || !l.config.Debug(l.cpu, &exit) {
				return ExitDebug, nil
			}
		case ExitNone:
		default:
			return exit.Reason, nil
		}
	}
}

// attend does what others have asked for and waits while the loop is paused.
// It reports whether Run is to end.
func (l *Loop) attend() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		l.runJobs()
		if l.stop || l.ctx.Err() != nil {
			l.parked = false
			return true
		}
		if l.pauses == 0 {
			l.parked = false
			return false
		}
		if !l.parked {
			l.parked = true
			l.cond.Broadcast()
		}
		l.cond.Wait()
	}
}

// runJobs runs what Do has left, with l.mu held around it.
func (l *Loop) runJobs() {
	for len(l.jobs) > 0 {
		j := l.jobs[0]
		l.jobs = l.jobs[1:]
		l.mu.Unlock()
		j.err = j.f(l.cpu)
		l.mu.Lock()
		j.done = true
		l.cond.Broadcast()
	}
}

// Stop makes the current Run, or else the next one, return ExitNone. It does
// not wait, so that a bus handler may call it.
func (l *Loop) Stop() {
	l.mu.Lock()
	l.stop = true
	l.cond.Broadcast()
	l.mu.Unlock()
	l.cpu.Kick()
}

// Pause returns when the CPU is out of the guest and its last access is
// complete. Until as many calls of Resume it stays there, also if Run begins
// only later. A Run that ends by itself counts as paused.
func (l *Loop) Pause() {
	l.askPause()
	l.awaitPause()
}

// PauseAll pauses several loops at once.
func PauseAll(loops ...*Loop) {
	for _, l := range loops {
		l.askPause()
	}
	for _, l := range loops {
		l.awaitPause()
	}
}

func (l *Loop) askPause() {
	l.mu.Lock()
	l.pauses++
	kick := l.active && !l.parked
	l.mu.Unlock()
	if kick {
		l.cpu.Kick()
	}
}

func (l *Loop) awaitPause() {
	l.mu.Lock()
	for l.active && !l.parked {
		l.cond.Wait()
	}
	l.mu.Unlock()
}

// Resume undoes one Pause. Without one it does nothing.
func (l *Loop) Resume() {
	l.mu.Lock()
	if l.pauses > 0 {
		l.pauses--
		l.cond.Broadcast()
	}
	l.mu.Unlock()
}

// Do calls f with the CPU out of the guest and its last access complete, and
// returns f's error. A running CPU leaves the guest for it; f runs on the
// CPU's goroutine while there is one, else on the caller's. State and SetState
// are to be called in f.
func (l *Loop) Do(f func(CPU) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.direct && !l.active {
		l.cond.Wait()
	}
	if !l.active {
		l.direct = true
		l.mu.Unlock()
		err := f(l.cpu)
		l.mu.Lock()
		l.direct = false
		l.cond.Broadcast()
		return err
	}
	j := &job{f: f}
	l.jobs = append(l.jobs, j)
	l.cond.Broadcast()
	if !l.parked {
		l.mu.Unlock()
		l.cpu.Kick()
		l.mu.Lock()
	}
	for !j.done {
		l.cond.Wait()
	}
	return j.err
}

// Step runs one instruction, serves its accesses, and returns the exit that
// ended it: ExitDebug, or a terminal one. The loop should be paused, or not
// running, or else other instructions run around it.
func (l *Loop) Step(ctx context.Context) (Exit, error) {
	var exit Exit
	err := l.Do(func(c CPU) (err error) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		unwatch := context.AfterFunc(ctx, c.Kick)
		defer unwatch()
		if err := c.SetSingleStep(true); err != nil {
			return err
		}
		defer func() {
			if e := c.SetSingleStep(false); err == nil {
				err = e
			}
		}()
		for {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			if err := c.Run(&exit); err != nil {
				return err
			}
			switch exit.Reason {
			case ExitIO:
				l.servePort(&exit)
			case ExitMMIO:
				l.serveMemory(&exit)
			case ExitKick, ExitNone:
			default:
				return nil
			}
		}
	})
	if err != nil {
		return Exit{}, fmt.Errorf("cpu %d: step: %w", l.cpu.ID(), err)
	}
	exit.Data = nil
	return exit, nil
}

func (l *Loop) servePort(e *Exit) {
	n := int(e.Size)
	for p := e.Data; n > 0 && len(p) >= n; p = p[n:] {
		if e.Write {
			l.config.Ports.Write(uint64(e.Port), p[:n:n])
		} else {
			l.config.Ports.Read(uint64(e.Port), p[:n:n])
		}
	}
}

// serveMemory splits an access that is not of 1, 2, 4 or 8 bytes, which comes
// of one that crosses a page, into aligned ones that are.
func (l *Loop) serveMemory(e *Exit) {
	addr, p := e.Addr, e.Data
	for len(p) > 0 {
		n := len(p)
		if n&(n-1) != 0 || n > 8 {
			n = 1
			for n < 8 && 2*n <= len(p) && addr&uint64(2*n-1) == 0 {
				n *= 2
			}
		}
		if e.Write {
			l.config.Memory.Write(addr, p[:n:n])
		} else {
			l.config.Memory.Read(addr, p[:n:n])
		}
		addr, p = addr+uint64(n), p[n:]
	}
}

// floating is a bus with nothing on it.
type floating struct{}

func (floating) Read(_ uint64, p []byte) {
	for i := range p {
		p[i] = 0xff
	}
}

func (floating) Write(uint64, []byte) {}
