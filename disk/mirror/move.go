package mirror

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

// Config says how a disk moves. The zero value is for a guest that must not
// notice.
type Config struct {
	// Rate bounds what the copier writes, in bytes a second; 0 means that
	// only the guest's latency does.
	Rate int64
	// CapWrites makes every change by the guest wait for its own end on the
	// target, however slow that is, so that the guest writes no faster than the target takes
	// it and the move must come to an end. Otherwise a guest that writes
	// faster than the target for good keeps the move from ending.
	CapWrites bool
	// Lag is how much later than the source the target may be with a write
	// before nothing waits for it any more and its range is copied later; 0
	// means 10 ms. It is precise to 5 ms.
	Lag time.Duration
	// MaxPause is how long the guest's writes are held up for the switch
	// before it is called off and tried again, with twice the time after some
	// attempts; 0 means 50 ms. Making the switch durable in the journal is
	// not called off, and comes on top.
	MaxPause time.Duration
	// Patience is how long a move goes on without anything being copied
	// although there is something to copy, and how long changes wait for a
	// journal that fails; 0 means 30 s.
	Patience time.Duration
	// Checkpoint is how often both sides are flushed, so that a move that is
	// resumed after a crash need not copy what was copied before; 0 means 10
	// s. It has no effect without a journal.
	Checkpoint time.Duration
	// Hold keeps the two sides in step, once they are, until Move.Finish is
	// called.
	Hold bool
}

func (c *Config) fill() error {
	for _, d := range []struct {
		v    *time.Duration
		zero time.Duration
		name string
	}{
		{&c.Lag, 10 * time.Millisecond, "Lag"},
		{&c.MaxPause, 50 * time.Millisecond, "MaxPause"},
		{&c.Patience, defaultPatience, "Patience"},
		{&c.Checkpoint, 10 * time.Second, "Checkpoint"},
	} {
		if *d.v < 0 {
			return fmt.Errorf("mirror: Config.%s is negative", d.name)
		}
		if *d.v == 0 {
			*d.v = d.zero
		}
	}
	if c.Rate < 0 {
		return errors.New("mirror: Config.Rate is negative")
	}
	return nil
}

const defaultPatience = 30 * time.Second

// tick is how often late targets are looked for.
const tick = 5 * time.Millisecond

// maxQueue is how many changes wait for a worker before their callers do.
const maxQueue = 64

// move is one move, or a tracker: what takes the place of a move that was
// interrupted, and notes what changes until it is resumed.
type move struct {
	d       *Disk
	src     side
	dst     side // without a Backend for a tracker
	size    int64
	journal *Journal
	rec     record
	cfg     Config
	table   table
	pace    pace
	due     time.Time // when the next copy may start, if there is a Rate

	marking sync.Mutex // held while the journal's bitmap is written

	work    chan *span // changes for the target
	workers sync.WaitGroup
	copies  sync.WaitGroup

	cancel  atomic.Pointer[context.CancelCauseFunc]
	finish  chan struct{} // closed by Finish
	once    sync.Once
	stop    chan struct{} // ends the marker
	stopped sync.WaitGroup
	decided chan struct{} // closed when it is known where the disk stays
	quit    chan struct{} // ends the workers
	ended   chan struct{} // closed when the move has ended, for Wait
	err     error         // valid then
	doomed  atomic.Pointer[error]

	stats
}

func newMove(d *Disk, src side, r record, set bitmap) *move {
	m := &move{
		d: d, src: src, size: src.Size(), journal: d.journal, rec: r,
		work: make(chan *span, maxQueue), finish: make(chan struct{}), stop: make(chan struct{}),
		decided: make(chan struct{}), quit: make(chan struct{}), ended: make(chan struct{}),
	}
	t := &m.table
	t.quiet = make(chan struct{}, 1)
	n := (m.size + granule - 1) >> granuleShift
	t.dirty = newBitmap(n)
	if set == nil && n > 0 {
		t.nDirty = t.dirty.setRange(0, n-1)
	}
	if m.journal != nil {
		if set == nil {
			set = newBitmap(r.regions())
			if n > 0 {
				set.setRange(0, r.regions()-1)
			}
		} else {
			per := r.shift - granuleShift
			for i := set.next(0); i >= 0 && i < r.regions(); i = set.next(i + 1) {
				t.nDirty += t.dirty.setRange(i<<per, min((i+1)<<per, n)-1)
			}
		}
		t.marks = newMarks(r, set)
		m.stopped.Go(m.marker)
	}
	return m
}

