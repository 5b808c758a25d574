// Package disktest holds every [disk.Backend] to its contract.
//
//	func TestBackend(t *testing.T) {
//		disktest.Run(t, disktest.Maker{New: func(t *testing.T, size int64) disk.Backend {
//			m, err := disk.NewMemory("test", size)
//			require.NoError(t, err)
//			return m
//		}})
//	}
package disktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
)

// Maker makes the backends to test.
type Maker struct {
	// New returns a writable backend of size bytes that reads as zeroes. The
	// suite closes it.
	New func(t *testing.T, size int64) disk.Backend

	// Reopen, if not nil, closes b and opens the same disk again.
	Reopen func(t *testing.T, b disk.Backend) disk.Backend

	// ReadOnly, if not nil, closes b and opens the same disk read-only.
	ReadOnly func(t *testing.T, b disk.Backend) disk.Backend

	// Seed drives the random parts; 0 is a seed too.
	Seed uint64
}

// Run runs the whole suite as subtests of t.
func Run(t *testing.T, m Maker) {
	for _, c := range []struct {
		name string
		fn   func(*testing.T, Maker)
	}{
		{"Info", testInfo},
		{"Bounds", testBounds},
		{"Empty", testEmpty},
		{"Random", testRandom},
		{"Vectors", testVectors},
		{"Zeroes", testZeroes},
		{"Extents", testExtents},
		{"Resize", testResize},
		{"Concurrent", testConcurrent},
		{"Reopen", testReopen},
		{"ReadOnly", testReadOnly},
		{"Close", testClose},
	} {
		t.Run(c.name, func(t *testing.T) { c.fn(t, m) })
	}
}

func (m Maker) make(t *testing.T, size int64) disk.Backend {
	t.Helper()
	b := m.New(t, size)
	t.Cleanup(func() { b.Close() })
	require.Equal(t, size, b.Size())
	return b
}

func (m Maker) rand() *rand.Rand { return rand.New(rand.NewPCG(m.Seed, 1)) }

// Fill fills p from r: random bytes at the start, and from there on those of
// a table, from a random place. It is quick, and any misplaced part shows.
func Fill(r *rand.Rand, p []byte) {
	var head [16]byte
	binary.LittleEndian.PutUint64(head[:], r.Uint64())
	binary.LittleEndian.PutUint64(head[8:], r.Uint64())
	p = p[copy(p, head[:]):]
	t := table()
	for len(p) > 0 {
		p = p[copy(p, t[r.IntN(len(t)/2):]):]
	}
}

var table = sync.OnceValue(func() []byte {
	t := make([]byte, 128<<10)
	rand.NewChaCha8([32]byte{}).Read(t)
	return t
})

func testInfo(t *testing.T, m Maker) {
	b := m.make(t, 1<<20)
	i := b.Info()
	require.NotEmpty(t, i.Name)
	require.False(t, i.ReadOnly)
	require.GreaterOrEqual(t, i.BlockSize, 512)
	require.Zero(t, i.BlockSize&(i.BlockSize-1), "BlockSize %d is not a power of two", i.BlockSize)
	require.Zero(t, i.OptimalIO%i.BlockSize)
	require.GreaterOrEqual(t, i.DiscardUnit, 0)
	require.Equal(t, i, b.Info())
}

// requireError checks err against the contract for errors.
func requireError(t *testing.T, err error, want error, b disk.Backend) {
	t.Helper()
	require.ErrorIs(t, err, want)
	de, ok := errors.AsType[*disk.Error](err)
	require.True(t, ok, "%v (%T) is not a *disk.Error", err, err)
	require.Equal(t, b.Info().Name, de.Name)
	require.NotEmpty(t, de.Op)
}

