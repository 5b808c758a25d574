package disk_test

import (
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// TestHostile has a driver do its worst, over each way that requests take.
func TestHostile(t *testing.T) {
	const size = 2 << 20
	steps := virtiotest.HostileSteps() / 3
	run := func(name string, b func() disk.Backend, cfg disk.Config) {
		t.Run(name, func(t *testing.T) {
			var dev *disk.Device
			virtiotest.Hostile(t, virtiotest.HostileConfig{
				Steps: steps,
				New: func() (virtio.Device, error) {
					var err error
					dev, err = disk.NewDevice(b(), cfg)
					return dev, err
				},
				Request: blockRequest,
				Outside: func(r *rand.Rand) {
					// Sizes differ now and then; saved state must still fit.
					if r.IntN(16) == 0 {
						dev.Resize(size + r.Int64N(64)*512)
					}
				},
			})
		})
	}
	dir := t.TempDir()
	n := 0
	run("memory", func() disk.Backend { return newMemory(t, size) }, disk.Config{Queues: 2})
	run("workers", func() disk.Backend { return &slow{Backend: newMemory(t, size)} }, disk.Config{WriteThrough: true})
	run("file", func() disk.Backend {
		n++
		f, err := disk.Create(filepath.Join(dir, string(rune('a'+n))), size, disk.FileConfig{NoLock: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}, disk.Config{Queues: 3, QueueSize: 64})
}

// blockRequest writes a request that a driver in its senses would send.
func blockRequest(r *rand.Rand, m *virtiotest.Machine, q int) []virtiotest.Buf {
	at := uint64(virtiotest.Scratch + r.IntN(256)*8192)
	typ := []uint32{typeIn, typeIn, typeOut, typeOut, typeFlush, typeGetID, typeDiscard, typeZeroes}[r.IntN(8)]
	n := uint32(512 * (1 + r.IntN(12)))
	switch typ {
	case typeFlush:
		n = 0
	case typeGetID:
		n = 20
	case typeDiscard, typeZeroes:
		n = uint32(16 * (1 + r.IntN(4)))
	}
	put := func(at uint64, a, b uint64) {
		var p [16]byte
		binary.LittleEndian.PutUint64(p[:], a)
		binary.LittleEndian.PutUint64(p[8:], b)
		if err := m.Mem.Write(at, p[:]); err != nil {
			panic(err)
		}
	}
	put(at, uint64(typ), uint64(r.IntN(4096)))
	if typ == typeDiscard || typ == typeZeroes {
		for i := range uint64(n / 16) {
			put(at+32+16*i, uint64(r.IntN(4000)), uint64(r.IntN(64))|uint64(r.IntN(2))<<32)
		}
	}
	bufs := []virtiotest.Buf{{Addr: at, Len: 16}}
	if n > 0 {
		bufs = append(bufs, virtiotest.Buf{Addr: at + 32, Len: n, Write: typ == typeIn || typ == typeGetID})
	}
	return append(bufs, virtiotest.Buf{Addr: at + 16, Len: 1, Write: true})
}
