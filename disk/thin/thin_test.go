package thin_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/thin"
)

func memory(t testing.TB, size int64) *disk.Memory {
	t.Helper()
	m, err := disk.NewMemory("store", size)
	require.NoError(t, err)
	return m
}

// newPool makes a pool in a store, of capacity bytes.
func newPool(t testing.TB, store disk.Backend, l thin.Layout, cfg thin.Config) *thin.Pool {
	t.Helper()
	require.NoError(t, thin.Format(store, l))
	return openPool(t, store, cfg)
}

func openPool(t testing.TB, store disk.Backend, cfg thin.Config) *thin.Pool {
	t.Helper()
	p, err := thin.Open(store, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	require.NoError(t, p.Check())
	return p
}

func openDisk(t testing.TB, p *thin.Pool, name string) *thin.Disk {
	t.Helper()
	d, err := p.OpenDisk(name, thin.DiskConfig{})
	require.NoError(t, err)
	return d
}

func create(t testing.TB, p *thin.Pool, name string, size int64) *thin.Disk {
	t.Helper()
	require.NoError(t, p.Create(name, size))
	return openDisk(t, p, name)
}

// only hides what a backend implements beside the interface.
type only struct{ disk.Backend }

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name   string
		extent int
		store  func(t *testing.T) disk.Backend
		cfg    thin.DiskConfig
	}{
		{"memory", 0, func(t *testing.T) disk.Backend { return memory(t, 0) }, thin.DiskConfig{}},
		{"small extents", 4096, func(t *testing.T) disk.Backend { return memory(t, 0) }, thin.DiskConfig{Wait: true}},
		{"plain store", 16384, func(t *testing.T) disk.Backend { return only{memory(t, 80<<20)} }, thin.DiskConfig{}},
		{"file", 0, func(t *testing.T) disk.Backend {
			f, err := disk.Create(filepath.Join(t.TempDir(), "pool"), 0, disk.FileConfig{})
			require.NoError(t, err)
			t.Cleanup(func() { f.Close() })
			return f
		}, thin.DiskConfig{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			pools := map[disk.Backend]*thin.Pool{}
			stores := map[disk.Backend]disk.Backend{}
			open := func(t *testing.T, p *thin.Pool, store disk.Backend, cfg thin.DiskConfig) disk.Backend {
				d, err := p.OpenDisk("d", cfg)
				require.NoError(t, err)
				pools[d], stores[d] = p, store
				return d
			}
			reopen := func(t *testing.T, b disk.Backend, cfg thin.DiskConfig) disk.Backend {
				require.NoError(t, b.Close())
				require.NoError(t, pools[b].Check())
				require.NoError(t, pools[b].Close())
				return open(t, openPool(t, stores[b], thin.Config{}), stores[b], cfg)
			}
			disktest.Run(t, disktest.Maker{
				New: func(t *testing.T, size int64) disk.Backend {
					store := c.store(t)
					p := newPool(t, store, thin.Layout{ExtentSize: c.extent, Capacity: 64 << 20, Disks: 3}, thin.Config{})
					// A neighbour, so that extents do not lie as they come.
					o := create(t, p, "other", 1<<20)
					_, err := o.WriteAt(bytes.Repeat([]byte{0xaa}, 300000), 1000)
					require.NoError(t, err)
					require.NoError(t, p.Create("d", size))
					return open(t, p, store, c.cfg)
				},
				Reopen:   func(t *testing.T, b disk.Backend) disk.Backend { return reopen(t, b, c.cfg) },
				ReadOnly: func(t *testing.T, b disk.Backend) disk.Backend { return reopen(t, b, thin.DiskConfig{ReadOnly: true}) },
			})
		})
	}
}