// newTracker returns a tracker for the unfinished move that the journal holds.
func newTracker(d *Disk, src side) (*move, error) {
	set, err := d.journal.readBits()
	if err != nil {
		return nil, err
	}
	m := newMove(d, src, d.journal.rec, set)
	m.table.source = true
	return m, nil
}

// marker marks regions in the journal as changes ask for it.
func (m *move) marker() {
	for {
		select {
		case <-m.table.marks.kick:
			if err := m.mark(); err != nil {
				m.lostJournal(fmt.Errorf("%w: mark: %w", ErrJournal, err))
			}
		case <-m.stop:
			return
		}
	}
}

// lostJournal ends the move, or what tracks it.
func (m *move) lostJournal(err error) {
	m.d.mu.Lock()
	started := m.cancel.Load() != nil
	if !started {
		m.cancel.Store(&noCancel) // Start comes too late
	}
	m.d.mu.Unlock()
	if started {
		m.fail(err)
		return
	}
	go func() {
		wait, err := m.giveUp(err)
		m.end(wait, err)
	}()
}

var noCancel context.CancelCauseFunc = func(error) {}

// Start begins to move the disk, of up to 64 TiB, to target, which must have its
// size and not be used otherwise; what it holds is overwritten. The move ends when it has
// succeeded or failed, when ctx ends or with Move.Cancel; if it has not
// succeeded, the source remains in use as if nothing had happened. The target
// may be closed when Move.Wait has returned.
//
// If the Disk's journal holds an unfinished move to a disk of target's name, it
// is resumed: the target must hold what it held then.
func (d *Disk) Start(ctx context.Context, target disk.Backend, cfg Config) (*Move, error) {
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := d.mode.Load()
	fail := func(err error) (*Move, error) {
		return nil, fmt.Errorf("move disk %s to %s: %w", now.Info().Name, target.Info().Name, err)
	}
	switch {
	case d.closed.Load():
		return fail(d.refuse("move", 0, 0, os.ErrClosed))
	case d.move != nil && d.move.cancel.Load() != nil:
		return fail(ErrMoving)
	case target == now.Backend:
		return fail(errors.New("it is there already"))
	case now.Size() > maxSize:
		return fail(fmt.Errorf("%w: it has %d bytes, more than %d", disk.ErrRange, now.Size(), int64(maxSize)))
	case target.Info().ReadOnly:
		return fail(disk.ErrReadOnly)
	case target.Size() != now.Size():
		return fail(fmt.Errorf("%w: it has %d bytes, want %d", disk.ErrRange, target.Size(), now.Size()))
	}
	// A source that has lost writes cannot be believed.
	if err := d.Flush(); err != nil {
		return fail(err)
	}
	m := d.move
	wait := func() {}
	if m == nil || m.rec.Target != target.Info().Name {
		r := record{move: rand.Uint64(), phase: phaseMoving, shift: regionShift(now.Size()), Record: Record{
			Source: now.Info().Name, Target: target.Info().Name, Size: now.Size(),
		}}
		if d.journal != nil {
			if err := d.journal.begin(r); err != nil {
				return fail(err)
			}
		}
		m = newMove(d, now.side, r, nil)
		m.dst, m.cfg, m.table.capped = newSide(target), cfg, cfg.CapWrites
		wait = d.replace(newMode(now.side, m))
		if old := d.move; old != nil {
			old.table.close()
			defer old.halt()
		}
		d.move = m
	} else {
		m.table.mu.Lock()
		m.dst, m.cfg, m.table.capped = newSide(target), cfg, cfg.CapWrites
		m.table.source = false
		m.table.mu.Unlock()
	}
	m.workers.Go(m.worker)
	m.pace.width.Store(1024 / 4)
	m.begin()
	ctx, cancel := context.WithCancelCause(ctx)
	m.cancel.Store(&cancel)
	go m.run(ctx, wait)
	return &Move{m}, nil
}

