package disk_test

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

func newFile(t testing.TB, size int64) *disk.File {
	t.Helper()
	f, err := disk.Create(filepath.Join(t.TempDir(), "disk.img"), size, disk.FileConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// backends are the paths that a request can take through the device.
func backends(t *testing.T, fn func(t *testing.T, b disk.Backend, in *inbox)) {
	const size = 16 << 20
	t.Run("memory", func(t *testing.T) { fn(t, newMemory(t, size), &inbox{direct: true}) })
	t.Run("file", func(t *testing.T) { fn(t, newFile(t, size), &inbox{direct: true}) })
	t.Run("workers", func(t *testing.T) { fn(t, &slow{Backend: newMemory(t, size)}, &inbox{direct: true}) })
	t.Run("inbox", func(t *testing.T) { fn(t, newFile(t, size), &inbox{}) })
}

func TestReadWrite(t *testing.T) {
	backends(t, func(t *testing.T, b disk.Backend, in *inbox) {
		g := newRig(t, b, disk.Config{}, in).start()
		r := rand.New(rand.NewPCG(1, 2))
		for _, n := range []int{512, 4096, 65536, 1 << 20} {
			p := make([]byte, n)
			disktest.Fill(r, p)
			require.EqualValues(t, statusOK, g.write(8, p))
			got := make([]byte, n)
			_, err := b.ReadAt(got, 4096)
			require.NoError(t, err)
			require.True(t, bytes.Equal(p, got), "wrong data on disk")
			require.NoError(t, g.mem.Write(dataBase, make([]byte, n)))
			back, st := g.read(8, n)
			require.EqualValues(t, statusOK, st)
			require.True(t, bytes.Equal(p, back), "wrong data in memory")
		}
		require.EqualValues(t, statusOK, g.do(typeFlush, 0))
	})
}

// The spec lets a driver cut a request at any byte.
func TestOddBuffers(t *testing.T) {
	backends(t, func(t *testing.T, b disk.Backend, in *inbox) {
		g := newRig(t, b, disk.Config{}, in).start()
		p := make([]byte, 1024)
		disktest.Fill(rand.New(rand.NewPCG(3, 4)), p)
		at := g.header(0, typeOut, 2)
		require.NoError(t, g.mem.Write(at+100, p))
		// Header and data share buffers; lengths of zero are in between.
		h := make([]byte, 16)
		require.NoError(t, g.mem.Read(at, h))
		require.NoError(t, g.mem.Write(at+84, h))
		_, err := g.rings[0].Add(
			virtiotest.Buf{Addr: at + 84, Len: 5},
			virtiotest.Buf{Addr: at + 84},
			virtiotest.Buf{Addr: at + 89, Len: 18},
			virtiotest.Buf{Addr: at + 107, Len: 1017},
			virtiotest.Buf{Addr: at + 16, Write: true},
			virtiotest.Buf{Addr: at + 16, Len: 1, Write: true})
		require.NoError(t, err)
		g.dev.Notify(0)
		g.wait(0)
		require.EqualValues(t, statusOK, g.status(0))
		got := make([]byte, 1024)
		_, err = b.ReadAt(got, 1024)
		require.NoError(t, err)
		require.Equal(t, p, got)

		// Status right behind the data, in the same buffer.
		g.header(0, typeIn, 2)
		_, err = g.rings[0].Add(
			virtiotest.Buf{Addr: at, Len: 16},
			virtiotest.Buf{Addr: dataBase, Len: 3, Write: true},
			virtiotest.Buf{Addr: dataBase + 3, Len: 1022, Write: true})
		require.NoError(t, err)
		require.NoError(t, g.mem.PutUint8(dataBase+1024, 0xee))
		g.dev.Notify(0)
		_, n := g.wait(0)
		require.EqualValues(t, 1025, n)
		require.NoError(t, g.mem.Read(dataBase, got))
		require.Equal(t, p, got)
		st, err := g.mem.Uint8(dataBase + 1024)
		require.NoError(t, err)
		require.EqualValues(t, statusOK, st)
	})
}

func TestBadRequests(t *testing.T) {
	const sectors = 16 << 20 / 512
	in := func(n uint32) virtiotest.Buf { return virtiotest.Buf{Addr: dataBase, Len: n, Write: true} }
	out := func(n uint32) virtiotest.Buf { return virtiotest.Buf{Addr: dataBase, Len: n} }
	for _, c := range []struct {
		name   string
		typ    uint32
		sector uint64
		data   []virtiotest.Buf
		want   byte
	}{
		{"read at the end", typeIn, sectors - 1, []virtiotest.Buf{in(512)}, statusOK},
		{"read nothing at the end", typeIn, sectors, nil, statusOK},
		{"read past the end", typeIn, sectors, []virtiotest.Buf{in(512)}, statusIOErr},
		{"read across the end", typeIn, sectors - 1, []virtiotest.Buf{in(1024)}, statusIOErr},
		{"read of half a sector", typeIn, 0, []virtiotest.Buf{in(256)}, statusIOErr},
		{"sector that overflows", typeIn, math.MaxUint64, []virtiotest.Buf{in(512)}, statusIOErr},
		{"offset that overflows", typeOut, 1 << 55, []virtiotest.Buf{out(512)}, statusIOErr},
		{"write past the end", typeOut, sectors, []virtiotest.Buf{out(512)}, statusIOErr},
		{"write across the end", typeOut, sectors - 1, []virtiotest.Buf{out(1024)}, statusIOErr},
		{"write of 511 bytes", typeOut, 0, []virtiotest.Buf{out(511)}, statusIOErr},
		{"unknown type", 2, 0, nil, statusUnsupp},
		{"secure erase", 14, 0, nil, statusUnsupp},
		{"barrier", 0x80000000, 0, nil, statusUnsupp},
		{"discard without segments", typeDiscard, 0, nil, statusIOErr},
		{"discard of a part segment", typeDiscard, 0, []virtiotest.Buf{out(15)}, statusIOErr},
		{"discard of too many segments", typeDiscard, 0, []virtiotest.Buf{out(33 * 16)}, statusIOErr},
	} {
		backends(t, func(t *testing.T, b disk.Backend, ib *inbox) {
			g := newRig(t, b, disk.Config{}, ib).start()
			require.Equal(t, c.want, g.do(c.typ, c.sector, c.data...), c.name)
			// It serves on.
			require.EqualValues(t, statusOK, g.do(typeIn, 0, in(512)))
		})
	}
}

// Requests without room for a header or status are returned all the same.
func TestNoHeader(t *testing.T) {
	g := newRig(t, newMemory(t, 1<<20), disk.Config{}, &inbox{direct: true}).start()
	for _, bufs := range [][]virtiotest.Buf{
		{{Addr: reqBase, Len: 16}},
		{{Addr: reqBase, Len: 0}},
		{{Addr: reqBase, Len: 0, Write: true}},
		{{Addr: reqBase, Len: 15}, {Addr: reqBase + 16, Len: 1, Write: true}},
		{{Addr: reqBase + 16, Len: 1, Write: true}},
		{{Addr: reqBase + 16, Len: 4096, Write: true}},
	} {
		head, err := g.rings[0].Add(bufs...)
		require.NoError(t, err)
		g.dev.Notify(0)
		got, n := g.wait(0)
		require.Equal(t, head, got)
		if last := bufs[len(bufs)-1]; last.Write && last.Len > 0 {
			st, err := g.mem.Uint8(last.Addr + uint64(last.Len) - 1)
			require.NoError(t, err)
			require.EqualValues(t, statusIOErr, st)
		} else {
			require.Zero(t, n)
		}
	}
}

func TestGetID(t *testing.T) {
	g := newRig(t, newMemory(t, 1<<20), disk.Config{Serial: "vmkit-root"}, &inbox{direct: true}).start()
	require.NoError(t, g.mem.Write(dataBase, bytes.Repeat([]byte{1}, 32)))
	require.EqualValues(t, statusOK, g.do(typeGetID, 0, virtiotest.Buf{Addr: dataBase, Len: 20, Write: true}))
	p := make([]byte, 21)
	require.NoError(t, g.mem.Read(dataBase, p))
	require.Equal(t, append([]byte("vmkit-root\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 1), p)
	// A short buffer gets what fits.
	require.EqualValues(t, statusOK, g.do(typeGetID, 0, virtiotest.Buf{Addr: dataBase, Len: 4, Write: true}))
	require.EqualValues(t, statusOK, g.do(typeGetID, 0))
}

func segments(s ...uint64) (p []byte) {
	for i := 0; i < len(s); i += 3 {
		p = binary.LittleEndian.AppendUint64(p, s[i])
		p = binary.LittleEndian.AppendUint32(p, uint32(s[i+1]))
		p = binary.LittleEndian.AppendUint32(p, uint32(s[i+2]))
	}
	return p
}

func TestDiscardAndZeroes(t *testing.T) {
	const sectors = 16 << 20 / 512
	backends(t, func(t *testing.T, b disk.Backend, in *inbox) {
		g := newRig(t, b, disk.Config{}, in).start()
		do := func(typ uint32, segs ...uint64) byte {
			p := segments(segs...)
			require.NoError(t, g.mem.Write(dataBase, p))
			return g.do(typ, 0, virtiotest.Buf{Addr: dataBase, Len: uint32(len(p))})
		}
		want := bytes.Repeat([]byte{3}, 16<<20)
		_, err := b.WriteAt(want, 0)
		require.NoError(t, err)
		require.EqualValues(t, statusOK, do(typeZeroes, 1, 3, 0, 1000, 500, 1))
		clear(want[512:2048])
		clear(want[512000:768000])
		got := make([]byte, len(want))
		_, err = b.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))

		require.EqualValues(t, statusOK, do(typeDiscard, 8, 8, 0))
		require.EqualValues(t, statusUnsupp, do(typeDiscard, 8, 8, 1), "discard with unmap")
		require.EqualValues(t, statusUnsupp, do(typeZeroes, 8, 8, 2), "unknown flag")
		require.EqualValues(t, statusIOErr, do(typeZeroes, sectors-1, 2, 0))
		require.EqualValues(t, statusIOErr, do(typeDiscard, sectors, 1, 0))
		require.EqualValues(t, statusIOErr, do(typeDiscard, math.MaxUint64, math.MaxUint32, 0))
		require.EqualValues(t, statusOK, do(typeDiscard, sectors, 0, 0), "nothing")
		// One bad segment fails the whole request before anything is done.
		require.EqualValues(t, statusIOErr, do(typeZeroes, 0, 1, 0, sectors, 1, 0))
		_, err = b.ReadAt(got[:1], 0)
		require.NoError(t, err)
		require.EqualValues(t, 3, got[0])
	})
}

func TestDiscardNotNegotiated(t *testing.T) {
	g := newRig(t, newMemory(t, 1<<20), disk.Config{}, &inbox{direct: true})
	g.features &^= disk.FeatureDiscard | disk.FeatureWriteZeroes
	g.start()
	require.NoError(t, g.mem.Write(dataBase, segments(0, 1, 0)))
	for _, typ := range []uint32{typeDiscard, typeZeroes} {
		require.EqualValues(t, statusUnsupp, g.do(typ, 0, virtiotest.Buf{Addr: dataBase, Len: 16}))
	}
}

func TestReadOnly(t *testing.T) {
	b := newMemory(t, 1<<20)
	g := newRig(t, b, disk.Config{ReadOnly: true}, &inbox{direct: true}).start()
	require.NotZero(t, g.dev.Features()&disk.FeatureReadOnly)
	require.Zero(t, g.dev.Features()&(disk.FeatureDiscard|disk.FeatureWriteZeroes))
	require.EqualValues(t, statusIOErr, g.write(0, bytes.Repeat([]byte{1}, 512)))
	require.NoError(t, g.mem.Write(dataBase, segments(0, 1, 0)))
	require.EqualValues(t, statusIOErr, g.do(typeDiscard, 0, virtiotest.Buf{Addr: dataBase, Len: 16}))
	require.EqualValues(t, statusIOErr, g.do(typeZeroes, 0, virtiotest.Buf{Addr: dataBase, Len: 16}))
	require.EqualValues(t, statusOK, g.do(typeFlush, 0))
	p, st := g.read(0, 512)
	require.EqualValues(t, statusOK, st)
	require.Equal(t, make([]byte, 512), p)
}

func TestCacheMode(t *testing.T) {
	s := &slow{Backend: newMemory(t, 1<<20)}
	g := newRig(t, s, disk.Config{}, &inbox{direct: true}).start()
	mode := func() byte {
		var p [1]byte
		g.dev.ReadConfig(32, p[:])
		return p[0]
	}
	p := make([]byte, 512)
	require.EqualValues(t, 1, mode())
	require.EqualValues(t, statusOK, g.write(0, p))
	require.EqualValues(t, 0, s.flushes.Load())
	require.EqualValues(t, statusOK, g.do(typeFlush, 0))
	require.EqualValues(t, 1, s.flushes.Load())
	g.dev.WriteConfig(32, []byte{0})
	require.EqualValues(t, 0, mode())
	require.EqualValues(t, statusOK, g.write(0, p))
	require.EqualValues(t, 2, s.flushes.Load(), "write-through")
	g.dev.WriteConfig(30, []byte{9, 9, 1, 9})
	require.EqualValues(t, 1, mode())
	g.dev.WriteConfig(0, []byte{9, 9, 9, 9, 9, 9, 9, 9})
	g.dev.WriteConfig(33, []byte{0})
	g.dev.WriteConfig(math.MaxUint32, []byte{0})
	require.EqualValues(t, 1, mode())
	// A driver that cannot flush gets write-through.
	g.dev.Reset()
	g.features &^= disk.FeatureFlush | disk.FeatureConfigWCE
	g.start()
	require.EqualValues(t, statusOK, g.write(0, p))
	require.EqualValues(t, 3, s.flushes.Load())
}

func TestConfigSpace(t *testing.T) {
	dev, err := disk.NewDevice(newMemory(t, 10<<20+100), disk.Config{Queues: 4, QueueSize: 128})
	require.NoError(t, err)
	c := make([]byte, 80)
	dev.ReadConfig(0, c)
	le := binary.LittleEndian
	require.EqualValues(t, 10<<20/512, le.Uint64(c))
	require.EqualValues(t, 126, le.Uint32(c[12:]), "seg_max")
	require.EqualValues(t, 512, le.Uint32(c[20:]), "blk_size")
	require.EqualValues(t, 3, c[24], "physical_block_exp")
	require.EqualValues(t, 4, le.Uint16(c[34:]), "num_queues")
	require.EqualValues(t, 1, c[56], "write_zeroes_may_unmap")
	require.Equal(t, make([]byte, 8), c[72:], "past the end")
	part := make([]byte, 3)
	dev.ReadConfig(21, part)
	require.Equal(t, c[21:24], part)
	for _, off := range []uint32{72, 73, 1 << 20, math.MaxUint32} {
		dev.ReadConfig(off, part)
		require.Equal(t, make([]byte, 3), part)
	}
}

func TestResize(t *testing.T) {
	b := newFile(t, 1<<20)
	g := newRig(t, b, disk.Config{}, &inbox{direct: true}).start()
	require.EqualValues(t, statusIOErr, g.write(2048, make([]byte, 512)))
	require.NoError(t, g.dev.Resize(2<<20))
	require.EqualValues(t, 1, g.changed.Load())
	var c [8]byte
	g.dev.ReadConfig(0, c[:])
	require.EqualValues(t, 4096, binary.LittleEndian.Uint64(c[:]))
	require.EqualValues(t, statusOK, g.write(2048, make([]byte, 512)))
	require.NoError(t, g.dev.Resize(1<<20))
	require.EqualValues(t, statusIOErr, g.write(2048, make([]byte, 512)))
	require.ErrorIs(t, g.dev.Resize(-1), disk.ErrRange)

	g = newRig(t, &slow{Backend: newMemory(t, 1<<20)}, disk.Config{}, &inbox{direct: true}).start()
	require.ErrorContains(t, g.dev.Resize(2<<20), "unsupported")
	require.NoError(t, g.dev.Resize(1<<20))
}

func TestBackendErrors(t *testing.T) {
	for _, direct := range []bool{true, false} {
		s := &slow{Backend: newMemory(t, 1<<20)}
		g := newRig(t, s, disk.Config{}, &inbox{direct: direct}).start()
		s.fail.Store(true)
		require.NoError(t, g.mem.Write(dataBase, bytes.Repeat([]byte{1}, 4096)))
		p, st := g.read(0, 4096)
		require.EqualValues(t, statusIOErr, st)
		require.Equal(t, make([]byte, 4096), p, "a failed read leaves nothing of the backend's")
		require.EqualValues(t, statusIOErr, g.write(0, p))
		require.EqualValues(t, statusIOErr, g.do(typeFlush, 0))
		s.fail.Store(false)
		require.EqualValues(t, statusOK, g.write(0, p))
	}
}

// Pause and Reset wait for the backend; afterwards nothing touches memory.
func TestPauseAndReset(t *testing.T) {
	for _, reset := range []bool{false, true} {
		s := &slow{Backend: newMemory(t, 1<<20), gate: make(chan struct{})}
		g := newRig(t, s, disk.Config{Workers: 4}, &inbox{direct: true}).start()
		for i := range 6 { // more than there are workers
			g.submit(0, i, typeIn, 0, virtiotest.Buf{Addr: dataBase + uint64(i)<<12, Len: 4096, Write: true})
		}
		g.dev.Notify(0)
		require.Eventually(t, func() bool { return s.inside.Load() == 4 }, time.Minute, time.Millisecond)
		done := make(chan struct{})
		go func() {
			if reset {
				g.dev.Reset()
			} else {
				g.dev.Pause()
			}
			close(done)
		}()
		select {
		case <-done:
			t.Fatal("did not wait for requests in flight")
		case <-time.After(50 * time.Millisecond):
		}
		close(s.gate)
		<-done
		require.Zero(t, s.inside.Load())
		if reset {
			g.start()
			s.gate = nil
			require.EqualValues(t, statusOK, g.write(0, make([]byte, 512)))
			continue
		}
		require.EqualValues(t, 1, s.flushes.Load(), "a pause flushes")
		for range 6 {
			g.wait(0)
		}
		g.submit(0, 7, typeFlush, 0)
		g.dev.Notify(0) // parked: nothing happens
		_, _, ok := g.rings[0].Used1()
		require.False(t, ok, "a paused device answered")
		g.dev.Resume()
		g.dev.Notify(0)
		g.wait(0)
		require.EqualValues(t, statusOK, g.status(7))
	}
}

// A recording machine delivers later, in pieces, and a reset may come first.
func TestHeldInbox(t *testing.T) {
	b := newMemory(t, 4<<20)
	want := make([]byte, 1<<20)
	disktest.Fill(rand.New(rand.NewPCG(5, 6)), want)
	_, err := b.WriteAt(want, 0)
	require.NoError(t, err)
	in := &inbox{hold: true}
	g := newRig(t, b, disk.Config{}, in).start()
	read := func() { g.submit(0, 0, typeIn, 0, virtiotest.Buf{Addr: dataBase, Len: 1 << 20, Write: true}) }
	read()
	g.dev.Notify(0)
	pieces, got := 0, make([]byte, 1<<20)
	for {
		if n := in.release(); n > 0 {
			pieces += n
		}
		if _, _, ok := g.rings[0].Used1(); ok {
			break
		}
		time.Sleep(time.Millisecond)
	}
	require.Equal(t, 5, pieces)
	require.NoError(t, g.mem.Read(dataBase, got))
	require.True(t, bytes.Equal(want, got))

	// Held at a reset: it ends although nobody delivers, and what comes then
	// is not taken for a request of the next session.
	read()
	g.dev.Notify(0)
	require.Eventually(t, func() bool { in.mu.Lock(); defer in.mu.Unlock(); return len(in.held) == 1 }, time.Minute, time.Millisecond)
	g.dev.Reset()
	g.start()
	require.NoError(t, g.mem.Write(dataBase, make([]byte, 1<<20)))
	read()
	in.release()
	require.NoError(t, g.mem.Read(dataBase, got))
	require.Equal(t, make([]byte, 1<<20), got, "a stale event reached memory")
	_, _, ok := g.rings[0].Used1()
	require.False(t, ok)
	// Events that no request waits for, such as a damaged tape would hold.
	r := rand.New(rand.NewPCG(7, 8))
	for range 10000 {
		in.r.Deliver(r.Uint64()&^(0xffff<<32), nil)
		in.r.Deliver(r.Uint64(), make([]byte, r.IntN(16)))
	}
}

// A tape made of one run gives another the same data, whatever the disk says.
func TestReplay(t *testing.T) {
	b := newMemory(t, 4<<20)
	want := make([]byte, 1<<20)
	disktest.Fill(rand.New(rand.NewPCG(5, 6)), want)
	_, err := b.WriteAt(want, 0)
	require.NoError(t, err)
	tape := &inbox{keep: true}
	run := func(b disk.Backend, in *inbox, play []event) []byte {
		g := newRig(t, b, disk.Config{}, in).start()
		g.submit(0, 0, typeIn, 0, virtiotest.Buf{Addr: dataBase, Len: 1 << 20, Write: true})
		g.dev.Notify(0)
		for _, e := range play {
			in.r.Deliver(e.tag, e.data)
		}
		g.wait(0)
		require.EqualValues(t, statusOK, g.status(0))
		got := make([]byte, 1<<20)
		require.NoError(t, g.mem.Read(dataBase, got))
		return got
	}
	require.True(t, bytes.Equal(want, run(b, tape, nil)))
	tape.mu.Lock()
	defer tape.mu.Unlock()
	require.Len(t, tape.all, 5)
	empty := newMemory(t, 4<<20)
	require.True(t, bytes.Equal(want, run(empty, &inbox{drop: true}, tape.all)), "replay differs")
	failing := &slow{Backend: empty}
	failing.fail.Store(true)
	require.True(t, bytes.Equal(want, run(failing, &inbox{drop: true}, tape.all)), "replay over a failing disk differs")
}

func TestSaveLoad(t *testing.T) {
	cfg := disk.Config{Queues: 2, Serial: "s"}
	mk := func(size int64, cfg disk.Config) *disk.Device {
		d, err := disk.NewDevice(newMemory(t, size), cfg)
		require.NoError(t, err)
		return d
	}
	d := mk(1<<20, cfg)
	d.WriteConfig(32, []byte{0})
	st, err := d.Save()
	require.NoError(t, err)
	to := mk(1<<20, cfg)
	require.NoError(t, to.Load(st))
	again, err := to.Save()
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(st, again))

	grown := mk(2<<20, cfg)
	require.NoError(t, grown.Load(st), "the guest keeps the size that it knows")
	for _, bad := range []*disk.Device{
		mk(1<<19, cfg),
		mk(1<<20, disk.Config{Serial: "s"}),
		mk(1<<20, disk.Config{Queues: 2, Serial: "t"}),
		mk(1<<20, disk.Config{Queues: 2, Serial: "s", ReadOnly: true}),
		mk(1<<20, disk.Config{Queues: 2, Serial: "s", BlockSize: 4096}),
		mk(1<<20, disk.Config{Queues: 2, Serial: "s", QueueSize: 16}),
	} {
		require.ErrorContains(t, bad.Load(st), "load: saved")
	}
	require.ErrorIs(t, to.Load(device.State{Version: 2, Data: st.Data}), device.ErrStateVersion)
	require.Error(t, to.Load(device.State{Version: 1, Data: []byte(`{"capacity":-1}`)}))
	require.Error(t, to.Load(device.State{Version: 1}))
}

func TestNewDeviceRefuses(t *testing.T) {
	b := newMemory(t, 1<<20)
	for _, cfg := range []disk.Config{
		{Queues: -1}, {Queues: 65}, {QueueSize: 3}, {QueueSize: 2}, {QueueSize: 2048}, {BlockSize: 256},
		{BlockSize: 8192}, {BlockSize: 1000}, {Workers: -1}, {Serial: "123456789012345678901"}, {Serial: "a\n"},
	} {
		_, err := disk.NewDevice(b, cfg)
		require.ErrorContains(t, err, "disk mem: device: ", "%+v", cfg)
	}
	_, err := disk.NewDevice(nil, disk.Config{})
	require.Error(t, err)
}

// Several queues at once, each with a driver that checks what it reads.
func TestQueuesInParallel(t *testing.T) {
	backends(t, func(t *testing.T, b disk.Backend, in *inbox) {
		const queues, rounds, depth = 4, 50, 8
		g := newRig(t, b, disk.Config{Queues: queues, QueueSize: 32}, in).start()
		var wg sync.WaitGroup
		for q := range queues {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(9, uint64(q)))
				area := uint64(q) * 2 << 20
				want := make([]byte, 4096)
				for range rounds {
					for _, typ := range []uint32{typeOut, typeIn} {
						for i := range depth {
							addr := dataBase + area + uint64(i)<<12
							if typ == typeOut {
								disktest.Fill(r, want[:8])
								require.NoError(t, g.mem.Write(addr, want))
							}
							g.submit(q, q*depth+i, typ, area/512+uint64(i)*8, virtiotest.Buf{Addr: addr, Len: 4096, Write: typ == typeIn})
						}
						g.dev.Notify(q)
						for range depth {
							g.wait(q)
						}
						for i := range depth {
							if st := g.status(q*depth + i); st != statusOK {
								t.Errorf("queue %d: status %d", q, st)
							}
						}
					}
				}
			})
		}
		wg.Wait()
	})
}
