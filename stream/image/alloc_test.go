//go:build !race

package image

import (
	"crypto/sha256"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// Under the race detector, pools forget what is put into them now and then.
func TestDecodeAllocatesNothing(t *testing.T) {
	content := make([]byte, 100<<10)
	for i := range content {
		content[i] = byte(i * i >> 8)
	}
	frame := encode(t, content, zstd.WithSingleSegment(true))
	chunk := Chunk{Len: len(content), Hash: sha256.Sum256(content), PackLen: len(frame)}
	dst := make([]byte, chunk.Len)
	allocs := 1.0
	for try := 0; try < 10 && allocs != 0; try++ { // a collection may just have emptied a pool
		allocs = testing.AllocsPerRun(20, func() {
			if err := Decode(dst, chunk, frame); err != nil {
				t.Fatal(err)
			}
		})
	}
	require.Zero(t, allocs)
}
