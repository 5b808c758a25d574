package memory

import (
	"bytes"
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
	if n := touched(t, m).Count(); anonymous && n > 3*HugePageSize/PageSize || !anonymous && n != 3 {
		t.Errorf("%d pages of host memory for three", n)
	}
	if anonymous {
		return
	}
	if n := blocks(t, m); n > 4*PageSize {
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
		m := newOf(t, Config{Size: 100 * PageSize, Anonymous: anonymous})
		if _, err := m.AddRegion(100*PageSize, 30*PageSize); err != nil {
			t.Fatal(err)
		}
		wantRuns(t, touched(t, m))
		for _, page := range []uint64{0, 1, 63, 64, 99, 100, 129} {
			if err := m.PutUint8(page*PageSize, 1); err != nil {
				t.Fatal(err)
			}
		}
		wantRuns(t, touched(t, m), run{0, 2}, run{63, 2}, run{99, 2}, run{129, 1})
		if err := m.Discard(PageSize, 98*PageSize+1); err != nil {
			t.Fatal(err)
		}
		wantRuns(t, touched(t, m), run{0, 1}, run{99, 2}, run{129, 1})
	})
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

func TestDiscard(t *testing.T) { bothBackings(t, testDiscard) }

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
