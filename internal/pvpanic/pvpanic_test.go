package pvpanic

import (
	"testing"

	"github.com/vmkit-go/vmkit/internal/chip/chiptest"
)

func TestEvents(t *testing.T) {
	var crashes, loads int
	crash, load := func() { crashes++ }, func() { loads++ }
	for _, tt := range []struct {
		name                 string
		cfg                  Config
		offered, write       uint32
		wantCrash, wantLoads int
	}{
		{"both, crash", Config{crash, load}, 3, 1, 1, 0},
		{"both, crash kernel", Config{crash, load}, 3, 2, 0, 1},
		{"both at once", Config{crash, load}, 3, 3, 1, 1},
		{"unknown", Config{crash, load}, 3, 0xfc, 0, 0},
		{"crash only", Config{OnCrash: crash}, 1, 3, 1, 0},
		{"nobody listens", Config{}, 0, 3, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			crashes, loads = 0, 0
			d := New(tt.cfg)
			if v := chiptest.In(d, 0, 1); v != tt.offered {
				t.Errorf("offers %#x, want %#x", v, tt.offered)
			}
			chiptest.Out(d, 0, 1, tt.write)
			if crashes != tt.wantCrash || loads != tt.wantLoads {
				t.Errorf("%d crashes, %d crash kernels", crashes, loads)
			}
		})
	}
}

func TestState(t *testing.T) {
	d := New(Config{})
	s, err := d.Save()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Load(s); err != nil {
		t.Fatal(err)
	}
	chiptest.BadStates(t, d)
}

func FuzzDevice(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 3, 2, 0})
	f.Add([]byte("\x03\x00{}"))
	f.Fuzz(func(t *testing.T, script []byte) {
		chiptest.Drive(t, New(Config{}), New(Config{}), Size, script, func(byte) {})
	})
}
