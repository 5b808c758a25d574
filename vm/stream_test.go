package vm

import (
	"bytes"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// stream makes a stream of the given records.
func stream(t testing.TB, end bool, records ...[]byte) []byte {
	var out bytes.Buffer
	w, err := newRecordWriter(&out)
	require.NoError(t, err)
	for i, r := range records {
		require.NoError(t, w.write(uint32(i%3)+1, r))
	}
	if end {
		require.NoError(t, w.end())
	} else {
		require.NoError(t, w.w.Flush())
	}
	return out.Bytes()
}

// readAll returns the records up to the end or the first error.
func readAll(b []byte) (payloads [][]byte, ended bool, err error) {
	r, err := newRecordReader(bytes.NewReader(b))
	if err != nil {
		return nil, false, err
	}
	for {
		typ, p, err := r.next()
		if err != nil {
			return payloads, false, err
		}
		if typ == recEnd {
			return payloads, true, nil
		}
		payloads = append(payloads, bytes.Clone(p))
	}
}

func TestStream(t *testing.T) {
	want := [][]byte{[]byte("{}"), []byte(`{"a":1}`), bytes.Repeat([]byte{7}, maxPageRecord), {}}
	b := stream(t, true, want...)
	got, ended, err := readAll(b)
	require.NoError(t, err)
	require.True(t, ended)
	require.Len(t, got, len(want))
	for i := range want {
		require.True(t, bytes.Equal(want[i], got[i]))
	}
	// Cut or altered anywhere, it is noticed.
	for n := 0; n < len(b); n += 1 + n/3 {
		_, _, err := readAll(b[:n])
		require.ErrorIs(t, err, ErrBadState, "cut to %d", n)
		bad := bytes.Clone(b)
		bad[n] ^= 1
		_, _, err = readAll(bad)
		require.ErrorIs(t, err, ErrBadState, "altered at %d", n)
	}
	// A record left out is noticed by the end's count.
	whole := stream(t, true, want[0], want[1])
	gone := stream(t, false, want[0])
	last := whole[len(whole)-20:]
	_, _, err = readAll(append(gone, last...))
	require.ErrorIs(t, err, ErrBadState)
}

// A length that lies costs no memory to speak of.
func TestStreamLength(t *testing.T) {
	b := append([]byte(streamMagic), recSection, 0, 0, 0, 0, 0, 0, 4) // 64 MiB, and nothing of it there
	allocs := testing.Benchmark(func(tb *testing.B) {
		for range tb.N {
			_, _, _ = readAll(b)
		}
	}).AllocedBytesPerOp()
	require.Less(t, allocs, int64(4<<20))
}

func FuzzStream(f *testing.F) {
	f.Add(stream(f, true, []byte("{}"), []byte("[]"), make([]byte, 4104)))
	f.Add(stream(f, false, []byte("{}")))
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		payloads, ended, err := readAll(b)
		if !ended && !errors.Is(err, ErrBadState) {
			t.Fatalf("an error that does not wrap ErrBadState: %v", err)
		}
		for _, p := range payloads {
			var h savedHeader
			var s savedSection
			_ = decodeStrict(p, &h)
			_ = decodeStrict(p, &s)
			_ = h.accepts(savedHeader{})
		}
	})
}