// fail ends the move with err, if it was started and has not ended.
func (m *move) fail(err error) {
	if cancel := m.cancel.Load(); cancel != nil {
		(*cancel)(err)
	}
}

// targetFailed notes an error of a copy or of the target.
func (m *move) targetFailed(err error) {
	m.retries.Add(1)
	m.lastErr.Store(&err)
}

// run carries the move out. Requests that began before it have ended when begun
// returns.
func (m *move) run(ctx context.Context, begun func()) {
	// Nobody who waits for the target shall wait for the end of the move.
	undo := context.AfterFunc(ctx, func() { m.table.lapse(0, true) })
	helped, stop := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	helpers.Go(func() { m.watch(helped) })
	if m.journal != nil {
		helpers.Go(func() { m.checkpoints(helped) })
	}
	err := m.await(ctx, func() error { begun(); return nil })
	var wait func()
	if err == nil {
		wait, err = m.reach(ctx)
	}
	undo()
	stop()
	helpers.Wait()
	m.fail(err) // no other error from here on
	if err != nil {
		m.table.lapse(0, true)
		wait, err = m.giveUp(err)
	}
	m.end(wait, err)
}

// await returns what fn does, or earlier when ctx ends.
func (m *move) await(ctx context.Context, fn func() error) error {
	done := make(chan error, 1)
	m.copies.Go(func() { done <- fn() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// reach copies and switches. It returns a function that waits for requests from
// before the switch.
func (m *move) reach(ctx context.Context) (wait func(), err error) {
	limit := m.cfg.MaxPause
	for try := 1; ; try++ {
		if err := m.copyAll(ctx); err != nil {
			return nil, err
		}
		m.setPhase(InStep)
		held, err := m.hold(ctx)
		if err != nil {
			return nil, err
		}
		if !held {
			m.setPhase(Copying)
			continue
		}
		m.setPhase(Switching)
		wait, err := m.switchOver(ctx, limit)
		if wait != nil || err != nil {
			return wait, err
		}
		m.setPhase(Copying)
		m.progress()
		// A guest that is busy enough to be in the way deserves a rest.
		if err := sleep(ctx, min(time.Duration(try)*20*time.Millisecond, time.Second)); err != nil {
			return nil, err
		}
		if try%4 == 0 {
			limit *= 2
		}
	}
}

// hold waits until the switch may be made. It returns false if there is
// something to copy again.
func (m *move) hold(ctx context.Context) (bool, error) {
	if !m.cfg.Hold {
		return true, nil
	}
	t := time.NewTicker(paceTick)
	defer t.Stop()
	for {
		select {
		case <-m.finish:
			return true, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-t.C:
		}
		m.progress()
		if _, dirty := m.table.still(); dirty > 0 {
			return false, nil
		}
	}
}

// giveUp returns to the source, or leaves everything for a later resumption.
func (m *move) giveUp(err error) (wait func(), _ error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrCanceled, err)
	}
	wait = func() {}
	switch {
	case m.dead() != nil:
	case errors.Is(err, ErrSuspended) && m.journal != nil:
		// Changes go on being noted until the backend is closed.
	default:
		if e := m.forget(); e != nil {
			if m.d.closed.Load() {
				break
			}
			err = errors.Join(err, m.abandon(e))
		}
		wait = m.leave(m.src)
	}
	return wait, fmt.Errorf("move disk %s to %s: %w", m.rec.Source, m.rec.Target, err)
}

// forget clears the journal. As long as that fails, changes whose regions are
// not marked must wait: if the journal came back after a crash, it would not
// know of them. They do not wait for ever.
func (m *move) forget() error {
	if m.journal == nil {
		return nil
	}
	patience := m.cfg.Patience
	if patience == 0 {
		patience = defaultPatience
	}
	until := time.Now().Add(patience)
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := m.journal.Clear()
		if err == nil || time.Now().After(until) || m.d.closed.Load() {
			return err
		}
		time.Sleep(wait)
	}
}

