package soft

import (
	"errors"
	"slices"
	"time"

	"github.com/vmkit-go/vmkit/internal/irqchip"
	"github.com/vmkit-go/vmkit/vcpu"
)

// quantum is how many instructions a CPU executes before the next one has its turn.
const quantum = 20_000

// runner runs all CPUs by turns. It implements [vcpu.CPU].
type runner struct{ e *Engine }

var _ vcpu.CPU = runner{}

// Runner returns the CPU that runs all CPUs of the machine; see [vcpu.Turns].
func (e *Engine) Runner() vcpu.CPU { return runner{e} }

// ID is that of the first CPU.
func (r runner) ID() int { return 0 }

// Kick makes Run return.
func (r runner) Kick() { r.e.kick() }

func (e *Engine) kick() {
	e.kicked.Store(true)
	e.poke()
}

// poke wakes an idle machine.
func (e *Engine) poke() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Interject has f run between instructions; see [vcpu.Turns].
func (e *Engine) Interject(f func()) {
	e.mu.Lock()
	e.interjected = append(e.interjected, f)
	e.mu.Unlock()
	e.hasInterjected.Store(true)
	e.poke()
}

// interject runs what Interject has left, and what comes meanwhile.
func (e *Engine) interject() {
	for e.hasInterjected.Swap(false) {
		e.mu.Lock()
		list := e.interjected
		e.interjected = e.spare[:0]
		e.mu.Unlock()
		for i, f := range list {
			f()
			list[i] = nil
		}
		e.spare = list[:0]
	}
}

// instructions is the count of instructions executed.
func (e *Engine) instructions() int64 {
	c := e.running
	switch {
	case c == nil:
		return e.count
	case c.asker != nil:
		return c.now(c.asker)
	}
	return c.end - c.left
}

// Instructions is how many instructions the machine has executed, over all CPUs, since
// it was made. An exception or interrupt delivered counts as one. It is for the
// goroutine of Run, or for any while the machine does not run.
func (e *Engine) Instructions() uint64 { return uint64(e.instructions()) }

// At has f run on the goroutine of Run when the machine has executed count
// instructions, exactly, or now if it has executed more. It is for the same goroutines
// as Instructions.
func (e *Engine) At(count uint64, f func()) {
	at := int64(min(count, never))
	i := len(e.marks)
	for i > 0 && e.marks[i-1].count > at {
		i--
	}
	e.marks = slices.Insert(e.marks, i, mark{at, f})
	e.retime()
}

// mark is a function to run at a count of instructions.
type mark struct {
	count int64
	f     func()
}

// retime makes a CPU that runs look again when its turn should end.
func (e *Engine) retime() { e.timesChanged = true }

// errRunning is what a second Run beside the first gets.
var errRunning = errors.New("soft: the machine runs already")

// Run runs the machine until something needs attention.
func (r runner) Run(exit *vcpu.Exit) error {
	e := r.e
	e.enterMu.Lock()
	alone := e.runMu.TryLock()
	e.enterMu.Unlock()
	if !alone {
		return errRunning
	}
	defer e.runMu.Unlock()
	if e.closed {
		return errClosed
	}
	if c := e.served; c != nil {
		e.served = nil
		c.access.served()
	}
	for {
		c := e.turn
		if c.access.pending() {
			e.served = c
			c.access.exit(exit)
			return nil
		}
		if c.access.known > 0 {
			// The instruction goes on that has its answer. An interrupt that came
			// before would have it ask again, and a kick would leave it half done.
			if done := e.runTurn(c, exit); done {
				return nil
			}
			continue
		}
		e.interject()
		if e.kicked.Swap(false) {
			*exit = vcpu.Exit{Reason: vcpu.ExitKick}
			return nil
		}
		e.runDue()
		if e.kicked.Load() || e.hasInterjected.Load() {
			continue
		}
		c = e.next()
		if c == nil {
			e.idle()
			continue
		}
		if len(e.marks) > 0 && e.marks[0].count <= e.count {
			continue // the delivery of an interrupt has counted
		}
		if done := e.runTurn(c, exit); done {
			return nil
		}
	}
}

// runDue lets everything happen that is due by now.
func (e *Engine) runDue() {
	e.timesChanged = false
	for len(e.marks) > 0 && e.marks[0].count <= e.count {
		f := e.marks[0].f
		e.marks = e.marks[1:]
		f()
	}
	now := e.clock.at(e.count)
	e.clock.fire(now)
	if now >= e.chips.Next() {
		e.chips.Advance(now)
	}
}

// next gives the turn to a CPU that has something to do, and returns it, or nil if
// there is none. A CPU keeps its turn until its quantum is used up, it yields or halts.
func (e *Engine) next() *CPU {
	c := e.turn
	if e.turnLeft > 0 && !c.yield && c.poll() {
		return c
	}
	c.yield = false
	for range e.cpus {
		c = e.cpus[(c.id+1)%len(e.cpus)]
		if c.poll() {
			e.turn, e.turnLeft = c, quantum
			c.yield = false
			return c
		}
	}
	return nil
}

