package netdev

import (
	"encoding/binary"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// inbox is a machine's inbox: free-running, or recording with events held
// until release.
type inbox struct {
	direct bool
	prompt bool
	hold   atomic.Bool

	mu   sync.Mutex
	recv device.Receiver
	held []event
	tape []event
}

type event struct {
	tag  uint64
	data []byte
}

func (b *inbox) Open(_ string, r device.Receiver) (device.Port, error) {
	b.recv = r
	return b, nil
}

func (b *inbox) Post(tag uint64, data []byte) {
	if b.hold.Load() {
		b.mu.Lock()
		b.held = append(b.held, event{tag, append([]byte(nil), data...)})
		b.mu.Unlock()
		return
	}
	if !b.direct {
		b.mu.Lock()
		b.tape = append(b.tape, event{tag, append([]byte(nil), data...)})
		b.mu.Unlock()
	}
	b.recv.Deliver(tag, data)
}

func (b *inbox) release() int {
	b.mu.Lock()
	held := b.held
	b.held = nil
	b.mu.Unlock()
	for _, e := range held {
		b.recv.Deliver(e.tag, e.data)
	}
	return len(held)
}

func (b *inbox) Sample(p []byte, read func([]byte) error) error { return read(p) }
func (b *inbox) Direct() bool                                   { return b.direct }
func (b *inbox) Prompt() bool                                   { return b.prompt }

const (
	ringBase = 0x1000
	ringStep = 0x40000
	bufBase  = 0x800000
	memSize  = 16 << 20
)

// guest is a driver for one device.
type guest struct {
	t      testing.TB
	mem    *memory.Memory
	dev    *Device
	box    *inbox
	rings  []*virtiotest.Ring
	queues []*virtio.Queue
	size   uint16
	irqs   []atomic.Int32
	conf   atomic.Int32
	next   uint64 // guest address of the next buffer
	bufs   map[int]map[uint16]virtiotest.Buf
	// interrupt, if not nil, is called for each interrupt of a queue.
	interrupt func(q int)
}

func newGuest(t testing.TB, ep Endpoint, cfg Config, direct bool) *guest {
	t.Helper()
	m, err := memory.New(memory.Config{Size: memSize})
	require.NoError(t, err)
	dev, err := NewDevice(ep, cfg)
	require.NoError(t, err)
	g := &guest{t: t, mem: m, dev: dev, box: &inbox{direct: direct}, next: bufBase, bufs: map[int]map[uint16]virtiotest.Buf{}}
	require.NoError(t, dev.Attach(&virtio.Host{
		Name: "net0", Memory: m, Inbox: g.box, Log: slog.New(slog.DiscardHandler),
		ConfigChanged: func() { g.conf.Add(1) },
		Drain:         func(q int) bool { dev.Notify(q); return false },
	}))
	g.irqs = make([]atomic.Int32, len(dev.QueueSizes()))
	t.Cleanup(func() {
		dev.Reset()
		require.NoError(t, dev.Close())
		require.NoError(t, ep.Close())
		require.NoError(t, m.Close())
	})
	return g
}

// activate sets every queue up with size entries and starts the device.
func (g *guest) activate(features uint64, size uint16) {
	g.t.Helper()
	g.size = size
	g.rings, g.queues = nil, nil
	g.next = bufBase
	g.bufs = map[int]map[uint16]virtiotest.Buf{}
	for i, limit := range g.dev.QueueSizes() {
		r, err := virtiotest.NewRing(g.mem, uint64(ringBase+i*ringStep), min(size, limit), features)
		require.NoError(g.t, err)
		g.rings = append(g.rings, r)
		g.queues = append(g.queues, g.queue(i, features, 0))
	}
	require.NoError(g.t, g.dev.Activate(features, g.queues))
}

func (g *guest) queue(i int, features uint64, next uint16) *virtio.Queue {
	r := g.rings[i]
	q, err := virtio.NewQueue(virtio.QueueConfig{
		Memory: g.mem, Index: i, Size: r.Size, Desc: r.Desc, Avail: r.Avail, Used: r.Used,
		Features: features, Next: next, Interrupt: func() {
			g.irqs[i].Add(1)
			if g.interrupt != nil {
				g.interrupt(i)
			}
		},
		Broken: func(err error) { g.t.Logf("queue broken: %v", err) },
	})
	require.NoError(g.t, err)
	return q
}

// offer gives the device a receive buffer of n bytes.
func (g *guest) offer(q int, n uint32) {
	g.t.Helper()
	b := virtiotest.Buf{Addr: g.next, Len: n, Write: true}
	g.next += uint64(n+63) &^ 63
	if g.next > memSize-2<<20 {
		g.next = bufBase
	}
	head, err := g.rings[q].Add(b)
	require.NoError(g.t, err)
	if g.bufs[q] == nil {
		g.bufs[q] = map[uint16]virtiotest.Buf{}
	}
	g.bufs[q][head] = b
}

func (g *guest) notify(q int) {
	if g.rings[q].NeedNotify() {
		g.dev.Notify(q)
	}
}

// eventually waits for cond.
func (g *guest) eventually(cond func() bool, what string) {
	g.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			g.t.Fatalf("timed out waiting for %s", what)
		}
		runtime.Gosched()
		time.Sleep(50 * time.Microsecond)
	}
}

