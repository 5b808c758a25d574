package image_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

// memory makes a disk with the given content.
func memory(t testing.TB, content []byte) *disk.Memory {
	t.Helper()
	m, err := disk.NewMemory("test", int64(len(content)))
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	// Blocks of zeroes stay holes.
	for off := 0; off < len(content); off += 4096 {
		p := content[off:min(off+4096, len(content))]
		if !bytes.Equal(p, make([]byte, len(p))) {
			_, err := m.WriteAt(p, int64(off))
			require.NoError(t, err)
		}
	}
	return m
}

// sparse fills a disk of size bytes with runs of content, of repeated content
// and of zeroes.
func sparse(r *rand.Rand, size int) []byte {
	p := make([]byte, size)
	shared := make([]byte, 600<<10)
	disktest.Fill(r, shared)
	for off := 0; off < size; {
		n := min(size-off, 1+r.IntN(400<<10))
		if r.IntN(4) > 0 {
			n = min((n+4095)&^4095, size-off)
		}
		switch r.IntN(4) {
		case 0: // zeroes
		case 1:
			copy(p[off:off+n], shared)
		default:
			disktest.Fill(r, p[off:off+n])
		}
		off += n
	}
	return p
}

// pack publishes content and opens the result.
func pack(t testing.TB, content []byte, cfg image.PackConfig) (*image.Image, image.Summary) {
	t.Helper()
	sum, err := image.Pack(context.Background(), memory(t, content), cfg)
	require.NoError(t, err)
	name := cfg.Name
	if name == "" {
		name = "manifest.json"
	}
	img, err := image.Open(context.Background(), fetch.Dir(cfg.Dir), name, image.Config{AllowUnsigned: true})
	require.NoError(t, err)
	return img, sum
}

// requireContent reads the whole image.
func requireContent(t testing.TB, img *image.Image, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := img.Reader(context.Background()).ReadAt(got, 0)
	if err != io.EOF {
		require.NoError(t, err)
	}
	require.Equal(t, len(want), n)
	require.True(t, bytes.Equal(want, got), "content differs")
}
