package thin_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/thin"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// guest is a driver of a virtio-blk device over a disk of a pool.
type guest struct {
	t     *testing.T
	m     *virtiotest.Machine
	dev   *disk.Device
	data  uint64 // guest memory for requests, 8 KiB each
	slots map[uint16]int
	want  []byte
}

const guestSlots = 16

func newGuest(t *testing.T, p *thin.Pool, name string, hold func(disk.HoldEvent)) *guest {
	d, err := p.OpenDisk(name, thin.DiskConfig{})
	require.NoError(t, err)
	dev, err := disk.NewDevice(d, disk.Config{QueueSize: 64, Hold: hold})
	require.NoError(t, err)
	m := virtiotest.New(t, dev, virtiotest.Config{PCI: true, Doorbells: true})
	require.NoError(t, m.Start())
	return &guest{t: t, m: m, dev: dev, data: m.Alloc(guestSlots * 8192), slots: map[uint16]int{}, want: make([]byte, d.Size())}
}

// submit offers a request in slot i.
func (g *guest) submit(i int, typ uint32, off int64, p []byte) {
	at := g.data + uint64(i)*8192
	require.NoError(g.t, g.m.Mem.PutUint64(at, uint64(typ)))
	require.NoError(g.t, g.m.Mem.PutUint64(at+8, uint64(off/512)))
	require.NoError(g.t, g.m.Mem.Write(at+32, p))
	head, err := g.m.Rings[0].Add(virtiotest.Buf{Addr: at, Len: 16}, virtiotest.Buf{Addr: at + 32, Len: uint32(len(p))}, virtiotest.Buf{Addr: at + 16, Len: 1, Write: true})
	require.NoError(g.t, err)
	g.slots[head] = i
	g.m.Kick(0)
}

// write writes random data to page i of the disk.
func (g *guest) write(slot int, page int64, r *rand.Rand) {
	p := g.want[page*4096:][:4096]
	disktest.Fill(r, p)
	g.submit(slot, 1, page*4096, p)
}

// wait waits for n requests to succeed.
func (g *guest) wait(n int) {
	g.t.Helper()
	for range n {
		head, _, err := g.m.WaitUsed(0, time.Minute)
		require.NoError(g.t, err)
		i, ok := g.slots[head]
		require.True(g.t, ok)
		delete(g.slots, head)
		st, err := g.m.Mem.Uint8(g.data + uint64(i)*8192 + 16)
		require.NoError(g.t, err)
		require.Zero(g.t, st, "status of the request in slot %d", i)
	}
}

func (g *guest) check() {
	g.t.Helper()
	got := make([]byte, len(g.want))
	_, err := g.dev.Backend().ReadAt(got, 0)
	require.NoError(g.t, err)
	require.Equal(g.t, g.want, got)
}

// Guests write into a pool that is too small. None sees an error; those that
// need space wait until it was grown, or until another has discarded something,
// and no write is lost, whatever the moment.
func TestGuestsWaitForSpace(t *testing.T) {
	for _, save := range []bool{false, true} {
		t.Run(fmt.Sprintf("save %v", save), func(t *testing.T) {
			r := rand.New(rand.NewPCG(8, 8))
			var guests []*guest
			var mu sync.Mutex // guards guests
			retry := make(chan struct{}, 1)
			again := func() {
				select {
				case retry <- struct{}{}:
				default:
				}
			}
			p := newPool(t, memory(t, 0), thin.Layout{ExtentSize: 4096, Capacity: 20 * 4096}, thin.Config{Notify: func(thin.Event) { again() }})
			hold := func(e disk.HoldEvent) {
				if e.Held {
					again()
				}
			}
			for i := range 2 {
				require.NoError(t, p.Create(fmt.Sprint(i), 64*4096))
				guests = append(guests, newGuest(t, p, fmt.Sprint(i), hold))
			}
			// Whoever is told of a hold or of the pool's level does this.
			stop := make(chan struct{})
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-retry:
					case <-stop:
						return
					}
					if u := p.Usage(); u.Allocated < u.Capacity {
						mu.Lock()
						for _, g := range guests {
							g.dev.Retry()
						}
						mu.Unlock()
					}
				}
			}()
			defer func() { close(stop); <-stopped }()
			held := func() int { return guests[0].dev.Held() + guests[1].dev.Held() }

			// 32 pages into a pool of 20.
			for i := range guestSlots {
				for _, g := range guests {
					g.write(i, int64(i), r)
				}
			}
			require.Eventually(t, func() bool { return held() == 12 && p.Usage().Level == thin.Full }, time.Minute, time.Millisecond)
			if save {
				// A machine that is saved now goes on elsewhere.
				g := guests[0]
				g.m.Transport.Pause()
				st, err := g.m.Transport.Save()
				require.NoError(t, err)
				b := g.dev.Backend()
				dev, err := disk.NewDevice(b, disk.Config{QueueSize: 64, Hold: hold})
				require.NoError(t, err)
				n, err := g.m.Successor(dev)
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, n.Close()) })
				n.Transport.Pause()
				require.NoError(t, n.Transport.Load(st))
				n.Transport.Resume()
				next := *g
				next.m, next.dev = n, dev
				mu.Lock()
				guests = []*guest{&next, guests[1]}
				mu.Unlock()
				require.Eventually(t, func() bool { return held() == 12 }, time.Minute, time.Millisecond)
			}
			require.NoError(t, p.Grow(26*4096))
			require.Eventually(t, func() bool { return held() == 6 }, time.Minute, time.Millisecond)
			require.NoError(t, p.Grow(32*4096))
			for _, g := range guests {
				g.wait(guestSlots)
				g.check()
			}
			// A request is answered a moment before it stops counting.
			require.Eventually(t, func() bool { return held() == 0 }, time.Minute, time.Millisecond)

			// Full again: the one waits for what the other discards.
			a, b := guests[0], guests[1]
			for i := range 4 {
				a.write(i, int64(40+i), r)
			}
			require.Eventually(t, func() bool { return a.dev.Held() == 4 }, time.Minute, time.Millisecond)
			seg := binary.LittleEndian.AppendUint64(nil, 8) // from page 1 on
			seg = binary.LittleEndian.AppendUint64(seg, 4*8)
			b.submit(0, 11, 0, seg)
			b.wait(1)
			a.wait(4)
			clear(b.want[4096 : 5*4096])
			a.check()
			b.check()
			require.NoError(t, p.Check())
		})
	}
}
