package disk_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// fickle is a disk that refuses requests for as long as it is told to.
type fickle struct {
	*disk.Memory
	mu     sync.Mutex
	write  error // of changes
	read   error
	readOK int // reads that still work
	order  []int64
}

func (f *fickle) set(read, write error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.read, f.write, f.readOK, f.order = read, write, 0, nil
}

func (f *fickle) change(op string, off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.order = append(f.order, off)
	if f.write != nil {
		return &disk.Error{Op: op, Name: "fickle", Off: off, Len: n, Err: f.write}
	}
	return nil
}

func (f *fickle) WriteAt(p []byte, off int64) (int, error) {
	return f.WriteVAt([][]byte{p}, off)
}

func (f *fickle) WriteVAt(bufs [][]byte, off int64) (int, error) {
	if err := f.change("write", off, 0); err != nil {
		return 0, err
	}
	return f.Memory.WriteVAt(bufs, off)
}

func (f *fickle) TryWriteVAt(bufs [][]byte, off int64) (int, error) { return f.WriteVAt(bufs, off) }

func (f *fickle) WriteZeroes(off, n int64, mayUnmap bool) error {
	if err := f.change("write zeroes", off, n); err != nil {
		return err
	}
	return f.Memory.WriteZeroes(off, n, mayUnmap)
}

func (f *fickle) ReadAt(p []byte, off int64) (int, error) {
	return f.ReadVAt([][]byte{p}, off)
}

func (f *fickle) ReadVAt(bufs [][]byte, off int64) (int, error) {
	f.mu.Lock()
	err := f.read
	if f.readOK > 0 {
		f.readOK--
		err = nil
	}
	f.mu.Unlock()
	if err != nil {
		return 0, &disk.Error{Op: "read", Name: "fickle", Off: off, Err: err}
	}
	return f.Memory.ReadVAt(bufs, off)
}

func (f *fickle) TryReadVAt(bufs [][]byte, off int64) (int, error) { return f.ReadVAt(bufs, off) }

// holdRig is a rig over a fickle disk that holds.
type holdRig struct {
	*rig
	disk   *fickle
	events chan disk.HoldEvent
}

func newHoldRig(t testing.TB, cfg disk.Config, in *inbox) *holdRig {
	h := &holdRig{disk: &fickle{Memory: newMemory(t, 8<<20)}, events: make(chan disk.HoldEvent, 100)}
	cfg.Hold = func(e disk.HoldEvent) { h.events <- e }
	h.rig = newRig(t, h.disk, cfg, in)
	return h
}

func (h *holdRig) event() disk.HoldEvent {
	h.t.Helper()
	select {
	case e := <-h.events:
		return e
	case <-time.After(time.Minute):
		h.t.Fatal("no event")
	}
	return disk.HoldEvent{}
}

func (h *holdRig) quiet() {
	h.t.Helper()
	select {
	case e := <-h.events:
		h.t.Fatalf("event %+v", e)
	default:
	}
}

// waitHeld waits until n requests are held.
func (h *holdRig) waitHeld(n int) {
	h.t.Helper()
	require.Eventually(h.t, func() bool { return h.dev.Parked() == n && h.dev.Held() == n }, time.Minute, time.Millisecond)
}

// writes submits n writes of a page each, the i-th of byte i+1 to page i.
func (h *holdRig) writes(n int) {
	h.t.Helper()
	for i := range n {
		at := uint64(dataBase + i*4096)
		require.NoError(h.t, h.mem.Write(at, bytes.Repeat([]byte{byte(i + 1)}, 4096)))
		h.submit(i%len(h.rings), i, typeOut, uint64(i*8), virtiotest.Buf{Addr: at, Len: 4096})
	}
	for q := range h.rings {
		h.dev.Notify(q)
	}
}

func (h *holdRig) check(n int) {
	h.t.Helper()
	for i := range n {
		require.EqualValues(h.t, statusOK, h.status(i), "request %d", i)
		p := make([]byte, 4096)
		_, err := h.disk.Memory.ReadAt(p, int64(i*4096))
		require.NoError(h.t, err)
		require.Equal(h.t, bytes.Repeat([]byte{byte(i + 1)}, 4096), p)
	}
}

