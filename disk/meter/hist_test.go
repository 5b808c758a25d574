package meter

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every value lies in its bucket, and no bucket is wider than an eighth.
func TestBuckets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	check := func(v uint64) {
		i := bucket(v)
		require.Less(t, i, buckets)
		require.LessOrEqual(t, v, upper(i))
		if i > 0 {
			require.Greater(t, v, upper(i-1))
		}
		require.LessOrEqual(t, upper(i)-v, v/8)
	}
	for v := range uint64(5000) {
		check(v)
	}
	for range 5000 {
		check(r.Uint64() >> r.IntN(64))
	}
	check(math.MaxUint64)
}
