package memory

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
)

// engine is a DirtySource with pages to report.
type engine struct {
	mu       sync.Mutex
	on       bool
	pages    map[uint64]bool
	startErr error
	stopErr  error
	harvErr  error
	garbage  bool // set bits past the end of the region too
}

func (e *engine) StartDirty() error { e.on = e.startErr == nil; return e.startErr }
func (e *engine) StopDirty() error  { e.on = false; return e.stopErr }

func (e *engine) write(gpa uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pages == nil {
		e.pages = make(map[uint64]bool)
	}
	e.pages[gpa/PageSize] = true
}

func (e *engine) HarvestDirty(r Region, bitmap []uint64) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for p := range e.pages {
		if i := p - r.Base/PageSize; p*PageSize >= r.Base && p*PageSize < r.End() {
			bitmap[i/64] |= 1 << (i % 64)
			delete(e.pages, p)
		}
	}
	if e.garbage {
		bitmap[len(bitmap)-1] |= 1 << 63
	}
	return e.harvErr
}

type run struct{ gpa, n uint64 }

func runs(b *Bitmap) []run {
	var out []run
	for gpa, n := range b.Runs() {
		out = append(out, run{gpa / PageSize, n / PageSize})
	}
	return out
}

func wantRuns(t *testing.T, b *Bitmap, want ...run) {
	t.Helper()
	if got := runs(b); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("runs %v, want %v", got, want)
	}
}

func collect(t *testing.T, m *Memory) *Bitmap {
	t.Helper()
	b := new(Bitmap)
	if err := m.CollectDirty(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDirtyTracking(t *testing.T) {
	m := newMemory(t, 200*PageSize)
	if err := m.Write(0, []byte{1}); err != nil {
		t.Fatal(err)
	}
	wantRuns(t, collect(t, m)) // off
	if err := m.StartDirty(); err != nil {
		t.Fatal(err)
	}
	if !m.Tracking() {
		t.Error("not tracking")
	}
	if err := m.StartDirty(); !errors.Is(err, ErrDirtyActive) {
		t.Errorf("second start: %v", err)
	}
	wantRuns(t, collect(t, m))
	err := errors.Join(
		m.PutUint8(3*PageSize, 1), m.PutUint16(5*PageSize-2, 1), m.PutUint32(63*PageSize, 1), m.PutUint64(64*PageSize, 1),
		m.Write(126*PageSize+1, make([]byte, 70*PageSize)))
	if err != nil {
		t.Fatal(err)
	}
	b := collect(t, m)
	wantRuns(t, b, run{3, 2}, run{63, 2}, run{126, 71})
	if b.Count() != 75 {
		t.Errorf("%d pages", b.Count())
	}
	wantRuns(t, collect(t, m))
	m.MarkBitmap(b) // as after a failed send
	m.MarkDirty(0, PageSize)
	wantRuns(t, collect(t, m), run{0, 1}, run{3, 2}, run{63, 2}, run{126, 71})
	m.MarkDirty(0, math.MaxUint64)
	wantRuns(t, collect(t, m), run{0, 200})
	m.MarkDirty(199*PageSize, math.MaxUint64)
	m.MarkDirty(math.MaxUint64, math.MaxUint64)
	m.MarkDirty(5*PageSize, 0)
	wantRuns(t, collect(t, m), run{199, 1})
	// A region added meanwhile is tracked.
	if _, err := m.AddRegion(200*PageSize, 2*PageSize); err != nil {
		t.Fatal(err)
	}
	m.MarkDirty(199*PageSize, 2*PageSize)
	wantRuns(t, collect(t, m), run{199, 2}) // one run over two regions
	if err := errors.Join(m.StopDirty(), m.StopDirty()); err != nil {
		t.Fatal(err)
	}
	m.MarkDirty(0, PageSize)
	if err := m.StartDirty(); err != nil {
		t.Fatal(err)
	}
	wantRuns(t, collect(t, m))
}

func TestDirtySources(t *testing.T) {
	m := newMemory(t, 100*PageSize)
	a, b := new(engine), &engine{garbage: true}
	if err := m.AddDirtySource(a); err != nil {
		t.Fatal(err)
	}
	if err := m.StartDirty(); err != nil || !a.on {
		t.Fatal(err, a.on)
	}
	if err := m.AddDirtySource(b); err != nil || !b.on {
		t.Fatal(err, b.on)
	}
	a.write(7 * PageSize)
	b.write(8 * PageSize)
	m.MarkDirty(9*PageSize, 1)
	wantRuns(t, collect(t, m), run{7, 3})
	wantRuns(t, collect(t, m))

	// What was harvested before a failure is in the bitmap.
	b.harvErr = errors.New("no log")
	a.write(1 * PageSize)
	m.MarkDirty(3*PageSize, 1)
	got := new(Bitmap)
	if err := m.CollectDirty(got); !errors.Is(err, b.harvErr) {
		t.Errorf("failing source: %v", err)
	}
	wantRuns(t, got, run{1, 1}, run{3, 1})
	b.harvErr = nil

	m.RemoveDirtySource(b)
	m.RemoveDirtySource(b)
	b.write(50 * PageSize)
	wantRuns(t, collect(t, m))
	a.stopErr = errors.New("stuck")
	if err := m.StopDirty(); !errors.Is(err, a.stopErr) || m.Tracking() {
		t.Errorf("stop: %v", err)
	}
	a.stopErr = nil
	bad := &engine{startErr: errors.New("no memory")}
	if err := m.AddDirtySource(bad); err != nil {
		t.Fatal(err)
	}
	if err := m.StartDirty(); !errors.Is(err, bad.startErr) || m.Tracking() || a.on {
		t.Errorf("start with a source that fails: %v, tracking %v, other source on %v", err, m.Tracking(), a.on)
	}
	m.RemoveDirtySource(bad)
	if err := m.StartDirty(); err != nil {
		t.Fatal(err)
	}
	if err := m.AddDirtySource(bad); !errors.Is(err, bad.startErr) {
		t.Errorf("late source that fails: %v", err)
	}
}

// TestDirtyConverges copies memory that others write, as a migration does:
// after a last round with the writers stopped, the copy is equal.
func TestDirtyConverges(t *testing.T) {
	const pages = 64
	m := newMemory(t, pages*PageSize)
	host := m.Regions()[0].Host
	var stop atomic.Bool
	var started, wg sync.WaitGroup
	for g := range 3 {
		started.Add(1)
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(g)))
			for i := 0; !stop.Load(); i++ {
				// Each writer has words of its own.
				gpa := rnd.Uint64N(pages)*PageSize + uint64(g)*64
				if err := m.PutUint64(gpa, rnd.Uint64()); err != nil {
					t.Error(err)
					return
				}
				if i == 10 {
					started.Done()
				}
			}
		})
	}
	started.Wait()
	if err := m.StartDirty(); err != nil {
		t.Fatal(err)
	}
	dst := make([]byte, len(host))
	pull := func(gpa, n uint64) {
		if err := m.Read(gpa, dst[gpa:gpa+n]); err != nil {
			t.Fatal(err)
		}
	}
	pull(0, pages*PageSize)
	round := func() {
		b := new(Bitmap)
		if err := m.CollectDirty(b); err != nil {
			t.Fatal(err)
		}
		for gpa, n := range b.Runs() {
			pull(gpa, n)
		}
	}
	for range 200 {
		round()
	}
	stop.Store(true)
	wg.Wait()
	round()
	if !bytes.Equal(dst, host) {
		t.Error("the copy differs")
	}
}