func TestAdmin(t *testing.T) {
	store := memory(t, 0)
	p := newPool(t, store, thin.Layout{Capacity: 10 << 20, Disks: 3}, thin.Config{})
	a := create(t, p, "a", 100<<20)
	require.NoError(t, p.Create("b", 7))
	require.ErrorIs(t, p.Create("a", 1), fs.ErrExist)
	for _, bad := range []string{"", "a\x00", "\xff", "a\nb", strings.Repeat("x", 256)} {
		require.ErrorContains(t, p.Create(bad, 1), "disk name")
	}
	require.ErrorIs(t, p.Create("c", -1), disk.ErrRange)
	require.ErrorIs(t, p.Create("c", 1<<60), disk.ErrRange)
	require.NoError(t, p.Create("c", 0))
	require.ErrorIs(t, p.Create("d", 0), disk.ErrNoSpace)
	_, err := p.OpenDisk("a", thin.DiskConfig{})
	require.ErrorIs(t, err, disk.ErrLocked)
	_, err = p.OpenDisk("x", thin.DiskConfig{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorIs(t, p.Delete("a"), disk.ErrLocked)
	require.ErrorIs(t, p.Delete("x"), fs.ErrNotExist)

	_, err = a.WriteAt(make([]byte, 200000), 0)
	require.NoError(t, err)
	u := p.Usage()
	require.EqualValues(t, 10<<20, u.Capacity)
	require.EqualValues(t, 4*65536, u.Allocated)
	require.EqualValues(t, 100<<20+7, u.Promised)
	require.Equal(t, []thin.DiskUsage{{"a", 100 << 20, 4 * 65536, true}, {"b", 7, 0, false}, {"c", 0, 0, false}}, p.Disks())
	require.NoError(t, a.Close())
	require.NoError(t, p.Delete("a"))
	require.NoError(t, p.Delete("c"))
	require.Zero(t, p.Usage().Allocated)
	require.NoError(t, p.Create("a", 1<<20))
	require.NoError(t, p.Check())
	require.NoError(t, p.Close())
	require.NoError(t, p.Close())
	require.ErrorIs(t, p.Create("e", 1), os.ErrClosed)
	_, err = p.OpenDisk("a", thin.DiskConfig{})
	require.ErrorIs(t, err, os.ErrClosed)

	p = openPool(t, store, thin.Config{})
	require.Equal(t, []thin.DiskUsage{{"a", 1 << 20, 0, false}, {"b", 7, 0, false}}, p.Disks())
	d := openDisk(t, p, "b")
	require.NoError(t, p.Close())
	_, err = d.WriteAt([]byte{1}, 0)
	require.ErrorIs(t, err, os.ErrClosed, "the pool is closed")
	require.NoError(t, d.Close())
}

func TestFormatRefuses(t *testing.T) {
	for _, l := range []thin.Layout{
		{ExtentSize: 1000}, {ExtentSize: 2048}, {ExtentSize: 32 << 20}, {ExtentSize: -1}, {Disks: -1}, {Disks: 1 << 17}, {Capacity: -1},
		{Capacity: 1 << 62, ExtentSize: 4096}, {},
	} {
		require.ErrorContains(t, thin.Format(memory(t, 100<<10), l), "thin pool store: format: ", "%+v", l)
	}
	require.ErrorContains(t, thin.Format(only{memory(t, 1<<20)}, thin.Layout{Capacity: 1 << 20}), "cannot be resized")
	for _, cfg := range []thin.Config{{Warn: -1}, {Warn: 99}, {Critical: 101}} {
		_, err := thin.Open(memory(t, 1<<20), cfg)
		require.ErrorContains(t, err, "watermarks")
	}
}

// A fixed store is used as far as it goes.
func TestFixedStore(t *testing.T) {
	for _, size := range []int64{200 << 10, 1 << 20, 3<<20 + 511, 70 << 20} {
		store := only{memory(t, size)}
		p := newPool(t, store, thin.Layout{ExtentSize: 4096, Disks: 8}, thin.Config{})
		u := p.Usage()
		require.Greater(t, u.Capacity, size*98/100-64<<10)
		d := create(t, p, "d", u.Capacity)
		want := make([]byte, u.Capacity)
		disktest.Fill(rand.New(rand.NewPCG(1, 2)), want)
		_, err := d.WriteAt(want, 0)
		require.NoError(t, err)
		got := make([]byte, len(want))
		_, err = d.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		require.NoError(t, p.Check())
	}
}

// Watermarks, with a full pool, growth and discards.
func TestWatermarks(t *testing.T) {
	events := make(chan thin.Event, 100)
	store := memory(t, 0)
	p := newPool(t, store, thin.Layout{ExtentSize: 4096, Capacity: 400 << 10}, thin.Config{Warn: 50, Critical: 80, Notify: func(e thin.Event) { events <- e }})
	d := create(t, p, "d", 1<<20)
	o := create(t, p, "o", 1<<20)
	level := func(want thin.Level) {
		t.Helper()
		for e := (thin.Event{To: -1}); e.To != want; {
			select {
			case e = <-events:
				require.Equal(t, "store", e.Pool)
				require.Equal(t, e.To, e.Usage.Level)
				require.EqualValues(t, 2<<20, e.Usage.Promised)
			case <-time.After(time.Minute):
				t.Fatalf("no event, want %v", want)
			}
		}
		require.Equal(t, want, p.Usage().Level)
	}
	write := func(d *thin.Disk, first, end int64) error {
		_, err := d.WriteAt(bytes.Repeat([]byte{byte(first + 1)}, int(end-first)*4096), first*4096)
		return err
	}
	require.NoError(t, write(d, 0, 49))
	require.Equal(t, thin.Normal, p.Usage().Level)
	require.NoError(t, write(d, 49, 50))
	level(thin.Warn)
	// Around the mark nothing happens until it is well below.
	for range 3 {
		require.NoError(t, d.Discard(45*4096, 5*4096))
		require.NoError(t, write(d, 45, 50))
	}
	require.Equal(t, thin.Warn, p.Usage().Level)
	require.NoError(t, d.Discard(44*4096, 6*4096))
	level(thin.Normal)
	require.NoError(t, write(d, 44, 80))
	level(thin.Critical)
	require.NoError(t, write(o, 0, 20))
	level(thin.Full)
	err := write(d, 80, 81)
	require.ErrorIs(t, err, disk.ErrNoSpace)
	require.ErrorContains(t, err, "disk store:d: write 4096 bytes at offset 327680: the pool is full")
	require.NoError(t, write(d, 3, 4), "what is allocated can be written")
	require.ErrorIs(t, d.WriteZeroes(80*4096, 4096, false), disk.ErrNoSpace)
	require.NoError(t, d.WriteZeroes(80*4096, 4096, true))
	require.NoError(t, d.Flush())
	// A write across taken and lacking extents does what it can.
	n, err := d.WriteAt(make([]byte, 2*4096), 79*4096)
	require.ErrorIs(t, err, disk.ErrNoSpace)
	require.Equal(t, 4096, n)

	// Another's discard is as good as growth.
	require.NoError(t, o.Discard(0, 4096))
	level(thin.Critical)
	require.NoError(t, write(d, 80, 81))
	level(thin.Full)
	require.NoError(t, p.Grow(2<<20))
	level(thin.Normal)
	require.NoError(t, write(d, 81, 256))
	level(thin.Warn)
	require.NoError(t, p.Check())
	require.ErrorIs(t, p.Grow(1<<20), disk.ErrRange)
	require.ErrorIs(t, p.Grow(1<<60), disk.ErrRange)
	require.NoError(t, p.Grow(2<<20))

	// All that was written is there, after a reopen too, which tells of the
	// level.
	require.NoError(t, p.Close())
	p = openPool(t, store, thin.Config{Warn: 50, Critical: 80, Notify: func(e thin.Event) { events <- e }})
	level(thin.Warn)
	d = openDisk(t, p, "d")
	for _, i := range []int64{0, 44, 49, 80, 81} {
		got := make([]byte, 4096)
		_, err := d.ReadAt(got, i*4096)
		require.NoError(t, err)
		first := map[int64]byte{0: 1, 44: 45, 49: 45, 80: 81, 81: 82}[i]
		require.Equal(t, bytes.Repeat([]byte{first}, 4096), got, "extent %d", i)
	}
}

// A pool that was full for a moment says so, even if there is space again before
// it could: whoever met the full pool waits to hear of it.
func TestFullForAMoment(t *testing.T) {
	events, resume := make(chan thin.Event), make(chan struct{})
	p := newPool(t, memory(t, 0), thin.Layout{ExtentSize: 4096, Capacity: 16 << 10}, thin.Config{Warn: 50, Notify: func(e thin.Event) {
		events <- e
		<-resume
	}})
	require.NoError(t, p.Create("a", 64<<10))
	d, err := p.OpenDisk("a", thin.DiskConfig{})
	require.NoError(t, err)
	_, err = d.WriteAt(make([]byte, 8<<10), 0)
	require.NoError(t, err)
	require.Equal(t, thin.Warn, (<-events).To)
	_, err = d.WriteAt(make([]byte, 8<<10), 8<<10)
	require.NoError(t, err)
	require.Equal(t, thin.Full, p.Usage().Level)
	_, err = d.WriteAt(make([]byte, 4<<10), 16<<10)
	require.ErrorIs(t, err, disk.ErrNoSpace)
	require.NoError(t, d.Discard(0, 8<<10))
	require.Equal(t, thin.Warn, p.Usage().Level)
	resume <- struct{}{}
	e := <-events
	require.Equal(t, thin.Warn, e.From)
	require.Equal(t, thin.Warn, e.To)
	require.Less(t, e.Usage.Allocated, e.Usage.Capacity)
	close(resume)
	require.NoError(t, d.Close())
}

func TestWait(t *testing.T) {
	p := newPool(t, memory(t, 0), thin.Layout{ExtentSize: 4096, Capacity: 16 << 10}, thin.Config{})
	require.NoError(t, p.Create("d", 1<<20))
	d, err := p.OpenDisk("d", thin.DiskConfig{Wait: true})
	require.NoError(t, err)
	want := make([]byte, 64<<10)
	disktest.Fill(rand.New(rand.NewPCG(1, 2)), want)
	done := make(chan error)
	go func() {
		_, err := d.WriteAt(want, 100)
		done <- err
	}()
	for c := int64(20 << 10); c <= 68<<10; c += 16 << 10 {
		select {
		case err := <-done:
			t.Fatalf("done at %d: %v", c, err)
		case <-time.After(10 * time.Millisecond):
		}
		require.NoError(t, p.Grow(c))
	}
	require.NoError(t, <-done)
	got := make([]byte, len(want))
	_, err = d.ReadAt(got, 100)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	// Close ends a wait, of the disk's and of the pool's.
	for _, end := range []func() error{d.Close, p.Close} {
		go func() { done <- d.WriteZeroes(512<<10, 4096, false) }()
		time.Sleep(5 * time.Millisecond)
		require.NoError(t, end())
		require.ErrorIs(t, <-done, os.ErrClosed)
		if d, err = p.OpenDisk("d", thin.DiskConfig{Wait: true}); err != nil {
			require.ErrorIs(t, err, os.ErrClosed)
		}
	}
}

// An extent that changes hands shows nothing of the one before, even to a
// reader that had begun.
func TestReuse(t *testing.T) {
	p := newPool(t, memory(t, 0), thin.Layout{ExtentSize: 4096, Capacity: 32 << 10}, thin.Config{})
	const disks = 4
	var wg sync.WaitGroup
	var full, moved atomic.Int64
	for i := range disks {
		d := create(t, p, fmt.Sprint(i), 64<<10)
		mine := bytes.Repeat([]byte{byte(i + 1)}, 3000)
		var stop atomic.Bool
		check := func(r *rand.Rand) {
			got := make([]byte, 8192)
			off := r.Int64N(56 << 10)
			_, err := d.ReadAt(got, off)
			require.NoError(t, err)
			for j, b := range got {
				if b != 0 && b != byte(i+1) {
					t.Errorf("disk %d reads %d at %d", i, b, off+int64(j))
					return
				}
			}
		}
		wg.Go(func() {
			defer stop.Store(true)
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range 2000 {
				off := r.Int64N(60 << 10)
				switch r.IntN(3) {
				case 0:
					if err := d.Discard(off&^4095, 4096*r.Int64N(4)); err != nil && !errors.Is(err, disk.ErrRange) {
						t.Error(err)
					}
					moved.Add(1)
				case 1:
					check(r)
				default:
					if _, err := d.WriteAt(mine, off); errors.Is(err, disk.ErrNoSpace) {
						full.Add(1)
					} else if err != nil {
						t.Error(err)
					}
				}
			}
		})
		wg.Go(func() {
			for r := rand.New(rand.NewPCG(2, uint64(i))); !stop.Load(); {
				check(r)
			}
		})
	}
	wg.Wait()
	require.NotZero(t, full.Load())
	require.NoError(t, p.Check())
}
