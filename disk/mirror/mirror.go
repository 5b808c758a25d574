package mirror

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/buffers"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrMoving is wrapped by the error for what cannot be done while the
	// disk moves.
	ErrMoving = errors.New("the disk is being moved")
	// ErrCanceled is wrapped by the error of a move that was cancelled.
	ErrCanceled = errors.New("the move was cancelled")
	// ErrSuspended is wrapped by the error of a move that the Disk's Close
	// ended. With a journal it can be resumed.
	ErrSuspended = errors.New("the move was suspended")
	// ErrStalled is wrapped by the error of a move that was given up because
	// nothing could be copied for too long.
	ErrStalled = errors.New("the move made no progress")
	// ErrWrongSide is wrapped by the error for a backend that is not the
	// side that counts, as the journal has it.
	ErrWrongSide = errors.New("not the disk that the journal says is current")
	// ErrJournal is wrapped by the error for a journal that is damaged or
	// cannot be used.
	ErrJournal = errors.New("unusable journal")
)

// Disk is a disk that can be moved. It implements [disk.Backend],
// [disk.Vectored], [disk.Immediate], [disk.Mapper] and [disk.Resizer], each as
// far as the backend in use does. Info stays what it was in New, wherever the
// disk moves.
//
// The Disk owns the backend in use: Close closes it. A target belongs to the
// caller until a move has succeeded, and the source from then on.
//
// A disk cannot be resized while it moves: Resize then returns an error
// wrapping ErrMoving.
type Disk struct {
	info    disk.Info
	journal *Journal
	mode    atomic.Pointer[mode]

	// mu keeps Start, Resize and Close apart; a change of mode holds it.
	mu     sync.Mutex
	move   *move // under way, or nil
	closed atomic.Bool

	// lost is the first failure of a flush during a move. A disk that has lost
	// writes says so for good, as Backend demands, wherever it is.
	lost atomic.Pointer[error]
}

var _ interface {
	disk.Backend
	disk.Vectored
	disk.Immediate
	disk.Mapper
	disk.Resizer
} = (*Disk)(nil)

// side is one end of a move, with the optional interfaces that it has.
type side struct {
	disk.Backend
	imm    disk.Immediate
	mapper disk.Mapper
}

func newSide(b disk.Backend) side {
	s := side{Backend: b}
	s.imm, _ = b.(disk.Immediate)
	s.mapper, _ = b.(disk.Mapper)
	return s
}

// mode is how requests are served until the next change of mode. Each request
// stays within the mode in which it began.
type mode struct {
	side        // serves reads and flushes, and with move nil everything
	move  *move // takes changes, if not nil
	n     atomic.Int64
	old   atomic.Bool   // replaced: whoever brings n to 0 says so
	empty chan struct{} // one slot
}

func newMode(s side, m *move) *mode {
	return &mode{side: s, move: m, empty: make(chan struct{}, 1)}
}

// enter begins a request. Its mode stays in use until leave.
func (d *Disk) enter() *mode {
	for {
		m := d.mode.Load()
		m.n.Add(1)
		// Either this sees that m was replaced, or replace sees n.
		if d.mode.Load() == m {
			return m
		}
		m.leave()
	}
}

func (m *mode) leave() {
	if m.n.Add(-1) == 0 && m.old.Load() {
		select {
		case m.empty <- struct{}{}:
		default:
		}
	}
}

// replace makes next the mode of new requests. The function that it returns
// waits for those of the old one.
func (d *Disk) replace(next *mode) (wait func()) {
	m := d.mode.Swap(next)
	m.old.Store(true)
	return func() {
		for m.n.Load() != 0 {
			<-m.empty
		}
	}
}