func TestHold(t *testing.T) {
	for _, c := range []struct {
		name   string
		cfg    disk.Config
		direct bool
		cause  error
	}{
		{"no space", disk.Config{}, true, disk.ErrNoSpace},
		{"unavailable", disk.Config{Workers: 1}, true, fmt.Errorf("link down: %w", disk.ErrUnavailable)},
		{"write-through", disk.Config{WriteThrough: true}, true, disk.ErrNoSpace},
		{"inbox", disk.Config{}, false, disk.ErrNoSpace},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.cfg.Queues = 2
			h := newHoldRig(t, c.cfg, &inbox{direct: c.direct})
			h.start()
			h.disk.set(nil, c.cause)
			h.writes(10)
			e := h.event()
			require.True(t, e.Held)
			require.ErrorIs(t, e.Err, c.cause)
			h.waitHeld(10)
			h.quiet()
			// Others are served meanwhile.
			h.submit(1, 20, typeIn, 0, virtiotest.Buf{Addr: dataBase + 1<<20, Len: 4096, Write: true})
			h.dev.Notify(1)
			h.wait(1)
			require.EqualValues(t, statusOK, h.status(20))
			require.EqualValues(t, 0xee, h.status(0), "answered although held")

			// A retry in vain is one more event.
			h.dev.Retry()
			require.True(t, h.event().Held)
			h.waitHeld(10)
			h.disk.set(nil, nil)
			h.dev.Retry()
			for i := range 10 {
				h.wait(i % 2)
			}
			require.False(t, h.event().Held)
			h.quiet()
			require.Zero(t, h.dev.Held())
			h.check(10)
			if c.cfg.Workers == 1 {
				require.Equal(t, []int64{0, 8192, 16384, 24576, 32768, 4096, 12288, 20480, 28672, 36864}, h.disk.order)
			}
			require.Nil(t, h.broken.Load())
		})
	}
}

func TestHoldKinds(t *testing.T) {
	for _, direct := range []bool{true, false} {
		h := newHoldRig(t, disk.Config{}, &inbox{direct: direct})
		h.start()
		want := bytes.Repeat([]byte{7}, 1<<20)
		_, err := h.disk.Memory.WriteAt(want, 0)
		require.NoError(t, err)
		h.disk.set(disk.ErrUnavailable, disk.ErrNoSpace)
		if !direct {
			h.disk.readOK = 2 // so that the guest has a part of it
		}
		h.submit(0, 0, typeIn, 0, virtiotest.Buf{Addr: dataBase, Len: 1 << 20, Write: true})
		require.NoError(t, h.mem.Write(dataBase+2<<20, segments(4096, 8, 1)))
		h.submit(0, 1, typeZeroes, 0, virtiotest.Buf{Addr: dataBase + 2<<20, Len: 16})
		h.dev.Notify(0)
		h.waitHeld(2)
		h.disk.set(nil, nil)
		h.dev.Retry()
		h.wait(0)
		h.wait(0)
		require.EqualValues(t, statusOK, h.status(0))
		require.EqualValues(t, statusOK, h.status(1))
		got := make([]byte, 1<<20)
		require.NoError(t, h.mem.Read(dataBase, got))
		require.True(t, bytes.Equal(want, got))
	}
}

func TestHoldFail(t *testing.T) {
	h := newHoldRig(t, disk.Config{}, &inbox{direct: true})
	h.start()
	h.disk.set(nil, disk.ErrNoSpace)
	h.writes(4)
	require.True(t, h.event().Held)
	h.waitHeld(4)
	h.dev.Fail()
	for range 4 {
		h.wait(0)
	}
	require.False(t, h.event().Held)
	for i := range 4 {
		require.EqualValues(t, statusIOErr, h.status(i))
	}
	// The device holds on, and other errors are answered as ever.
	h.writes(1)
	require.True(t, h.event().Held)
	h.disk.set(errBackend, nil)
	h.submit(0, 9, typeIn, 0, virtiotest.Buf{Addr: dataBase + 1<<20, Len: 512, Write: true})
	h.dev.Notify(0)
	h.wait(0)
	require.EqualValues(t, statusIOErr, h.status(9))
	h.dev.Retry()
	h.wait(0)
	h.check(1)
}

func TestHoldTimeout(t *testing.T) {
	h := newHoldRig(t, disk.Config{HoldTimeout: 20 * time.Millisecond}, &inbox{direct: true})
	h.start()
	for range 2 {
		h.disk.set(nil, disk.ErrUnavailable)
		h.writes(3)
		require.True(t, h.event().Held)
		for range 3 {
			h.wait(0)
		}
		for i := range 3 {
			require.EqualValues(t, statusIOErr, h.status(i))
		}
		for h.event().Held {
		}
		h.disk.set(nil, nil)
		h.writes(3)
		for range 3 {
			h.wait(0)
		}
		h.check(3)
	}
	// It runs out during a pause: the guest sees it afterwards.
	h.disk.set(nil, disk.ErrUnavailable)
	h.writes(1)
	require.True(t, h.event().Held)
	h.dev.Pause()
	held := h.dev.Held()
	time.Sleep(40 * time.Millisecond)
	require.Equal(t, held, h.dev.Held())
	h.dev.Resume()
	h.wait(0)
	require.EqualValues(t, statusIOErr, h.status(0))

	_, err := disk.NewDevice(h.disk, disk.Config{HoldTimeout: time.Second})
	require.ErrorContains(t, err, "hold timeout")
	_, err = disk.NewDevice(h.disk, disk.Config{HoldTimeout: -1, Hold: func(disk.HoldEvent) {}})
	require.ErrorContains(t, err, "hold timeout")
}

