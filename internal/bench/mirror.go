package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/mirror"
)

const (
	mirrorLatency  = 200 * time.Microsecond
	mirrorSize     = 256 << 20
	mirrorSwitches = 200
)

var mirrorLoads = []struct {
	name   string
	depth  int
	random bool
}{
	{"rand-1", 1, true}, {"rand-16", 16, true}, {"seq-1", 1, false}, {"seq-16", 16, false},
}

// benchMirror measures what a guest that writes keeps of its speed while its disk
// moves between two devices that answer after 200 µs, and how long the switch
// holds it up. The journal is a file.
func benchMirror(ctx context.Context, o options) error {
	// The devices' clock occupies one.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 2))
	c := newLatency(mirrorLatency)
	defer c.close()
	dir, err := os.MkdirTemp("", "bench-mirror")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	a, err := newSlow(c, "a", mirrorSize)
	if err != nil {
		return err
	}
	b, err := newSlow(c, "b", mirrorSize)
	if err != nil {
		return err
	}
	t := newTable("mirror", "4 KiB writes, 1/s")
	kept := newTable("mirror", "share of the speed without")
	rates := newTable("mirror", "MB/s copied meanwhile")
	for range o.roundsOr(7) {
		for _, l := range mirrorLoads {
			var alone float64
			for _, how := range []string{"alone", "idle", "in step", "copying"} {
				v, rate, err := mirrorRound(ctx, a, b, dir, how, l.depth, l.random)
				if err != nil {
					return err
				}
				t.add(how, l.name, v)
				if how == "copying" {
					rates.add(how, l.name, rate)
				}
				if how == "alone" {
					alone = v
				} else {
					kept.add(how, l.name, v/alone)
				}
			}
		}
	}
	t.print()
	kept.print()
	rates.print()
	for _, l := range mirrorLoads {
		figure("mirror-"+l.name+"-alone", t.median("alone", l.name), "1/s")
		figure("mirror-"+l.name+"-in-step", kept.median("in step", l.name), "x")
		figure("mirror-"+l.name+"-copying", kept.median("copying", l.name), "x")
	}
	if err := qemuMirror(ctx, o, dir); err != nil {
		return err
	}
	if err := mirrorPauses(ctx, c, dir); err != nil {
		return err
	}
	return mirrorSparse(ctx, dir)
}

// latency lets requests return a fixed time after they began, and what the
// kernel is late with a sleep. The runtime's timers are too coarse for that. One
// thread sleeps for all requests, so that they take little of the CPU's time,
// which is the mirror's and the guest's.
type latency struct {
	d     time.Duration
	mu    sync.Mutex
	queue []pending // in the order of due
	wake  chan struct{}
	done  chan struct{}
	quit  atomic.Bool
}

type pending struct {
	due  time.Time
	wake chan struct{}
}

func newLatency(d time.Duration) *latency {
	l := &latency{d: d, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go l.run()
	return l
}

func (l *latency) close() {
	l.quit.Store(true)
	l.poke()
	<-l.done
}

func (l *latency) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

var latencyChans = sync.Pool{New: func() any { return make(chan struct{}, 1) }}

// wait returns when a request that began at start is due.
func (l *latency) wait(start time.Time) {
	ch := latencyChans.Get().(chan struct{})
	l.mu.Lock()
	first := len(l.queue) == 0
	l.queue = append(l.queue, pending{start.Add(l.d), ch})
	l.mu.Unlock()
	if first {
		l.poke()
	}
	<-ch
	latencyChans.Put(ch)
}

func (l *latency) run() {
	defer close(l.done)
	preciseThread()
	for !l.quit.Load() {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.mu.Unlock()
			<-l.wake
			continue
		}
		p := l.queue[0]
		left := time.Until(p.due)
		if left <= 0 {
			l.queue = append(l.queue[:0], l.queue[1:]...)
		}
		l.mu.Unlock()
		if left <= 0 {
			p.wake <- struct{}{}
			continue
		}
		preciseSleep(left)
	}
}

