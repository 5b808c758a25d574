package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/mirror"
)

func memory(t testing.TB, name string, size int64) *disk.Memory {
	m, err := disk.NewMemory(name, size)
	require.NoError(t, err)
	return m
}

func journal(t testing.TB) *mirror.Journal {
	j, err := mirror.OpenJournal(memory(t, "journal", mirror.JournalSize))
	require.NoError(t, err)
	return j
}

// content is all of a disk.
func content(t testing.TB, b disk.Backend) []byte {
	p := make([]byte, b.Size())
	_, err := b.ReadAt(p, 0)
	require.NoError(t, err)
	return p
}

// same compares two disks.
func same(t testing.TB, want, got []byte, msg ...any) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	i := 0
	for want[i] == got[i] {
		i++
	}
	require.Fail(t, fmt.Sprintf("content differs first at %d (granule %d): want %#x, got %#x", i, i>>16, want[i], got[i]), msg...)
}

func TestConformanceIdle(t *testing.T) {
	open := func(t *testing.T, name string, cfg disk.FileConfig) disk.Backend {
		f, err := disk.Open(name, cfg)
		require.NoError(t, err)
		d, err := mirror.New(f, nil)
		require.NoError(t, err)
		return d
	}
	disktest.Run(t, disktest.Maker{
		New: func(t *testing.T, size int64) disk.Backend {
			f, err := disk.Create(filepath.Join(t.TempDir(), "image"), size, disk.FileConfig{})
			require.NoError(t, err)
			d, err := mirror.New(f, nil)
			require.NoError(t, err)
			return d
		},
		Reopen: func(t *testing.T, b disk.Backend) disk.Backend {
			require.NoError(t, b.Close())
			return open(t, b.Info().Name, disk.FileConfig{})
		},
		ReadOnly: func(t *testing.T, b disk.Backend) disk.Backend {
			require.NoError(t, b.Close())
			return open(t, b.Info().Name, disk.FileConfig{ReadOnly: true})
		},
	})
}

// whileMoving is a Disk without Resize, which it refuses while it moves.
type whileMoving struct {
	disk.Backend
	disk.Vectored
	disk.Immediate
	disk.Mapper
}

// During a move, while the copier is at it and when it has caught up, and after
// one, a disk is like any other.
func TestConformanceMoving(t *testing.T) {
	for _, c := range []struct {
		name    string
		cfg     mirror.Config
		inStep  bool
		moved   bool
		journal bool
	}{
		{name: "copying", cfg: mirror.Config{Hold: true, Rate: 1 << 20}, journal: true},
		{name: "in step", cfg: mirror.Config{Hold: true}, inStep: true, journal: true},
		{name: "switching", cfg: mirror.Config{}},
		{name: "moved", moved: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			disktest.Run(t, disktest.Maker{New: func(t *testing.T, size int64) disk.Backend {
				var j *mirror.Journal
				if c.journal {
					j = journal(t)
				}
				d, err := mirror.New(memory(t, "a", size), j)
				require.NoError(t, err)
				m, err := d.Start(context.Background(), memory(t, "b", size), c.cfg)
				require.NoError(t, err)
				if c.inStep {
					require.Eventually(t, func() bool { return m.Progress().Phase == mirror.InStep }, time.Minute, time.Millisecond)
				}
				if c.moved {
					require.NoError(t, m.Wait(t.Context()))
					return d
				}
				return whileMoving{d, d, d, d}
			}})
		})
	}
}

// tester drives random requests of several writers that overlap each other, and
// knows at the end what may be where: each writer has a stripe of its own, and
// all share one where only source and target are compared.
type tester struct {
	d     disk.Backend
	size  int64
	model []byte
	stop  atomic.Bool
	slow  atomic.Bool // leave the copier some time
	wg    sync.WaitGroup
	errs  chan error
	n     atomic.Int64
}

const (
	writers   = 4
	stripe    = 1<<20 + 512
	sharedLen = 256 << 10
	testSize  = writers*stripe + sharedLen
)

func newTester(d disk.Backend) *tester {
	w := &tester{d: d, size: testSize, model: make([]byte, writers*stripe), errs: make(chan error, writers)}
	return w
}

func (w *tester) start(seed uint64) {
	for i := range writers {
		w.wg.Go(func() {
			if err := w.write(i, rand.New(rand.NewPCG(seed, uint64(i)))); err != nil {
				w.errs <- err
			}
		})
	}
}