// New returns a Disk over b, which it owns from then on unless there is an
// error. The journal may be nil: then a move that a crash interrupts must start
// anew, and what a crash after it finds is the caller's to know.
//
// If the journal holds an unfinished move, b must be its source, by name and
// size, and if it holds a finished one, its target; otherwise the error wraps
// ErrWrongSide. A journal serves one Disk at a time. A move that was given up
// while the journal could not be cleared does not count if b is a [disk.Noter],
// which then says so.
func New(b disk.Backend, j *Journal) (*Disk, error) {
	d := &Disk{info: b.Info(), journal: j}
	s := newSide(b)
	d.mode.Store(newMode(s, nil))
	if j == nil {
		return d, nil
	}
	r, ok := j.Record()
	if !ok {
		return d, nil
	}
	if name := b.Info().Name; name != r.Current() {
		return nil, fmt.Errorf("disk %s: %w: journal %s names %s", name, ErrWrongSide, j.name(), r.Current())
	}
	if r.Moved {
		return d, nil
	}
	if b.Size() != r.Size {
		return nil, fmt.Errorf("disk %s: %w: it has %d bytes, journal %s says %d",
			b.Info().Name, ErrWrongSide, b.Size(), j.name(), r.Size)
	}
	gone, err := abandoned(b, j.rec.move)
	if err == nil && gone {
		err = j.Clear()
	}
	if err != nil {
		return nil, err
	}
	if gone {
		return d, nil
	}
	m, err := newTracker(d, s)
	if err != nil {
		return nil, err
	}
	d.move = m
	d.mode.Store(newMode(s, m))
	return d, nil
}

// Size is the number of bytes.
func (d *Disk) Size() int64 { return d.mode.Load().Size() }

// Info describes the disk as it was in New.
func (d *Disk) Info() disk.Info { return d.info }

// Current returns the backend in use.
func (d *Disk) Current() disk.Backend { return d.mode.Load().Backend }

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	m := d.enter()
	start := m.move.clock()
	n, err := m.ReadAt(p, off)
	m.move.observe(latRead, start, len(p), err)
	m.leave()
	return n, d.named(err)
}

// ReadVAt implements [disk.Vectored].
func (d *Disk) ReadVAt(bufs [][]byte, off int64) (int, error) {
	m := d.enter()
	start := m.move.clock()
	n, err := disk.ReadV(m.Backend, bufs, off)
	m.move.observe(latRead, start, n, err)
	m.leave()
	return n, d.named(err)
}

// TryReadVAt implements [disk.Immediate].
func (d *Disk) TryReadVAt(bufs [][]byte, off int64) (int, error) {
	m := d.enter()
	n, err := 0, disk.ErrWouldBlock
	if m.imm != nil {
		n, err = m.imm.TryReadVAt(bufs, off)
	}
	m.leave()
	return n, d.named(err)
}

// TryWriteVAt implements [disk.Immediate]. While the disk moves, every write
// would block.
func (d *Disk) TryWriteVAt(bufs [][]byte, off int64) (int, error) {
	if d.info.ReadOnly {
		return 0, disk.ErrWouldBlock // the other methods say why not
	}
	m := d.enter()
	n, err := 0, disk.ErrWouldBlock
	if m.imm != nil && m.move == nil {
		n, err = m.imm.TryWriteVAt(bufs, off)
	}
	m.leave()
	return n, d.named(err)
}

// WriteAt implements io.WriterAt.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	m := d.enter()
	if m.move != nil || d.info.ReadOnly {
		m.leave()
		return d.WriteVAt([][]byte{p}, off)
	}
	n, err := m.WriteAt(p, off)
	m.leave()
	return n, d.named(err)
}

// WriteVAt implements [disk.Vectored].
func (d *Disk) WriteVAt(bufs [][]byte, off int64) (n int, err error) {
	if d.info.ReadOnly {
		return 0, d.refuse("write", off, buffers.Len(bufs), disk.ErrReadOnly)
	}
	for again := true; again; {
		m := d.enter()
		var k int
		switch {
		case m.move != nil:
			k, again, err = m.move.writeFrom(bufs, off, n)
		case n > 0: // switched in the middle of a long write
			k, err = disk.WriteV(m.Backend, after(bufs, n), off+int64(n))
			again = false
		default:
			k, err = disk.WriteV(m.Backend, bufs, off)
			again = false
		}
		n += k
		m.leave()
	}
	return n, d.named(err)
}

// Discard implements [disk.Backend].
func (d *Disk) Discard(off, n int64) error {
	return d.change("discard", off, n, func(s side, off, n int64) error { return s.Discard(off, n) },
		func(m *move, off, n int64) (bool, error) { return m.discard(off, n) })
}