// leave makes s alone serve the disk, and sends there what has waited. It
// returns a function that waits for requests from before.
func (m *move) leave(s side) (wait func()) {
	m.d.mu.Lock()
	wait = m.d.replace(newMode(s, nil))
	m.d.move = nil
	m.d.mu.Unlock()
	m.table.close()
	return wait
}

// end waits until nothing uses the side that was left, and tells whoever waits.
func (m *move) end(wait func(), err error) {
	close(m.decided)
	wait()
	m.copies.Wait()
	for m.table.mirroring() {
		time.Sleep(tick / 5)
	}
	close(m.quit)
	m.workers.Wait()
	if !errors.Is(err, ErrSuspended) {
		m.halt()
	}
	m.err = err
	if m.setPhase(Moved); err != nil {
		m.setPhase(Failed)
	}
	close(m.ended)
}

// halt ends the marker. Changes that start later are not marked.
func (m *move) halt() {
	if m.table.marks == nil {
		return
	}
	m.once.Do(func() { close(m.stop) })
	m.stopped.Wait()
	m.table.mu.Lock()
	m.table.marks.off = true
	m.table.admitAll()
	m.table.mu.Unlock()
}

// watch looks for late targets, adapts the copier, and gives up on a move that
// stands still.
func (m *move) watch(ctx context.Context) {
	ticks := int((m.cfg.Lag + tick - 1) / tick)
	if m.cfg.CapWrites {
		ticks = 0
	}
	m.progress()
	t := time.NewTicker(tick)
	defer t.Stop()
	for n := 1; ; n++ {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		m.table.lapse(ticks, false)
		if n%int(paceTick/tick) != 0 {
			continue
		}
		m.pace.tick()
		m.sample()
		if idle := time.Since(time.Unix(0, m.moved.Load())); idle > m.cfg.Patience {
			err := ErrStalled
			if last := m.lastErr.Load(); last != nil {
				err = fmt.Errorf("%w for %v: %w", err, idle.Round(time.Millisecond), *last)
			}
			m.fail(err)
			return
		}
	}
}

// checkpoints takes back marks in the journal that are no longer needed.
func (m *move) checkpoints(ctx context.Context) {
	every := m.cfg.Checkpoint
	for sleep(ctx, every) == nil {
		t := &m.table
		t.mu.Lock()
		commits := t.marks.commits
		t.marks.commits = 0
		t.mu.Unlock()
		// Marks that are set again at once cost the guest more than copying
		// a little more after a crash.
		if commits > 10 && time.Duration(commits)*50*time.Millisecond > every {
			every = min(2*every, 32*m.cfg.Checkpoint)
			continue
		}
		every = max(every/2, m.cfg.Checkpoint)
		if err := m.checkpoint(ctx); err != nil {
			m.fail(err)
			return
		}
	}
}

func (m *move) checkpoint(ctx context.Context) error {
	if !m.table.stay(m.size) {
		return nil
	}
	// What is not durable on either side could differ after a power cut.
	if err := m.d.Flush(); err != nil {
		return err
	}
	if err := m.await(ctx, m.dst.Flush); err != nil {
		return err
	}
	return m.unmark()
}

// dead is why changes are refused, if they are.
func (m *move) dead() error {
	if e := m.doomed.Load(); e != nil {
		return *e
	}
	return nil
}

// suspend ends the move for the disk's Close, and returns when it is known
// where the disk stays.
func (m *move) suspend() {
	if m.cancel.Load() != nil {
		m.fail(ErrSuspended)
		<-m.decided
	}
}