func testBounds(t *testing.T, m Maker) {
	const size = 1 << 20
	b := m.make(t, size)
	r := m.rand()
	want := make([]byte, size)
	Fill(r, want)
	n, err := b.WriteAt(want, 0)
	require.NoError(t, err)
	require.Equal(t, size, n)

	t.Run("read to the end", func(t *testing.T) {
		p := make([]byte, 1000)
		n, err := b.ReadAt(p, size-1000)
		require.NoError(t, err, "a read that ends at Size has no error")
		require.Equal(t, 1000, n)
		require.Equal(t, want[size-1000:], p)
	})
	t.Run("read across the end", func(t *testing.T) {
		p := make([]byte, 1000)
		n, err := b.ReadAt(p, size-10)
		require.Equal(t, io.EOF, err)
		require.Equal(t, 10, n)
		require.Equal(t, want[size-10:], p[:10])
	})
	for _, off := range []int64{size, size + 1, 1 << 40, math.MaxInt64 - 10, math.MaxInt64} {
		n, err := b.ReadAt(make([]byte, 100), off)
		require.Equal(t, io.EOF, err, "read at %d", off)
		require.Zero(t, n)
	}
	n, err = b.ReadAt(make([]byte, 100), -1)
	requireError(t, err, disk.ErrRange, b)
	require.Zero(t, n)
	for _, c := range []struct{ off, n int64 }{
		{-1, 10}, {size, 1}, {size - 1, 2}, {1 << 40, 512}, {math.MaxInt64 - 5, 10}, {math.MinInt64, 512}, {0, size + 1},
	} {
		n, err := b.WriteAt(make([]byte, c.n), c.off)
		requireError(t, err, disk.ErrRange, b)
		require.Zero(t, n)
		requireError(t, b.Discard(c.off, c.n), disk.ErrRange, b)
		requireError(t, b.WriteZeroes(c.off, c.n, true), disk.ErrRange, b)
		requireError(t, b.WriteZeroes(c.off, c.n, false), disk.ErrRange, b)
	}
	requireError(t, b.Discard(0, -1), disk.ErrRange, b)
	requireError(t, b.WriteZeroes(0, -1, true), disk.ErrRange, b)
	require.Equal(t, int64(size), b.Size(), "requests past the end changed Size")
	requireContent(t, b, want)
}

func testEmpty(t *testing.T, m Maker) {
	b := m.make(t, 1<<20)
	requireContent(t, b, make([]byte, 1<<20))
	n, err := b.ReadAt(nil, 0)
	require.NoError(t, err)
	require.Zero(t, n)
	n, err = b.WriteAt(nil, 1<<20)
	require.NoError(t, err)
	require.Zero(t, n)
	require.NoError(t, b.Discard(1<<20, 0))
	require.NoError(t, b.WriteZeroes(1<<20, 0, false))
	require.NoError(t, b.Flush())
}

// requireContent compares the whole disk.
func requireContent(t *testing.T, b disk.Backend, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := b.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, len(want), n)
	if !bytes.Equal(want, got) {
		i := 0
		for want[i] == got[i] {
			i++
		}
		t.Fatalf("content differs first at %d: want %#x, got %#x", i, want[i], got[i])
	}
}

// span picks a range, half of the time aligned.
func span(r *rand.Rand, size int64) (off, n int64) {
	off, n = r.Int64N(size), 1+r.Int64N(200<<10)
	if r.IntN(2) == 0 {
		off, n = off&^511, (n+511)&^511
	}
	if r.IntN(8) == 0 {
		off, n = off&^(64<<10-1), 256<<10
	}
	return off, min(n, size-off)
}

// testRandom runs random requests against a model.
func testRandom(t *testing.T, m Maker) {
	const size = 3<<20 + 512
	b, r := m.make(t, size), m.rand()
	model := make([]byte, size)
	for i := range 300 {
		off, n := span(r, size)
		switch r.IntN(8) {
		case 0:
			require.NoError(t, b.WriteZeroes(off, n, r.IntN(2) == 0))
			clear(model[off:][:n])
		case 1:
			before := bytes.Clone(model[off:][:n])
			require.NoError(t, b.Discard(off, n))
			after := make([]byte, n)
			_, err := b.ReadAt(after, off)
			require.NoError(t, err)
			for j := range after {
				if after[j] != 0 && after[j] != before[j] {
					t.Fatalf("step %d: byte %d reads %#x after a discard; it was %#x", i, off+int64(j), after[j], before[j])
				}
			}
			copy(model[off:], after)
		case 2:
			require.NoError(t, b.Flush())
		case 3, 4:
			got := make([]byte, n)
			k, err := b.ReadAt(got, off)
			require.NoError(t, err)
			require.EqualValues(t, n, k)
			if !bytes.Equal(got, model[off:][:n]) {
				t.Fatalf("step %d: wrong data in %d bytes at %d", i, n, off)
			}
		default:
			p := make([]byte, n)
			Fill(r, p)
			k, err := b.WriteAt(p, off)
			require.NoError(t, err)
			require.EqualValues(t, n, k)
			copy(model[off:], p)
		}
	}
	requireContent(t, b, model)
}

