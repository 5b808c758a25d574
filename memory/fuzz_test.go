package memory

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"
)

// FuzzMemory runs random operations on memory and on a model of it: a map of
// bytes and a set of dirty pages.
func FuzzMemory(f *testing.F) {
	f.Add([]byte{0, 0, 0, 200, 1, 1, 255, 15, 9, 2, 5, 255, 31, 8, 7, 6, 0, 0, 0})
	f.Add([]byte{6, 0, 0, 0, 0, 2, 255, 31, 8, 3, 4, 0, 16, 255, 0, 7, 1, 2, 3, 0})
	f.Fuzz(func(t *testing.T, script []byte) {
		m := addSmall(t, newOf(t, Config{Size: 2 * PageSize, Anonymous: len(script)%2 != 0}))
		const limit = 8 * PageSize
		model := make([]byte, limit)
		valid := make([]bool, limit)
		dirty := map[uint64]bool{}
		tracking := false
		cover := func(base, n uint64) {
			for i := base; i < base+n; i++ {
				valid[i] = true
			}
		}
		cover(0, 3*PageSize)
		cover(4*PageSize, PageSize)
		inside := func(gpa, n uint64) bool {
			for i := uint64(0); i < n; i++ {
				if gpa+i >= limit || !valid[gpa+i] {
					return false
				}
			}
			return true
		}
		mark := func(gpa, n uint64) {
			for p := gpa / PageSize; tracking && n > 0 && p <= (gpa+n-1)/PageSize; p++ {
				dirty[p] = true
			}
		}
		agree := func(what string, err error, want bool) {
			t.Helper()
			if want && err != nil || !want && !errors.Is(err, ErrRange) {
				t.Fatalf("%s: %v", what, err)
			}
		}
		for ; len(script) >= 5; script = script[5:] {
			op, v := script[0], script[4]
			gpa := uint64(binary.LittleEndian.Uint16(script[1:]))
			n := uint64(script[3])
			if v&1 != 0 {
				n *= 64
			}
			ok := inside(gpa, n)
			switch op % 10 {
			case 0:
				p := bytes.Repeat([]byte{v}, int(n))
				agree("write", m.Write(gpa, p), ok)
				if ok {
					copy(model[gpa%limit:], p)
					mark(gpa, n)
				}
			case 1:
				p := make([]byte, n)
				agree("read", m.Read(gpa, p), ok)
				if ok && n > 0 && !bytes.Equal(p, model[gpa:gpa+n]) {
					t.Fatalf("read %#x+%#x differs", gpa, n)
				}
			case 2:
				ok := inside(gpa, 8)
				x := uint64(v) * 0x0101010101010101
				agree("put", m.PutUint64(gpa, x), ok)
				if ok {
					binary.LittleEndian.PutUint64(model[gpa:], x)
					mark(gpa, 8)
				}
			case 3:
				ok := inside(gpa, 4)
				x, err := m.Uint32(gpa)
				agree("load", err, ok)
				if ok && x != binary.LittleEndian.Uint32(model[gpa:]) {
					t.Fatalf("load at %#x: %#x", gpa, x)
				}
			case 4:
				agree("discard", m.Discard(gpa, n), ok)
				if ok && n > 0 {
					clear(model[gpa : gpa+n])
					mark(gpa, n)
				}
			case 5:
				bufs, err := m.AppendSlices(nil, gpa, n)
				agree("slices", err, ok)
				if ok && n > 0 && !bytes.Equal(bytes.Join(bufs, nil), model[gpa:gpa+n]) {
					t.Fatalf("slices of %#x+%#x differ", gpa, n)
				}
			case 6:
				var err error
				if tracking {
					err = m.StopDirty()
				} else {
					err = m.StartDirty()
				}
				if err != nil {
					t.Fatal(err)
				}
				tracking = !tracking
				clear(dirty)
			case 7:
				var b Bitmap
				if err := m.CollectDirty(&b); err != nil {
					t.Fatal(err)
				}
				if b.Count() != uint64(len(dirty)) {
					t.Fatalf("%d dirty pages, want %d", b.Count(), len(dirty))
				}
				for p := range dirty {
					if !b.Test(p * PageSize) {
						t.Fatalf("page %d is not dirty", p)
					}
				}
				clear(dirty)
			case 8:
				base := gpa &^ (PageSize - 1)
				if base >= limit {
					break
				}
				_, err := m.AddRegion(base, PageSize)
				if (err == nil) == valid[base] {
					t.Fatalf("add at %#x: %v", base, err)
				}
				cover(base, PageSize)
			case 9:
				far := math.MaxUint64 - gpa
				agree("far read", m.Read(far, make([]byte, n)), n == 0)
				agree("far write", m.Write(far, make([]byte, n)), n == 0)
				m.MarkDirty(far, n)
				if m.Contains(gpa, far+1) && far != math.MaxUint64 {
					t.Fatal("contains everything")
				}
			}
		}
	})
}