// Pause does not wait for held requests, and nothing happens to them until
// Resume.
func TestHoldPause(t *testing.T) {
	for _, fail := range []bool{false, true} {
		h := newHoldRig(t, disk.Config{}, &inbox{direct: true})
		h.start()
		h.disk.set(nil, disk.ErrNoSpace)
		h.writes(4)
		require.True(t, h.event().Held)
		h.waitHeld(4)
		h.dev.Pause()
		h.disk.set(nil, nil)
		h.dev.Retry()
		if fail {
			h.dev.Fail()
		}
		require.Equal(t, 4, h.dev.Held())
		require.Empty(t, h.disk.order)
		_, _, ok := h.rings[0].Used1()
		require.False(t, ok, "a paused device answered")
		h.dev.Resume()
		for range 4 {
			h.wait(0)
		}
		if fail {
			require.EqualValues(t, statusIOErr, h.status(0))
			require.Empty(t, h.disk.order)
		} else {
			h.check(4)
		}
		require.False(t, h.event().Held)
	}
}

func TestHoldReset(t *testing.T) {
	h := newHoldRig(t, disk.Config{HoldTimeout: time.Hour}, &inbox{direct: true})
	for range 3 {
		h.start()
		h.disk.set(nil, disk.ErrNoSpace)
		h.writes(5)
		require.True(t, h.event().Held)
		h.waitHeld(5)
		h.dev.Reset()
		require.False(t, h.event().Held)
		require.Zero(t, h.dev.Held())
		h.disk.set(nil, nil)
		h.dev.Retry() // nothing to do, nobody to answer
		h.dev.Fail()
		require.Empty(t, h.disk.order)
	}
	h.start()
	h.writes(2)
	h.wait(0)
	h.wait(0)
	h.check(2)
}

// The callback may do anything to the device.
func TestHoldCallback(t *testing.T) {
	b := &fickle{Memory: newMemory(t, 8<<20)}
	var g *rig
	done := make(chan struct{})
	g = newRig(t, b, disk.Config{Hold: func(e disk.HoldEvent) {
		if e.Held {
			g.dev.Pause()
			b.set(nil, nil)
			g.dev.Resume()
			return
		}
		g.dev.Reset()
		require.NoError(t, g.dev.Close())
		close(done)
	}}, &inbox{direct: true})
	g.start()
	b.set(nil, disk.ErrNoSpace)
	g.submit(0, 0, typeOut, 0, virtiotest.Buf{Addr: dataBase, Len: 512})
	g.dev.Notify(0)
	<-done
	require.EqualValues(t, statusOK, g.status(0))
}

// On a tape the completion of a request that is held in the replay comes
// sooner, with the data.
func TestHoldReplay(t *testing.T) {
	in := &inbox{drop: true}
	h := newHoldRig(t, disk.Config{}, in)
	h.start()
	h.disk.set(disk.ErrUnavailable, disk.ErrNoSpace)
	r := h.submit(0, 0, typeIn, 0, virtiotest.Buf{Addr: dataBase, Len: 8192, Write: true})
	w := h.submit(0, 1, typeOut, 0, virtiotest.Buf{Addr: dataBase + 1<<20, Len: 512})
	h.dev.Notify(0)
	h.waitHeld(2)
	want := bytes.Repeat([]byte{5}, 8192)
	for _, e := range []event{{1<<48 | uint64(w)<<16, nil}, {1<<48 | uint64(r)<<16 | 1<<8, want[:4096]}, {1<<48 | uint64(r)<<16, want[4096:]}} {
		in.r.Deliver(e.tag, e.data)
	}
	h.wait(0)
	h.wait(0)
	require.EqualValues(t, statusOK, h.status(0))
	require.EqualValues(t, statusOK, h.status(1))
	got := make([]byte, 8192)
	require.NoError(t, h.mem.Read(dataBase, got))
	require.Equal(t, want, got)
	require.Zero(t, h.dev.Held())
	h.dev.Pause()
	h.dev.Resume()
}

