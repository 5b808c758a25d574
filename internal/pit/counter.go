package pit

import "github.com/vmkit-go/vmkit/vcpu"

// Counter modes (8254, "Mode definitions").
const (
	modeTerminal   = 0 // interrupt on terminal count
	modeOneShot    = 1 // hardware retriggerable one-shot
	modeRate       = 2 // rate generator
	modeSquare     = 3 // square wave
	modeStrobe     = 4 // software triggered strobe
	modeHardStrobe = 5 // hardware triggered strobe
)

// Halves of the count by access mode and by the state of a two-byte access.
const (
	low   = 1
	high  = 2
	word0 = 3 // low byte next
	word1 = 4 // high byte next
)

// status bits of the read-back command.
const (
	statusOut  = 1 << 7
	statusNull = 1 << 6 // no count is loaded
)

// counter is one of the three. While it counts, start is when its count was
// loaded; while its gate stops it, s.Elapsed is how long it had counted then.
// A Count of 0 means that a control word was written and no count yet.
type counter struct {
	s     vcpu.PITChannel
	start int64
}

// mode is the effective mode: 6 and 7 stand for 2 and 3.
func (t *counter) mode() uint8 {
	if m := t.s.Mode; m != vcpu.PITUnset && m > modeHardStrobe {
		return m - 4
	}
	return t.s.Mode
}

// triggered reports whether the gate triggers the counter instead of enabling
// it.
func (t *counter) triggered() bool {
	m := t.mode()
	return m == modeOneShot || m == modeHardStrobe
}

func (t *counter) periodic() bool {
	m := t.mode()
	return m == modeRate || m == modeSquare
}

// loaded reports whether the counter has a mode and a count.
func (t *counter) loaded() bool { return t.s.Count != 0 && t.s.Mode != vcpu.PITUnset }

// frozen reports whether the gate stops the counter.
func (t *counter) frozen() bool { return !t.s.Gate && !t.triggered() }

// elapsed is the time that the counter has counted.
func (t *counter) elapsed(now int64) int64 {
	if t.frozen() {
		return t.s.Elapsed
	}
	if t.start < 0 && now > Never+t.start {
		return Never
	}
	return max(now-t.start, 0)
}

// setElapsed makes the counter go on as if it had counted for a time.
func (t *counter) setElapsed(ns, now int64) {
	t.s.Elapsed = ns
	t.start = now - ns
}

// span is the number of values that the counter has before it wraps.
func (t *counter) span() uint64 {
	if t.s.BCD {
		return 10_000
	}
	return 1 << 16
}

// initial is the count in clock pulses.
func (t *counter) initial() uint64 {
	n := uint64(t.s.Count)
	if n == 1<<16 || n == 0 {
		return t.span()
	}
	if t.s.BCD {
		return n>>12*1000 + n>>8&15*100 + n>>4&15*10 + n&15
	}
	return n
}

// value is the counting element, in the form in which it is read.
func (t *counter) value(now int64) uint16 {
	if !t.loaded() {
		return 0
	}
	n, d := t.initial(), pulses(t.elapsed(now))
	var v uint64
	switch t.mode() {
	case modeRate:
		v = n - d%n
	case modeSquare:
		// It counts by twos, with the lowest bit taken off an odd count, and
		// is reloaded at each change of the output.
		at, half := d%n, (n+1)/2
		if at >= half {
			at -= half
		}
		v = n&^1 - 2*at
	default:
		span := t.span()
		v = (n%span + span - d%span) % span
	}
	v %= t.span()
	if t.s.BCD {
		v = v/1000<<12 | v/100%10<<8 | v/10%10<<4 | v%10
	}
	return uint16(v)
}

// out is the level of the output.
func (t *counter) out(now int64) bool {
	if t.s.Mode == vcpu.PITUnset {
		return false
	}
	if t.s.Count == 0 {
		return t.mode() != modeTerminal
	}
	n, d := t.initial(), pulses(t.elapsed(now))
	switch t.mode() {
	case modeRate:
		return !t.s.Gate || d%n != n-1
	case modeSquare:
		return !t.s.Gate || d%n < (n+1)/2
	case modeStrobe, modeHardStrobe:
		return d != n
	default:
		return d >= n
	}
}

