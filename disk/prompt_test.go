package disk_test

import (
	"bytes"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// plain is a backend without anything optional that notes the order in which
// it is used, and by how many goroutines the process has then.
type plain struct {
	disk.Backend
	order      []int64
	goroutines int
}

func (p *plain) ReadAt(b []byte, off int64) (int, error) {
	p.order = append(p.order, off/512)
	p.goroutines = max(p.goroutines, runtime.NumGoroutine())
	return p.Backend.ReadAt(b, off)
}

func (p *plain) WriteAt(b []byte, off int64) (int, error) {
	p.order = append(p.order, off/512)
	return p.Backend.WriteAt(b, off)
}

// TestPrompt: on a prompt machine, requests are carried out within the
// notification, in the order of the ring and on no other goroutine, and answered
// when their completions are delivered, in that order.
func TestPrompt(t *testing.T) {
	mem := newMemory(t, 1<<20)
	_, err := mem.WriteAt(bytes.Repeat([]byte{7}, 1<<20), 0)
	require.NoError(t, err)
	for _, immediate := range []bool{false, true} {
		var b disk.Backend = mem
		p := &plain{Backend: mem}
		if !immediate {
			b = p
		}
		g := newRig(t, b, disk.Config{}, &inbox{prompt: true, hold: true}).start()
		before := runtime.NumGoroutine()
		var heads []uint16
		// Larger and smaller ones, reads and a flush among them: workers
		// would finish them in another order.
		for i, sector := range []uint64{900, 0, 5, 1000} {
			heads = append(heads, g.submit(0, i, typeIn, sector, virtiotest.Buf{Addr: dataBase + uint64(i)<<20, Len: 512 * uint32(1+i%2*100), Write: true}))
		}
		heads = append(heads, g.submit(0, 4, typeFlush, 0))
		g.dev.Notify(0)
		require.LessOrEqual(t, runtime.NumGoroutine(), before)
		if !immediate {
			require.Equal(t, []int64{900, 0, 5, 1000}, p.order)
			require.LessOrEqual(t, p.goroutines, before)
		}
		for i := range heads {
			require.EqualValues(t, 0xee, g.status(i), "answered before its delivery")
		}
		require.Equal(t, len(heads), g.inbox.release())
		for i, want := range heads {
			head, _, ok := g.rings[0].Used1()
			require.True(t, ok)
			require.Equal(t, want, head)
			require.EqualValues(t, 0, g.status(i))
		}
		got, err := g.mem.Uint8(dataBase + 3<<20 + 511)
		require.NoError(t, err)
		require.EqualValues(t, 7, got)
	}
}

// TestPromptHold: a request that is held is carried out again only when the
// Retry is delivered.
func TestPromptHold(t *testing.T) {
	full := &fullOnce{Backend: newMemory(t, 1<<20)}
	full.full.Store(true)
	events := make(chan disk.HoldEvent, 10)
	in := &inbox{prompt: true}
	g := newRig(t, full, disk.Config{Hold: func(e disk.HoldEvent) { events <- e }}, in).start()
	g.submit(0, 0, typeOut, 3, virtiotest.Buf{Addr: dataBase, Len: 512})
	g.dev.Notify(0)
	require.True(t, (<-events).Held)
	require.Equal(t, 1, g.dev.Held())
	full.full.Store(false)
	in.hold = true
	g.dev.Retry()
	require.EqualValues(t, 1, full.writes.Load(), "tried before its turn")
	require.Equal(t, 1, in.release()) // the retry
	require.EqualValues(t, 2, full.writes.Load())
	require.EqualValues(t, 0xee, g.status(0))
	require.Equal(t, 1, in.release()) // the completion
	require.EqualValues(t, 0, g.status(0))
	require.False(t, (<-events).Held)
	in.hold = false

	// On a paused device a Retry does nothing, and Resume the same.
	full.full.Store(true)
	g.submit(0, 1, typeOut, 3, virtiotest.Buf{Addr: dataBase, Len: 512})
	g.dev.Notify(0)
	require.True(t, (<-events).Held)
	g.dev.Pause()
	full.full.Store(false)
	g.dev.Retry()
	require.EqualValues(t, 0xee, g.status(1))
	g.dev.Resume()
	require.EqualValues(t, 0, g.status(1))
}

// fullOnce is a backend whose writes fail for want of space while full is set.
type fullOnce struct {
	disk.Backend
	full   atomic.Bool
	writes atomic.Int32
}

func (f *fullOnce) WriteAt(p []byte, off int64) (int, error) {
	f.writes.Add(1)
	if f.full.Load() {
		return 0, disk.ErrNoSpace
	}
	return f.Backend.WriteAt(p, off)
}
