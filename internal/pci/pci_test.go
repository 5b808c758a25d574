package pci

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/vmkit-go/vmkit/vm/device"
)

type recorder struct{ sent []message }

func (r *recorder) Signal(addr uint64, data uint32) error {
	r.sent = append(r.sent, message{addr, data})
	return nil
}

func TestBARSizing(t *testing.T) {
	var log []string
	f := NewFunction(Header{Vendor: 0x1234, Device: 0x5678, Class: 0x020000, Revision: 3})
	move := func(i int) func(uint64, bool) {
		return func(addr uint64, mapped bool) { log = append(log, fmt.Sprintf("%d %#x %v", i, addr, mapped)) }
	}
	for i, b := range map[int]BAR{
		0: {Size: 0x4000, Addr: 0xc000_0000, Is64: true},
		2: {Size: 16, Addr: 0xc001_0000},
		4: {Size: 1 << 33, Is64: true, Prefetchable: true},
	} {
		b.Move = move(i)
		if err := f.AddBAR(i, b); err != nil {
			t.Fatal(err)
		}
	}
	b := NewBus(Window{Base: 0xc000_0000, Size: 0x1000_0000})
	if err := b.Add(3, f); err != nil {
		t.Fatal(err)
	}
	ecam := b.ECAM()
	get := func(reg uint64) uint32 {
		var p [4]byte
		ecam.Read(3<<15|reg, p[:])
		return binary.LittleEndian.Uint32(p[:])
	}
	set := func(reg uint64, v uint32) {
		ecam.Write(3<<15|reg, binary.LittleEndian.AppendUint32(nil, v))
	}
	if get(0) != 0x56781234 || get(8) != 0x02000003 {
		t.Fatalf("identity %#x %#x", get(0), get(8))
	}
	for reg, want := range map[uint64]uint32{
		0x10: 0xffffc004, 0x14: 0xffffffff, 0x18: 0xfffffff0, 0x1c: 0, 0x20: 0x0000000c, 0x24: 0xfffffffe,
	} {
		old := get(reg)
		set(reg, 0xffffffff)
		if got := get(reg); got != want {
			t.Errorf("size mask at %#x: %#x, want %#x", reg, got, want)
		}
		set(reg, old)
	}
	if len(log) != 0 {
		t.Fatalf("moved with decoding off: %v", log)
	}
	expect := func(want ...string) {
		t.Helper()
		if !reflect.DeepEqual(log, want) {
			t.Fatalf("moves %q, want %q", log, want)
		}
		log = nil
	}
	set(4, CommandMemory)
	expect("0 0xc0000000 true", "2 0xc0010000 true")
	set(0x18, 0xc0020000)
	expect("2 0xc0010000 false", "2 0xc0020000 true")
	set(0x18, 0xfee00000) // outside the window
	expect("2 0xc0020000 false")
	set(0x10, 0xcfffc000)
	expect("0 0xc0000000 false", "0 0xcfffc000 true")
	set(0x14, 1) // 4 GiB up
	expect("0 0xcfffc000 false")
	set(4, 0)
	expect()
	st := f.Save()
	f.Reset()
	if get(0x10) != 0xc0000004 || get(0x14) != 0 {
		t.Fatal("reset does not restore the BARs")
	}
	if err := f.Load(st); err != nil {
		t.Fatal(err)
	}
	if get(0x14) != 1 {
		t.Fatal("state lost")
	}
	st.Config[0] ^= 1
	if err := f.Load(st); !errors.Is(err, ErrState) {
		t.Fatal(err)
	}
	if err := f.Load(State{}); !errors.Is(err, ErrState) {
		t.Fatal(err)
	}
}

