package virtio_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// echo is a device with two queues that copies what it reads to what it may
// write. It checks the contract's promises as it goes.
type echo struct {
	t      testing.TB
	host   *virtio.Host
	config [8]byte

	mu       sync.Mutex
	queues   []*virtio.Queue
	chains   [2]virtio.Chain
	paused   bool
	closed   bool
	features uint64
	notified [2]atomic.Int32
	inNotify [2]atomic.Bool
	refuse   error
}

func (d *echo) Type() virtio.Type    { return 42 }
func (d *echo) Features() uint64     { return 1 << 3 }
func (d *echo) QueueSizes() []uint16 { return []uint16{64, 16} }
func (d *echo) ReadConfig(off uint32, p []byte) {
	clear(p)
	if off < 8 {
		d.mu.Lock()
		copy(p, d.config[off:])
		d.mu.Unlock()
	}
}
func (d *echo) WriteConfig(off uint32, p []byte) {
	if off < 8 {
		d.mu.Lock()
		copy(d.config[off:], p)
		d.mu.Unlock()
	}
}
func (d *echo) Attach(h *virtio.Host) error { d.host = h; return nil }
func (d *echo) Activate(features uint64, queues []*virtio.Queue) error {
	d.features, d.queues = features, queues
	return d.refuse
}

func (d *echo) Notify(q int) {
	if d.inNotify[q].Swap(true) {
		d.t.Error("Notify twice at once")
	}
	defer d.inNotify[q].Store(false)
	if d.paused || d.queues == nil {
		d.t.Error("Notify while paused or not active")
		return
	}
	d.notified[q].Add(1)
	c := &d.chains[q]
	for d.queues[q].Pop(c) {
		n := uint32(0)
		for _, b := range c.Readable {
			n += uint32(c.CopyOut(b, int(n)))
		}
		d.queues[q].Push(c, n)
	}
	d.queues[q].Publish()
}
func (d *echo) Pause()       { d.paused = true }
func (d *echo) Resume()      { d.paused = false }
func (d *echo) Reset()       { d.queues = nil }
func (d *echo) Close() error { d.closed = true; return nil }
func (d *echo) Save() (device.State, error) {
	return device.EncodeState(1, d.config[:])
}
func (d *echo) Load(s device.State) error {
	var b []byte
	if err := s.Decode(1, &b); err != nil {
		return err
	}
	if len(b) != len(d.config) {
		return errors.New("bad length")
	}
	copy(d.config[:], b)
	return nil
}

// each runs f for both transports, with and without doorbells.
func each(t *testing.T, f func(t *testing.T, cfg virtiotest.Config)) {
	for _, cfg := range []virtiotest.Config{
		{}, {Doorbells: true}, {PCI: true}, {PCI: true, Doorbells: true}, {PCI: true, Prompt: true},
	} {
		name := "mmio"
		if cfg.PCI {
			name = "pci"
		}
		if cfg.Doorbells {
			name += " doorbells"
		}
		if cfg.Prompt {
			name += " prompt"
		}
		t.Run(name, func(t *testing.T) { f(t, cfg) })
	}
}

func start(t testing.TB, dev virtio.Device, cfg virtiotest.Config) *virtiotest.Machine {
	t.Helper()
	m := virtiotest.New(t, dev, cfg)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	return m
}

func echoOnce(t testing.TB, m *virtiotest.Machine, q int, msg string) {
	t.Helper()
	roundTrip(t, m, q, msg, func() {})
}

