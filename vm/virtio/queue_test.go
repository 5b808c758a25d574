package virtio_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

type queueEnv struct {
	mem        *memory.Memory
	ring       *virtiotest.Ring
	q          *virtio.Queue
	interrupts int
	broken     error
	malformed  error
}

func newQueue(t testing.TB, size uint16, features uint64) *queueEnv {
	t.Helper()
	e := &queueEnv{}
	mem, err := memory.New(memory.Config{Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	e.mem = mem
	e.ring, err = virtiotest.NewRing(mem, 0x10000, size, features)
	if err != nil {
		t.Fatal(err)
	}
	e.q, err = virtio.NewQueue(e.config())
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *queueEnv) config() virtio.QueueConfig {
	return virtio.QueueConfig{
		Memory: e.mem, Size: e.ring.Size,
		Desc: e.ring.Desc, Avail: e.ring.Avail, Used: e.ring.Used,
		Features:  e.ring.Features,
		Interrupt: func() { e.interrupts++ },
		Broken:    func(err error) { e.broken = err },
		Malformed: func(err error) { e.malformed = err },
	}
}

const bufs = 0x100000 // where tests put buffers

func TestQueueEcho(t *testing.T) {
	for _, tc := range []struct {
		name     string
		features uint64
		indirect bool
	}{
		{"direct", 0, false},
		{"indirect", virtio.FeatureIndirectDesc, true},
		{"event index", virtio.FeatureEventIdx, false},
		{"both", virtio.FeatureEventIdx | virtio.FeatureIndirectDesc, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newQueue(t, 8, tc.features)
			e.ring.Indirect = tc.indirect
			var c virtio.Chain
			// More rounds than the 16-bit indices count, to see them wrap.
			for i := range 70000 {
				msg := []byte{byte(i), byte(i >> 8), byte(i >> 16)}
				if err := e.mem.Write(bufs, msg); err != nil {
					t.Fatal(err)
				}
				head, err := e.ring.Add(
					virtiotest.Buf{Addr: bufs, Len: 1},
					virtiotest.Buf{Addr: bufs + 1, Len: 0},
					virtiotest.Buf{Addr: bufs + 1, Len: 2},
					virtiotest.Buf{Addr: bufs + 64, Len: 2, Write: true},
					virtiotest.Buf{Addr: bufs + 66, Len: 2, Write: true})
				if err != nil {
					t.Fatal(err)
				}
				if !e.q.Pop(&c) {
					t.Fatalf("round %d: nothing to pop: %v %v", i, e.broken, e.malformed)
				}
				if c.Head != head || c.ReadLen != 3 || c.WriteLen != 4 {
					t.Fatalf("chain %+v", c)
				}
				var b [4]byte
				if n := c.CopyIn(b[:], 0); n != 3 {
					t.Fatalf("CopyIn %d", n)
				}
				if n := c.CopyOut(b[:3], 1); n != 3 {
					t.Fatalf("CopyOut %d", n)
				}
				before := e.interrupts
				e.q.Push(&c, 4)
				e.q.Publish()
				if e.interrupts != before+1 {
					t.Fatalf("round %d: %d interrupts", i, e.interrupts-before)
				}
				got, n, ok := e.ring.Used1()
				if !ok || got != head || n != 4 {
					t.Fatalf("used %d %d %v", got, n, ok)
				}
				var back [3]byte
				if err := e.mem.Read(bufs+65, back[:]); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(back[:], msg) {
					t.Fatalf("got %x, want %x", back, msg)
				}
			}
			if e.q.Pop(&c) || e.q.Pending() || e.q.InFlight() != 0 {
				t.Fatal("queue not empty")
			}
		})
	}
}

func TestQueueRefused(t *testing.T) {
	e := newQueue(t, 8, 0)
	for _, tc := range []struct {
		name string
		edit func(*virtio.QueueConfig)
	}{
		{"no memory", func(c *virtio.QueueConfig) { c.Memory = nil }},
		{"size 0", func(c *virtio.QueueConfig) { c.Size = 0 }},
		{"size 3", func(c *virtio.QueueConfig) { c.Size = 3 }},
		{"size 65534", func(c *virtio.QueueConfig) { c.Size = 65534 }},
		{"desc misaligned", func(c *virtio.QueueConfig) { c.Desc += 8 }},
		{"avail misaligned", func(c *virtio.QueueConfig) { c.Avail++ }},
		{"used misaligned", func(c *virtio.QueueConfig) { c.Used += 2 }},
		{"desc past RAM", func(c *virtio.QueueConfig) { c.Desc = 8<<20 - 112 }},
		{"avail past RAM", func(c *virtio.QueueConfig) { c.Avail = 8<<20 - 20 }},
		{"used past RAM", func(c *virtio.QueueConfig) { c.Used = 8<<20 - 64 }},
		{"desc wraps", func(c *virtio.QueueConfig) { c.Desc = ^uint64(0) - 15 }},
		{"used nowhere", func(c *virtio.QueueConfig) { c.Used = 3 << 30 }},
	} {
		cfg := e.config()
		tc.edit(&cfg)
		if _, err := virtio.NewQueue(cfg); !errors.Is(err, virtio.ErrQueue) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestQueueMalformed(t *testing.T) {
	const (
		next, write, indirect = 1, 2, 4
		table                 = 0x8000
	)
	type ds = []virtiotest.Desc
	d := func(addr uint64, length uint32, flags, next uint16) virtiotest.Desc {
		return virtiotest.Desc{Addr: addr, Len: length, Flags: flags, Next: next}
	}
	for _, tc := range []struct {
		name     string
		features uint64
		desc     ds // from descriptor 0 on; head 0
		table    ds
		ok       bool
	}{
		{"plain", 0, ds{d(bufs, 8, next, 1), d(bufs, 8, write, 0)}, nil, true},
		{"zero length", 0, ds{d(bufs, 0, next, 1), d(0xdead<<40, 0, write, 0)}, nil, true},
		{"loop", 0, ds{d(bufs, 8, next, 0)}, nil, false},
		{"longer than the queue", virtio.FeatureIndirectDesc, ds{d(table, 9*16, indirect, 0)},
			ds{d(bufs, 1, next, 1), d(bufs, 1, next, 2), d(bufs, 1, next, 3), d(bufs, 1, next, 4), d(bufs, 1, next, 5),
				d(bufs, 1, next, 6), d(bufs, 1, next, 7), d(bufs, 1, next, 8), d(bufs, 1, 0, 0)}, false},
		{"as long as the queue", virtio.FeatureIndirectDesc, ds{d(table, 8*16, indirect, 0)},
			ds{d(bufs, 1, next, 1), d(bufs, 1, next, 2), d(bufs, 1, next, 3), d(bufs, 1, next, 4), d(bufs, 1, next, 5),
				d(bufs, 1, next, 6), d(bufs, 1, next, 7), d(bufs, 1, 0, 0)}, true},
		{"next past the queue", 0, ds{d(bufs, 8, next, 8)}, nil, false},
		{"next past the table", virtio.FeatureIndirectDesc, ds{d(table, 16, indirect, 0)}, ds{d(bufs, 1, next, 1)}, false},
		{"direct then indirect", virtio.FeatureIndirectDesc, ds{d(bufs, 8, next, 1), d(table, 16, indirect, 0)}, ds{d(bufs, 1, 0, 0)}, true},
		{"indirect without feature", 0, ds{d(table, 16, indirect, 0)}, ds{d(bufs, 1, 0, 0)}, false},
		{"indirect and next", virtio.FeatureIndirectDesc, ds{d(table, 16, indirect|next, 1)}, ds{d(bufs, 1, 0, 0)}, false},
		{"nested", virtio.FeatureIndirectDesc, ds{d(table, 16, indirect, 0)}, ds{d(table, 16, indirect, 0)}, false},
		{"table misaligned", virtio.FeatureIndirectDesc, ds{d(table+4, 16, indirect, 0)}, nil, false},
		{"table length 0", virtio.FeatureIndirectDesc, ds{d(table, 0, indirect, 0)}, nil, false},
		{"table length 24", virtio.FeatureIndirectDesc, ds{d(table, 24, indirect, 0)}, nil, false},
		{"table past RAM", virtio.FeatureIndirectDesc, ds{d(8<<20-16, 32, indirect, 0)}, nil, false},
		{"readable after writable", 0, ds{d(bufs, 8, write|next, 1), d(bufs, 8, 0, 0)}, nil, false},
		{"empty readable after empty writable", 0, ds{d(bufs, 0, write|next, 1), d(bufs, 0, 0, 0)}, nil, false},
		{"sum over 32 bits", 0, ds{d(bufs, 1<<22, next, 1), d(bufs, 0xffffffff, write, 0)}, nil, false},
		{"buffer past RAM", 0, ds{d(8<<20-4, 8, 0, 0)}, nil, false},
		{"buffer wraps", 0, ds{d(^uint64(0)-3, 8, write, 0)}, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newQueue(t, 8, tc.features)
			e.ring.PutDescs(e.ring.Desc, tc.desc...)
			e.ring.PutDescs(table, tc.table...)
			e.ring.Offer(0)
			var c virtio.Chain
			ok := e.q.Pop(&c)
			if ok != tc.ok {
				t.Fatalf("popped %v, %v", ok, e.malformed)
			}
			if ok {
				return
			}
			if !errors.Is(e.malformed, virtio.ErrQueue) || e.broken != nil {
				t.Fatalf("malformed %v, broken %v", e.malformed, e.broken)
			}
			e.q.Publish()
			if head, n, ok := e.ring.Used1(); !ok || head != 0 || n != 0 {
				t.Fatalf("used %d %d %v", head, n, ok)
			}
			// The queue goes on.
			e.ring.PutDescs(e.ring.Desc, d(bufs, 8, 0, 0))
			e.ring.Offer(0)
			if !e.q.Pop(&c) {
				t.Fatal("queue stuck after a malformed chain")
			}
		})
	}
}

func TestQueueBroken(t *testing.T) {
	for _, tc := range []struct {
		name    string
		breakIt func(e *queueEnv)
	}{
		{"index too far ahead", func(e *queueEnv) { e.ring.SetAvailIdx(9) }},
		{"index behind", func(e *queueEnv) { e.ring.SetAvailIdx(0xffff) }},
		{"head past the queue", func(e *queueEnv) { e.ring.Offer(8) }},
		{"head twice in flight", func(e *queueEnv) {
			e.ring.PutDescs(e.ring.Desc, virtiotest.Desc{Addr: bufs, Len: 8})
			e.ring.Offer(0)
			var c virtio.Chain
			e.q.Pop(&c)
			e.ring.Offer(0)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := newQueue(t, 8, 0)
			tc.breakIt(e)
			var c virtio.Chain
			if e.q.Pop(&c) || e.q.Pending() || e.q.SetNotify(true) {
				t.Fatal("a broken queue yields chains")
			}
			if !errors.Is(e.broken, virtio.ErrQueue) {
				t.Fatal(e.broken)
			}
		})
	}
}

func TestQueueOutOfOrder(t *testing.T) {
	e := newQueue(t, 8, virtio.FeatureEventIdx)
	var cs [4]virtio.Chain
	for i := range cs {
		if _, err := e.ring.Add(virtiotest.Buf{Addr: bufs + uint64(i)*64, Len: 64, Write: true}); err != nil {
			t.Fatal(err)
		}
		if !e.q.Pop(&cs[i]) {
			t.Fatal("nothing to pop")
		}
	}
	if n := e.q.InFlight(); n != 4 {
		t.Fatalf("%d in flight", n)
	}
	if _, _, err := e.q.Save(); !errors.Is(err, virtio.ErrQueue) {
		t.Fatal(err)
	}
	if e.q.Unpop(&cs[2]) {
		t.Fatal("put back a chain that is not the last")
	}
	if !e.q.Unpop(&cs[3]) || e.q.Unpop(&cs[3]) || !e.q.Unpop(&cs[2]) {
		t.Fatal("cannot put back")
	}
	if !e.q.Pop(&cs[2]) || cs[2].Head != 2 {
		t.Fatalf("popped %d", cs[2].Head)
	}
	for _, i := range []int{2, 0, 1} {
		e.q.Push(&cs[i], 1000) // cut to 64
		e.q.Push(&cs[i], 1000) // not in flight any more
	}
	e.q.Publish()
	e.q.Publish()
	if e.interrupts != 1 {
		t.Fatalf("%d interrupts", e.interrupts)
	}
	for _, i := range []int{2, 0, 1} {
		if head, n, ok := e.ring.Used1(); !ok || head != cs[i].Head || n != 64 {
			t.Fatalf("used %d %d %v", head, n, ok)
		}
	}
	next, kept, err := e.q.Save()
	if err != nil || next != 3 || len(kept) != 0 {
		t.Fatal(next, kept, err)
	}
	cfg := e.config()
	cfg.Next = next
	q, err := virtio.NewQueue(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if !q.Pop(&cs[0]) || cs[0].Head != 3 {
		t.Fatal("restored queue lost its place")
	}
}

// A device that keeps chains over a save gets them back, checked anew.
func TestQueueKeep(t *testing.T) {
	e := newQueue(t, 8, virtio.FeatureEventIdx)
	cs := make([]virtio.Chain, 5)
	for i := range cs {
		if _, err := e.ring.Add(virtiotest.Buf{Addr: bufs + uint64(i)*64, Len: 64, Write: true}); err != nil {
			t.Fatal(err)
		}
		if !e.q.Pop(&cs[i]) {
			t.Fatal("nothing to pop")
		}
	}
	e.q.Push(&cs[1], 64)
	e.q.Push(&cs[4], 64)
	e.q.Publish()
	for _, heads := range [][]uint16{nil, {0, 2}, {0, 1, 2}, {0, 2, 3, 3}, {0, 2, 9}} {
		e.q.Keep(heads)
		if _, _, err := e.q.Save(); !errors.Is(err, virtio.ErrQueue) {
			t.Fatalf("kept %v: %v", heads, err)
		}
	}
	e.q.Keep([]uint16{3, 0, 2})
	next, kept, err := e.q.Save()
	if err != nil || next != 5 || !slices.Equal(kept, []uint16{3, 0, 2}) {
		t.Fatal(next, kept, err)
	}
	cfg := e.config()
	for _, bad := range [][]uint16{{8}, {65535}, {1, 1}, {0, 1, 2, 3, 4, 5, 6, 7, 0}} {
		cfg.Kept = bad
		if _, err := virtio.NewQueue(cfg); !errors.Is(err, virtio.ErrQueue) {
			t.Fatalf("kept %v: %v", bad, err)
		}
	}
	cfg.Next, cfg.Kept = next, kept
	q, err := virtio.NewQueue(cfg)
	if err != nil {
		t.Fatal(err)
	}
	// One that is saved again before it ran is the same.
	if n, k, err := q.Save(); err != nil || n != next || !slices.Equal(k, kept) {
		t.Fatal(n, k, err)
	}
	// The driver has meanwhile made nonsense of one.
	e.ring.PutDescs(e.ring.Desc, virtiotest.Desc{Addr: 1 << 60, Len: 64})
	var c virtio.Chain
	for _, want := range []uint16{3, 2} {
		if !q.Retake(&c) || c.Head != want || c.WriteLen != 64 || q.Unpop(&c) {
			t.Fatalf("took %+v, want %d", c, want)
		}
		q.Push(&c, 7)
	}
	if e.malformed == nil || q.Retake(&c) || q.InFlight() != 0 {
		t.Fatal(e.malformed, q.InFlight())
	}
	q.Publish()
	for _, want := range []struct {
		head uint16
		n    uint32
	}{{1, 64}, {4, 64}, {3, 7}, {0, 0}, {2, 7}} {
		if head, n, ok := e.ring.Used1(); !ok || head != want.head || n != want.n {
			t.Fatalf("used %d %d %v, want %+v", head, n, ok, want)
		}
	}
	// A kept head that is made available as well breaks the queue.
	cfg.Kept = []uint16{1}
	if q, err = virtio.NewQueue(cfg); err != nil {
		t.Fatal(err)
	}
	e.ring.Offer(1)
	if e.broken = nil; q.Pop(&c) || e.broken == nil {
		t.Fatal("a chain came twice")
	}
}

func TestQueueNotifications(t *testing.T) {
	for _, features := range []uint64{0, virtio.FeatureEventIdx} {
		e := newQueue(t, 8, features)
		add := func() {
			t.Helper()
			if _, err := e.ring.Add(virtiotest.Buf{Addr: bufs, Len: 1}); err != nil {
				t.Fatal(err)
			}
		}
		var c virtio.Chain
		drain := func() {
			for e.q.Pop(&c) {
				e.q.Push(&c, 0)
			}
			e.q.Publish()
			for {
				if _, _, ok := e.ring.Used1(); !ok {
					break
				}
			}
		}
		add()
		if !e.ring.NeedNotify() {
			t.Fatal("first chain needs a notification")
		}
		drain()
		add()
		if !e.ring.NeedNotify() {
			t.Fatal("an empty queue wants a notification")
		}
		e.q.SetNotify(false)
		drain()
		add()
		if e.ring.NeedNotify() {
			t.Fatal("notification wanted while suppressed")
		}
		if !e.q.SetNotify(true) {
			t.Fatal("arming missed a pending chain")
		}
		drain()
		if e.q.SetNotify(true) {
			t.Fatal("nothing pending")
		}
		add()
		if !e.ring.NeedNotify() {
			t.Fatal("armed, but no notification wanted")
		}
		// Interrupts.
		e.ring.SetInterrupts(false)
		before := e.interrupts
		drain()
		if e.interrupts != before {
			t.Fatal("interrupt while suppressed")
		}
		e.ring.SetInterrupts(true)
		add()
		drain()
		if e.interrupts != before+1 {
			t.Fatal("no interrupt")
		}
	}
}

func TestQueueDirty(t *testing.T) {
	e := newQueue(t, 8, virtio.FeatureEventIdx)
	if err := e.mem.StartDirty(); err != nil {
		t.Fatal(err)
	}
	defer e.mem.StopDirty()
	if _, err := e.ring.Add(virtiotest.Buf{Addr: bufs, Len: 1}, virtiotest.Buf{Addr: bufs + 0x1ff8, Len: 16, Write: true}); err != nil {
		t.Fatal(err)
	}
	b := memory.NewBitmap(e.mem.Regions())
	if err := e.mem.CollectDirty(b); err != nil {
		t.Fatal(err)
	}
	b.Clear()
	var c virtio.Chain
	if !e.q.Pop(&c) {
		t.Fatal("nothing to pop")
	}
	c.CopyOut([]byte("0123456789abcdef"), 0)
	e.q.Push(&c, 16)
	e.q.Publish()
	if err := e.mem.CollectDirty(b); err != nil {
		t.Fatal(err)
	}
	if b.Test(bufs) || !b.Test(bufs+0x1000) || !b.Test(bufs+0x2000) || !b.Test(e.ring.Used) {
		t.Fatalf("wrong pages, %d of them", b.Count())
	}
}

func TestQueueAllocs(t *testing.T) {
	e := newQueue(t, 64, virtio.FeatureEventIdx|virtio.FeatureIndirectDesc)
	e.ring.Indirect = true
	var c virtio.Chain
	round := func() {
		for range 8 {
			if _, err := e.ring.Add(virtiotest.Buf{Addr: bufs, Len: 16}, virtiotest.Buf{Addr: bufs, Len: 4096, Write: true}, virtiotest.Buf{Addr: bufs, Len: 1, Write: true}); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for e.q.Pop(&c) {
			e.q.Push(&c, 1)
			n++
		}
		e.q.Publish()
		for range n {
			if _, _, ok := e.ring.Used1(); !ok {
				t.Fatal("no used entry")
			}
		}
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Fatalf("%v allocations", n)
	}
}

func BenchmarkQueue(b *testing.B) {
	e := newQueue(b, 256, virtio.FeatureEventIdx)
	var c virtio.Chain
	for b.Loop() {
		if _, err := e.ring.Add(virtiotest.Buf{Addr: bufs, Len: 16}, virtiotest.Buf{Addr: bufs, Len: 4096, Write: true}, virtiotest.Buf{Addr: bufs, Len: 1, Write: true}); err != nil {
			b.Fatal(err)
		}
		for e.q.Pop(&c) {
			e.q.Push(&c, 4097)
		}
		e.q.Publish()
		e.ring.Used1()
	}
}
