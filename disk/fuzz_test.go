package disk_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// FuzzRequest sends one request with any header, payload and cut of its
// buffers. It is answered, with a known status; nothing else of the guest's
// memory changes; the disk changes only where the request says.
func FuzzRequest(f *testing.F) {
	const size = 128 << 10
	head := func(typ uint32, sector uint64, more ...byte) []byte {
		b := binary.LittleEndian.AppendUint32(nil, typ)
		b = binary.LittleEndian.AppendUint32(b, 0)
		return append(binary.LittleEndian.AppendUint64(b, sector), more...)
	}
	f.Add(head(typeIn, 0), uint16(512), uint8(0), false)
	f.Add(head(typeOut, 255, make([]byte, 512)...), uint16(0), uint8(3), false)
	f.Add(head(typeOut, 1<<63, make([]byte, 512)...), uint16(0), uint8(3), true)
	f.Add(head(typeFlush, 0), uint16(0), uint8(1), true)
	f.Add(head(typeGetID, 0), uint16(20), uint8(200), false)
	f.Add(head(typeDiscard, 0, segments(0, 8, 0, 255, 1, 0)...), uint16(0), uint8(17), false)
	f.Add(head(typeZeroes, 0, segments(0, 8, 1, 1<<60, 1<<31, 0)...), uint16(7), uint8(5), true)
	f.Fuzz(func(t *testing.T, readable []byte, writable uint16, cut uint8, inInbox bool) {
		if len(readable) > 4096 {
			return
		}
		b := newMemory(t, size)
		old := bytes.Repeat([]byte{0x5a}, size)
		_, err := b.WriteAt(old, 0)
		require.NoError(t, err)
		g := newRig(t, b, disk.Config{Serial: "fuzz"}, &inbox{direct: !inInbox}).start()
		require.NoError(t, g.mem.Write(reqBase, readable))
		mark := bytes.Repeat([]byte{0xc3}, 66<<10)
		require.NoError(t, g.mem.Write(dataBase, mark))
		var bufs []virtiotest.Buf
		add := func(at uint64, n int, w bool) {
			step := n
			if cut > 0 {
				step = max(int(cut), n/20+1)
			}
			for off := 0; off < n; off += step {
				bufs = append(bufs, virtiotest.Buf{Addr: at + uint64(off), Len: uint32(min(step, n-off)), Write: w})
			}
		}
		add(reqBase, len(readable), false)
		add(dataBase, int(writable), true)
		if len(bufs) == 0 {
			return
		}
		g.rings[0].Indirect = false
		_, err = g.rings[0].Add(bufs...)
		require.NoError(t, err)
		g.dev.Notify(0)
		g.wait(0)
		require.Nil(t, g.broken.Load())

		mem := make([]byte, len(mark))
		require.NoError(t, g.mem.Read(dataBase, mem))
		require.True(t, bytes.Equal(mem[writable:], mark[writable:]), "memory past the request changed")
		var status byte
		if writable > 0 {
			status = mem[writable-1]
			require.LessOrEqual(t, status, byte(statusUnsupp))
		}
		now := make([]byte, size)
		_, err = b.ReadAt(now, 0)
		require.NoError(t, err)
		if bytes.Equal(now, old) {
			return
		}
		// The disk has changed: only these may do that, only with success.
		require.GreaterOrEqual(t, len(readable), 16)
		require.EqualValues(t, statusOK, status)
		typ := binary.LittleEndian.Uint32(readable)
		allowed := func(sector, n uint64) { copy(old[sector*512:], now[sector*512:(sector+n)*512]) }
		switch payload := readable[16:]; typ {
		case typeOut:
			sector := binary.LittleEndian.Uint64(readable[8:])
			require.Equal(t, payload, now[sector*512:][:len(payload)])
			allowed(sector, uint64(len(payload)/512))
		case typeDiscard, typeZeroes:
			for ; len(payload) > 0; payload = payload[16:] {
				allowed(binary.LittleEndian.Uint64(payload), uint64(binary.LittleEndian.Uint32(payload[8:])))
			}
		default:
			t.Fatalf("type %d changed the disk", typ)
		}
		require.True(t, bytes.Equal(now, old), "the disk changed elsewhere")
	})
}

// FuzzLoad feeds a device saved state of any kind.
func FuzzLoad(f *testing.F) {
	d, err := disk.NewDevice(newMemory(f, 1<<20), disk.Config{Serial: "x"})
	require.NoError(f, err)
	st, err := d.Save()
	require.NoError(f, err)
	f.Add(st.Version, []byte(st.Data))
	f.Add(1, []byte(`{"capacity":18446744073709551615}`))
	f.Add(1, []byte(`{"capacity":1,"queues":1,"queueSize":512,"blockSize":512,"serial":"x","epoch":65535}`))
	f.Fuzz(func(t *testing.T, version int, data []byte) {
		d, err := disk.NewDevice(newMemory(t, 1<<20), disk.Config{Serial: "x"})
		require.NoError(t, err)
		if d.Load(device.State{Version: version, Data: data}) != nil {
			return
		}
		st, err := d.Save()
		require.NoError(t, err)
		require.NoError(t, d.Load(st))
		var c [8]byte
		d.ReadConfig(0, c[:])
		require.LessOrEqual(t, binary.LittleEndian.Uint64(c[:]), uint64(2048))
	})
}
