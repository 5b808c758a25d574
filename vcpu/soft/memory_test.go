package soft

import (
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/vmkit-go/vmkit/memory"
)

// heap is what is live on the heap.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.HeapAlloc
}

// TestMemoryBound has a guest touch every page of 16 GiB with code: in each it writes a
// jump to the next, and goes there. What the engine holds of it stays bounded.
func TestMemoryBound(t *testing.T) {
	const bound = 128 << 20
	for _, tc := range []struct {
		name   string
		stride uint64
		pages  uint64
		fill   int // bytes of code in each page
	}{
		{"little code in each of many pages", pageSize, 200_000, 0},
		{"one page of each 2 MiB", 2 << 20, 8000, 0},
		{"pages full of code", pageSize, 5_000, 4000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := heap()
			m, e := freshCode(t, tc.stride, tc.pages, tc.fill)
			most := uint64(0)
			for i := range tc.pages {
				gpa := freshAt + i*tc.stride
				if gpa >= memory.LowEnd {
					gpa += memory.HighBase - memory.LowEnd
				}
				c := e.cpus[0]
				code := make([]byte, tc.fill, tc.fill+8)
				for j := range code {
					code[j] = 0x90 // NOP
				}
				if err := m.Write(gpa, append(code, 0xf4)); err != nil {
					t.Fatal(err)
				}
				c.rip, c.halted = gpa, false
				c.run(int64(tc.fill) + 1)
				if !c.halted {
					t.Fatalf("page %d: %+v at %#x", i, c.exc, c.rip)
				}
				if i%(tc.pages/4) == tc.pages/4-1 {
					most = max(most, heap())
				}
			}
			t.Logf("%.1f MiB", float64(most-before)/(1<<20))
			if most-before > bound {
				t.Errorf("%d MiB, want at most %d", (most-before)>>20, bound>>20)
			}
			runtime.KeepAlive(e)
		})
	}
}

const freshAt = 1 << 20

// freshCode makes a machine of 16 GiB whose CPU runs 64-bit code, mapped one to one.
func freshCode(t *testing.T, stride, pages uint64, fill int) (*memory.Memory, *Engine) {
	t.Helper()
	mem, err := memory.New(memory.Config{Size: 16 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	e, err := New(mem, Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	put := func(at, v uint64) {
		if err := mem.Write(at, binary.LittleEndian.AppendUint64(nil, v)); err != nil {
			t.Fatal(err)
		}
	}
	put(atTables, atTables+0x1000|7)
	for g := range uint64(32) { // GiB, by pages of 2 MiB
		put(atTables+0x1000+8*g, atTables+0x2000+g<<12|7)
		for i := range uint64(512) {
			put(atTables+0x2000+g<<12+8*i, g<<30|i<<21|0x87)
		}
	}
	s := longState()
	if err := e.cpus[0].SetState(&s); err != nil {
		t.Fatal(err)
	}
	return mem, e
}