// roundTrip sends a message, waits, and looks for the answer.
func roundTrip(t testing.TB, m *virtiotest.Machine, q int, msg string, wait func()) {
	t.Helper()
	const at = 0x800000
	if err := m.Mem.Write(at, []byte(msg)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Rings[q].Add(virtiotest.Buf{Addr: at, Len: uint32(len(msg))}, virtiotest.Buf{Addr: at + 0x1000, Len: 64, Write: true}); err != nil {
		t.Fatal(err)
	}
	m.Kick(q)
	wait()
	_, n, err := m.WaitUsed(q, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, n)
	if err := m.Mem.Read(at+0x1000, got); err != nil {
		t.Fatal(err)
	}
	if string(got) != msg {
		t.Fatalf("got %q, want %q", got, msg)
	}
}

func TestEcho(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d := &echo{t: t}
		m := start(t, d, cfg)
		for i := range 200 {
			q := i % 2
			roundTrip(t, m, q, fmt.Sprint("hello ", i), func() {
				// A driver that looks at the ring before its interrupt may
				// have taken away the reason for it.
				deadline := time.Now().Add(time.Minute)
				for cfg.PCI && m.Interrupts.Messages(uint32(q+1)) != i/2+1 {
					if time.Now().After(deadline) {
						t.Fatalf("queue %d: %d messages for %d requests", q, m.Interrupts.Messages(uint32(q+1)), i/2+1)
					}
					time.Sleep(time.Microsecond)
				}
			})
		}
		if m.Features != 1<<3|virtio.FeatureEventIdx|virtio.FeatureIndirectDesc|virtio.FeatureVersion1 || d.features != m.Features {
			t.Fatalf("features %#x %#x", m.Features, d.features)
		}
		if !cfg.PCI && !m.Interrupts.Level() {
			t.Fatal("the line is low before the interrupt is acknowledged")
		}
	})
}

func TestMMIOInterrupt(t *testing.T) {
	d := &echo{t: t}
	m := start(t, d, virtiotest.Config{})
	echoOnce(t, m, 0, "x")
	if isr := m.Read(virtiotest.MMIOBase+0x60, 4); isr != 1 {
		t.Fatalf("interrupt status %#x", isr)
	}
	d.host.ConfigChanged()
	if isr := m.Read(virtiotest.MMIOBase+0x60, 4); isr != 3 {
		t.Fatalf("interrupt status %#x", isr)
	}
	m.Write(virtiotest.MMIOBase+0x64, 4, 1)
	if !m.Interrupts.Level() {
		t.Fatal("low with one bit left")
	}
	m.Write(virtiotest.MMIOBase+0x64, 4, 2)
	if m.Interrupts.Level() || m.Interrupts.Edges() != 1 {
		t.Fatal("high after acknowledging")
	}
	// Shared memory registers and odd accesses.
	for off := uint64(0xb0); off < 0xc0; off += 4 {
		if v := m.Read(virtiotest.MMIOBase+off, 4); v != 0xffffffff {
			t.Fatalf("register %#x reads %#x", off, v)
		}
	}
	if v := m.Read(virtiotest.MMIOBase, 2); v != 0 {
		t.Fatalf("16-bit read gives %#x", v)
	}
	if v := m.Read(virtiotest.MMIOBase, 4); v != 0x74726976 {
		t.Fatalf("magic %#x", v)
	}
}

func TestStatus(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d := &echo{t: t}
		m := virtiotest.New(t, d, cfg)
		if err := m.Negotiate(); err != nil { // for PCI: find and enable everything
			t.Fatal(err)
		}
		m.Reset()
		for _, s := range []struct{ write, want byte }{
			{2, 0}, {4, 0}, {8, 0}, // out of turn
			{1, 1}, {9, 1}, {5, 1}, {3, 3},
			{11, 3},                // no VERSION_1
			{7, 3},                 // DRIVER_OK without FEATURES_OK
			{1, 3},                 // bits only come
			{64, 3},                // not the driver's
			{131, 131}, {139, 131}, // nothing goes on after FAILED
			{0, 0},
		} {
			m.SetStatus(s.write)
			if got := m.Status(); got != s.want {
				t.Fatalf("wrote %d: status %d, want %d", s.write, got, s.want)
			}
		}
	})
}

func TestFeaturesRefused(t *testing.T) {
	m := virtiotest.New(t, &echo{t: t}, virtiotest.Config{Refuse: virtio.FeatureVersion1})
	if err := m.Negotiate(); err == nil {
		t.Fatal("accepted a driver without VERSION_1")
	}
	// One bit too many.
	m.Reset()
	m.SetStatus(1)
	m.SetStatus(3)
	m.Write(virtiotest.MMIOBase+0x24, 4, 1)
	m.Write(virtiotest.MMIOBase+0x20, 4, 3)
	m.SetStatus(11)
	if s := m.Status(); s != 3 {
		t.Fatalf("status %d", s)
	}
}

