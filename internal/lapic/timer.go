package lapic

import "math"

// Never is a time that does not come.
const Never = math.MaxInt64

// minPeriod is the least time in nanoseconds between two interrupts of the
// periodic timer. Those in between fall together, as in KVM.
const minPeriod = 50_000

// Timer modes.
const (
	modeOneShot  = 0
	modePeriodic = 1
	modeDeadline = 2 // a bit: 3 is reserved, and no timer runs in it
)

// timer counts down from initial with the machine's clock, whose nanoseconds are
// the 1 GHz bus clock, divided by a power of two. The divider runs free: the
// count changes at multiples of the divided period, so that the count and the
// time together say when it ends.
type timer struct {
	initial uint32
	divide  uint32 // as in the register
	shift   uint8  // log2 of the divisor

	counting bool
	end      int64 // when the count reaches 0, a multiple of the divisor

	deadline uint64 // IA32_TSC_DEADLINE
	at       int64  // its time

	due int64 // of the next interrupt
}

func (a *APIC) timerMode() uint32 { return a.lvt[lvtTimer] >> timerModeShift & 3 }

// period is the whole count in nanoseconds.
func (t *timer) period() int64 { return int64(t.initial) << t.shift }

// start sets the count.
func (t *timer) start(count uint32, now int64) {
	t.counting = count != 0
	if now > Never-1<<40 {
		t.end = Never // the end of time: a count takes less than 2^40 ns
		return
	}
	t.end = (now>>t.shift + int64(count)) << t.shift
}

// Due is when the timer next interrupts, Never if it does not.
func (a *APIC) Due() int64 { return a.timer.due }

// schedule computes Due.
func (a *APIC) schedule() {
	t := &a.timer
	t.due = Never
	if a.lvt[lvtTimer]&lvtMask != 0 {
		return
	}
	switch a.timerMode() {
	case modeOneShot:
		if t.counting {
			t.due = t.end
		}
	case modePeriodic:
		if t.counting {
			t.due = coalesced(t.end, t.period())
		}
	case modeDeadline:
		if t.deadline != 0 {
			t.due = t.at
		}
	}
}

// coalesced is the first end of a period, from the given one on, that
// interrupts: the first in each span of minPeriod. It depends on nothing that
// is not saved.
func coalesced(end, period int64) int64 {
	if period >= minPeriod || end > Never-2*minPeriod {
		return end
	}
	span := (end - period) / minPeriod * minPeriod
	if span > end-period {
		span -= minPeriod // division truncates
	}
	if open := span + minPeriod; open > end {
		end += (open - end + period - 1) / period * period
	}
	return end
}

// Expire lets happen what is due by now.
func (a *APIC) Expire(now int64) {
	t := &a.timer
	fire := t.due != Never && now >= t.due
	switch a.timerMode() {
	case modeOneShot:
		if t.counting && now >= t.end {
			t.counting = false
		}
	case modePeriodic:
		if t.counting && now >= t.end {
			p := t.period()
			n := uint64(now-t.end)/uint64(p) + 1
			if n > uint64(Never-t.end)/uint64(p) {
				t.end = Never
			} else {
				t.end += int64(n) * p
			}
		}
	case modeDeadline:
		if t.deadline != 0 && now >= t.at {
			t.deadline = 0
		}
	}
	a.schedule()
	if fire {
		a.local(lvtTimer)
	}
}

// settle catches up with the clock and returns its time.
func (a *APIC) settle() int64 {
	now := a.cfg.Now()
	a.Expire(now)
	return now
}

// current is the current count.
func (a *APIC) current() uint32 {
	t := &a.timer
	if !t.counting {
		return 0
	}
	now := a.settle()
	if !t.counting {
		return 0
	}
	return t.count(now)
}

// count is the current count of a timer that is counting.
func (t *timer) count(now int64) uint32 {
	return uint32(min(max(t.end>>t.shift-now>>t.shift, 0), int64(t.initial)))
}

// setTimer writes the timer's local vector.
func (a *APIC) setTimer(v uint32) {
	a.settle()
	old := a.timerMode()
	a.lvt[lvtTimer] = v
	if mode := a.timerMode(); old != mode && (old|mode)&modeDeadline != 0 {
		a.timer.counting, a.timer.initial, a.timer.deadline = false, 0, 0
	}
	a.schedule()
}

// setInitial writes the initial count, which starts the timer.
func (a *APIC) setInitial(v uint32) {
	if a.timerMode()&modeDeadline != 0 {
		return
	}
	now := a.settle()
	a.timer.initial = v
	a.timer.start(v, now)
	a.schedule()
}

// setDivide writes the divide configuration. The count goes on from where it
// is.
func (a *APIC) setDivide(v uint32) {
	now := a.settle()
	t := &a.timer
	var count uint32
	if t.counting {
		count = t.count(now)
	}
	t.divide = v & divideWritable
	t.shift = uint8((t.divide&3|t.divide>>1&4)+1) & 7
	if t.counting {
		t.start(count, now)
	}
	a.schedule()
}

// Deadline is IA32_TSC_DEADLINE: 0 if it is not armed.
func (a *APIC) Deadline() uint64 {
	if a.timer.deadline != 0 {
		a.settle()
	}
	return a.timer.deadline
}

// SetDeadline is a write to IA32_TSC_DEADLINE. Outside the TSC-deadline mode it
// has no effect.
func (a *APIC) SetDeadline(tsc uint64) {
	if !a.on() || a.timerMode() != modeDeadline {
		return
	}
	a.settle()
	a.timer.deadline = tsc
	a.timer.due = Never
	a.TSCChanged()
}

// TSCChanged says that the guest's TSC was set, or its rate: the deadline, which
// is a value of the TSC, comes at another time.
func (a *APIC) TSCChanged() {
	if a.timer.deadline == 0 {
		return
	}
	a.timer.at = a.cfg.TSCTime(a.timer.deadline)
	a.schedule()
	a.settle()
}
