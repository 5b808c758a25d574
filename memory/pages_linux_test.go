package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestHugePages(t *testing.T) { bothBackings(t, testHugePages) }

func testHugePages(t *testing.T, anonymous bool) {
	if os.Getenv("VMKIT_NESTED") == "1" {
		if err := os.WriteFile("/proc/sys/vm/nr_hugepages", []byte("8"), 0); err != nil {
			t.Fatal(err)
		}
	}
	free := freeHugePages(t)
	before := usage(t)
	_, err := New(Config{Size: (free + 1) * HugePageSize, HugePages: true, Anonymous: anonymous})
	if !errors.Is(err, ErrNoHugePages) {
		t.Errorf("one huge page too many: %v", err)
	}
	if after := usage(t); after != before {
		t.Errorf("leaked: %v before, %v after", before, after)
	}
	if free < 3 {
		if os.Getenv("VMKIT_NESTED") == "1" {
			t.Fatalf("%d free huge pages after reserving 8", free)
		}
		t.Logf("the host has %d free huge pages; 3 (sysctl vm.nr_hugepages) would be used", free)
		return
	}
	m, err := New(Config{Size: 2 * HugePageSize, HugePages: true, Anonymous: anonymous})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if now := freeHugePages(t); now > free {
		t.Errorf("%d pages free, before %d", now, free)
	}
	if err := m.Write(HugePageSize-4, bytes.Repeat([]byte{7}, 8)); err != nil {
		t.Fatal(err)
	}
	if err := m.Discard(PageSize, HugePageSize); err != nil {
		t.Fatal(err)
	}
	if v, err := m.Uint64(HugePageSize - 4); v != 0 || err != nil {
		t.Errorf("discarded bytes read %#x, %v", v, err)
	}
	if _, err := m.AddRegion(HighBase, PageSize); err == nil {
		t.Error("a small page was added to huge ones")
	}
	if _, err := m.AddRegion(HighBase, HugePageSize); err != nil {
		t.Error(err)
	}
}

