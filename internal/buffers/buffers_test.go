package buffers

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAppendPart(t *testing.T) {
	bufs := [][]byte{[]byte("abc"), nil, []byte("d"), []byte("efgh")}
	all := bytes.Join(bufs, nil)
	require.EqualValues(t, len(all), Len(bufs))
	require.Zero(t, Len(nil))
	for off := range int64(len(all) + 1) {
		for n := range int64(len(all)) - off + 1 {
			got := AppendPart(nil, bufs, off, n)
			require.Equal(t, string(all[off:off+n]), string(bytes.Join(got, nil)))
			require.Equal(t, n, Len(got))
			for _, p := range got {
				require.NotEmpty(t, p)
			}
		}
	}
	require.Equal(t, "h", string(bytes.Join(AppendPart(nil, bufs, 7, 100), nil)))
}