// slow is a disk that answers after a while, however many requests there are.
type slow struct {
	*disk.Memory
	l *latency
}

func (s slow) ReadAt(p []byte, off int64) (int, error) {
	start := time.Now()
	n, err := s.Memory.ReadAt(p, off)
	s.l.wait(start)
	return n, err
}

func (s slow) WriteAt(p []byte, off int64) (int, error) {
	start := time.Now()
	n, err := s.Memory.WriteAt(p, off)
	s.l.wait(start)
	return n, err
}

func (s slow) ReadVAt(bufs [][]byte, off int64) (int, error) {
	start := time.Now()
	n, err := s.Memory.ReadVAt(bufs, off)
	s.l.wait(start)
	return n, err
}

func (s slow) WriteVAt(bufs [][]byte, off int64) (int, error) {
	start := time.Now()
	n, err := s.Memory.WriteVAt(bufs, off)
	s.l.wait(start)
	return n, err
}

// Nothing is done at once.
func (s slow) TryReadVAt([][]byte, int64) (int, error)  { return 0, disk.ErrWouldBlock }
func (s slow) TryWriteVAt([][]byte, int64) (int, error) { return 0, disk.ErrWouldBlock }

func (s slow) Flush() error {
	s.l.wait(time.Now())
	return s.Memory.Flush()
}

// Close leaves the disk as it is, for the next round.
func (s slow) Close() error { return nil }

// newSlow returns such a disk, full of data.
func newSlow(l *latency, name string, size int64) (slow, error) {
	m, err := disk.NewMemory(name, size)
	if err != nil {
		return slow{}, err
	}
	p := make([]byte, 1<<20)
	r := rand.NewChaCha8([32]byte{})
	for off := int64(0); off < size; off += int64(len(p)) {
		r.Read(p)
		if _, err := m.WriteAt(p, off); err != nil {
			return slow{}, err
		}
	}
	return slow{m, l}, nil
}

// openJournal makes a journal in a file, as a program would.
func openJournal(dir string) (*mirror.Journal, *disk.File, error) {
	name := filepath.Join(dir, "journal")
	_ = os.Remove(name)
	f, err := disk.Create(name, mirror.JournalSize, disk.FileConfig{})
	if err != nil {
		return nil, nil, err
	}
	j, err := mirror.OpenJournal(f)
	return j, f, err
}

// writeLoad writes 4 KiB at a time to d, depth at once, until stop is set, and
// returns how many writes a second that were.
func writeLoad(d disk.Backend, depth int, random bool, stop *atomic.Bool) (float64, error) {
	var wg sync.WaitGroup
	var n, next atomic.Int64
	errs := make(chan error, depth)
	start := time.Now()
	for i := range depth {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			p := make([]byte, 4096)
			for k := range p {
				p[k] = byte(k) | 1
			}
			for !stop.Load() {
				block := next.Add(1)
				if random {
					block = r.Int64N(d.Size() / 4096)
				}
				if _, err := d.WriteAt(p, block*4096%d.Size()); err != nil {
					errs <- err
					return
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	close(errs)
	return float64(n.Load()) / time.Since(start).Seconds(), <-errs
}

// mirrorRound measures one load on a disk alone or, with a mirror in front of it,
// idle, with both sides in step or while the copier is at work throughout, at
// rate megabytes a second.
func mirrorRound(ctx context.Context, a, b slow, dir, how string, depth int, random bool) (v, rate float64, err error) {
	load := func(d disk.Backend) (float64, error) {
		var stop atomic.Bool
		timer := time.AfterFunc(time.Second/2, func() { stop.Store(true) })
		defer timer.Stop()
		return writeLoad(d, depth, random, &stop)
	}
	if how == "alone" {
		v, err = load(a)
		return v, 0, err
	}
	j, f, err := openJournal(dir)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	d, err := mirror.New(a, j)
	if err != nil {
		return 0, 0, err
	}
	defer d.Close()
	if how == "idle" {
		v, err = load(d)
		return v, 0, err
	}
	m, err := d.Start(ctx, b, mirror.Config{Hold: true})
	if err != nil {
		return 0, 0, err
	}
	if how == "in step" {
		for m.Progress().Phase != mirror.InStep {
			time.Sleep(time.Millisecond)
		}
		v, err = load(d)
		return v, 0, err
	}
	// The copier begins anew whenever it has caught up.
	copied := int64(0)
	quit, again := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-quit:
				again <- nil
				return
			case <-time.After(2 * time.Millisecond):
			}
			if m.Progress().Phase != mirror.InStep {
				continue
			}
			m.Cancel()
			_ = m.Wait(ctx)
			copied += m.Progress().Copied
			var err error
			if m, err = d.Start(ctx, b, mirror.Config{Hold: true}); err != nil {
				again <- err
				return
			}
		}
	}()
	start := time.Now()
	v, err = load(d)
	took := time.Since(start)
	close(quit)
	if e := <-again; err == nil {
		err = e
	}
	return v, float64(copied+m.Progress().Copied) / 1e6 / took.Seconds(), err
}

