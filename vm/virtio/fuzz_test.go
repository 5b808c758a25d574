package virtio_test

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"testing"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// FuzzQueue lays the input out as a queue's memory, with what follows as
// further memory to describe, and drains the queue. Whatever it holds, the
// number of chains is bounded, buffers lie in guest memory and come in the right
// order, and every chain's head comes back once.
func FuzzQueue(f *testing.F) {
	const (
		size = 8
		ram  = 64 << 10
	)
	desc := func(addr uint64, length uint32, flags, next uint16) []byte {
		b := binary.LittleEndian.AppendUint64(nil, addr)
		b = binary.LittleEndian.AppendUint32(b, length)
		b = binary.LittleEndian.AppendUint16(b, flags)
		return binary.LittleEndian.AppendUint16(b, next)
	}
	seed := func(features byte, avail []uint16, descs ...[]byte) {
		b := make([]byte, 16*size)
		for i, d := range descs {
			copy(b[16*i:], d)
		}
		b = append(b, 0, 0)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(avail)))
		for _, h := range avail {
			b = binary.LittleEndian.AppendUint16(b, h)
		}
		f.Add(features, b)
	}
	seed(0, []uint16{0, 2}, desc(0x1000, 16, 1, 1), desc(0x2000, 32, 2, 0), desc(0x3000, 0, 2, 0))
	seed(3, []uint16{0}, desc(0, 64, 4, 0), desc(0x100, 8, 1, 1))
	seed(3, []uint16{1, 1}, desc(0, 64, 4, 0), desc(0xfff0, 32, 2, 1))
	seed(1, []uint16{3, 9}, desc(0, 64, 1, 0), desc(0, 1, 1, 2), desc(0, 1, 3, 1))
	mem, err := memory.New(memory.Config{Size: ram})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { mem.Close() })
	zero := make([]byte, ram)
	f.Fuzz(func(t *testing.T, features byte, data []byte) {
		if err := mem.Write(0, zero); err != nil {
			t.Fatal(err)
		}
		if err := mem.Write(0, data[:min(len(data), ram)]); err != nil {
			t.Fatal(err)
		}
		broken := 0
		q, err := virtio.NewQueue(virtio.QueueConfig{
			Memory: mem, Size: size, Desc: 0, Avail: 16 * size, Used: 16*size + 24,
			Features: uint64(features) & 3 << 28,
			Broken:   func(error) { broken++ },
		})
		if err != nil {
			t.Fatal(err)
		}
		var chains [size + 1]virtio.Chain
		n := 0
		for ; q.Pop(&chains[n]); n++ {
			if n == size {
				t.Fatal("more chains than descriptors")
			}
			c := &chains[n]
			var sum [2]uint64
			for i, bufs := range [][][]byte{c.Readable, c.Writable} {
				for _, b := range bufs {
					if len(b) == 0 {
						t.Fatal("empty buffer")
					}
					sum[i] += uint64(len(b))
				}
			}
			if sum[0] != uint64(c.ReadLen) || sum[1] != uint64(c.WriteLen) {
				t.Fatalf("lengths %v, %d, %d", sum, c.ReadLen, c.WriteLen)
			}
			for j := range n {
				if chains[j].Head == c.Head {
					t.Fatal("head twice in flight")
				}
			}
		}
		if q.InFlight() != n && broken == 0 {
			t.Fatalf("%d in flight, popped %d", q.InFlight(), n)
		}
		for i := range n {
			q.Push(&chains[i], chains[i].WriteLen)
		}
		q.Publish()
		q.SetNotify(true)
		q.SetNotify(false)
		if broken > 1 {
			t.Fatal("broken twice")
		}
		if broken == 0 && q.InFlight() != 0 {
			t.Fatalf("%d in flight at the end", q.InFlight())
		}
	})
}

func stateDevice(t testing.TB) virtio.Device {
	return newConsole(t, virtio.ConsoleConfig{Out: io.Discard, Ports: []virtio.ConsolePort{{Name: "a", Out: io.Discard}}})
}

// FuzzLoad loads any saved state into a console behind either transport. It is
// refused or works; what works can be saved again, resumed and reset.
func FuzzLoad(f *testing.F) {
	for _, pci := range []bool{false, true} {
		m := start(f, stateDevice(f), virtiotest.Config{PCI: pci, Memory: 4 << 20, QueueSize: 4})
		m.Transport.Pause()
		st, err := m.Transport.Save()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pci, 1, []byte(st.Data))
		// The same with each field, one at a time, turned into something else.
		var v map[string]any
		if err := json.Unmarshal(st.Data, &v); err != nil {
			f.Fatal(err)
		}
		core := v["core"].(map[string]any)
		for _, bad := range []any{-1, 0xffff, 1 << 40, nil, "x", []any{}} {
			for k, old := range core {
				core[k] = bad
				b, _ := json.Marshal(v)
				f.Add(pci, 1, b)
				core[k] = old
			}
		}
	}
	f.Fuzz(func(t *testing.T, pci bool, version int, data []byte) {
		m := virtiotest.New(t, stateDevice(t), virtiotest.Config{PCI: pci, Doorbells: true, Memory: 4 << 20})
		m.Transport.Pause()
		if err := m.Transport.Load(device.State{Version: version, Data: data}); err == nil {
			st, err := m.Transport.Save()
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Transport.Load(st); err != nil {
				t.Fatalf("refuses its own state: %v", err)
			}
		}
		m.Transport.Resume()
		m.Transport.Pause()
		m.Transport.Resume()
		m.Transport.Reset()
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
	})
}