func TestNeedsReset(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d := &echo{t: t}
		m := start(t, d, cfg)
		m.Rings[0].SetAvailIdx(1000)
		m.Notify(0)
		deadline := time.Now().Add(time.Minute)
		for m.Status()&virtio.StatusNeedsReset == 0 {
			if time.Now().After(deadline) {
				t.Fatal("no NEEDS_RESET")
			}
			time.Sleep(time.Millisecond)
		}
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		echoOnce(t, m, 0, "alive")
	})
}

func TestActivationFails(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d := &echo{t: t, refuse: errors.New("no")}
		m := virtiotest.New(t, d, cfg)
		if err := m.Start(); err == nil || m.Status()&virtio.StatusNeedsReset == 0 {
			t.Fatalf("status %#x, %v", m.Status(), err)
		}
		m.Notify(0)
		d.refuse = nil
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		echoOnce(t, m, 1, "alive")
	})
}

func TestConfigGeneration(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d := &echo{t: t}
		m := start(t, d, cfg)
		g := m.Generation()
		if m.Generation() != g {
			t.Fatal("generation moves by itself")
		}
		m.WriteConfig(2, 4, 0x01020304)
		if got := m.ReadConfig(0, 10); !bytes.Equal(got, []byte{0, 0, 4, 3, 2, 1, 0, 0, 0, 0}) {
			t.Fatalf("configuration %x", got)
		}
		if m.Generation() == g {
			t.Fatal("generation misses a change that was not announced yet")
		}
		g = m.Generation()
		d.host.ConfigChanged()
		if m.Generation() == g {
			t.Fatal("generation misses an announced change")
		}
	})
}

func TestPauseResume(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d := &echo{t: t}
		m := start(t, d, cfg)
		m.Transport.Pause()
		m.Transport.Pause()
		msgs, edges := m.Interrupts.Messages(0), m.Interrupts.Edges()
		d.host.ConfigChanged()
		if m.Interrupts.Messages(0) != msgs || m.Interrupts.Edges() != edges {
			t.Fatal("interrupt while paused")
		}
		if _, err := m.Rings[1].Add(virtiotest.Buf{Addr: 0x800000, Len: 1}); err != nil {
			t.Fatal(err)
		}
		m.Notify(1)
		time.Sleep(5 * time.Millisecond)
		if _, _, ok := m.Rings[1].Used1(); ok {
			t.Fatal("served while paused")
		}
		m.Transport.Resume()
		m.Transport.Resume()
		if _, _, err := m.WaitUsed(1, time.Minute); err != nil {
			t.Fatal(err)
		}
		if m.Interrupts.Messages(0) == msgs && m.Interrupts.Edges() == edges {
			t.Fatal("configuration interrupt lost")
		}
	})
}

func TestSaveLoad(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		m := start(t, &echo{t: t}, cfg)
		for i := range 5 {
			echoOnce(t, m, 0, fmt.Sprint("before ", i))
		}
		m.WriteConfig(0, 8, 0x1122334455667788)
		if _, err := m.Transport.Save(); err == nil {
			t.Fatal("saved while running")
		}
		m.Transport.Pause()
		if _, err := m.Rings[1].Add(virtiotest.Buf{Addr: 0x800000, Len: 1}); err != nil {
			t.Fatal(err)
		}
		st, err := m.Transport.Save()
		if err != nil {
			t.Fatal(err)
		}

		// The same memory and driver, another device.
		d2 := &echo{t: t}
		m2, err := m.Successor(d2)
		if err != nil {
			t.Fatal(err)
		}
		defer m2.Close()
		if err := m2.Transport.Load(st); err == nil {
			t.Fatal("loaded while running")
		}
		m2.Transport.Pause()
		if err := m2.Transport.Load(st); err != nil {
			t.Fatal(err)
		}
		again, err := m2.Transport.Save()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(st.Data, again.Data) {
			t.Fatalf("state changed:\n%s\n%s", st.Data, again.Data)
		}
		m2.Transport.Resume()
		if _, _, err := m2.WaitUsed(1, time.Minute); err != nil {
			t.Fatal(err) // added before the save, never notified of
		}
		echoOnce(t, m2, 0, "after")
		if got := binary.LittleEndian.Uint64(m2.ReadConfig(0, 8)); got != 0x1122334455667788 {
			t.Fatalf("configuration %#x", got)
		}
	})
}

