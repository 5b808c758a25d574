package memory

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"testing"
)

func newMemory(t testing.TB, size uint64) *Memory {
	t.Helper()
	return newOf(t, Config{Size: size})
}

func newOf(t testing.TB, cfg Config) *Memory {
	t.Helper()
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func TestNewLayout(t *testing.T) { testNewLayout(t) }

func testNewLayout(t *testing.T) {
	for _, tt := range []struct {
		size uint64
		want []Region // Base and Size
	}{
		{PageSize, []Region{{Base: 0, Size: PageSize}}},
		{128 << 20, []Region{{Base: 0, Size: 128 << 20}}},
		{LowEnd, []Region{{Base: 0, Size: LowEnd}}},
		{LowEnd + PageSize, []Region{{Base: 0, Size: LowEnd}, {Base: HighBase, Size: PageSize}}},
		{8 << 30, []Region{{Base: 0, Size: LowEnd}, {Base: HighBase, Size: 5 << 30}}},
		{256 << 30, []Region{{Base: 0, Size: LowEnd}, {Base: HighBase, Size: 253 << 30}}},
	} {
		t.Run(fmt.Sprintf("%#x", tt.size), func(t *testing.T) {
			m := newMemory(t, tt.size)
			if m.Size() != tt.size {
				t.Errorf("size %#x", m.Size())
			}
			got := m.Regions()
			if len(got) != len(tt.want) {
				t.Fatalf("regions %v", got)
			}
			for i, r := range got {
				w := tt.want[i]
				if r.Base != w.Base || r.Size != w.Size || uint64(len(r.Host)) != w.Size || r.End() != w.Base+w.Size {
					t.Errorf("region %d: %#x, size %#x, %#x host bytes", i, r.Base, r.Size, len(r.Host))
				}
				if at, ok := m.Lookup(r.End() - 1); !ok || at.Base != r.Base {
					t.Errorf("lookup of the last byte: %v", ok)
				}
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	before := usage(t)
	for _, cfg := range []Config{
		{},
		{Size: 1},
		{Size: PageSize + 1},
		{Size: MaxAddr},
		{Size: math.MaxUint64 &^ (PageSize - 1)},
		{Size: MaxAddr - 2<<30}, // more than an address space holds
		{Size: PageSize, HugePages: true},
		{Size: LowEnd + PageSize, HugePages: true},
	} {
		if m, err := New(cfg); err == nil {
			m.Close()
			t.Errorf("%+v was accepted", cfg)
		} else {
			t.Log(err)
		}
	}
	if after := usage(t); after != before {
		t.Errorf("leaked: %v before, %v after", before, after)
	}
}

// TestHugePages asks for one page more than the host has, and for some of
// those that it has. Inside the nested host it reserves some first.
// bothBackings runs f with a memfd and with anonymous memory.
func bothBackings(t *testing.T, f func(t *testing.T, anonymous bool)) {
	t.Run("memfd", func(t *testing.T) { f(t, false) })
	t.Run("anonymous", func(t *testing.T) { f(t, true) })
}

// use is what guest memory takes of this process.
type use struct{ fds, mappings int }

func usage(t testing.TB) (u use) {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	u.mappings = bytes.Count(maps, []byte("/memfd:guest-memory"))
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(to, "/memfd:guest-memory") {
			u.fds++
		}
	}
	return u
}

// small is memory of two regions that touch, a gap, and a third: pages 0 and
// 1, 2, and 4.
func small(t testing.TB) *Memory {
	t.Helper()
	return addSmall(t, newMemory(t, 2*PageSize))
}

func addSmall(t testing.TB, m *Memory) *Memory {
	t.Helper()
	for _, page := range []uint64{4, 2} {
		if _, err := m.AddRegion(page*PageSize, PageSize); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestRanges(t *testing.T) {
	m := small(t)
	const p = PageSize
	for _, tt := range []struct {
		gpa, n        uint64
		inside, slice bool
	}{
		{0, 0, true, true},
		{0, 1, true, true},
		{0, 2 * p, true, true},
		{0, 3 * p, true, false},
		{2*p - 1, 1, true, true},
		{2*p - 1, 2, true, false},
		{2*p - 1, p + 1, true, false},
		{2*p - 1, p + 2, false, false},
		{3*p - 1, 1, true, true},
		{3*p - 1, 2, false, false},
		{3 * p, 0, true, true},
		{3 * p, 1, false, false},
		{3*p + 1, p, false, false},
		{4 * p, p, true, true},
		{4*p - 1, 1, false, false},
		{5*p - 8, 8, true, true},
		{5*p - 7, 8, false, false},
		{5 * p, 1, false, false},
		{0, 1 << 30, false, false},
		{0, math.MaxInt64, false, false},
		{0, math.MaxUint64, false, false},
		{p, math.MaxUint64, false, false},
		{1, math.MaxUint64, false, false},
		{4 * p, math.MaxUint64 - 4*p + 1, false, false},
		{math.MaxUint64, 1, false, false},
		{math.MaxUint64, math.MaxUint64, false, false},
		{math.MaxUint64 - 7, 8, false, false},
		{1 << 63, 1 << 63, false, false},
	} {
		t.Run(fmt.Sprintf("%#x+%#x", tt.gpa, tt.n), func(t *testing.T) {
			check := func(what string, err error, ok bool) {
				t.Helper()
				var re *RangeError
				switch {
				case ok && err != nil:
					t.Errorf("%s: %v", what, err)
				case !ok && (!errors.Is(err, ErrRange) || !errors.As(err, &re) || re.Addr != tt.gpa || re.Len != tt.n):
					t.Errorf("%s: %v", what, err)
				}
			}
			if m.Contains(tt.gpa, tt.n) != tt.inside {
				t.Error("Contains is wrong")
			}
			b, err := m.Slice(tt.gpa, tt.n)
			check("Slice", err, tt.slice)
			if err == nil && (b == nil || uint64(len(b)) != tt.n || uint64(cap(b)) != tt.n) {
				t.Errorf("slice of %d, capacity %d", len(b), cap(b))
			}
			dst, err := m.AppendSlices(make([][]byte, 1), tt.gpa, tt.n)
			check("AppendSlices", err, tt.inside)
			var sum uint64
			for _, s := range dst[1:] {
				sum += uint64(len(s))
			}
			if err == nil && sum != tt.n || err != nil && len(dst) != 1 {
				t.Errorf("%d slices of %d bytes", len(dst), sum)
			}
			check("Discard", m.Discard(tt.gpa, tt.n), tt.inside)
			m.MarkDirty(tt.gpa, tt.n)
			if tt.n > 1<<20 {
				return
			}
			p := bytes.Repeat([]byte{0xa5}, int(tt.n))
			check("Write", m.Write(tt.gpa, p), tt.inside)
			q := make([]byte, tt.n)
			check("Read", m.Read(tt.gpa, q), tt.inside)
			if tt.inside && !bytes.Equal(p, q) {
				t.Error("read is not what was written")
			}
		})
	}
}

func TestTyped(t *testing.T) {
	m := small(t)
	const v = 0x8877665544332211
	for _, gpa := range []uint64{0, 1, 2*PageSize - 8, 2*PageSize - 7, 2*PageSize - 1, 3*PageSize - 8} {
		if err := m.PutUint64(gpa, v); err != nil {
			t.Fatal(err)
		}
		x64, err64 := m.Uint64(gpa)
		x32, err32 := m.Uint32(gpa)
		x16, err16 := m.Uint16(gpa)
		x8, err8 := m.Uint8(gpa)
		if err := errors.Join(err64, err32, err16, err8); err != nil {
			t.Fatal(err)
		}
		if x64 != v || x32 != v&0xffffffff || x16 != v&0xffff || x8 != v&0xff {
			t.Errorf("%#x: %#x %#x %#x %#x", gpa, x64, x32, x16, x8)
		}
		if err := errors.Join(m.PutUint8(gpa+3, 1), m.PutUint16(gpa+1, 0x0203), m.PutUint32(gpa+4, 0x04050607)); err != nil {
			t.Fatal(err)
		}
		if x, _ := m.Uint64(gpa); x != 0x0405060701020311 {
			t.Errorf("%#x: %#x after the small stores", gpa, x)
		}
	}
	for _, gpa := range []uint64{3*PageSize - 1, math.MaxUint64} {
		_, err64 := m.Uint64(gpa)
		_, err32 := m.Uint32(gpa)
		_, err16 := m.Uint16(gpa)
		_, err8 := m.Uint8(gpa + PageSize - 10)
		for i, err := range []error{
			err64, err32, err16, m.PutUint64(gpa, 1), m.PutUint32(gpa, 1), m.PutUint16(gpa, 1),
			err8, m.PutUint8(gpa+PageSize-10, 1),
		} {
			if i < 6 && !errors.Is(err, ErrRange) {
				t.Errorf("%#x, access %d: %v", gpa, i, err)
			}
			if i >= 6 && gpa != math.MaxUint64 && !errors.Is(err, ErrRange) {
				t.Errorf("%#x, byte: %v", gpa, err)
			}
		}
	}
	// A store that does not fit wholly stores nothing.
	if x, err := m.Uint8(3*PageSize - 1); x != 0x04 || err != nil {
		t.Errorf("last byte %#x, %v", x, err)
	}
}

// TestAnonymous is what memory without a memfd has of its own.
// blocks is the host memory behind m, in bytes.
func TestAddRegion(t *testing.T) {
	m := newMemory(t, 4*PageSize)
	for _, tt := range []struct{ base, size uint64 }{
		{0, PageSize}, {3 * PageSize, PageSize}, {3 * PageSize, 2 * PageSize}, {4*PageSize + 1, PageSize},
		{8 * PageSize, 0}, {8 * PageSize, 1}, {MaxAddr, PageSize}, {MaxAddr - PageSize, 2 * PageSize},
		{math.MaxUint64 &^ (PageSize - 1), PageSize}, {PageSize, math.MaxUint64 &^ (PageSize - 1)},
	} {
		if _, err := m.AddRegion(tt.base, tt.size); err == nil {
			t.Errorf("%#x, size %#x was added", tt.base, tt.size)
		}
	}
	var seen []uint64
	refuse := errors.New("no slot left")
	var refuseNext bool
	stop := m.Watch(func(r Region) error {
		if m.Contains(r.Base, 1) {
			t.Error("the region is in use before the watcher knows")
		}
		if refuseNext {
			return refuse
		}
		seen = append(seen, r.Base)
		return nil
	})
	r, err := m.AddRegion(8*PageSize, PageSize)
	if err != nil || r.Base != 8*PageSize {
		t.Fatal(r, err)
	}
	if _, err := m.AddRegion(7*PageSize, 2*PageSize); err == nil {
		t.Error("overlap with a later region")
	}
	refuseNext = true
	if _, err := m.AddRegion(6*PageSize, PageSize); !errors.Is(err, refuse) {
		t.Errorf("refused region: %v", err)
	}
	if m.Contains(6*PageSize, 1) || m.Size() != 5*PageSize {
		t.Error("a refused region was added")
	}
	stop()
	stop()
	if _, err := m.AddRegion(6*PageSize, PageSize); err != nil {
		t.Error(err)
	}
	if len(seen) != 1 || seen[0] != 8*PageSize {
		t.Errorf("watcher saw %#x", seen)
	}
	// Regions do not share backing.
	for _, r := range m.Regions() {
		r.Host[0] = byte(r.Base / PageSize)
		r.Host[len(r.Host)-1] = byte(r.Base / PageSize)
	}
	for _, r := range m.Regions() {
		if r.Host[0] != byte(r.Base/PageSize) {
			t.Errorf("region at %#x shares memory with another", r.Base)
		}
		checkFile(t, r)
	}
}

func TestClose(t *testing.T) {
	before := usage(t)
	m, err := New(Config{Size: 8 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if u := usage(t); u.fds != before.fds+1 || u.mappings != before.mappings+2 {
		t.Errorf("%v before, %v open", before, u)
	}
	release, err := m.Hold()
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Slice(0, 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.StartDirty(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Close(), m.Close()); err != nil {
		t.Fatal(err)
	}
	b[0] = 1 // held
	release()
	release()
	if u := usage(t); u != before {
		t.Errorf("leaked: %v before, %v after", before, u)
	}
	_, errRead := m.Uint64(0)
	_, errSlice := m.Slice(0, 0)
	_, errHold := m.Hold()
	_, errAdd := m.AddRegion(1<<40, PageSize)
	_, errAppend := m.AppendSlices(nil, 0, 0)
	for i, err := range []error{
		errRead, errSlice, errHold, errAdd, errAppend, m.Read(0, b[:0:0]), m.Write(0, nil), m.PutUint8(0, 1), m.Discard(0, 1),
		m.StartDirty(), m.CollectDirty(new(Bitmap)), m.CollectTouched(new(Bitmap)), m.AddDirtySource(nil),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("call %d on closed memory: %v", i, err)
		}
	}
	if err := m.StopDirty(); err != nil || m.Size() != 0 || len(m.Regions()) != 0 {
		t.Error("closed memory still has something", err)
	}
	m.MarkDirty(0, 1)
}

func TestManyMemories(t *testing.T) {
	before := usage(t)
	n := 100
	if testing.Short() {
		n = 20
	}
	for range n {
		m, err := New(Config{Size: 4 << 30})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.PutUint8(HighBase, 1); err != nil {
			t.Fatal(err)
		}
		if err := m.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := usage(t); after != before {
		t.Errorf("leaked: %v before, %v after", before, after)
	}
}

// TestConcurrent adds regions and closes while others look and access inside
// a hold.
func TestConcurrent(t *testing.T) {
	m := newMemory(t, 4*PageSize)
	var wg sync.WaitGroup
	for g := range 4 {
		release, err := m.Hold()
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer release()
			gpa := uint64(g) * PageSize
			for i := range uint64(20000) {
				err := m.PutUint64(gpa, i)
				v, err2 := m.Uint64(gpa)
				if errors.Is(err, ErrClosed) || errors.Is(err2, ErrClosed) {
					return
				}
				if err != nil || err2 != nil || v != i {
					t.Errorf("wrote %d, read %d: %v, %v", i, v, err, err2)
					return
				}
				_, _ = m.Uint64(HighBase + i*PageSize)
			}
		})
	}
	wg.Go(func() {
		for i := range uint64(50) {
			if _, err := m.AddRegion(HighBase+i*PageSize, PageSize); err != nil {
				t.Error(err)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
}

func TestAllocs(t *testing.T) {
	m := small(t)
	var (
		p    [PageSize]byte
		bufs = make([][]byte, 0, 4)
		sink uint64
	)
	for _, tracking := range []bool{false, true} {
		if tracking {
			if err := m.StartDirty(); err != nil {
				t.Fatal(err)
			}
		}
		n := testing.AllocsPerRun(100, func() {
			err := m.Write(2*PageSize-100, p[:200])
			err2 := m.Read(2*PageSize-100, p[:200])
			v, err3 := m.Uint64(2*PageSize - 1)
			err4 := m.PutUint32(2*PageSize-1, 7)
			b, err5 := m.Slice(4*PageSize, 16)
			var err6 error
			bufs, err6 = m.AppendSlices(bufs[:0], PageSize, 2*PageSize)
			r, ok := m.Lookup(4 * PageSize)
			m.MarkDirty(0, 3*PageSize)
			if err != nil || err2 != nil || err3 != nil || err4 != nil || err5 != nil || err6 != nil || !ok {
				t.Fatal("an access failed")
			}
			StoreRelease16(b, LoadAcquire16(b)+1)
			sink += v + r.Size
		})
		if n != 0 {
			t.Errorf("%v allocations, tracking %v", n, tracking)
		}
	}
}

func TestAtomic16(t *testing.T) {
	m := newMemory(t, PageSize)
	b, err := m.Slice(0, 8)
	if err != nil {
		t.Fatal(err)
	}
	for off := 0; off < 8; off += 2 {
		StoreRelease16(b[off:], uint16(0x1100*(off+1)))
		StoreSeqCst16(b[off:], LoadAcquire16(b[off:])+1)
	}
	if want := []byte{0x01, 0x11, 0x01, 0x33, 0x01, 0x55, 0x01, 0x77}; !bytes.Equal(b, want) {
		t.Errorf("% x, want % x", b, want)
	}
}

// TestAtomic16Order is Dekker's: with a full barrier between its own store and
// its load of the other's, at least one side sees the other.
func TestAtomic16Order(t *testing.T) {
	m := newMemory(t, 2*PageSize)
	x, _ := m.Slice(0, 2)
	y, _ := m.Slice(PageSize, 2)
	seqcst := func(p []byte, v uint16) { StoreSeqCst16(p, v) }
	fenced := func(p []byte, v uint16) { StoreRelease16(p, v); Fence() }
	for round := range uint16(2000) {
		v := round + 1
		var seenX, seenY bool
		var wg sync.WaitGroup
		wg.Go(func() { seqcst(x, v); seenY = LoadAcquire16(y) == v })
		wg.Go(func() { fenced(y, v); seenX = LoadAcquire16(x) == v })
		wg.Wait()
		if !seenX && !seenY {
			t.Fatal("both stores were late")
		}
	}
}

func BenchmarkUint64(b *testing.B) {
	m := newMemory(b, 8<<30)
	for b.Loop() {
		_, _ = m.Uint64(HighBase + 64)
	}
}

func BenchmarkMarkDirtyOff(b *testing.B) {
	m := newMemory(b, 8<<30)
	for b.Loop() {
		m.MarkDirty(HighBase, PageSize)
	}
}

func BenchmarkMarkDirtyOn(b *testing.B) {
	m := newMemory(b, 8<<30)
	if err := m.StartDirty(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		m.MarkDirty(HighBase, PageSize)
	}
}

func BenchmarkLoadAcquire16(b *testing.B) {
	m := newMemory(b, PageSize)
	p, _ := m.Slice(2, 2)
	for b.Loop() {
		LoadAcquire16(p)
	}
}