// testVectors checks Vectored and Immediate against ReadAt and WriteAt.
func testVectors(t *testing.T, m Maker) {
	const size = 4 << 20
	b, r := m.make(t, size), m.rand()
	model := make([]byte, size)
	im, _ := b.(disk.Immediate)
	cut := func(p []byte) (bufs [][]byte) {
		most := []int{3000, 20000, 300000, 40000}[r.IntN(4)]
		for len(p) > 0 {
			n := min(len(p), r.IntN(most))
			bufs, p = append(bufs, p[:n]), p[n:]
		}
		return append(bufs, nil)
	}
	for i := range 100 {
		off := r.Int64N(size)
		n := min(size-off, 1+r.Int64N(1<<(10+r.IntN(11))))
		p := make([]byte, n)
		bufs := [][]byte(nil)
		k, err := 0, error(nil)
		write := r.IntN(2) == 0
		if write {
			Fill(r, p)
		}
		bufs = cut(p)
		lens := lengths(bufs)
		switch {
		case write && im != nil && i%2 == 0:
			if k, err = im.TryWriteVAt(bufs, off); err == disk.ErrWouldBlock {
				require.LessOrEqual(t, int64(k), n)
				k, err = disk.WriteV(b, bufs, off)
			}
		case write:
			k, err = disk.WriteV(b, bufs, off)
		case im != nil && i%2 == 0:
			if k, err = im.TryReadVAt(bufs, off); err == disk.ErrWouldBlock {
				require.LessOrEqual(t, int64(k), n)
				k, err = disk.ReadV(b, bufs, off)
			}
		default:
			k, err = disk.ReadV(b, bufs, off)
		}
		require.NoError(t, err)
		require.EqualValues(t, n, k)
		require.Empty(t, cmp.Diff(lens, lengths(bufs)), "the buffers were changed")
		if write {
			copy(model[off:], p)
		} else if !bytes.Equal(p, model[off:][:n]) {
			t.Fatalf("step %d: wrong data in %d bytes at %d", i, n, off)
		}
	}
	requireContent(t, b, model)

	two := [][]byte{make([]byte, 100), make([]byte, 100)}
	n, err := disk.ReadV(b, two, size-150)
	require.Equal(t, io.EOF, err)
	require.Equal(t, 150, n)
	n, err = disk.WriteV(b, two, size-150)
	requireError(t, err, disk.ErrRange, b)
	require.Zero(t, n)
	requireContent(t, b, model)
}

func lengths(bufs [][]byte) (l []int) {
	for _, p := range bufs {
		l = append(l, len(p))
	}
	return l
}

// testZeroes zeroes ranges with every alignment of both ends.
func testZeroes(t *testing.T, m Maker) {
	const size = 1 << 20
	b := m.make(t, size)
	want := bytes.Repeat([]byte{0xa5}, size)
	_, err := b.WriteAt(want, 0)
	require.NoError(t, err)
	base := int64(0)
	for i, c := range []struct{ off, n int64 }{
		{0, 512}, {1024, 4096}, {8192, 4096}, {16383, 2}, {20000, 7000}, {32768, 65536}, {131071, 70001}, {262144, 262144},
	} {
		require.NoError(t, b.WriteZeroes(base+c.off, c.n, i%2 == 0))
		clear(want[base+c.off:][:c.n])
		requireContent(t, b, want)
	}
	require.NoError(t, b.WriteZeroes(0, size, true))
	requireContent(t, b, make([]byte, size))
}

func testExtents(t *testing.T, m Maker) {
	const size = 8 << 20
	b := m.make(t, size)
	mp, ok := b.(disk.Mapper)
	if !ok {
		return // an optional interface
	}
	data := bytes.Repeat([]byte{1}, 1<<20)
	_, err := b.WriteAt(data, 2<<20)
	require.NoError(t, err)
	for off := int64(0); off < size; {
		e, err := mp.Extent(off)
		require.NoError(t, err)
		require.Equal(t, off, e.Off)
		require.Positive(t, e.Len)
		require.LessOrEqual(t, e.Off+e.Len, int64(size))
		if e.Zero {
			require.True(t, e.Off+e.Len <= 2<<20 || e.Off >= 3<<20, "written bytes are called zero: %+v", e)
		}
		off += e.Len
	}
	for _, off := range []int64{-1, size, size + 1} {
		_, err := mp.Extent(off)
		requireError(t, err, disk.ErrRange, b)
	}
}

func testResize(t *testing.T, m Maker) {
	b := m.make(t, 1<<20)
	rs, ok := b.(disk.Resizer)
	if !ok {
		return // an optional interface
	}
	full := bytes.Repeat([]byte{7}, 1<<20)
	_, err := b.WriteAt(full, 0)
	require.NoError(t, err)
	require.NoError(t, rs.Resize(3<<20))
	require.EqualValues(t, 3<<20, b.Size())
	requireContent(t, b, append(bytes.Clone(full), make([]byte, 2<<20)...))
	require.NoError(t, rs.Resize(512<<10+512))
	requireContent(t, b, full[:512<<10+512])
	_, err = b.WriteAt([]byte{1}, 512<<10+512)
	requireError(t, err, disk.ErrRange, b)
	require.NoError(t, rs.Resize(1<<20))
	clear(full[512<<10+512:])
	requireContent(t, b, full)
	require.Error(t, rs.Resize(-1))
	require.EqualValues(t, 1<<20, b.Size())
}

