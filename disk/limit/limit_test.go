package limit_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/limit"
)

func limiter(t testing.TB, r limit.Rate) *limit.Limiter {
	t.Helper()
	l, err := limit.New(r)
	require.NoError(t, err)
	return l
}

func memory(t testing.TB, size int64) *disk.Memory {
	t.Helper()
	m, err := disk.NewMemory("mem", size)
	require.NoError(t, err)
	return m
}

// plain hides what a backend implements beside the interface.
type plain struct{ disk.Backend }

func TestConformance(t *testing.T) {
	l := limiter(t, limit.Rate{Bytes: 4 << 30, Requests: 1e6})
	t.Run("memory", func(t *testing.T) {
		disktest.Run(t, disktest.Maker{New: func(t *testing.T, size int64) disk.Backend { return limit.Wrap(memory(t, size), l) }})
	})
	t.Run("file", func(t *testing.T) {
		path := ""
		open := func(t *testing.T, b disk.Backend, cfg disk.FileConfig) disk.Backend {
			require.NoError(t, b.Close())
			f, err := disk.Open(path, cfg)
			require.NoError(t, err)
			return limit.Wrap(f, l)
		}
		disktest.Run(t, disktest.Maker{
			New: func(t *testing.T, size int64) disk.Backend {
				path = filepath.Join(t.TempDir(), "image")
				f, err := disk.Create(path, size, disk.FileConfig{})
				require.NoError(t, err)
				return limit.Wrap(f, l)
			},
			Reopen:   func(t *testing.T, b disk.Backend) disk.Backend { return open(t, b, disk.FileConfig{}) },
			ReadOnly: func(t *testing.T, b disk.Backend) disk.Backend { return open(t, b, disk.FileConfig{ReadOnly: true}) },
		})
	})
	// What a plain backend lacks is said by name.
	d := limit.Wrap(plain{memory(t, 1<<20)}, l)
	require.ErrorContains(t, d.Resize(1), "unsupported")
	e, err := d.Extent(4096)
	require.NoError(t, err)
	require.Equal(t, disk.Extent{Off: 4096, Len: 1<<20 - 4096, Allocated: true}, e)
	_, err = d.Extent(1 << 20)
	require.ErrorIs(t, err, disk.ErrRange)
	require.NoError(t, d.Close())
	_, err = d.Extent(0)
	require.ErrorIs(t, err, os.ErrClosed)
}

func TestRateRefused(t *testing.T) {
	for _, r := range []limit.Rate{{Bytes: -1}, {Requests: -1}, {BurstBytes: 1 << 60}, {BurstRequests: -5}} {
		_, err := limit.New(r)
		require.ErrorContains(t, err, "disk limit")
	}
}

// Disks that share a limiter get together what it lets through, never more. A
// busy host can only make it less, so only that is asserted.
func TestShared(t *testing.T) {
	const rate, burst = 8 << 20, 64 << 10
	l := limiter(t, limit.Rate{Bytes: rate, BurstBytes: burst})
	var wg sync.WaitGroup
	start := time.Now()
	const each = 400 << 10
	for range 3 {
		d := limit.Wrap(memory(t, 1<<20), l)
		wg.Go(func() {
			p := make([]byte, 20<<10)
			for n := 0; n < each; n += len(p) {
				if _, err := d.WriteAt(p, int64(n)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	least := time.Duration(float64(3*each-burst) / rate * float64(time.Second))
	require.GreaterOrEqual(t, time.Since(start), least)
}

func TestRequests(t *testing.T) {
	l := limiter(t, limit.Rate{Requests: 1000, BurstRequests: 10})
	d := limit.Wrap(memory(t, 1<<20), l)
	start := time.Now()
	for i := range 110 {
		var err error
		switch i % 3 {
		case 0:
			err = d.WriteZeroes(0, 4096, true)
		case 1:
			err = d.Discard(0, 4096)
		default:
			_, err = d.ReadAt(make([]byte, 512), 0)
		}
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, time.Since(start), 100*time.Millisecond)
}

// New limits count for those who wait already.
func TestSet(t *testing.T) {
	l := limiter(t, limit.Rate{Bytes: 1, BurstBytes: 1})
	d := limit.Wrap(memory(t, 1<<20), l)
	_, err := d.WriteAt(make([]byte, 1<<20), 0) // on credit, for twelve days
	require.NoError(t, err)
	done := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := d.ReadAt(make([]byte, 4096), 0)
			done <- err
		}()
	}
	require.Eventually(t, func() bool { return l.Waiting() == 3 }, time.Minute, time.Millisecond)
	_, err = d.TryReadVAt([][]byte{make([]byte, 1)}, 0)
	require.Equal(t, disk.ErrWouldBlock, err)
	require.NoError(t, d.Flush(), "a flush is free")
	require.Error(t, l.Set(limit.Rate{Bytes: -1}))
	require.NoError(t, l.Set(limit.Rate{}))
	for range 3 {
		require.NoError(t, <-done)
	}
	require.Equal(t, limit.Rate{}, l.Rate())
	require.Zero(t, l.Waiting())
}

// Close ends those who wait; those of other disks go on waiting.
func TestClose(t *testing.T) {
	l := limiter(t, limit.Rate{Bytes: 1, BurstBytes: 1})
	a, b := limit.Wrap(memory(t, 1<<20), l), limit.Wrap(memory(t, 1<<20), l)
	_, err := a.WriteAt(make([]byte, 1<<20), 0) // on credit, for twelve days
	require.NoError(t, err)
	read := func(d disk.Backend, done chan error) {
		_, err := d.ReadAt(make([]byte, 4096), 0)
		done <- err
	}
	done, other := make(chan error, 2), make(chan error, 1)
	go read(a, done)
	go read(a, done)
	go read(b, other)
	require.Eventually(t, func() bool { return l.Waiting() == 3 }, time.Minute, time.Millisecond)
	require.NoError(t, a.Close())
	for range 2 {
		require.ErrorIs(t, <-done, os.ErrClosed)
	}
	require.Empty(t, other)
	require.NoError(t, l.Set(limit.Rate{}))
	require.NoError(t, <-other)
}

func TestAllocatesNothing(t *testing.T) {
	d := limit.Wrap(memory(t, 1<<20), limiter(t, limit.Rate{Bytes: 1 << 40, Requests: 1 << 40}))
	bufs := [][]byte{make([]byte, 4096), make([]byte, 4096)}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		d.ReadAt(bufs[0], 0)
		d.WriteVAt(bufs, 8192)
		d.TryWriteVAt(bufs, 0)
		d.TryReadVAt(bufs, 0)
	}))
}

func ExampleWrap() {
	img, err := disk.NewMemory("data", 1<<30)
	if err != nil {
		panic(err)
	}
	l, err := limit.New(limit.Rate{Bytes: 50 << 20, Requests: 2000})
	if err != nil {
		panic(err)
	}
	d := limit.Wrap(img, l)
	defer d.Close()
	if _, err := d.WriteAt([]byte("hello"), 0); err != nil {
		panic(err)
	}
}