// poll delivers what has come for the CPU and reports whether it runs.
func (c *CPU) poll() bool {
	l := c.e.chips.LAPIC(c.id)
	if c.wait == vcpu.MPSIPI { // from a saved state
		c.sipi(c.sipiVector)
	}
	if ev := l.Events(); ev != 0 || c.nmiPending > 0 {
		if ev&irqchip.EventINIT != 0 && l.TakeINIT() {
			c.init()
		}
		if ev&irqchip.EventSIPI != 0 {
			if v, ok := l.TakeSIPI(); ok {
				c.sipi(v) // which a CPU ignores that does not wait for one
			}
		}
		if c.wait == vcpu.MPRunning && !c.shutdown {
			switch {
			case c.shadow:
			case !c.nmiMasked && (c.nmiPending > 0 || ev&irqchip.EventNMI != 0 && l.TakeNMI()):
				c.nmiPending -= min(c.nmiPending, 1)
				c.halted = false
				c.takeNMI()
				c.e.count++
			case c.interruptible() && l.Pending():
				if v, ok := l.Ack(); ok {
					c.halted = false
					c.takeInterrupt(uint8(v))
					c.e.count++
				}
			}
		}
	}
	return c.wait == vcpu.MPRunning && !c.halted
}

// runTurn runs c until its turn ends or something needs attention; then it describes
// that in exit and reports true.
func (e *Engine) runTurn(c *CPU, exit *vcpu.Exit) bool {
	if c.shutdown {
		*exit = vcpu.Exit{Reason: vcpu.ExitShutdown}
		return true
	}
	n := e.turnLeft
	if c.access.known > 0 {
		n = 1
	}
	if t := e.clock.countAt(e.nextEvent()); t != never {
		n = min(n, t-e.count)
	}
	if len(e.marks) > 0 {
		n = min(n, e.marks[0].count-e.count)
	}
	n = max(n, 1)
	e.running = c
	begin := e.count
	debug := c.run(n)
	e.running = nil
	e.count = c.end - c.left
	e.turnLeft -= e.count - begin
	if debug {
		*exit = vcpu.Exit{Reason: vcpu.ExitDebug, Addr: c.rip, DR6: c.dr6}
		return true
	}
	return false
}

// run executes up to n instructions, or until there is something to look at: an
// access, an event, a shutdown. It reports whether a single step is over.
func (c *CPU) run(n int64) (debug bool) {
	c.left, c.end = n, c.e.count+n
	for c.left > 0 && !c.access.pending() && !c.halted && !c.shutdown {
		if c.injecting() {
			c.deliverInjected()
			c.left--
			continue
		}
		if c.shadow || c.access.known > 0 || c.mode&modeSingle != 0 {
			c.runOne()
			if c.step {
				return !c.access.pending()
			}
			if c.e.timesChanged || c.looksUp() {
				return false
			}
			continue
		}
		b, s := c.lookup()
		if s == next {
			if c.left < b.n && !b.dead() {
				c.runOne()
				continue
			}
			s = c.execute(b)
			c.asker = nil
		}
		switch s {
		case fault:
			c.deliverFault()
			c.left--
		case event:
			if c.yield || c.e.timesChanged || c.looksUp() {
				return false
			}
		case abort:
			return false
		}
	}
	return false
}

// looksUp reports whether there is something for the CPU that poll would take.
func (c *CPU) looksUp() bool {
	return c.e.chips.LAPIC(c.id).HasEvent() || c.nmiPending > 0 && !c.nmiMasked
}

// runOne executes one instruction, and delivers what it raises.
func (c *CPU) runOne() {
	debug := c.mode&modeSingle != 0
	if debug && !c.beforeInstruction() {
		c.left--
		return
	}
	shadow := c.shadow
	rest := c.left - 1
	c.left, c.end = 1, c.end-rest
	b, s := c.lookupIn(c.mode | modeSingle)
	if s == next {
		s = c.execute(b)
		c.asker = nil
	}
	c.left, c.end = c.left+rest, c.end+rest
	if s == abort {
		return
	}
	c.access.retired()
	if shadow {
		c.shadow, c.shadowMOVSS = false, false
	}
	if s == fault {
		c.deliverFault()
		c.left--
	} else if debug {
		c.afterInstruction()
	}
}

// nextEvent is when the next timer of a device or a chip does something, or never.
func (e *Engine) nextEvent() int64 { return min(e.clock.next(), e.chips.Next()) }

// endOfTime is the last time that an idle machine waits for, 146 years from its start: what
// is later than that would not leave room to count on.
const endOfTime = 1 << 62

// idle passes the time until something happens.
func (e *Engine) idle() {
	at := e.nextEvent()
	now := e.clock.at(e.count)
	if at > endOfTime {
		<-e.wake
		return
	}
	if e.realTime {
		if d := time.Duration(at-now) + e.ahead(now); d > 0 {
			t := time.NewTimer(d)
			select {
			case <-t.C:
			case <-e.wake:
				t.Stop()
				// Time has passed for the guest as well.
				if behind := -e.ahead(now); behind > 0 {
					e.clock.skipped += min(int64(behind), max(at-now, 0))
				}
				return
			}
		}
	}
	e.clock.skipped += max(at-now, 0)
}

// ahead is by how much the machine's clock is ahead of the host's.
func (e *Engine) ahead(now int64) time.Duration {
	return time.Duration(now) - time.Since(e.began)
}

// State and SetState are those of the first CPU.
func (r runner) State(s *vcpu.State) error    { return r.e.cpus[0].State(s) }
func (r runner) SetState(s *vcpu.State) error { return r.e.cpus[0].SetState(s) }

// SetSingleStep makes Run return ExitDebug after each instruction of any CPU.
func (r runner) SetSingleStep(on bool) error {
	for _, c := range r.e.cpus {
		c.step = on
		c.updateMode()
	}
	return nil
}

// Close does nothing: the engine owns the runner.
func (r runner) Close() error { return nil }