// WriteZeroes implements [disk.Backend].
func (d *Disk) WriteZeroes(off, n int64, mayUnmap bool) error {
	return d.change("write zeroes", off, n,
		func(s side, off, n int64) error { return s.WriteZeroes(off, n, mayUnmap) },
		func(m *move, off, n int64) (bool, error) { return m.zero(off, n, mayUnmap) })
}

func (d *Disk) change(op string, off, n int64, idle func(side, int64, int64) error,
	moving func(*move, int64, int64) (bool, error)) (err error) {
	if d.info.ReadOnly {
		return d.refuse(op, off, n, disk.ErrReadOnly)
	}
	for again := true; again; {
		m := d.enter()
		switch {
		case m.move == nil:
			err, again = idle(m.side, off, n), false
		case !inside(off, n, m.Size()):
			err, again = d.refuse(op, off, n, outside(m.Size())), false
		default:
			again, err = moving(m.move, off, n)
		}
		m.leave()
	}
	return d.named(err)
}

// Flush implements [disk.Backend]. It makes changes durable on the side that
// counts.
func (d *Disk) Flush() error {
	if err := d.lost.Load(); err != nil {
		return *err
	}
	m := d.enter()
	err := d.named(m.Backend.Flush())
	if err != nil && m.move != nil && !errors.Is(err, os.ErrClosed) {
		lost := err
		d.lost.CompareAndSwap(nil, &lost)
		m.move.fail(err)
	}
	m.leave()
	return err
}

// Extent implements [disk.Mapper]. A backend that is no Mapper has data
// everywhere.
func (d *Disk) Extent(off int64) (disk.Extent, error) {
	m := d.enter()
	defer m.leave()
	if m.mapper != nil {
		e, err := m.mapper.Extent(off)
		return e, d.named(err)
	}
	size := m.Size()
	switch {
	case d.closed.Load():
		return disk.Extent{}, d.refuse("map", off, 1, os.ErrClosed)
	case !inside(off, 1, size):
		return disk.Extent{}, d.refuse("map", off, 1, outside(size))
	}
	return disk.Extent{Off: off, Len: size - off, Allocated: true}, nil
}

// Resize implements [disk.Resizer], if the backend in use does.
func (d *Disk) Resize(size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.mode.Load()
	r, ok := m.Backend.(disk.Resizer)
	switch {
	case d.closed.Load():
		return d.refuse("resize", 0, size, os.ErrClosed)
	case d.info.ReadOnly:
		return d.refuse("resize", 0, size, disk.ErrReadOnly)
	case m.move != nil:
		return d.refuse("resize", 0, size, ErrMoving)
	case !ok:
		return d.refuse("resize", 0, size, errors.ErrUnsupported)
	}
	return d.named(r.Resize(size))
}

// Close suspends a move that is under way and closes the backend in use. The
// journal then says where to go on; it stays open, as does the target.
func (d *Disk) Close() error {
	d.mu.Lock()
	if d.closed.Swap(true) {
		d.mu.Unlock()
		return nil
	}
	m := d.move
	d.mu.Unlock()
	if m != nil {
		m.suspend()
	}
	err := d.named(d.mode.Load().Close())
	if m != nil {
		m.halt()
	}
	return err
}

// named makes err one of this disk, whichever backend it comes from.
func (d *Disk) named(err error) error {
	if err == nil || err == io.EOF || err == disk.ErrWouldBlock {
		return err
	}
	e, ok := errors.AsType[*disk.Error](err)
	if ok && e.Name == d.info.Name {
		return err
	}
	n := &disk.Error{Op: "request", Name: d.info.Name, Err: err}
	if ok {
		n.Op, n.Off, n.Len = e.Op, e.Off, e.Len
	}
	return n
}

func (d *Disk) refuse(op string, off, n int64, err error) error {
	return &disk.Error{Op: op, Name: d.info.Name, Off: off, Len: n, Err: err}
}

func outside(size int64) error { return fmt.Errorf("%w: size is %d", disk.ErrRange, size) }

// inside reports whether n bytes at off lie within size.
func inside(off, n, size int64) bool { return off >= 0 && n >= 0 && n <= size && off <= size-n }

// after returns what follows the first n bytes of bufs.
func after(bufs [][]byte, n int) (rest [][]byte) {
	for _, p := range bufs {
		k := min(n, len(p))
		n -= k
		rest = append(rest, p[k:])
	}
	return rest
}