// A machine that is saved while requests are held goes on with them, even
// when it is saved once more before it ran.
func TestHoldSaveLoad(t *testing.T) {
	for _, mc := range []virtiotest.Config{{}, {PCI: true}, {PCI: true, Doorbells: true}} {
		mem := newMemory(t, 8<<20)
		var held atomic.Int32
		mk := func(b disk.Backend) *disk.Device {
			d, err := disk.NewDevice(b, disk.Config{Queues: 2, QueueSize: 32, Hold: func(e disk.HoldEvent) {
				if e.Held {
					held.Add(1)
				}
			}})
			require.NoError(t, err)
			return d
		}
		full := &fickle{Memory: mem, write: disk.ErrNoSpace}
		m := virtiotest.New(t, mk(full), mc)
		require.NoError(t, m.Start())
		data := m.Alloc(64 << 10)
		heads := map[uint16]int{}
		for i := range 6 {
			at := data + uint64(i)*4096
			require.NoError(t, m.Mem.PutUint64(at, typeOut))
			require.NoError(t, m.Mem.PutUint64(at+8, uint64(i)))
			require.NoError(t, m.Mem.Write(at+32, bytes.Repeat([]byte{byte(i + 1)}, 512)))
			head, err := m.Rings[0].Add(virtiotest.Buf{Addr: at, Len: 16}, virtiotest.Buf{Addr: at + 32, Len: 512}, virtiotest.Buf{Addr: at + 16, Len: 1, Write: true})
			require.NoError(t, err)
			heads[head] = i
		}
		m.Kick(0)
		dev := func(m *virtiotest.Machine) *disk.Device { return m.Transport.Device().(*disk.Device) }
		require.Eventually(t, func() bool { return dev(m).Held() == 6 }, time.Minute, time.Millisecond)
		m.Transport.Pause()
		st, err := m.Transport.Save()
		require.NoError(t, err)
		require.Contains(t, string(st.Data), `"kept":[`)

		next := func(m *virtiotest.Machine, b disk.Backend, st device.State) *virtiotest.Machine {
			n, err := m.Successor(mk(b))
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, n.Close()) })
			n.Transport.Pause()
			require.NoError(t, n.Transport.Load(st))
			return n
		}
		n := next(m, full, st)
		again, err := n.Transport.Save()
		require.NoError(t, err)
		require.Contains(t, string(again.Data), `"kept":[0,3,6,9,12,15]`)
		// Still full: held once more, and saved once more.
		before := held.Load()
		n.Transport.Resume()
		require.Eventually(t, func() bool { return dev(n).Held() == 6 && held.Load() > before }, time.Minute, time.Millisecond)
		n.Transport.Pause()
		again, err = n.Transport.Save()
		require.NoError(t, err)
		require.Contains(t, string(again.Data), `"kept":[0,3,6,9,12,15]`)

		n = next(n, mem, again)
		n.Transport.Resume()
		for range heads {
			head, _, err := n.WaitUsed(0, time.Minute)
			require.NoError(t, err)
			i, ok := heads[head]
			require.True(t, ok)
			delete(heads, head)
			s, err := n.Mem.Uint8(data + uint64(i)*4096 + 16)
			require.NoError(t, err)
			require.EqualValues(t, statusOK, s)
			p := make([]byte, 512)
			_, err = mem.ReadAt(p, int64(i)*512)
			require.NoError(t, err)
			require.Equal(t, bytes.Repeat([]byte{byte(i + 1)}, 512), p)
		}

		// What saved state says of held requests is not believed.
		for _, bad := range []string{`"kept":[32]`, `"kept":[0,0]`, `"kept":[65535]`} {
			i := bytes.Index(st.Data, []byte(`"kept":[`))
			j := i + bytes.IndexByte(st.Data[i:], ']') + 1
			data := append(append(bytes.Clone(st.Data[:i]), bad...), st.Data[j:]...)
			n.Transport.Pause()
			require.ErrorIs(t, n.Transport.Load(device.State{Version: st.Version, Data: data}), virtio.ErrState, bad)
			n.Transport.Resume()
		}
	}
}

// Held requests under a driver at its worst, while the disk fills and empties.
func TestHoldHostile(t *testing.T) {
	var dev *disk.Device
	var b *fickle
	virtiotest.Hostile(t, virtiotest.HostileConfig{
		Steps: virtiotest.HostileSteps() / 3,
		New: func() (virtio.Device, error) {
			b = &fickle{Memory: newMemory(t, 2<<20)}
			var err error
			dev, err = disk.NewDevice(b, disk.Config{Queues: 2, Workers: 4, HoldTimeout: 50 * time.Millisecond, Hold: func(disk.HoldEvent) {}})
			return dev, err
		},
		Request: blockRequest,
		Outside: func(r *rand.Rand) {
			switch r.IntN(6) {
			case 0:
				b.set(disk.ErrUnavailable, disk.ErrUnavailable)
			case 1:
				b.set(nil, disk.ErrNoSpace)
			case 2:
				dev.Fail()
			case 3:
				dev.Retry()
			default:
				b.set(nil, nil)
				dev.Retry()
			}
		},
	})
}
