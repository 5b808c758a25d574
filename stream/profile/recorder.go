package profile

import (
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

// pageSize is the unit in which a Recorder remembers touches. Chunks are cut
// at multiples of it.
const pageSize = 4096

// A Layout says which chunk of an image holds the byte at off: its hash and the
// offset of its end, past off. Zero means that the bytes up to end are zeroes
// that no chunk holds.
type Layout func(off int64) (hash [32]byte, end int64, zero bool, err error)

// Recorder is a [disk.Backend] that passes everything on to another and
// remembers which pages were read first when. It costs a few bits of memory a
// page, and a lock that is held for a moment.
//
// Pages that a guest overwrites before it has read them are not remembered:
// nobody has to fetch them. Close does not close the disk below.
type Recorder struct {
	disk.Backend
	start time.Time
	now   func() time.Duration

	mu      sync.Mutex
	phase   string
	known   map[int64]*segment // by page number / segPages
	touches []touch
}

const segPages = 1 << 15

type segment [segPages / 64]uint64

// touch is a run of pages touched for the first time.
type touch struct {
	page, n int64
	at      time.Duration
	phase   string
}

// NewRecorder returns a Recorder over b. Its clock starts now, in the phase
// "boot".
func NewRecorder(b disk.Backend) *Recorder {
	r := &Recorder{Backend: b, start: time.Now(), phase: "boot", known: map[int64]*segment{}}
	r.now = func() time.Duration { return time.Since(r.start) }
	return r
}

// Restart sets the clock back to zero: what was touched keeps its order, at
// time zero. It is for a guest that starts later than its disk is opened.
func (r *Recorder) Restart() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.start = time.Now()
	for i := range r.touches {
		r.touches[i].at = 0
	}
}

// Mark begins a phase, such as "service". See [CheckPhase] for names.
func (r *Recorder) Mark(phase string) error {
	if err := CheckPhase(phase); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.phase = phase
	return nil
}

// ReadAt implements io.ReaderAt.
func (r *Recorder) ReadAt(p []byte, off int64) (int, error) {
	r.read(off, int64(len(p)))
	return r.Backend.ReadAt(p, off)
}

// ReadVAt implements [disk.Vectored].
func (r *Recorder) ReadVAt(bufs [][]byte, off int64) (int, error) {
	r.read(off, lengths(bufs))
	return disk.ReadV(r.Backend, bufs, off)
}

// WriteAt implements io.WriterAt.
func (r *Recorder) WriteAt(p []byte, off int64) (int, error) {
	n, err := r.Backend.WriteAt(p, off)
	if err == nil {
		r.overwritten(off, int64(n))
	}
	return n, err
}

// WriteVAt implements [disk.Vectored].
func (r *Recorder) WriteVAt(bufs [][]byte, off int64) (int, error) {
	n, err := disk.WriteV(r.Backend, bufs, off)
	if err == nil {
		r.overwritten(off, int64(n))
	}
	return n, err
}

// WriteZeroes implements [disk.Backend].
func (r *Recorder) WriteZeroes(off, n int64, mayUnmap bool) error {
	err := r.Backend.WriteZeroes(off, n, mayUnmap)
	if err == nil {
		r.overwritten(off, n)
	}
	return err
}

// Close implements [disk.Backend]. The disk below stays open.
func (r *Recorder) Close() error { return nil }

func lengths(bufs [][]byte) (n int64) {
	for _, p := range bufs {
		n += int64(len(p))
	}
	return n
}

// read notes a read, at the time at which it was asked for.
func (r *Recorder) read(off, n int64) {
	if size := r.Size(); off < 0 || off >= size {
		return
	} else {
		n = min(n, size-off)
	}
	if n <= 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.now()
	for page := off / pageSize; page <= (off+n-1)/pageSize; page++ {
		if !r.note(page) {
			continue
		}
		if k := len(r.touches); k > 0 {
			if l := &r.touches[k-1]; l.page+l.n == page && l.at == at && l.phase == r.phase {
				l.n++
				continue
			}
		}
		r.touches = append(r.touches, touch{page, 1, at, r.phase})
	}
}

// overwritten notes that the old content of whole pages is gone.
func (r *Recorder) overwritten(off, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for page := (off + pageSize - 1) / pageSize; page < (off+n)/pageSize; page++ {
		r.note(page)
	}
}

// note marks a page and reports whether it was unmarked.
func (r *Recorder) note(page int64) bool {
	s := r.known[page/segPages]
	if s == nil {
		s = new(segment)
		r.known[page/segPages] = s
	}
	w, bit := &s[page%segPages/64], uint64(1)<<(page%64)
	if *w&bit != 0 {
		return false
	}
	*w |= bit
	return true
}

// Profile returns what was recorded so far, a profile of one run. The layout
// is that of the image that was on the disk before the guest wrote to it.
func (r *Recorder) Profile(layout Layout) (*Profile, error) {
	r.mu.Lock()
	touches := r.touches[:len(r.touches):len(r.touches)]
	r.mu.Unlock()
	p := &Profile{Runs: 1}
	seen := make(map[[32]byte]struct{})
	for _, t := range touches {
		for off, end := t.page*pageSize, min((t.page+t.n)*pageSize, r.Size()); off < end; {
			hash, next, zero, err := layout(off)
			if err != nil {
				return nil, fmt.Errorf("profile: layout at offset %d: %w", off, err)
			}
			if next <= off {
				return nil, fmt.Errorf("profile: layout at offset %d: the chunk ends at %d", off, next)
			}
			if _, ok := seen[hash]; !ok && !zero {
				seen[hash] = struct{}{}
				at := min(t.at, MaxTime).Truncate(time.Microsecond)
				p.Entries = append(p.Entries, Entry{Hash: hash, At: max(at, 0), Seen: 1, Phase: t.phase})
			}
			if next > math.MaxInt64-pageSize {
				break
			}
			off = next
		}
	}
	p.sort()
	return p, p.Check()
}
