package i8042

import (
	"testing"

	"github.com/vmkit-go/vmkit/internal/chip/chiptest"
)

func TestReset(t *testing.T) {
	type access struct {
		off uint64
		v   uint32
	}
	for _, tt := range []struct {
		name   string
		writes []access
		want   int
	}{
		{"pulse reset", []access{{regCommand, 0xfe}}, 1},
		{"pulse every line", []access{{regCommand, 0xf0}}, 1},
		{"pulse nothing", []access{{regCommand, 0xff}}, 0},
		{"pulse A20", []access{{regCommand, 0xfd}}, 0},
		{"output port without reset", []access{{regCommand, 0xd1}, {regData, 0xdf}}, 0},
		{"output port with reset", []access{{regCommand, 0xd1}, {regData, 0xfe}}, 1},
		{"output port once", []access{{regCommand, 0xd1}, {regData, 0xdf}, {regData, 0x00}}, 0},
		{"other command between", []access{{regCommand, 0xd1}, {regCommand, 0xad}, {regData, 0x00}}, 0},
		{"keyboard data", []access{{regData, 0xfe}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			c := New(Config{OnReset: func() { n++ }})
			for _, a := range tt.writes {
				chiptest.Out(c, a.off, 1, a.v)
			}
			if n != tt.want {
				t.Errorf("%d resets, want %d", n, tt.want)
			}
		})
	}
	chiptest.Out(New(Config{}), regCommand, 1, 0xfe) // nobody listens
}

// TestProbe does what Linux does to find a controller and to reset through it.
func TestProbe(t *testing.T) {
	c := New(Config{})
	for range 17 {
		if chiptest.In(c, regCommand, 1)&1 == 0 {
			t.Fatal("the output buffer was emptied: a controller is found")
		}
		chiptest.In(c, regData, 1)
	}
	if chiptest.In(c, regCommand, 1)&2 != 0 {
		t.Error("the input buffer is full: a reset waits")
	}
	if v := chiptest.In(c, 1, 1); v != 0xff {
		t.Errorf("port 0x61 reads %#x", v)
	}
}

func TestState(t *testing.T) {
	n := 0
	a, b := New(Config{}), New(Config{OnReset: func() { n++ }})
	chiptest.Out(a, regCommand, 1, 0xd1)
	s, err := a.Save()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Load(s); err != nil {
		t.Fatal(err)
	}
	chiptest.Out(b, regData, 1, 0)
	if n != 1 {
		t.Error("the pending command was lost")
	}
	chiptest.BadStates(t, b, `{"output":1}`)
}

func FuzzChip(f *testing.F) {
	f.Add([]byte{0, 4, 1, 4, 0xfe, 2, 0})
	f.Add([]byte("\x03\x00{\"output\":true}"))
	f.Fuzz(func(t *testing.T, script []byte) {
		chiptest.Drive(t, New(Config{}), New(Config{}), Size, script, func(byte) {})
	})
}