// recv takes one received frame off queue q, if there is one.
func (g *guest) recv(q int) (h Header, frame []byte, ok bool) {
	g.t.Helper()
	n := 1
	for i := 0; i < n; i++ {
		head, written, more := g.rings[q].Used1()
		if !more {
			require.Zero(g.t, i, "frame cut off after %d of %d buffers", i, n)
			return h, nil, false
		}
		b := g.bufs[q][head]
		delete(g.bufs[q], head)
		p := make([]byte, written)
		require.NoError(g.t, g.mem.Read(b.Addr, p))
		if i == 0 {
			require.GreaterOrEqual(g.t, len(p), HeaderLen)
			h.get(p)
			p = p[HeaderLen:]
			n = max(1, int(h.NumBuffers))
		}
		frame = append(frame, p...)
	}
	return h, frame, true
}

func (g *guest) mustRecv(q int) (h Header, frame []byte) {
	g.t.Helper()
	g.eventually(func() (ok bool) { h, frame, ok = g.recv(q); return ok }, "a frame")
	return h, frame
}

// send offers one frame in two buffers and notifies.
func (g *guest) send(q int, h Header, frame []byte) {
	g.t.Helper()
	g.queueFrame(q, h, frame)
	g.notify(q)
}

// queueFrame offers one frame in two buffers.
func (g *guest) queueFrame(q int, h Header, frame []byte) {
	g.t.Helper()
	p := make([]byte, HeaderLen+len(frame))
	h.put(p)
	copy(p[HeaderLen:], frame)
	addr := g.next
	g.next += uint64(len(p)+63) &^ 63
	if g.next > memSize-2<<20 {
		g.next = bufBase
	}
	require.NoError(g.t, g.mem.Write(addr, p))
	cut := uint32(min(len(p), 40))
	bufs := []virtiotest.Buf{{Addr: addr, Len: cut}}
	if uint32(len(p)) > cut {
		bufs = append(bufs, virtiotest.Buf{Addr: addr + uint64(cut), Len: uint32(len(p)) - cut})
	}
	_, err := g.rings[q].Add(bufs...)
	require.NoError(g.t, err)
}

// command sends a control command and returns the answer.
func (g *guest) command(q int, class, cmd byte, data []byte) byte {
	g.t.Helper()
	const at = bufBase - 0x10000
	require.NoError(g.t, g.mem.Write(at, append([]byte{class, cmd}, data...)))
	require.NoError(g.t, g.mem.PutUint8(at+0x8000, 0xee))
	bufs := []virtiotest.Buf{{Addr: at, Len: 2}}
	if len(data) > 0 {
		bufs = append(bufs, virtiotest.Buf{Addr: at + 2, Len: uint32(len(data))})
	}
	_, err := g.rings[q].Add(append(bufs, virtiotest.Buf{Addr: at + 0x8000, Len: 1, Write: true})...)
	require.NoError(g.t, err)
	g.notify(q)
	_, n, ok := g.rings[q].Used1()
	require.True(g.t, ok, "no answer to the command")
	require.EqualValues(g.t, 1, n)
	ack, err := g.mem.Uint8(at + 0x8000)
	require.NoError(g.t, err)
	return ack
}

func (g *guest) config() (mac [6]byte, status, pairs, mtu uint16) {
	var c [12]byte
	g.dev.ReadConfig(0, c[:])
	return [6]byte(c[:]), binary.LittleEndian.Uint16(c[6:]), binary.LittleEndian.Uint16(c[8:]), binary.LittleEndian.Uint16(c[10:])
}

// testFrame is a frame of n bytes to dst with an EtherType for experiments.
func testFrame(dst [6]byte, n int, fill byte) []byte {
	f := make([]byte, n)
	for i := range f {
		f[i] = fill + byte(i)
	}
	copy(f, dst[:])
	copy(f[6:], []byte{2, 0, 0, 0, 0, 0x77, 0x88, 0xb5})
	return f
}

var (
	broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	testMAC   = []byte{2, 0, 0, 0, 0, 1}
)

// read1 reads a frame from an endpoint, within a deadline.
func read1(t testing.TB, q Queue) (Header, []byte) {
	t.Helper()
	f := []Frame{{Data: [][]byte{make([]byte, 100), make([]byte, MaxFrame)}}}
	timer := time.AfterFunc(time.Minute, func() { q.Interrupt(true) })
	defer timer.Stop()
	n, err := q.Read(f, true)
	require.NoError(t, err)
	require.Equal(t, 1, n, "no frame came")
	b := append(append([]byte(nil), f[0].Data[0]...), f[0].Data[1]...)
	return f[0].Header, b[:f[0].Len]
}

func write1(t testing.TB, q Queue, h Header, frame []byte) {
	t.Helper()
	n, err := q.Write([]Frame{{Header: h, Data: [][]byte{frame[:10], nil, frame[10:]}}}, false)
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func newPipe(t testing.TB, cfg PipeConfig) (a, b Endpoint) {
	t.Helper()
	a, b, err := Pipe(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, a.Close())
		require.NoError(t, b.Close())
	})
	return a, b
}
