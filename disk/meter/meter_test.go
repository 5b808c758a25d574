package meter_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/meter"
)

func memory(t testing.TB, size int64) *disk.Memory {
	t.Helper()
	m, err := disk.NewMemory("mem", size)
	require.NoError(t, err)
	return m
}

// plain hides what a backend implements beside the interface.
type plain struct{ disk.Backend }

func TestConformance(t *testing.T) {
	disktest.Run(t, disktest.Maker{New: func(t *testing.T, size int64) disk.Backend { return meter.Wrap(memory(t, size)) }})
	d := meter.Wrap(plain{memory(t, 1<<20)})
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

func TestCounts(t *testing.T) {
	d := meter.Wrap(memory(t, 1<<20))
	p := make([]byte, 4096)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 100 {
				d.ReadAt(p[:0:0], 0)
				d.WriteVAt([][]byte{make([]byte, 1000), make([]byte, 24)}, 0)
				d.TryWriteVAt([][]byte{make([]byte, 512)}, 0)
			}
		})
	}
	wg.Wait()
	before := d.Snapshot()
	n, err := d.ReadAt(p, 1<<20-1000)
	require.Error(t, err)
	require.Equal(t, 1000, n)
	_, err = d.ReadAt(p, -1)
	require.Error(t, err)
	require.NoError(t, d.Flush())
	require.NoError(t, d.Discard(0, 8192))
	require.NoError(t, d.WriteZeroes(0, 100, true))
	s := d.Snapshot()
	require.EqualValues(t, 402, s[meter.Read].Requests)
	require.EqualValues(t, 1, s[meter.Read].Errors)
	require.EqualValues(t, 1000, s[meter.Read].Bytes)
	require.EqualValues(t, 800, s[meter.Write].Requests)
	require.EqualValues(t, 400*(1024+512), s[meter.Write].Bytes)
	for k := range meter.Kinds {
		c := &s[k]
		require.NotZero(t, c.Requests, "%v", k)
		require.LessOrEqual(t, c.Percentile(0.5), c.Percentile(0.99))
		require.LessOrEqual(t, c.Percentile(0.99), c.Percentile(1))
		require.LessOrEqual(t, c.Percentile(1), c.Longest)
		require.LessOrEqual(t, c.Mean(), c.Longest)
	}
	delta := s.Since(before)
	require.EqualValues(t, 2, delta[meter.Read].Requests)
	require.EqualValues(t, 1, delta[meter.Flush].Requests)
	require.Zero(t, delta[meter.Write].Requests)
	require.Zero(t, delta[meter.Write].Percentile(0.5))
	require.Zero(t, delta[meter.Write].Mean())
	require.EqualValues(t, 8192, delta[meter.Discard].Bytes)
}

// slow takes some time for each read.
type slow struct {
	disk.Backend
	d time.Duration
}

func (s *slow) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(s.d)
	return s.Backend.ReadAt(p, off)
}

func TestPercentile(t *testing.T) {
	s := &slow{Backend: memory(t, 4096)}
	d := meter.Wrap(s)
	for range 90 {
		d.ReadAt(make([]byte, 1), 0)
	}
	s.d = 20 * time.Millisecond
	for range 10 {
		d.ReadAt(make([]byte, 1), 0)
	}
	c := d.Snapshot()[meter.Read]
	require.GreaterOrEqual(t, c.Percentile(0.95), 20*time.Millisecond)
	require.GreaterOrEqual(t, c.Longest, 20*time.Millisecond)
	require.GreaterOrEqual(t, c.Mean(), 2*time.Millisecond)
}

func TestAllocatesNothing(t *testing.T) {
	d := meter.Wrap(memory(t, 1<<20))
	bufs := [][]byte{make([]byte, 4096), make([]byte, 4096)}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		d.ReadAt(bufs[0], 0)
		d.WriteVAt(bufs, 8192)
		d.TryWriteVAt(bufs, 0)
		d.Flush()
	}))
}

func ExampleDisk_Snapshot() {
	img, err := disk.NewMemory("data", 1<<30)
	if err != nil {
		panic(err)
	}
	d := meter.Wrap(img)
	defer d.Close()
	for i := range int64(3) {
		if _, err := d.WriteAt(make([]byte, 4096), i*4096); err != nil {
			panic(err)
		}
	}
	s := d.Snapshot()
	fmt.Println(s[meter.Write].Requests, s[meter.Write].Bytes, s[meter.Write].Percentile(0.5) > 0)
	// Output: 3 12288 true
}