func (w *tester) write(i int, r *rand.Rand) error {
	base, model := int64(i*stripe), w.model[i*stripe:][:stripe]
	for !w.stop.Load() {
		w.n.Add(1)
		if w.slow.Load() {
			time.Sleep(10 * time.Millisecond)
		}
		if r.IntN(4) == 0 {
			// Overlapping the others, whose order nobody knows.
			off := int64(writers*stripe) + r.Int64N(sharedLen)
			p := make([]byte, 1+r.Int64N(min(testSize-off, 20000)))
			disktest.Fill(r, p)
			var err error
			switch r.IntN(5) {
			case 0:
				err = w.d.WriteZeroes(off, int64(len(p)), true)
			case 1:
				err = w.d.Discard(off, int64(len(p)))
			default:
				_, err = w.d.WriteAt(p, off)
			}
			if err != nil {
				return err
			}
			continue
		}
		off := r.Int64N(stripe)
		p := make([]byte, 1+r.Int64N(min(stripe-off, 100000)))
		if r.IntN(2) == 0 {
			off &^= 511
			p = p[:min(len(p), 4096)]
		}
		var err error
		switch r.IntN(8) {
		case 0:
			err = w.d.WriteZeroes(base+off, int64(len(p)), r.IntN(2) == 0)
			clear(model[off:][:len(p)])
		case 1:
			before := bytes.Clone(model[off:][:len(p)])
			if err = w.d.Discard(base+off, int64(len(p))); err == nil {
				_, err = w.d.ReadAt(p, base+off)
				for k := range p {
					if err == nil && p[k] != 0 && p[k] != before[k] {
						err = fmt.Errorf("byte %d reads %#x after a discard; it was %#x", base+off+int64(k), p[k], before[k])
					}
				}
				copy(model[off:], p)
			}
		case 2:
			err = w.d.Flush()
		case 3, 4:
			_, err = w.d.ReadAt(p, base+off)
			if err == nil && !bytes.Equal(p, model[off:][:len(p)]) {
				err = fmt.Errorf("wrong data in %d bytes at %d", len(p), base+off)
			}
		default:
			disktest.Fill(r, p)
			cut := r.IntN(len(p) + 1)
			_, err = disk.WriteV(w.d, [][]byte{p[:cut], p[cut:]}, base+off)
			copy(model[off:], p)
			// The buffer is the writer's again.
			clear(p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// finish stops the writers, and compares what they know with b.
func (w *tester) finish(t testing.TB, bs ...disk.Backend) {
	t.Helper()
	w.stop.Store(true)
	w.wg.Wait()
	select {
	case err := <-w.errs:
		require.NoError(t, err)
	default:
	}
	var all []byte
	for _, b := range bs {
		p := content(t, b)
		same(t, w.model, p[:len(w.model)], b.Info().Name)
		if all != nil {
			same(t, all, p, "the shared stripe")
		}
		all = p
	}
}

// Writers that overlap each other go on while the disk moves to and fro; at
// each switch both sides are the same, and the model agrees.
func TestModel(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			a := &fault{Backend: memory(t, "a", testSize)}
			d, err := mirror.New(a, journal(t))
			require.NoError(t, err)
			w := newTester(d)
			w.start(seed)
			r := rand.New(rand.NewPCG(seed, 99))
			var now disk.Backend = a
			for range 6 {
				b := &fault{Backend: memory(t, "b", testSize), name: fmt.Sprint("b", r.Uint64())}
				b.odds.Store(int64(r.IntN(3) * 20))
				// The target is not blank.
				junk := make([]byte, testSize)
				disktest.Fill(r, junk)
				_, err := b.Backend.WriteAt(junk, 0)
				require.NoError(t, err)
				capped := r.IntN(2) == 0
				m, err := d.Start(t.Context(), b, mirror.Config{
					Hold: true, CapWrites: capped, Lag: time.Duration(1 + r.IntN(2)*10_000_000),
					Checkpoint: 20 * time.Millisecond,
				})
				require.NoError(t, err)
				time.Sleep(time.Duration(r.IntN(50)) * time.Millisecond)
				if r.IntN(3) == 0 {
					m.Cancel()
					require.ErrorIs(t, m.Wait(t.Context()), mirror.ErrCanceled)
					require.Equal(t, now, d.Current())
					continue
				}
				b.odds.Store(0)
				m.Finish()
				w.slow.Store(!capped)
				require.NoError(t, m.Wait(t.Context()))
				w.slow.Store(false)
				require.Equal(t, mirror.Moved, m.Progress().Phase)
				require.Zero(t, m.Progress().Left)
				now = b
				require.Equal(t, now, d.Current())
			}
			// In step, then still: both sides hold the same.
			b := memory(t, "last", testSize)
			m, err := d.Start(t.Context(), b, mirror.Config{Hold: true, CapWrites: true})
			require.NoError(t, err)
			require.Eventually(t, func() bool { return m.Progress().Phase == mirror.InStep }, time.Minute, time.Millisecond)
			w.stop.Store(true)
			w.wg.Wait()
			require.Eventually(t, func() bool { p := m.Progress(); return p.Left == 0 && p.Phase == mirror.InStep }, time.Minute, time.Millisecond)
			w.finish(t, d, now, b)
			m.Cancel()
			require.ErrorIs(t, m.Wait(t.Context()), mirror.ErrCanceled)
			require.Positive(t, w.n.Load())
		})
	}
}

var errFault = errors.New("injected")

// fault is a backend whose changes fail now and then, or from one on, or take
// their time.
type fault struct {
	disk.Backend
	name   string
	odds   atomic.Int64  // one in odds fails; 0: none
	n      atomic.Int64  // changes
	only   int64         // this one fails, if not 0
	from   int64         // all from this one fail, if not 0
	gate   chan struct{} // if not nil, changes wait until it is closed
	flush  atomic.Pointer[error]
	slow   time.Duration
	opened atomic.Bool
}

func (f *fault) Info() disk.Info {
	i := f.Backend.Info()
	if f.name != "" {
		i.Name = f.name
	}
	return i
}

func (f *fault) change() error {
	if f.gate != nil && !f.opened.Load() {
		<-f.gate
	}
	time.Sleep(f.slow)
	n := f.n.Add(1)
	if odds := f.odds.Load(); odds > 0 && n%odds == 0 || f.only == n || f.from > 0 && n >= f.from {
		return &disk.Error{Op: "write", Name: f.Info().Name, Err: errFault}
	}
	return nil
}

func (f *fault) WriteAt(p []byte, off int64) (int, error) {
	if err := f.change(); err != nil {
		// Some of it may have been written.
		_, _ = f.Backend.WriteAt(p[:len(p)/2], off)
		return 0, err
	}
	return f.Backend.WriteAt(p, off)
}

func (f *fault) WriteZeroes(off, n int64, mayUnmap bool) error {
	if err := f.change(); err != nil {
		return err
	}
	return f.Backend.WriteZeroes(off, n, mayUnmap)
}

func (f *fault) Flush() error {
	if e := f.flush.Load(); e != nil {
		return *e
	}
	return f.Backend.Flush()
}

// Whichever request on the target fails, the guest does not notice, and the
// move succeeds.
func TestTargetFails(t *testing.T) {
	const size = 2 << 20
	for only := int64(1); ; only++ {
		r := rand.New(rand.NewPCG(1, uint64(only)))
		a, b := memory(t, "a", size), &fault{Backend: memory(t, "b", size), only: only}
		want := make([]byte, size)
		disktest.Fill(r, want)
		_, err := a.WriteAt(want, 0)
		require.NoError(t, err)
		d, err := mirror.New(a, nil)
		require.NoError(t, err)
		m, err := d.Start(t.Context(), b, mirror.Config{Hold: true})
		require.NoError(t, err)
		for range 20 {
			off := r.Int64N(size - 5000)
			p := make([]byte, 5000)
			disktest.Fill(r, p)
			if r.IntN(5) == 0 {
				clear(p)
				require.NoError(t, d.WriteZeroes(off, 5000, true))
			} else {
				_, err := d.WriteAt(p, off)
				require.NoError(t, err)
			}
			copy(want[off:], p)
		}
		m.Finish()
		require.NoError(t, m.Wait(t.Context()))
		same(t, want, content(t, b.Backend))
		p := m.Progress()
		if b.n.Load() < only {
			require.Zero(t, p.Errors)
			require.Greater(t, only, int64(5))
			return
		}
		require.EqualValues(t, 1, p.Errors)
		require.ErrorIs(t, p.LastError, errFault)
	}
}

// A target that fails for good, or cannot flush, ends the move, and the source
// is in use as before.
func TestTargetDies(t *testing.T) {
	const size = 4 << 20
	flush := error(errFault)
	for name, b := range map[string]*fault{
		"writes": {from: 3},
		"flush":  {},
	} {
		t.Run(name, func(t *testing.T) {
			b.Backend = memory(t, "b", size)
			want := error(mirror.ErrStalled)
			if name == "flush" {
				b.flush.Store(&flush)
				want = errFault
			}
			a, j := memory(t, "a", size), journal(t)
			data := bytes.Repeat([]byte{5}, size)
			_, err := a.WriteAt(data, 0)
			require.NoError(t, err)
			d, err := mirror.New(a, j)
			require.NoError(t, err)
			m, err := d.Start(t.Context(), b, mirror.Config{Patience: 50 * time.Millisecond})
			require.NoError(t, err)
			err = m.Wait(t.Context())
			require.ErrorIs(t, err, want)
			require.ErrorIs(t, err, errFault)
			require.Equal(t, mirror.Failed, m.Progress().Phase)
			require.Equal(t, a, d.Current())
			_, ok := j.Record()
			require.False(t, ok)
			same(t, data, content(t, d))
			// It can be tried again.
			m, err = d.Start(t.Context(), memory(t, "c", size), mirror.Config{})
			require.NoError(t, err)
			require.NoError(t, m.Wait(t.Context()))
			same(t, data, content(t, d))
		})
	}
}

// A write waits for a target that hangs no longer than Lag, later ones not at
// all, and the guest's buffer is its own when a write returns.
func TestTargetHangs(t *testing.T) {
	const size = 1 << 20
	a, b := memory(t, "a", size), &fault{Backend: memory(t, "b", size)}
	d, err := mirror.New(a, journal(t))
	require.NoError(t, err)
	m, err := d.Start(t.Context(), b, mirror.Config{Hold: true, Lag: 5 * time.Millisecond})
	require.NoError(t, err)
	require.Eventually(t, func() bool { return m.Progress().Phase == mirror.InStep }, time.Minute, time.Millisecond)
	// Nothing is under way on the target: it may be changed.
	b.gate = make(chan struct{})
	p := bytes.Repeat([]byte{1}, 4096)
	for i := range 16 {
		for k := range p {
			p[k] = byte(i + 1)
		}
		_, err := d.WriteAt(p, int64(i)*65536)
		require.NoError(t, err)
		clear(p)
	}
	require.Positive(t, m.Progress().Left)
	require.NoError(t, d.Flush())
	b.opened.Store(true)
	close(b.gate)
	m.Finish()
	require.NoError(t, m.Wait(t.Context()))
	for i := range 16 {
		_, err := d.ReadAt(p, int64(i)*65536)
		require.NoError(t, err)
		require.Equal(t, bytes.Repeat([]byte{byte(i + 1)}, 4096), p)
	}
}

// Cancel lets no guest wait for a target that hangs.
func TestCancelHung(t *testing.T) {
	const size = 1 << 20
	a, b := memory(t, "a", size), &fault{Backend: memory(t, "b", size), gate: make(chan struct{})}
	_, err := a.WriteAt(bytes.Repeat([]byte{3}, size/2), 0)
	require.NoError(t, err)
	d, err := mirror.New(a, journal(t))
	require.NoError(t, err)
	m, err := d.Start(t.Context(), b, mirror.Config{CapWrites: true})
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := d.WriteAt(bytes.Repeat([]byte{7}, 70000), int64(i)*100000)
			require.NoError(t, err)
		})
	}
	m.Cancel()
	wg.Wait()
	require.NoError(t, d.Flush())
	b.opened.Store(true)
	close(b.gate)
	require.ErrorIs(t, m.Wait(t.Context()), mirror.ErrCanceled)
	require.Equal(t, a, d.Current())
}