func TestBitmap(t *testing.T) {
	const p = PageSize
	b := NewBitmap([]Region{
		{Base: 100 * p, Size: 70 * p}, {Base: 0, Size: 100 * p}, {Base: 1000 * p, Size: 64 * p},
		{Base: 50 * p, Size: p}, {Base: 0, Size: p}, // overlap: left out
	})
	wantRuns(t, b)
	for _, r := range b.Runs() {
		t.Error("run in an empty bitmap", r)
	}
	b.Set(10*p+5, p)          // two pages
	b.Set(99*p, 2*p)          // over the border
	b.Set(169*p, 1000*p)      // over the end and into the next
	b.Set(500*p, p)           // covered by nothing
	b.Set(math.MaxUint64, 10) // wraps
	wantRuns(t, b, run{10, 2}, run{99, 2}, run{169, 1}, run{1000, 64})
	if !b.Test(11*p) || b.Test(12*p) || b.Test(500*p) || !b.Test(1063*p+4095) || b.Test(1064*p) {
		t.Error("Test is wrong")
	}
	b.Unset(10*p+1, 2*p)      // wholly only page 11
	b.Unset(99*p+1, p-2)      // no page wholly
	b.Unset(1000*p, 63*p+100) // all but the last
	b.Unset(math.MaxUint64, math.MaxUint64)
	wantRuns(t, b, run{10, 1}, run{99, 2}, run{169, 1}, run{1063, 1})
	n := 0
	for range b.Runs() {
		if n++; n == 2 {
			break
		}
	}
	var zero Bitmap
	zero.Set(0, p)
	wantRuns(t, &zero)
	zero.Or(b)
	zero.Or(&zero)
	wantRuns(t, &zero, runs(b)...)
	b.Clear()
	if b.Count() != 0 || zero.Count() != 5 {
		t.Errorf("%d pages after Clear, %d in the copy", b.Count(), zero.Count())
	}
	// The same address with another size is of another machine.
	other := NewBitmap([]Region{{Base: 0, Size: 10 * p}})
	other.Set(0, p)
	zero.Or(other)
	wantRuns(t, &zero, run{10, 1}, run{99, 2}, run{169, 1}, run{1063, 1})
	b.Set(0, 2*p)
	if n := testing.AllocsPerRun(100, func() {
		for gpa, n := range b.Runs() {
			_, _ = gpa, n
		}
		b.Set(0, 10*p)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzBitmap checks Set, Unset and Runs against a set of pages.
func FuzzBitmap(f *testing.F) {
	f.Add([]byte{0, 3, 7, 1, 4, 2, 0, 120, 40, 0, 63, 2})
	f.Fuzz(func(t *testing.T, script []byte) {
		b := NewBitmap([]Region{{Base: 0, Size: 70 * PageSize}, {Base: 70 * PageSize, Size: 58 * PageSize}, {Base: 200 * PageSize, Size: 20 * PageSize}})
		covered := func(p int) bool { return p < 128 || p >= 200 && p < 220 }
		var model [256]bool
		for ; len(script) >= 3; script = script[3:] {
			first, n := int(script[1]), int(script[2])
			for p := first; p < min(first+n, 256); p++ {
				model[p] = script[0]&1 == 0 && covered(p)
			}
			if script[0]&1 == 0 {
				b.Set(uint64(first)*PageSize, uint64(n)*PageSize)
			} else {
				b.Unset(uint64(first)*PageSize, uint64(n)*PageSize)
			}
		}
		var want []run
		for p := 0; p < 256; p++ {
			if !model[p] {
				continue
			}
			start := p
			for p < 256 && model[p] {
				p++
			}
			want = append(want, run{uint64(start), uint64(p - start)})
		}
		wantRuns(t, b, want...)
	})
}
