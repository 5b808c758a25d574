package mirror

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/disk"
)

// noteKey is of the note on a source that names a move which was given up while
// its journal could not be cleared. The journal may come back, and knows nothing
// of what has changed since.
const noteKey = "mirror.abandoned"

// abandon notes on the source that the journal's move does not count any more.
// It returns what to tell of the journal, which could not be cleared because of
// err.
func (m *move) abandon(err error) error {
	n, ok := m.src.Backend.(disk.Noter)
	e := fmt.Errorf("disk %s keeps no notes: %w", m.src.Info().Name, errors.ErrUnsupported)
	if ok {
		e = n.SetNote(noteKey, binary.LittleEndian.AppendUint64(nil, m.rec.move))
	}
	if e != nil {
		return fmt.Errorf("%w: it still holds the move and must not be used: %w; %w", ErrJournal, err, e)
	}
	return fmt.Errorf("%w: it still holds the move, which the source says does not count: %w", ErrJournal, err)
}

// abandoned reports whether the source b says that a move does not count.
func abandoned(b disk.Backend, move uint64) (bool, error) {
	n, ok := b.(disk.Noter)
	if !ok {
		return false, nil
	}
	p, err := n.Note(noteKey)
	return len(p) == 8 && binary.LittleEndian.Uint64(p) == move, err
}
