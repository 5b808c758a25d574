package disk_test

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// Request types and status bytes of virtio 1.2, section 5.2.6.
const (
	typeIn, typeOut, typeFlush, typeGetID, typeDiscard, typeZeroes = 0, 1, 4, 8, 11, 13

	statusOK, statusIOErr, statusUnsupp = 0, 1, 2
)

// inbox is a device.Inbox: free-running, or keeping events until told.
type inbox struct {
	direct bool
	hold   bool
	prompt bool

	mu   sync.Mutex
	r    device.Receiver
	held []event
	all  []event // every event, if keep is set
	keep bool
	drop bool // replaying: what is posted is dropped
}

type event struct {
	tag  uint64
	data []byte
}

func (i *inbox) Open(name string, r device.Receiver) (device.Port, error) {
	i.r = r
	return i, nil
}

func (i *inbox) Direct() bool { return i.direct }

func (i *inbox) Prompt() bool { return i.prompt }

func (i *inbox) Sample(p []byte, read func([]byte) error) error { return read(p) }

func (i *inbox) Post(tag uint64, data []byte) {
	if !i.hold && !i.keep && !i.drop {
		i.r.Deliver(tag, data)
		return
	}
	i.mu.Lock()
	e := event{tag, append([]byte(nil), data...)}
	if i.keep {
		i.all = append(i.all, e)
	}
	if i.hold {
		i.held = append(i.held, e)
	}
	i.mu.Unlock()
	if !i.hold && !i.drop {
		i.r.Deliver(tag, data)
	}
}

// release delivers what was held and reports how much that was.
func (i *inbox) release() int {
	i.mu.Lock()
	held := i.held
	i.held = nil
	i.mu.Unlock()
	for _, e := range held {
		i.r.Deliver(e.tag, e.data)
	}
	return len(held)
}

// rig is a device with a driver.
type rig struct {
	t          testing.TB
	mem        *memory.Memory
	dev        *disk.Device
	inbox      *inbox
	rings      []*virtiotest.Ring
	interrupts atomic.Int32
	changed    atomic.Int32
	broken     atomic.Pointer[error]
	features   uint64
}

// Where a rig puts things: rings from 64 KiB, request n's header and status
// in a page from 1 MiB, data from 16 MiB.
const (
	ringBase = 64 << 10
	reqBase  = 1 << 20
	dataBase = 16 << 20
	memSize  = 48 << 20
)

func newRig(t testing.TB, b disk.Backend, cfg disk.Config, in *inbox) *rig {
	t.Helper()
	dev, err := disk.NewDevice(b, cfg)
	require.NoError(t, err)
	mem, err := memory.New(memory.Config{Size: memSize})
	require.NoError(t, err)
	g := &rig{t: t, mem: mem, dev: dev, inbox: in}
	t.Cleanup(func() {
		require.NoError(t, dev.Close())
		require.NoError(t, mem.Close())
	})
	require.NoError(t, dev.Attach(&virtio.Host{
		Name: "blk0", Memory: mem, Inbox: in,
		ConfigChanged: func() { g.changed.Add(1) },
		Log:           slog.New(slog.DiscardHandler),
	}))
	g.features = dev.Features() | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc | virtio.FeatureVersion1
	return g
}

// start sets the rings up afresh and activates the device.
func (g *rig) start() *rig {
	g.t.Helper()
	g.rings = nil
	var queues []*virtio.Queue
	at := uint64(ringBase)
	for i, size := range g.dev.QueueSizes() {
		ring, err := virtiotest.NewRing(g.mem, at, size, g.features)
		require.NoError(g.t, err)
		at = (ring.End + 4095) &^ 4095
		require.LessOrEqual(g.t, at, uint64(reqBase))
		q, err := virtio.NewQueue(virtio.QueueConfig{
			Memory: g.mem, Index: i, Size: size, Desc: ring.Desc, Avail: ring.Avail, Used: ring.Used,
			Features:  g.features,
			Interrupt: func() { g.interrupts.Add(1) },
			Broken:    func(err error) { g.broken.Store(&err) },
		})
		require.NoError(g.t, err)
		g.rings, queues = append(g.rings, ring), append(queues, q)
	}
	require.NoError(g.t, g.dev.Activate(g.features, queues))
	return g
}

