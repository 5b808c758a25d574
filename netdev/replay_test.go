package netdev

import (
	"crypto/sha256"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// TestReplay records a guest's network and plays the events to a second guest
// that does the same things and whose network is silent: its memory ends up
// the same.
func TestReplay(t *testing.T) {
	const features = baseFeatures | virtio.FeatureEventIdx | featMrgRxBuf | featCsum | featHostTSO4 | featGuestCsum | featGuestTSO4

	// drive is the guest. next hands over the events of one step.
	drive := func(g *guest, next func(step int)) [32]byte {
		r := rand.New(rand.NewPCG(3, 4))
		g.activate(features, 64)
		g.command(2, 0, 0, []byte{0})
		for step := range 300 {
			for range r.IntN(4) {
				if g.rings[0].Free() > 0 {
					g.offer(0, uint32(100+r.IntN(1800)))
				}
			}
			g.notify(0)
			if r.IntN(3) == 0 {
				g.send(1, Header{}, testFrame(broadcast, 60+r.IntN(1000), byte(step)))
				_, _, ok := g.rings[1].Used1()
				require.True(t, ok, "a recording device does not wait")
			}
			if r.IntN(50) == 0 {
				g.command(2, 0, 1, []byte{byte(r.IntN(2))})
			}
			next(step)
			for range r.IntN(4) {
				g.recv(0)
			}
		}
		b := make([]byte, memSize)
		require.NoError(t, g.mem.Read(0, b))
		return sha256.Sum256(b)
	}

	// Recording: the inbox holds frames back until the end of a step. What
	// leaves the guest piles up and is dropped in time.
	a, b := newPipe(t, PipeConfig{Buffer: minPipeBuffer})
	g := newGuest(t, a, Config{MAC: testMAC}, false)
	var tape [][]event
	r := rand.New(rand.NewPCG(5, 6))
	sent := 0
	g.box.hold.Store(true)
	want := drive(g, func(step int) {
		for range r.IntN(4) {
			dst := [][6]byte{broadcast, [6]byte(testMAC), {2, 3, 4, 5, 6, 7}, {1, 0, 0, 0, 0, 1}}[r.IntN(4)]
			if n, _ := b.Queue(0).Write([]Frame{{Data: [][]byte{testFrame(dst, 60+r.IntN(1400), byte(sent))}}}, false); n == 1 {
				sent++
			}
		}
		if step%20 == 7 {
			g.dev.SetLink(step%40 == 7)
		}
		// Some time for the device to read them, more where the host is busy.
		in := &a.Queue(0).(*pipeQueue).in
		for wait := 100 * time.Microsecond; wait < 200*time.Millisecond; wait *= 2 {
			time.Sleep(wait)
			in.mu.Lock()
			left := in.used(in.tail)
			in.mu.Unlock()
			if left == 0 {
				break
			}
		}
		g.box.mu.Lock()
		events := g.box.held
		g.box.held = nil
		g.box.mu.Unlock()
		tape = append(tape, events)
		for _, e := range events {
			g.dev.Deliver(e.tag, e.data)
		}
	})

	total := 0
	for _, events := range tape {
		total += len(events)
	}
	require.Greater(t, total, sent/2)
	c, _ := newPipe(t, PipeConfig{})
	g2 := newGuest(t, c, Config{MAC: testMAC}, false)
	got := drive(g2, func(step int) {
		for _, e := range tape[step] {
			g2.dev.Deliver(e.tag, e.data)
		}
	})
	require.Equal(t, want, got)
}

// FuzzDeliver plays a tape that nobody recorded.
func FuzzDeliver(f *testing.F) {
	h := make([]byte, HeaderLen)
	f.Add(uint64(tagFrame), append(h, testFrame(broadcast, 100, 0)...), false)
	f.Add(uint64(tagBatch), []byte{}, true)
	f.Add(uint64(tagLink), []byte{1, 1}, true)
	f.Add(uint64(tagAnnounce), []byte{}, true)
	f.Add(uint64(tagFrame|7), append(h, testFrame(broadcast, 100, 0)...), true)
	var gs [2]*guest
	for i := range gs {
		a, _ := newPipe(f, PipeConfig{Queues: 2})
		gs[i] = newGuest(f, a, Config{MAC: testMAC}, i == 1)
		gs[i].activate(baseFeatures|featMrgRxBuf|featMQ|featGuestCsum|featGuestTSO4, 64)
	}
	f.Fuzz(func(t *testing.T, tag uint64, data []byte, direct bool) {
		g := gs[0]
		if direct {
			g = gs[1]
		}
		g.t = t
		if g.rings[0].Free() > 0 {
			if _, err := g.rings[0].Add(virtiotest.Buf{Addr: bufBase, Len: 1600, Write: true}); err != nil {
				t.Fatal(err)
			}
			g.notify(0)
		}
		g.dev.Deliver(tag, data)
		for {
			if _, _, ok := g.rings[0].Used1(); !ok {
				break
			}
		}
	})
}

// TestNoLeaks: devices that come and go leave no goroutine behind.
func TestNoLeaks(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("devices", func(t *testing.T) {
		for i := range 20 {
			a, b := newPipe(t, PipeConfig{Queues: 4, Buffer: minPipeBuffer})
			g := newGuest(t, a, Config{MAC: testMAC}, i%2 == 0)
			for range 3 {
				g.activate(baseFeatures|featMrgRxBuf|featMQ, 64)
				require.EqualValues(t, ctrlOK, g.command(8, 4, 0, []byte{4, 0}))
				for q := range 4 {
					for range 40 {
						if g.rings[2*q+1].Used1(); g.rings[2*q+1].Free() > 1 {
							g.send(2*q+1, Header{}, testFrame(broadcast, 4000, 0))
						}
					}
					write1(t, b.Queue(q), Header{}, testFrame(broadcast, 60, 0))
				}
				g.dev.Pause()
				g.dev.Resume()
				g.dev.Reset()
			}
		}
	})
	for end := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}