func TestSparse(t *testing.T) {
	const size = 1 << 40
	a, b := memory(t, "a", size), memory(t, "b", size)
	r := rand.New(rand.NewPCG(1, 1))
	data := make([]byte, 1<<20)
	disktest.Fill(r, data)
	for _, off := range []int64{0, 5<<30 + 65536, size - 1<<20} {
		_, err := a.WriteAt(data, off)
		require.NoError(t, err)
	}
	// Zeroes that are written take space on the source, but not on the target.
	_, err := a.WriteAt(make([]byte, 1<<20), 10<<30)
	require.NoError(t, err)
	d, err := mirror.New(a, journal(t))
	require.NoError(t, err)
	m, err := d.Start(t.Context(), b, mirror.Config{})
	require.NoError(t, err)
	require.NoError(t, m.Wait(t.Context()))
	p := m.Progress()
	require.EqualValues(t, 3<<20, p.Copied)
	require.EqualValues(t, size, p.Copied+p.Zeroed)
	require.EqualValues(t, 3<<20, allocated(t, b))
	for _, off := range []int64{0, 5<<30 + 65536, size - 1<<20} {
		got := make([]byte, 1<<20)
		_, err := d.ReadAt(got, off)
		require.NoError(t, err)
		same(t, data, got)
	}
}