func freeHugePages(t *testing.T) uint64 {
	t.Helper()
	text, err := os.ReadFile("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel has no 2 MiB huge pages")
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSparse(t *testing.T) { bothBackings(t, testSparse) }

func testSparse(t *testing.T, anonymous bool) {
	size := uint64(256 << 30)
	if testing.Short() {
		size = 16 << 30 // an emulator of processes has tables of its own for all of it
	}
	if anonymous {
		newOf(t, Config{Size: size, Anonymous: true})
		size = 16 << 30 // its page map takes long to read with the race detector
	}
	m := newOf(t, Config{Size: size, Anonymous: anonymous})
	last := HighBase + size - LowEnd - PageSize
	for i, gpa := range []uint64{0, LowEnd - PageSize, HighBase, last} {
		if err := m.PutUint64(gpa, uint64(i)+1); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.StartDirty(); err != nil {
		t.Fatal(err)
	}
	if err := m.PutUint64(last+PageSize-8, 5); err != nil {
		t.Fatal(err)
	}
	var b Bitmap
	if err := m.CollectDirty(&b); err != nil {
		t.Fatal(err)
	}
	if b.Count() != 1 || !b.Test(last) {
		t.Errorf("%d dirty pages", b.Count())
	}
	if err := m.Discard(HighBase, size-LowEnd); err != nil {
		t.Fatal(err)
	}
	if v, err := m.Uint64(last); v != 0 || err != nil {
		t.Errorf("discarded page reads %d, %v", v, err)
	}
	if v, err := m.Uint64(LowEnd - PageSize); v != 2 || err != nil {
		t.Errorf("low page reads %d, %v", v, err)
	}
	// The loads of the discarded page have taken memory for it again.
	if n := touched(t, m).Count(); anonymous && n > 3*HugePageSize/PageSize || !anonymous && n != 3*hostPage/PageSize {
		t.Errorf("%d pages of host memory for three", n)
	}
	if anonymous {
		return
	}
	if n := blocks(t, m); n > 4*int64(hostPage) {
		t.Errorf("%d bytes of host memory for three pages", n)
	}
}

func touched(t *testing.T, m *Memory) *Bitmap {
	t.Helper()
	b := new(Bitmap)
	if err := m.CollectTouched(b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCollectTouched(t *testing.T) {
	bothBackings(t, func(t *testing.T, anonymous bool) {
		m := newOf(t, Config{Size: 100 * hostPage, Anonymous: anonymous})
		if _, err := m.AddRegion(100*hostPage, 30*hostPage); err != nil {
			t.Fatal(err)
		}
		want := func(want ...run) {
			t.Helper()
			for i := range want {
				want[i].gpa *= hostPage / PageSize
				want[i].n *= hostPage / PageSize
			}
			wantRuns(t, touched(t, m), want...)
		}
		want()
		for _, page := range []uint64{0, 1, 63, 64, 99, 100, 129} {
			if err := m.PutUint8(page*hostPage, 1); err != nil {
				t.Fatal(err)
			}
		}
		want(run{0, 2}, run{63, 2}, run{99, 2}, run{129, 1})
		if err := m.Discard(hostPage, 98*hostPage+1); err != nil {
			t.Fatal(err)
		}
		want(run{0, 1}, run{99, 2}, run{129, 1})
	})
}

// largePages makes the package take the host's pages for 64 KiB until the test
// ends, as some kernels' for arm64 are.
func largePages(t *testing.T) {
	was := hostPage
	hostPage = 64 << 10
	t.Cleanup(func() { hostPage = was })
}

// TestLargePages: with larger pages on the host than in the guest, what the host
// is asked for is in whole ones of its own, and none of it touches a neighbour.
func TestLargePages(t *testing.T) {
	real := hostPage
	largePages(t)
	before := usage(t)
	testNewLayout(t)
	bothBackings(t, func(t *testing.T, anonymous bool) {
		testDiscard(t, anonymous)
		m := newOf(t, Config{Size: 40 * PageSize, Anonymous: anonymous})
		for base := uint64(40 * PageSize); base < 44*PageSize; base += PageSize {
			if _, err := m.AddRegion(base, PageSize); err != nil {
				t.Fatal(err)
			}
		}
		for i, r := range m.Regions() {
			if uint64(len(r.Host)) != r.Size || uint64(cap(r.Host)) != r.Size {
				t.Errorf("region at %#x: %#x bytes of the host, %#x with more", r.Base, len(r.Host), cap(r.Host))
			}
			if a := hostAddr(r.Host); uint64(a)%hostPage != 0 || uint64(r.Offset)%hostPage != 0 {
				t.Errorf("region at %#x: mapped at %#x, from %#x of the file", r.Base, a, r.Offset)
			}
			r.Host[0] = byte(i) + 1
			if !anonymous {
				checkFile(t, r)
			}
		}
		for i, r := range m.Regions() {
			if r.Host[0] != byte(i)+1 {
				t.Errorf("region at %#x shares its memory", r.Base)
			}
		}
		// A kernel would round the length up to its page, and take what follows.
		for _, c := range []struct{ page, n, freed uint64 }{{1, 20, 0}, {8, 20, 0}, {1, 33, 16}, {0, 32, 32}} {
			m := newOf(t, Config{Size: 40 * PageSize, Anonymous: anonymous})
			if err := m.Write(0, bytes.Repeat([]byte{1}, 40*PageSize)); err != nil {
				t.Fatal(err)
			}
			if err := m.Discard(c.page*PageSize, c.n*PageSize); err != nil {
				t.Fatal(err)
			}
			hostPage = real // to find out what it did
			if n := touched(t, m).Count(); n != 40-c.freed && real == PageSize {
				t.Errorf("%d pages discarded at page %d: %d of 40 have memory, want %d", c.n, c.page, n, 40-c.freed)
			}
			hostPage = 64 << 10
		}
	})
	if after := usage(t); after != before {
		t.Errorf("leaked: %v before, %v after", before, after)
	}
}

// TestPageMap reads made-up page maps.
func TestPageMap(t *testing.T) {
	const present, swapped, other = 1 << 63, 1 << 62, 1<<62 - 1
	for _, c := range []struct {
		host, addr, size uint64
		entries          []uint64 // from address 0 on
		want             []run
	}{
		{4 << 10, 0, 4 * PageSize, []uint64{present, other, swapped, 0}, []run{{0, 1}, {2, 1}}},
		{4 << 10, PageSize, 2 * PageSize, []uint64{present, other, swapped, present}, []run{{1, 1}}},
		{64 << 10, 64 << 10, 48 * PageSize, []uint64{present, swapped, 0, present}, []run{{0, 16}, {32, 16}}},
		{64 << 10, 64 << 10, 17 * PageSize, []uint64{0, 0, present}, []run{{16, 1}}}, // a page is cut
		{64 << 10, 0, PageSize, []uint64{present}, []run{{0, 1}}},
		{16 << 10, 0, 65 * PageSize, append(make([]uint64, 15), present, present), []run{{60, 5}}},
	} {
		largePages(t)
		hostPage = c.host
		var file []byte
		for _, e := range c.entries {
			file = binary.NativeEndian.AppendUint64(file, e)
		}
		var b Bitmap
		if err := inPageMap(bytes.NewReader(file), c.addr, c.size, b.segment(0, c.size)); err != nil {
			t.Errorf("%v: %v", c, err)
		}
		wantRuns(t, &b, c.want...)
	}
}

func TestAnonymous(t *testing.T) {
	before := usage(t)
	m := newOf(t, Config{Size: 8 << 20, Anonymous: true})
	if u := usage(t); u != before {
		t.Errorf("anonymous memory uses a memfd: %v before, %v now", before, u)
	}
	r, err := m.AddRegion(HighBase, HugePageSize)
	if err != nil {
		t.Fatal(err)
	}
	if r.FD != -1 || r.Offset != 0 {
		t.Errorf("descriptor %d, offset %d", r.FD, r.Offset)
	}
	var addrs []uintptr
	for _, r := range m.Regions() {
		addrs = append(addrs, hostAddr(r.Host))
		if hostAddr(r.Host)%HugePageSize != 0 {
			t.Errorf("region at %#x is mapped at %#x", r.Base, hostAddr(r.Host))
		}
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if isMapped(t, a) {
			t.Errorf("%#x is still mapped", a)
		}
	}
}

func isMapped(t *testing.T, addr uintptr) bool {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uintptr
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err == nil && from <= addr && addr < to {
			return true
		}
	}
	return false
}

func blocks(t *testing.T, m *Memory) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(m.Regions()[0].FD, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestDiscard(t *testing.T) {
	bothBackings(t, testDiscard)
	bothBackings(t, testDiscardFrees)
}

func testDiscard(t *testing.T, anonymous bool) {
	const p = PageSize
	for _, tt := range []struct{ gpa, n uint64 }{
		{0, p}, {0, 3 * p}, {1, p}, {1, 2*p - 2}, {p - 1, 2}, {100, 5}, {p, p}, {4 * p, p}, {2*p - 1, p + 1}, {7, 0},
	} {
		t.Run(fmt.Sprintf("%#x+%#x", tt.gpa, tt.n), func(t *testing.T) {
			m := addSmall(t, newOf(t, Config{Size: 2 * p, Anonymous: anonymous}))
			model := make([]byte, 5*p)
			for _, r := range m.Regions() {
				for i := range r.Host {
					r.Host[i] = byte(i%251 + 1)
				}
				copy(model[r.Base:], r.Host)
			}
			if err := m.StartDirty(); err != nil {
				t.Fatal(err)
			}
			if err := m.Discard(tt.gpa, tt.n); err != nil {
				t.Fatal(err)
			}
			clear(model[tt.gpa : tt.gpa+tt.n])
			for _, r := range m.Regions() {
				if !bytes.Equal(r.Host, model[r.Base:r.End()]) {
					t.Errorf("region at %#x differs", r.Base)
				}
			}
			var b Bitmap
			if err := m.CollectDirty(&b); err != nil {
				t.Fatal(err)
			}
			for gpa := uint64(0); gpa < 5*p; gpa += p {
				if want := tt.n > 0 && gpa+p > tt.gpa && gpa < tt.gpa+tt.n; b.Test(gpa) != want {
					t.Errorf("page %#x dirty: %v", gpa, !want)
				}
			}
		})
	}
}

func testDiscardFrees(t *testing.T, anonymous bool) {
	const p = PageSize
	m := newOf(t, Config{Size: 16 * p, Anonymous: anonymous})
	if err := m.Write(0, bytes.Repeat([]byte{1}, 16*p)); err != nil {
		t.Fatal(err)
	}
	before := touched(t, m).Count()
	if err := m.Discard(0, 16*p); err != nil {
		t.Fatal(err)
	}
	if after := touched(t, m).Count(); before != 16 || after != 0 {
		t.Errorf("%d pages of host memory, %d after the discard", before, after)
	}
}