// TestBounded: a drain does not outlast the queue's size when the driver
// makes more available all the time, and the rest is served all the same.
func TestBounded(t *testing.T) {
	each(t, func(t *testing.T, cfg virtiotest.Config) {
		d := &feeder{echo: echo{t: t}}
		m := start(t, d, cfg)
		d.ring = m.Rings[0]
		d.ring.PutDescs(d.ring.Desc, virtiotest.Desc{Addr: 0x800000, Len: 1})
		d.left = 1000
		d.ring.Offer(0)
		m.Notify(0)
		if cfg.Prompt {
			// No CPU of such a machine adds meanwhile. The ring does it
			// itself, if a driver laid it out that way, and gets its
			// share at each notification.
			for n := int64(256); n < 1001; n += 256 {
				if got := int64(d.pops.Load()); got != n {
					t.Fatalf("%d chains served at once, want %d", got, n)
				}
				m.Notify(0)
			}
		}
		deadline := time.Now().Add(time.Minute)
		for d.pops.Load() != 1001 {
			if time.Now().After(deadline) {
				t.Fatalf("%d of 1001 served", d.pops.Load())
			}
			time.Sleep(time.Millisecond)
		}
		if n := d.longest.Load(); n > 64 {
			t.Fatalf("a drain of %d chains", n)
		}
		m.Transport.Pause() // orders what follows after the drains
		m.Transport.Resume()
	})
}

// feeder plays a driver that adds a buffer for each one it gets back.
type feeder struct {
	echo
	ring    *virtiotest.Ring
	left    int
	pops    atomic.Int32
	longest atomic.Int32
}

func (d *feeder) Notify(q int) {
	if q != 0 {
		return
	}
	var n int32
	for d.queues[0].Pop(&d.chains[0]) {
		d.queues[0].Push(&d.chains[0], 0)
		d.pops.Add(1)
		n++
		if d.left > 0 {
			d.left--
			d.ring.Offer(0)
		}
	}
	d.queues[0].Publish()
	d.longest.Store(max(d.longest.Load(), n))
}

func TestNotifyAllocs(t *testing.T) {
	for _, pci := range []bool{false, true} {
		m := start(t, &echo{t: t}, virtiotest.Config{PCI: pci})
		round := func() {
			if _, err := m.Do(0, virtiotest.Buf{Addr: 0x800000, Len: 64}, virtiotest.Buf{Addr: 0x801000, Len: 64, Write: true}); err != nil {
				t.Fatal(err)
			}
			if !pci {
				m.Write(virtiotest.MMIOBase+0x64, 4, 3)
			}
		}
		round()
		if n := testing.AllocsPerRun(100, round); n != 0 {
			t.Errorf("pci %v: %v allocations per request", pci, n)
		}
	}
}

func BenchmarkNotify(b *testing.B) {
	for _, pci := range []bool{false, true} {
		b.Run(fmt.Sprintf("pci=%v", pci), func(b *testing.B) {
			m := start(b, &echo{t: b}, virtiotest.Config{PCI: pci})
			for b.Loop() {
				if _, err := m.Do(0, virtiotest.Buf{Addr: 0x800000, Len: 64}, virtiotest.Buf{Addr: 0x801000, Len: 64, Write: true}); err != nil {
					b.Fatal(err)
				}
				if !pci {
					m.Write(virtiotest.MMIOBase+0x64, 4, 3)
				}
			}
		})
	}
}
