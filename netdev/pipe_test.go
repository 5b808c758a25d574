package netdev

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var _ Endpoint = (*pipeEnd)(nil)

func TestPipeRejects(t *testing.T) {
	for _, cfg := range []PipeConfig{{Queues: -1}, {Queues: 257}, {Buffer: 1000}, {Buffer: 1 << 30}, {MTU: -1}, {MTU: 70000}} {
		_, _, err := Pipe(cfg)
		require.Error(t, err, "%+v", cfg)
	}
	a, _ := newPipe(t, PipeConfig{Queues: 2})
	require.Error(t, a.Configure(Settings{Queues: 3}))
	require.Error(t, a.Configure(Settings{}))
}

// TestPipeStream sends frames of random sizes through every queue both ways at
// once; each arrives whole and in order.
func TestPipeStream(t *testing.T) {
	a, b := newPipe(t, PipeConfig{Queues: 2, Buffer: minPipeBuffer})
	require.NoError(t, a.Configure(Settings{Queues: 2}))
	require.NoError(t, b.Configure(Settings{Queues: 2}))
	const frames = 3000
	var wg sync.WaitGroup
	for i := range 2 {
		for _, d := range [][2]Queue{{a.Queue(i), b.Queue(i)}, {b.Queue(i), a.Queue(i)}} {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(1, 2))
				for k := 0; k < frames; {
					var batch []Frame
					for range 1 + r.IntN(8) {
						f := testFrame(broadcast, MinFrame+r.IntN(3000), byte(k+len(batch)))
						batch = append(batch, Frame{Data: [][]byte{f[:7], f[7:]}})
					}
					for len(batch) > 0 {
						n, err := d[0].Write(batch, true)
						if err != nil || n == 0 {
							t.Errorf("wrote %d: %v", n, err)
							return
						}
						batch = batch[n:]
						k += n
					}
				}
			})
			wg.Go(func() {
				in := make([]Frame, 5)
				for i := range in {
					in[i].Data = [][]byte{make([]byte, 1000), make([]byte, 3000)}
				}
				for k := 0; k < frames; {
					n, err := d[1].Read(in, true)
					if err != nil || n == 0 {
						t.Errorf("read %d: %v", n, err)
						return
					}
					for _, f := range in[:n] {
						p := append(append([]byte(nil), f.Data[0]...), f.Data[1]...)[:f.Len]
						if want := testFrame(broadcast, f.Len, byte(k)); string(want) != string(p) {
							t.Errorf("frame %d differs", k)
							return
						}
						k++
					}
				}
			})
		}
	}
	wg.Wait()
}

func TestPipeUnblocks(t *testing.T) {
	a, b := newPipe(t, PipeConfig{Buffer: minPipeBuffer})
	frame := []Frame{{Data: [][]byte{testFrame(broadcast, 60000, 0)}}}
	for n := 1; n > 0; {
		var err error
		n, err = a.Queue(0).Write(frame, false)
		require.NoError(t, err)
	}
	type result struct {
		n   int
		err error
	}
	run := func(f func() (int, error)) chan result {
		done := make(chan result, 1)
		go func() { n, err := f(); done <- result{n, err} }()
		time.Sleep(5 * time.Millisecond)
		require.Empty(t, done)
		return done
	}
	write := func() (int, error) { return a.Queue(0).Write(frame, true) }
	read := func() (int, error) { return a.Queue(0).Read(frame, true) }
	w, r := run(write), run(read)
	a.Queue(0).Interrupt(true)
	require.Equal(t, result{}, <-w)
	require.Equal(t, result{}, <-r)
	n, err := read()
	require.Zero(t, n)
	require.NoError(t, err)
	a.Queue(0).Interrupt(false)
	w, r = run(write), run(read)
	require.NoError(t, a.Close())
	require.ErrorIs(t, (<-w).err, ErrClosed)
	require.ErrorIs(t, (<-r).err, ErrClosed)
	// The other end has lost its link; what it sends goes nowhere.
	require.False(t, b.WatchLink(nil))
	n, err = b.Queue(0).Write(frame, true)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestPipeLink(t *testing.T) {
	a, b := newPipe(t, PipeConfig{})
	var got []bool
	require.True(t, a.WatchLink(func(up bool) { got = append(got, up) }))
	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
	require.Equal(t, []bool{false}, got)
}

func TestPipeTruncates(t *testing.T) {
	a, b := newPipe(t, PipeConfig{})
	write1(t, a.Queue(0), Header{}, testFrame(broadcast, 100, 0))
	write1(t, a.Queue(0), Header{}, testFrame(broadcast, 50, 1))
	f := []Frame{{Data: [][]byte{make([]byte, 30)}}, {Data: [][]byte{make([]byte, 60)}}}
	n, err := b.Queue(0).Read(f, true)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, 30, f[0].Len)
	require.Equal(t, testFrame(broadcast, 50, 1), f[1].Data[0][:f[1].Len])
}

