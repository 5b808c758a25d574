package thin_test

import (
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/thin"
)

// image is the metadata of a small pool with something in it: superblocks,
// four slots, and the first table.
func image(t testing.TB) []byte {
	m := memory(t, 0)
	require.NoError(t, thin.Format(m, thin.Layout{ExtentSize: 4096, Capacity: 70 * 4096, Disks: 4}))
	p, err := thin.Open(m, thin.Config{})
	require.NoError(t, err)
	for _, name := range []string{"a", "b", "c"} {
		d := create(t, p, name, 1<<20)
		_, err := d.WriteAt(make([]byte, 50000), 4096)
		require.NoError(t, err)
		require.NoError(t, d.Close())
	}
	require.NoError(t, p.Delete("b"))
	require.NoError(t, p.Close())
	b := make([]byte, 20480)
	_, err = m.ReadAt(b, 0)
	require.NoError(t, err)
	return b
}

// reseal makes all checksums and numbers right, as an attacker would.
func reseal(b []byte) {
	for off := 0; off+512 <= len(b); off += 512 {
		s := b[off:][:512]
		zero := true
		for _, c := range s {
			zero = zero && c == 0
		}
		if !zero {
			binary.LittleEndian.PutUint32(s[4:], uint32(off/512))
			binary.LittleEndian.PutUint32(s, crc32.Checksum(s[4:], crc32.MakeTable(crc32.Castagnoli)))
		}
	}
}

// FuzzOpen opens a pool whose metadata were changed anywhere. It is refused
// with an error, or works.
func FuzzOpen(f *testing.F) {
	base := image(f)
	word := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	f.Add(uint32(0), []byte{}, true)
	f.Add(uint32(32), word(1<<40), true)              // extents
	f.Add(uint32(28), word(1<<30), true)              // extent size
	f.Add(uint32(4096+40), word(1<<31), true)         // disks
	f.Add(uint32(8192+16), word(1<<63), true)         // size of a disk
	f.Add(uint32(8192+1024+8), word(1|1<<40), true)   // two disks of one number
	f.Add(uint32(12288+8), word(1<<32|0xffff), true)  // an extent past a disk's end
	f.Add(uint32(12288+16), word(1<<32|1), true)      // an extent twice
	f.Add(uint32(12288+512+8*8), word(1<<32|2), true) // one past the pool's end
	f.Add(uint32(12288+24), word(7), true)            // an unknown state
	f.Add(uint32(12288+3), []byte{0xff}, false)       // a wrong checksum
	f.Fuzz(func(t *testing.T, off uint32, patch []byte, seal bool) {
		b := append([]byte(nil), base...)
		copy(b[int(off)%len(b):], patch)
		if seal {
			reseal(b)
		}
		m := memory(t, 400<<10)
		_, err := m.WriteAt(b, 0)
		require.NoError(t, err)
		p, err := thin.Open(m, thin.Config{})
		if err != nil {
			require.ErrorIs(t, err, thin.ErrFormat)
			require.ErrorContains(t, err, "thin pool store: open: ")
			return
		}
		require.NoError(t, p.Check())
		for _, u := range p.Disks() {
			d, err := p.OpenDisk(u.Name, thin.DiskConfig{})
			require.NoError(t, err)
			off := max(0, min(d.Size()-5000, 3000))
			n, err := d.WriteAt(make([]byte, min(5000, d.Size())), off)
			if err != nil {
				require.ErrorIs(t, err, disk.ErrNoSpace)
			}
			_, err = d.ReadAt(make([]byte, n), off)
			require.NoError(t, err)
			require.NoError(t, d.Discard(0, d.Size()))
			require.NoError(t, d.Close())
			require.NoError(t, p.Delete(u.Name))
		}
		require.NoError(t, p.Check())
		require.Zero(t, p.Usage().Allocated)
		require.NoError(t, p.Close())
		p, err = thin.Open(m, thin.Config{})
		require.NoError(t, err)
		require.NoError(t, p.Close())
	})
}

// What is wrong is said with its place.
func TestHostileMetadata(t *testing.T) {
	base := image(t)
	for _, c := range []struct {
		off  int
		v    uint64
		want string
	}{
		{0, 0, ""}, // one good superblock is enough
		{32, 1 << 40, ""},
		{8192 + 512, 1, "directory sector at offset 8704: wrong checksum"},
		{12288 + 600, 99, "table sector at offset 12800: wrong checksum"},
	} {
		b := append([]byte(nil), base...)
		binary.LittleEndian.PutUint64(b[c.off:], c.v)
		m := memory(t, 400<<10)
		_, err := m.WriteAt(b, 0)
		require.NoError(t, err)
		p, err := thin.Open(m, thin.Config{})
		if c.want == "" {
			require.NoError(t, err)
			require.NoError(t, p.Close())
			continue
		}
		require.ErrorIs(t, err, thin.ErrFormat)
		require.ErrorContains(t, err, c.want)
	}
	for _, c := range []struct {
		off  int
		v    uint64
		want string
	}{
		{8192 + 16, 1 << 63, "directory sector at offset 8192: out of range: size"},
		{8192 + 1024 + 8, 1 | 1<<40, "disk number 1 is there twice"},
		{12288 + 24, 7, "table sector at offset 12288: entry 0x7 of extent 2"},
		{12288 + 512 + 8 + 8*8, 1 << 32, "table sector at offset 12800: entry for extent 71 of 70"},
	} {
		b := append([]byte(nil), base...)
		binary.LittleEndian.PutUint64(b[c.off:], c.v)
		reseal(b)
		m := memory(t, 400<<10)
		_, err := m.WriteAt(b, 0)
		require.NoError(t, err)
		_, err = thin.Open(m, thin.Config{})
		require.ErrorIs(t, err, thin.ErrFormat)
		require.ErrorContains(t, err, c.want)
	}
	// A store that ends early, and one that never was a pool.
	m := memory(t, 200<<10)
	_, err := m.WriteAt(base, 0)
	require.NoError(t, err)
	_, err = thin.Open(m, thin.Config{})
	require.ErrorContains(t, err, "the store has 204800")
	for _, size := range []int64{0, 100, 1 << 20} {
		_, err = thin.Open(memory(t, size), thin.Config{})
		require.ErrorIs(t, err, thin.ErrFormat)
	}
}