// mirrorPauses moves a disk to and fro under a load, and prints how long the
// switches held up writes.
func mirrorPauses(ctx context.Context, l *latency, dir string) error {
	const size = 16 << 20
	var sides [2]slow
	for i := range sides {
		var err error
		if sides[i], err = newSlow(l, fmt.Sprint("side", i), size); err != nil {
			return err
		}
	}
	j, f, err := openJournal(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := mirror.New(sides[0], j)
	if err != nil {
		return err
	}
	defer d.Close()
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		_, err := writeLoad(d, 16, true, &stop)
		done <- err
	}()
	var pauses []float64
	for i := range mirrorSwitches {
		m, err := d.Start(ctx, sides[(i+1)%2], mirror.Config{})
		if err != nil {
			return err
		}
		if err := m.Wait(ctx); err != nil {
			return err
		}
		pauses = append(pauses, float64(m.Progress().Pause)/1e6)
	}
	stop.Store(true)
	if err := <-done; err != nil {
		return err
	}
	slices.Sort(pauses)
	figure("mirror-pause-median", median(pauses), "ms")
	figure("mirror-pause-p99", pauses[len(pauses)*99/100-1], "ms")
	figure("mirror-pause-max", pauses[len(pauses)-1], "ms")
	return nil
}

// mirrorSparse moves a sparse image file that nobody uses.
func mirrorSparse(ctx context.Context, dir string) error {
	const size = 4 << 30
	a, err := disk.Create(filepath.Join(dir, "a.img"), size, disk.FileConfig{})
	if err != nil {
		return err
	}
	b, err := disk.Create(filepath.Join(dir, "b.img"), size, disk.FileConfig{})
	if err != nil {
		return err
	}
	defer b.Close()
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 256<<10)
	rand.NewChaCha8([32]byte{1}).Read(p)
	for range 200 {
		n := 4096 * (1 + r.IntN(len(p)/4096))
		if _, err := a.WriteAt(p[:n], r.Int64N(size/4096-64)*4096); err != nil {
			return err
		}
	}
	allocated := int64(0)
	for off := int64(0); off < size; {
		e, err := a.Extent(off)
		if err != nil {
			return err
		}
		if e.Allocated {
			allocated += e.Len
		}
		off += e.Len
	}
	j, f, err := openJournal(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	d, err := mirror.New(a, j)
	if err != nil {
		return err
	}
	defer d.Close()
	m, err := d.Start(ctx, b, mirror.Config{})
	if err != nil {
		return err
	}
	if err := m.Wait(ctx); err != nil {
		return err
	}
	figure("mirror-copied-of-allocated", float64(m.Progress().Copied)/float64(allocated), "x")
	return a.Close()
}