// next is the first time after now at which the output rises and so interrupts.
func (t *counter) next(now int64) int64 {
	if !t.loaded() || t.frozen() {
		return Never
	}
	n, e := t.initial(), t.elapsed(now)
	d := pulses(e)
	var at int64
	switch {
	case t.periodic():
		at = t.nextPeriod(d/n+1, n)
	case t.mode() == modeStrobe || t.mode() == modeHardStrobe:
		at = duration(n + 1)
	default:
		at = duration(n)
	}
	if at <= e {
		return Never
	}
	return add(t.start, at)
}

// nextPeriod is the time since the start of the first period from the k-th on
// whose end interrupts: it is the first to end in its span of minPeriod.
func (t *counter) nextPeriod(k, n uint64) int64 {
	at, before := duration(k*n), duration((k-1)*n)
	if at == Never {
		return Never
	}
	open := (before/minPeriod + 1) * minPeriod
	if at >= open {
		return at
	}
	first := pulses(open-1) + 1 // the first pulse at or after open
	return duration((first + n - 1) / n * n)
}

// program takes a control word's fields.
func (t *counter) program(access, mode uint8, bcd bool, now int64) {
	t.s = vcpu.PITChannel{
		RWMode: access, ReadState: access, WriteState: access,
		Mode: mode, BCD: bcd, Gate: t.s.Gate,
	}
	t.s.Mode = t.mode()
	t.setElapsed(0, now)
}

// setGate sets the level of the gate.
func (t *counter) setGate(level bool, now int64) {
	if level == t.s.Gate {
		return
	}
	e := t.elapsed(now)
	t.s.Gate = level
	switch {
	case !level:
		t.s.Elapsed = e
	case t.triggered() || t.periodic():
		t.setElapsed(0, now)
	default:
		t.setElapsed(e, now)
	}
}

// load takes a new count.
func (t *counter) load(count uint16, now int64) {
	if !t.triggered() {
		t.s.Count = uint32(count)
		if count == 0 {
			t.s.Count = 1 << 16
		}
		t.setElapsed(0, now)
		return
	}
	// The count waits for the next trigger. One under way goes on to its end,
	// and without one the counter is as after its end.
	var left uint64
	if t.s.Count != 0 {
		if n, d := t.initial(), pulses(t.elapsed(now)); d <= n {
			left = n - d + 1
		}
	}
	t.s.Count = uint32(count)
	if count == 0 {
		t.s.Count = 1 << 16
	}
	end := t.initial() + 1
	t.setElapsed(duration(end-min(left, end)), now)
}

func (t *counter) write(v byte, now int64) {
	switch t.s.WriteState {
	case low:
		t.load(uint16(v), now)
	case high:
		t.load(uint16(v)<<8, now)
	case word0:
		t.s.WriteLatch = v
		t.s.WriteState = word1
		if t.mode() == modeTerminal {
			// The first of two bytes stops the counting.
			t.s.Count = 0
			t.setElapsed(0, now)
		}
	case word1:
		t.s.WriteState = word0
		t.load(uint16(v)<<8|uint16(t.s.WriteLatch), now)
	}
}

func (t *counter) latchCount(now int64) {
	if t.s.CountLatched == 0 {
		t.s.LatchedCount = t.value(now)
		t.s.CountLatched = t.s.RWMode
	}
}

func (t *counter) latchStatus(now int64) {
	if t.s.StatusLatched {
		return
	}
	v := t.s.RWMode<<4 | t.mode()&7<<1
	if t.out(now) {
		v |= statusOut
	}
	if t.s.Count == 0 {
		v |= statusNull
	}
	if t.s.BCD {
		v |= 1
	}
	t.s.Status = v
	t.s.StatusLatched = true
}

func (t *counter) read(now int64) byte {
	if t.s.StatusLatched {
		t.s.StatusLatched = false
		return t.s.Status
	}
	if t.s.CountLatched != 0 {
		switch t.s.CountLatched {
		case high:
			t.s.CountLatched = 0
			return byte(t.s.LatchedCount >> 8)
		case word0:
			t.s.CountLatched = high
		default:
			t.s.CountLatched = 0
		}
		return byte(t.s.LatchedCount)
	}
	v := t.value(now)
	switch t.s.ReadState {
	case high:
		return byte(v >> 8)
	case word0:
		t.s.ReadState = word1
	case word1:
		t.s.ReadState = word0
		return byte(v >> 8)
	}
	return byte(v)
}