// header writes a request header for slot n and returns its address.
func (g *rig) header(n int, typ uint32, sector uint64) uint64 {
	var h [16]byte
	binary.LittleEndian.PutUint32(h[:], typ)
	binary.LittleEndian.PutUint64(h[8:], sector)
	at := uint64(reqBase + n*4096)
	require.NoError(g.t, g.mem.Write(at, h[:]))
	require.NoError(g.t, g.mem.PutUint8(at+16, 0xee))
	return at
}

// submit offers request n to queue q; data buffers may be anything.
func (g *rig) submit(q, n int, typ uint32, sector uint64, data ...virtiotest.Buf) uint16 {
	g.t.Helper()
	at := g.header(n, typ, sector)
	bufs := append([]virtiotest.Buf{{Addr: at, Len: 16}}, data...)
	bufs = append(bufs, virtiotest.Buf{Addr: at + 16, Len: 1, Write: true})
	head, err := g.rings[q].Add(bufs...)
	require.NoError(g.t, err)
	return head
}

func (g *rig) status(n int) byte {
	v, err := g.mem.Uint8(uint64(reqBase + n*4096 + 16))
	require.NoError(g.t, err)
	return v
}

// wait takes the next used buffer of queue q.
func (g *rig) wait(q int) (head uint16, written uint32) {
	g.t.Helper()
	for start := time.Now(); ; runtime.Gosched() {
		if h, w, ok := g.rings[q].Used1(); ok {
			return h, w
		}
		if time.Since(start) > time.Minute {
			g.t.Fatalf("no answer: broken %v", g.broken.Load())
		}
	}
}

// do runs one request and returns its status.
func (g *rig) do(typ uint32, sector uint64, data ...virtiotest.Buf) byte {
	g.t.Helper()
	head := g.submit(0, 0, typ, sector, data...)
	g.dev.Notify(0)
	got, _ := g.wait(0)
	require.Equal(g.t, head, got)
	return g.status(0)
}

func (g *rig) write(sector uint64, p []byte) byte {
	g.t.Helper()
	require.NoError(g.t, g.mem.Write(dataBase, p))
	return g.do(typeOut, sector, virtiotest.Buf{Addr: dataBase, Len: uint32(len(p))})
}

func (g *rig) read(sector uint64, n int) ([]byte, byte) {
	g.t.Helper()
	st := g.do(typeIn, sector, virtiotest.Buf{Addr: dataBase, Len: uint32(n), Write: true})
	p := make([]byte, n)
	require.NoError(g.t, g.mem.Read(dataBase, p))
	return p, st
}

// slow is a backend that implements nothing optional and can be held up and
// made to fail.
type slow struct {
	disk.Backend // only the interface's own methods
	gate         chan struct{}
	fail         atomic.Bool
	inside       atomic.Int32
	flushes      atomic.Int32
}

var errBackend = errors.New("backend failed")

func (s *slow) enter() error {
	s.inside.Add(1)
	defer s.inside.Add(-1)
	if s.gate != nil {
		<-s.gate
	}
	if s.fail.Load() {
		return errBackend
	}
	return nil
}

func (s *slow) ReadAt(p []byte, off int64) (int, error) {
	if err := s.enter(); err != nil {
		for i := range p {
			p[i] = 0x66 // junk, as a failed transfer may leave
		}
		return 0, err
	}
	return s.Backend.ReadAt(p, off)
}

func (s *slow) WriteAt(p []byte, off int64) (int, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	return s.Backend.WriteAt(p, off)
}

func (s *slow) Flush() error {
	s.flushes.Add(1)
	if s.fail.Load() {
		return errBackend
	}
	return s.Backend.Flush()
}

func newMemory(t testing.TB, size int64) *disk.Memory {
	t.Helper()
	m, err := disk.NewMemory("mem", size)
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}