func allocated(t testing.TB, b disk.Backend) (n int64) {
	for off := int64(0); off < b.Size(); {
		e, err := b.(disk.Mapper).Extent(off)
		require.NoError(t, err)
		if e.Allocated {
			n += e.Len
		}
		off += e.Len
	}
	return n
}

func TestRefusals(t *testing.T) {
	const size = 1 << 20
	a, j := memory(t, "a", size), journal(t)
	d, err := mirror.New(a, j)
	require.NoError(t, err)
	name := filepath.Join(t.TempDir(), "ro")
	require.NoError(t, os.WriteFile(name, make([]byte, size), 0o600))
	ro, err := disk.Open(name, disk.FileConfig{ReadOnly: true})
	require.NoError(t, err)
	defer ro.Close()
	for _, c := range []struct {
		target disk.Backend
		cfg    mirror.Config
		want   string
	}{
		{memory(t, "b", size-512), mirror.Config{}, "has 1048064 bytes, want 1048576"},
		{a, mirror.Config{}, "there already"},
		{ro, mirror.Config{}, "read-only"},
		{memory(t, "b", size), mirror.Config{Lag: -1}, "Lag is negative"},
		{memory(t, "b", size), mirror.Config{Rate: -1}, "Rate is negative"},
		{&fault{Backend: memory(t, "b", size), name: string(make([]byte, 5000))}, mirror.Config{}, "name"},
	} {
		_, err := d.Start(t.Context(), c.target, c.cfg)
		require.ErrorContains(t, err, c.want)
	}
	m, err := d.Start(t.Context(), memory(t, "b", size), mirror.Config{Hold: true})
	require.NoError(t, err)
	_, err = d.Start(t.Context(), memory(t, "c", size), mirror.Config{})
	require.ErrorIs(t, err, mirror.ErrMoving)
	require.ErrorIs(t, d.Resize(2*size), mirror.ErrMoving)
	m.Finish()
	m.Finish()
	require.NoError(t, m.Wait(t.Context()))
	require.NoError(t, d.Resize(2*size))
	require.EqualValues(t, 2*size, d.Size())
	require.Equal(t, "a", d.Info().Name)

	// The journal knows which side counts.
	_, err = mirror.New(a, j)
	require.ErrorIs(t, err, mirror.ErrWrongSide)
	rec, ok := j.Record()
	require.True(t, ok)
	require.Equal(t, mirror.Record{Source: "a", Target: "b", Size: size, Moved: true}, rec)
	require.Equal(t, "b", rec.Current())
	require.NoError(t, j.Clear())
	_, err = mirror.New(a, j)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	_, err = d.Start(t.Context(), memory(t, "c", 2*size), mirror.Config{})
	require.ErrorIs(t, err, os.ErrClosed)
}

// An idle disk adds no allocation to a request.
func TestAllocs(t *testing.T) {
	d, err := mirror.New(memory(t, "a", 1<<20), journal(t))
	require.NoError(t, err)
	p := make([]byte, 4096)
	bufs := [][]byte{p}
	for name, fn := range map[string]func(){
		"ReadAt":      func() { _, _ = d.ReadAt(p, 4096) },
		"WriteAt":     func() { _, _ = d.WriteAt(p, 4096) },
		"ReadVAt":     func() { _, _ = d.ReadVAt(bufs, 4096) },
		"WriteVAt":    func() { _, _ = d.WriteVAt(bufs, 4096) },
		"TryReadVAt":  func() { _, _ = d.TryReadVAt(bufs, 4096) },
		"TryWriteVAt": func() { _, _ = d.TryWriteVAt(bufs, 4096) },
		"Flush":       func() { _ = d.Flush() },
	} {
		require.Zero(t, testing.AllocsPerRun(100, fn), name)
	}
}
