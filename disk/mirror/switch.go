package mirror

import (
	"context"
	"fmt"
	"time"
)

// switchOver holds up changes, makes the target what counts, and lets them go
// on there. It returns a function that waits for requests from before, or nil
// if holding up would have taken more than limit.
func (m *move) switchOver(ctx context.Context, limit time.Duration) (wait func(), err error) {
	// First whatever can be done without holding anything up: most of the
	// flush, and a trial of the journal.
	if err := m.await(ctx, m.dst.Flush); err != nil {
		return nil, fmt.Errorf("flush the target: %w", err)
	}
	if m.journal != nil {
		if err := m.journal.again(); err != nil {
			return nil, fmt.Errorf("before the switch: %w", err)
		}
	}
	t := &m.table
	t.pause()
	start := time.Now()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	changes, dirty := t.still()
	for changes > 0 {
		select {
		case <-t.quiet:
		case <-timer.C:
			t.resume()
			return nil, nil
		case <-ctx.Done():
			t.resume()
			return nil, context.Cause(ctx)
		}
		changes, dirty = t.still()
	}
	if dirty > 4*copyRest || dirty > 0 && !m.copyLast(start.Add(limit)) {
		t.resume()
		return nil, nil
	}
	flushed := make(chan error, 1)
	m.copies.Go(func() { flushed <- m.dst.Flush() })
	select {
	case err := <-flushed:
		if err != nil {
			t.resume()
			return nil, fmt.Errorf("flush the target: %w", err)
		}
	case <-timer.C:
		t.resume()
		select {
		case err := <-flushed:
			if err != nil {
				return nil, fmt.Errorf("flush the target: %w", err)
			}
			return nil, nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	case <-ctx.Done():
		t.resume()
		return nil, context.Cause(ctx)
	}
	if m.journal != nil {
		if err := m.journal.moved(); err != nil {
			return nil, m.undecided(ctx, err)
		}
	}
	wait = m.leave(m.dst)
	m.pause.Store(int64(time.Since(start)))
	if m.journal != nil {
		// If this fails, the first copy of the record stands alone until
		// the journal is used again.
		_ = m.journal.settle()
	}
	return wait, nil
}

// undecided deals with a journal that failed while the switch was recorded: a
// crash might find either side to count, so that neither may be changed until
// a newer record says that it is the source. It returns the move's error.
func (m *move) undecided(ctx context.Context, err error) error {
	err = fmt.Errorf("record the switch: %w", err)
	for wait, until := 10*time.Millisecond, time.Now().Add(m.cfg.Patience); ; wait = min(2*wait, time.Second) {
		if m.journal.again() == nil {
			m.table.resume()
			return err
		}
		if time.Now().After(until) || sleep(ctx, wait) != nil {
			break
		}
	}
	err = fmt.Errorf("%w: nobody can tell which side counts, so that changes are refused: %w", ErrJournal, err)
	refusal := m.d.refuse("change", 0, 0, err)
	m.doomed.Store(&refusal)
	m.table.close()
	return err
}
