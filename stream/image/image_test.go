package image_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/stream/image"
)

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		size := []int{0, 1, 4096, 5000, 3<<20 + 512, 8 << 20}[seed]
		content := sparse(r, size)
		img, sum := pack(t, content, image.PackConfig{Dir: t.TempDir(), PackSize: 1 << 20})
		require.EqualValues(t, size, img.Size())
		require.Equal(t, sum.Chunks, img.Chunks())
		requireContent(t, img, content)
	}
}