func TestPipeOffload(t *testing.T) {
	a, b := newPipe(t, PipeConfig{})
	frame, _, l4 := packet(false, false, 0, 5000)
	h := Header{Flags: NeedsChecksum, GSOType: GSOTCPv4, GSOSize: 1000, CsumStart: uint16(l4), CsumOffset: 16}
	for _, tt := range []struct {
		accept Offload
		frames int
	}{{0, 5}, {OffloadChecksum, 5}, {OffloadTSO4, 5}, {OffloadChecksum | OffloadTSO6, 5}, {OffloadChecksum | OffloadTSO4, 1}, {OffloadAll, 1}} {
		t.Run(fmt.Sprintf("%#x", tt.accept), func(t *testing.T) {
			require.NoError(t, b.Configure(Settings{Queues: 1, Offload: tt.accept}))
			write1(t, a.Queue(0), h, frame)
			for range tt.frames {
				got, p := read1(t, b.Queue(0))
				if tt.frames == 1 {
					require.Equal(t, h, got)
					require.Equal(t, frame, p)
				} else {
					require.Zero(t, got)
					require.Len(t, p, l4+32+1000)
				}
			}
			n, err := b.Queue(0).Read([]Frame{{}}, false)
			require.NoError(t, err)
			require.Zero(t, n)
		})
	}
	// Segments without end are dropped, and do not block the queue.
	require.NoError(t, b.Configure(Settings{Queues: 1}))
	frame, _, _ = packet(false, false, 0, 60000)
	h.GSOSize = 1
	write1(t, a.Queue(0), h, frame)
	write1(t, a.Queue(0), Header{}, testFrame(broadcast, 60, 0))
	_, p := read1(t, b.Queue(0))
	require.Len(t, p, 60)
}

func TestPipeAllocs(t *testing.T) {
	a, b := newPipe(t, PipeConfig{})
	require.NoError(t, b.Configure(Settings{Queues: 1, Offload: OffloadChecksum}))
	frame, _, l4 := packet(true, false, 0, 20000)
	out := []Frame{
		{Data: [][]byte{testFrame(broadcast, 1500, 0)}},
		{Header: Header{Flags: NeedsChecksum, GSOType: GSOTCPv6, GSOSize: 1000, CsumStart: uint16(l4), CsumOffset: 16}, Data: [][]byte{frame}},
	}
	in := make([]Frame, 32)
	for i := range in {
		in[i].Data = [][]byte{make([]byte, 2000)}
	}
	round := func() {
		if n, err := a.Queue(0).Write(out, false); n != 2 || err != nil {
			t.Error(n, err)
		}
		if n, err := b.Queue(0).Read(in, true); n != 21 || err != nil {
			t.Error(n, err)
		}
	}
	round()
	require.Zero(t, testing.AllocsPerRun(100, round))
}

func BenchmarkPipe(b *testing.B) {
	x, y, err := Pipe(PipeConfig{})
	require.NoError(b, err)
	defer x.Close()
	defer y.Close()
	out := make([]Frame, 32)
	in := make([]Frame, 32)
	for i := range out {
		out[i].Data = [][]byte{testFrame(broadcast, 1514, 0)}
		in[i].Data = [][]byte{make([]byte, 2000)}
	}
	b.SetBytes(1514)
	for i := 0; i < b.N; i += 32 {
		n, _ := x.Queue(0).Write(out, true)
		_, _ = y.Queue(0).Read(in[:n], true)
	}
}
