package qcow2_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// BenchmarkClone reads and overwrites 4 KiB blocks of a raw file, and of a
// clone that has every other cluster of its own.
func BenchmarkClone(b *testing.B) {
	const size = 64 << 20
	dir := b.TempDir()
	raw, err := disk.Create(filepath.Join(dir, "raw"), size, disk.FileConfig{})
	require.NoError(b, err)
	defer raw.Close()
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i)
	}
	_, err = raw.WriteAt(p, 0)
	require.NoError(b, err)
	file, err := disk.Create(filepath.Join(dir, "clone"), 0, disk.FileConfig{})
	require.NoError(b, err)
	require.NoError(b, qcow2.Create(file, qcow2.CreateConfig{Size: size, BackingName: "raw", BackingFormat: "raw"}))
	clone, err := qcow2.Open(file, qcow2.Config{Backing: raw})
	require.NoError(b, err)
	defer clone.Close()
	for off := int64(0); off < size; off += 128 << 10 {
		_, err = clone.WriteAt(p[:64<<10], off)
		require.NoError(b, err)
	}
	buf := p[:4096]
	for _, c := range []struct {
		name  string
		b     disk.Backend
		shift int64
	}{
		{"raw", raw, 0}, {"own", clone, 0}, {"backing", clone, 64 << 10},
	} {
		at := func(i int) int64 { return int64(i)*7919%512*(128<<10) + int64(i)%16*4096 + c.shift }
		b.Run("read/"+c.name, func(b *testing.B) {
			for i := range b.N {
				if _, err := c.b.ReadAt(buf, at(i)); err != nil {
					b.Fatal(err)
				}
			}
		})
		if c.name != "backing" {
			b.Run("write/"+c.name, func(b *testing.B) {
				for i := range b.N {
					if _, err := c.b.WriteAt(buf, at(i)); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
