package mirror

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Phase is what a move is doing.
type Phase int32

// The phases of a move.
const (
	Copying   Phase = iota // the target lacks something
	InStep                 // every change reaches both sides
	Switching              // the target is about to take over
	Moved                  // the target is in use
	Failed                 // the source is in use, as before
)

func (p Phase) String() string {
	return [...]string{"copying", "in step", "switching", "moved", "failed"}[p]
}

// Progress is how far a move is.
type Progress struct {
	Phase Phase
	// Size is that of the disk in bytes, and Left how many of them must be
	// looked at, and copied unless they are zero, or are on their way to the
	// target.
	Size, Left int64
	// Copied is how many bytes the copier has written to the target, and
	// Zeroed how many more it knows to be zero there.
	Copied, Zeroed int64
	// Mirrored is how many changes of the guest went to both sides.
	Mirrored int64
	// Rate is what is copied at present, in bytes a second, and ETA when that
	// would be all; 0 if not known.
	Rate float64
	ETA  time.Duration
	// Errors is how many copies and changes failed on the target, and
	// LastError the last one's error. What they concern is copied again.
	Errors    int64
	LastError error
	// Pause is how long changes were held up by the switch.
	Pause time.Duration
}

// stats is what Progress is made of.
type stats struct {
	phase          atomic.Int32
	copied, zeroed atomic.Int64
	mirrored       atomic.Int64
	retries        atomic.Int64
	lastErr        atomic.Pointer[error]
	moved          atomic.Int64 // when something was copied last, or nothing was left
	pause          atomic.Int64

	mu    sync.Mutex
	at    time.Time // of the last sample
	was   int64     // copied, then
	left  int64     // left, then
	rate  float64   // bytes a second copied
	speed float64   // bytes a second that left falls by
}

func (s *stats) setPhase(p Phase) { s.phase.Store(int32(p)) }

// progress notes that the move does not stand still.
func (s *stats) progress() { s.moved.Store(time.Now().UnixNano()) }

// begin forgets what a move was before it was resumed.
func (s *stats) begin() {
	s.progress()
	s.at = time.Now()
}

// sample updates the rates, every paceTick.
func (m *move) sample() {
	_, dirty := m.table.still()
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	dt := now.Sub(m.at).Seconds()
	if dt < 0.2 {
		return
	}
	copied, left := m.copied.Load(), dirty*granule
	fresh := m.left == 0
	mix := func(old, v float64) float64 {
		if fresh {
			return v
		}
		return old + (v-old)*min(1, dt/3) // over about three seconds
	}
	m.rate = mix(m.rate, float64(copied-m.was)/dt)
	if !fresh {
		m.speed = max(0, mix(m.speed, float64(m.left-left)/dt))
	}
	m.at, m.was, m.left = now, copied, left
}

// Move is a move that was begun with Disk.Start.
type Move struct{ m *move }

// Progress returns how far the move is.
func (v *Move) Progress() Progress {
	m := v.m
	_, dirty := m.table.still()
	p := Progress{
		Phase: Phase(m.phase.Load()), Size: m.size, Left: min(dirty*granule+m.table.behind(), m.size),
		Copied: m.copied.Load(), Zeroed: m.zeroed.Load(), Mirrored: m.mirrored.Load(),
		Errors: m.retries.Load(), Pause: time.Duration(m.pause.Load()),
	}
	if e := m.lastErr.Load(); e != nil {
		p.LastError = *e
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p.Rate = m.rate
	if m.speed > 0 && p.Phase == Copying {
		p.ETA = time.Duration(float64(p.Left) / m.speed * float64(time.Second))
	}
	return p
}

// Finish ends what Config.Hold asks for: the switch is made when the two sides
// are in step.
func (v *Move) Finish() {
	m := v.m
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.finish:
	default:
		close(m.finish)
	}
}

// Cancel asks the move to end. If the switch was not made by then, Wait returns
// an error wrapping ErrCanceled.
func (v *Move) Cancel() { v.m.fail(ErrCanceled) }

// Wait waits until the move has ended and nothing uses the target any more, or
// the source if the move has succeeded, and returns nil in that case. If ctx
// ends first it returns its error, and the move goes on. A target that never
// ends a request delays the end until it is closed.
func (v *Move) Wait(ctx context.Context) error {
	select {
	case <-v.m.ended:
		return v.m.err
	case <-ctx.Done():
		// The move may have ended because of the same ctx.
		select {
		case <-v.m.ended:
			return v.m.err
		default:
			return context.Cause(ctx)
		}
	}
}
