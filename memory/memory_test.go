package memory

import (
	"errors"
	"testing"
)

func TestSmoke(t *testing.T) {
	m, err := New(Config{Size: 256 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	last := uint64(HighBase) + 253<<30 - 8
	if err := m.PutUint64(last, 7); err != nil {
		t.Fatal(err)
	}
	if v, err := m.Uint64(last); v != 7 || err != nil {
		t.Fatal(v, err)
	}
	if err := m.PutUint64(last+1, 7); !errors.Is(err, ErrRange) {
		t.Fatal(err)
	}
	if err := m.StartDirty(); err != nil {
		t.Fatal(err)
	}
	m.MarkDirty(LowEnd-1, 1<<30+2)
	var b Bitmap
	if err := m.CollectDirty(&b); err != nil {
		t.Fatal(err)
	}
	for a, n := range b.Runs() {
		t.Logf("%#x %#x", a, n)
	}
	if b.Count() != 2 {
		t.Fatal(b.Count())
	}
	s, _ := m.Slice(0x1000, 2)
	StoreRelease16(s, 0xabcd)
	if LoadAcquire16(s) != 0xabcd {
		t.Fatal()
	}
	StoreSeqCst16(s, 0x1234)
	if LoadAcquire16(s) != 0x1234 {
		t.Fatal()
	}
	Fence()
}