func TestRefused(t *testing.T) {
	move := func(uint64, bool) {}
	for name, b := range map[string]BAR{
		"size 0":      {Move: move},
		"size 48":     {Size: 48, Move: move},
		"big 32-bit":  {Size: 1 << 32, Move: move},
		"high 32-bit": {Size: 16, Addr: 1 << 32, Move: move},
		"misaligned":  {Size: 4096, Addr: 2048, Move: move},
		"wraps":       {Size: 1 << 63, Addr: 1 << 62, Is64: true, Move: move},
		"no move":     {Size: 4096},
	} {
		if err := NewFunction(Header{}).AddBAR(0, b); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := NewFunction(Header{})
	if err := f.AddBAR(4, BAR{Size: 16, Is64: true, Move: move}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{-1, 4, 5, 6} {
		if err := f.AddBAR(i, BAR{Size: 16, Move: move}); !errors.Is(err, ErrConfig) {
			t.Errorf("BAR %d: %v", i, err)
		}
	}
	if err := f.AddBAR(3, BAR{Size: 16, Is64: true, Move: move}); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
	if _, err := f.AddCapability(CapVendor, make([]byte, 200), nil, nil, nil); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
	b := NewBus(Window{})
	if err := b.Add(0, f); err != nil {
		t.Fatal(err)
	}
	for _, slot := range []int{-1, 0, 32} {
		if err := b.Add(slot, f); !errors.Is(err, ErrConfig) {
			t.Errorf("slot %d: %v", slot, err)
		}
	}
	if _, err := NewMSIX(NewFunction(Header{}), &recorder{}, 2049, 0, 0, 0x1000); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
}

func TestMechanism1(t *testing.T) {
	b := NewBus(Window{})
	if err := b.Add(0, NewHostBridge()); err != nil {
		t.Fatal(err)
	}
	if err := b.Add(31, NewFunction(Header{Vendor: 0xaaaa, Device: 0xbbbb})); err != nil {
		t.Fatal(err)
	}
	p := b.Ports()
	read := func(off uint64, n int) uint32 {
		var v [4]byte
		p.Read(off, v[:n])
		return binary.LittleEndian.Uint32(v[:])
	}
	addr := func(v uint32) { p.Write(0, binary.LittleEndian.AppendUint32(nil, v)) }
	addr(0x8000_0000)
	if v := read(4, 4); v != 0x0008_1b36 {
		t.Fatalf("host bridge %#x", v)
	}
	addr(0x8000_0000 | 31<<11)
	if v := read(6, 2); v != 0xbbbb {
		t.Fatalf("device %#x", v)
	}
	if v := read(5, 1); v != 0xaa {
		t.Fatalf("vendor byte %#x", v)
	}
	for what, a := range map[string]uint32{
		"no device": 0x8000_0000 | 5<<11, "function 1": 0x8000_0000 | 1<<8, "bus 1": 0x8001_0000, "disabled": 0,
	} {
		addr(a)
		if v := read(4, 4); v != 0xffff_ffff {
			t.Errorf("%s reads %#x", what, v)
		}
		p.Write(4, []byte{1, 2, 3, 4})
	}
	addr(0x8000_0000 | 31<<11 | 0x3c)
	p.Write(4, []byte{9})
	if v := read(4, 1); v != 9 {
		t.Fatalf("interrupt line %d", v)
	}
	if v := read(0, 4); v != 0x8000_f83c {
		t.Fatalf("CONFIG_ADDRESS %#x", v)
	}
	if v := read(0, 2); v != 0xffff {
		t.Fatalf("16-bit read of CONFIG_ADDRESS %#x", v)
	}
	// Accesses that no bus makes are harmless.
	for off := uint64(0); off < 10; off++ {
		for n := 0; n < 10; n++ {
			p.Read(off, make([]byte, n))
			p.Write(off, make([]byte, n))
		}
	}
	st, err := b.Save()
	if err != nil {
		t.Fatal(err)
	}
	b.Reset()
	if err := b.Load(st); err != nil {
		t.Fatal(err)
	}
	bad, _ := device.EncodeState(1, busState{1})
	if err := b.Load(bad); !errors.Is(err, ErrState) {
		t.Fatal(err)
	}
}

func TestECAMHoles(t *testing.T) {
	b := NewBus(Window{})
	if err := b.Add(0, NewHostBridge()); err != nil {
		t.Fatal(err)
	}
	h := b.ECAM()
	for _, tc := range []struct {
		off  uint64
		want byte
	}{{0x100, 0}, {0xfff, 0}, {1 << 15, 0xff}, {1 << 12, 0xff}, {ECAMSize - 8, 0xff}} {
		for n := 1; n <= 8; n *= 2 {
			p := make([]byte, n)
			h.Read(tc.off, p)
			want := tc.want
			if tc.off == 0xfff && n > 1 {
				want = 0xff // crosses into function 1
			}
			if p[0] != want {
				t.Errorf("%#x: %d bytes: %x", tc.off, n, p)
			}
			h.Write(tc.off, p)
		}
	}
}

func TestMSIX(t *testing.T) {
	r := &recorder{}
	f := NewFunction(Header{})
	m, err := NewMSIX(f, r, 3, 0, 0x1000, 0x2000)
	if err != nil {
		t.Fatal(err)
	}
	at := int(f.cfg[regCapabilities])
	if f.cfg[at] != CapMSIX || f.cfg[at+2] != 2 || f.cfg[regStatus]&statusCapabilities == 0 {
		t.Fatalf("capability %x", f.cfg[at:at+12])
	}
	table := func(off uint64, v uint32) { m.WriteTable(off, binary.LittleEndian.AppendUint32(nil, v)) }
	pending := func() byte {
		var p [8]byte
		m.ReadPending(0, p[:])
		return p[0]
	}
	expect := func(want ...message) {
		t.Helper()
		if len(r.sent) != len(want) || len(want) > 0 && !reflect.DeepEqual(r.sent, want) {
			t.Fatalf("sent %v, want %v", r.sent, want)
		}
		r.sent = nil
	}
	if m.Signal(0) || m.Signal(3) || m.Signal(-1) {
		t.Fatal("signalled while off")
	}
	table(16, 0xfee01003) // the low two bits are zero
	table(20, 0)
	table(24, 77)
	f.Write(at+2, []byte{0, 0x80}) // enable
	if !m.Signal(1) {
		t.Fatal("not signalled")
	}
	expect()
	if pending() != 2 {
		t.Fatalf("pending %#x", pending())
	}
	table(28, 0) // unmask
	expect(message{0xfee01000, 77})
	if pending() != 0 {
		t.Fatal("still pending")
	}
	m.Signal(1)
	expect(message{0xfee01000, 77})
	f.Write(at+3, []byte{0xc0}) // mask all
	m.Signal(1)
	m.Signal(1)
	expect()
	st, fst := m.Save(), f.Save()
	f.Write(at+3, []byte{0x80})
	expect(message{0xfee01000, 77})

	// Whole again from saved state, pending bit included.
	f2 := NewFunction(Header{})
	m2, err := NewMSIX(f2, r, 3, 0, 0x1000, 0x2000)
	if err != nil {
		t.Fatal(err)
	}
	if err := m2.Load(st); err != nil {
		t.Fatal(err)
	}
	if err := f2.Load(fst); err != nil {
		t.Fatal(err)
	}
	expect()
	f2.Write(at+3, []byte{0x80})
	expect(message{0xfee01000, 77})
	var p [16]byte
	m2.ReadTable(16, p[:8])
	m2.ReadTable(24, p[8:])
	if binary.LittleEndian.Uint32(p[:]) != 0xfee01000 || p[8] != 77 {
		t.Fatalf("entry %x", p)
	}

	for name, bad := range map[string]MSIXState{
		"too few":       {Entries: st.Entries[:2]},
		"misaligned":    {Entries: []msixEntry{{Addr: 1}, {}, {}}},
		"control":       {Entries: []msixEntry{{Control: 2}, {}, {}}},
		"pending range": {Entries: st.Entries, Pending: []int{3}},
	} {
		if err := m.Load(bad); !errors.Is(err, ErrState) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Odd accesses do nothing.
	for off := uint64(0); off < 60; off++ {
		for n := 0; n < 10; n++ {
			if n == 4 && off%4 == 0 || n == 8 && off%8 == 0 {
				continue
			}
			m.WriteTable(off, make([]byte, n))
			m.ReadTable(off, make([]byte, n))
		}
	}
	m.Signal(1)
	expect(message{0xfee01000, 77})
	if n := testing.AllocsPerRun(100, func() { r.sent = r.sent[:0]; m.Signal(1) }); n != 0 {
		t.Fatalf("%v allocations per interrupt", n)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte{0x10, 0xff, 0xff, 0xff, 0xff, 0x04, 2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ops []byte) {
		mapped := map[uint64]bool{}
		fn := NewFunction(Header{Vendor: 1, Device: 2})
		err := fn.AddBAR(0, BAR{Size: 0x8000, Addr: 0xc000_0000, Is64: true, Move: func(addr uint64, on bool) {
			if mapped[addr] == on || addr%0x8000 != 0 || addr < 0xc000_0000 || addr+0x8000 > 0xd000_0000 {
				t.Fatalf("move %#x %v", addr, on)
			}
			mapped[addr] = on
		}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := NewMSIX(fn, &recorder{}, 4, 0, 0x1000, 0x2000); err != nil {
			t.Fatal(err)
		}
		b := NewBus(Window{Base: 0xc000_0000, Size: 0x1000_0000})
		if err := b.Add(1, fn); err != nil {
			t.Fatal(err)
		}
		h := b.ECAM()
		for ; len(ops) >= 5; ops = ops[5:] {
			h.Write(1<<15|uint64(ops[0]), ops[1:5])
			h.Read(1<<15|uint64(ops[0]), make([]byte, 4))
		}
		st := fn.Save()
		if err := fn.Load(st); err != nil {
			t.Fatal(err)
		}
		on := 0
		for _, v := range mapped {
			if v {
				on++
			}
		}
		if on > 1 {
			t.Fatal("mapped twice")
		}
		fn.Reset()
		for a, v := range mapped {
			if v {
				t.Fatalf("mapped at %#x after reset", a)
			}
		}
	})
}
