package disktest_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

func TestVolatileIsABackend(t *testing.T) {
	disktest.Run(t, disktest.Maker{New: func(t *testing.T, size int64) disk.Backend {
		return disktest.NewVolatile("test", size)
	}})
}

// TestVolatileLoses checks that a cut keeps what was flushed, may lose what was
// not, and never tears a sector.
func TestVolatileLoses(t *testing.T) {
	const size = 64 << 10
	lost, kept := 0, 0
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 0))
		v := disktest.NewVolatile("test", size)
		_, err := v.WriteAt(bytes.Repeat([]byte{1}, size), 0)
		require.NoError(t, err)
		require.NoError(t, v.Flush())
		_, err = v.WriteAt(bytes.Repeat([]byte{2}, size/2), 0)
		require.NoError(t, err)
		v.CutAfter(1)
		require.NoError(t, v.Discard(0, 0))
		require.ErrorIs(t, v.Flush(), disktest.ErrPowerCut)
		_, err = v.ReadAt(make([]byte, 1), 0)
		require.ErrorIs(t, err, disktest.ErrPowerCut)

		v = v.Reboot(r)
		p := make([]byte, size)
		_, err = v.ReadAt(p, 0)
		require.NoError(t, err)
		for s := 0; s < size; s += 512 {
			require.Equal(t, bytes.Repeat(p[s:s+1], 512), p[s:s+512], "sector at %d is torn", s)
			switch {
			case s >= size/2:
				require.EqualValues(t, 1, p[s], "flushed sector at %d", s)
			case p[s] == 2:
				kept++
			default:
				require.EqualValues(t, 1, p[s])
				lost++
			}
		}
	}
	require.NotZero(t, kept)
	require.NotZero(t, lost)
}