// testConcurrent has writers own stripes and check them while others work.
func testConcurrent(t *testing.T, m Maker) {
	const workers, stripe = 8, 256<<10 + 512
	b := m.make(t, workers*stripe)
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(m.Seed, uint64(w)))
			base, model := int64(w*stripe), make([]byte, stripe)
			for range 100 {
				off := r.Int64N(stripe)
				p := make([]byte, 1+r.Int64N(min(stripe-off, 40000)))
				var err error
				switch r.IntN(4) {
				case 0:
					err = b.WriteZeroes(base+off, int64(len(p)), true)
					clear(model[off:][:len(p)])
				case 1:
					err = b.Flush()
				case 2:
					Fill(r, p)
					_, err = b.WriteAt(p, base+off)
					copy(model[off:], p)
				default:
					_, err = b.ReadAt(p, base+off)
					if err == nil && !bytes.Equal(p, model[off:][:len(p)]) {
						err = fmt.Errorf("worker %d: wrong data in %d bytes at %d", w, len(p), off)
					}
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
}

func testReopen(t *testing.T, m Maker) {
	if m.Reopen == nil {
		return // this backend keeps nothing
	}
	const size = 1<<20 + 512
	b, r := m.make(t, size), m.rand()
	want := make([]byte, size)
	Fill(r, want[:700000])
	_, err := b.WriteAt(want[:700000], 0)
	require.NoError(t, err)
	require.NoError(t, b.WriteZeroes(1000, 5000, true))
	clear(want[1000:6000])
	require.NoError(t, b.Flush())
	b = m.Reopen(t, b)
	t.Cleanup(func() { b.Close() })
	require.EqualValues(t, size, b.Size())
	requireContent(t, b, want)
}

func testReadOnly(t *testing.T, m Maker) {
	if m.ReadOnly == nil {
		return // this backend has no such mode
	}
	b := m.make(t, 1<<20)
	want := bytes.Repeat([]byte{9}, 1<<20)
	_, err := b.WriteAt(want, 0)
	require.NoError(t, err)
	b = m.ReadOnly(t, b)
	t.Cleanup(func() { b.Close() })
	require.True(t, b.Info().ReadOnly)
	_, err = b.WriteAt([]byte{1}, 0)
	requireError(t, err, disk.ErrReadOnly, b)
	requireError(t, b.Discard(0, 4096), disk.ErrReadOnly, b)
	requireError(t, b.WriteZeroes(0, 4096, true), disk.ErrReadOnly, b)
	if rs, ok := b.(disk.Resizer); ok {
		requireError(t, rs.Resize(1), disk.ErrReadOnly, b)
	}
	require.NoError(t, b.Flush())
	requireContent(t, b, want)
}

func testClose(t *testing.T, m Maker) {
	b := m.make(t, 1<<20)
	// Requests beside Close either work or say that it is closed.
	var wg sync.WaitGroup
	errs := make(chan error, 16)
	for range 4 {
		wg.Go(func() {
			p := make([]byte, 8192)
			for range 50 {
				_, rerr := b.ReadAt(p, 4096)
				_, werr := b.WriteAt(p, 4096)
				for _, err := range []error{rerr, werr} {
					if err != nil && !errors.Is(err, os.ErrClosed) {
						errs <- err
						return
					}
				}
			}
		})
	}
	require.NoError(t, b.Close())
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	require.NoError(t, b.Close(), "second Close")
	_, err := b.ReadAt(make([]byte, 1), 0)
	requireError(t, err, os.ErrClosed, b)
	_, err = b.WriteAt(make([]byte, 1), 0)
	requireError(t, err, os.ErrClosed, b)
	requireError(t, b.Flush(), os.ErrClosed, b)
	requireError(t, b.Discard(0, 512), os.ErrClosed, b)
	requireError(t, b.WriteZeroes(0, 512, true), os.ErrClosed, b)
	if rs, ok := b.(disk.Resizer); ok {
		requireError(t, rs.Resize(1), os.ErrClosed, b)
	}
	if mp, ok := b.(disk.Mapper); ok {
		_, err := mp.Extent(0)
		requireError(t, err, os.ErrClosed, b)
	}
	require.EqualValues(t, 1<<20, b.Size())
	require.NotEmpty(t, b.Info().Name)
}
