package virtio

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/memory"
)

// MaxQueueSize is the largest size of a split virtqueue (virtio 1.2, section 2.7).
const MaxQueueSize = 32768

// ErrQueue is wrapped by every error that says what is wrong with a
// virtqueue: its set-up, its indices or a descriptor chain.
var ErrQueue = errors.New("virtqueue")

// QueueConfig describes a virtqueue as the driver set it up.
type QueueConfig struct {
	// Memory is the guest's memory, in which the ring areas and buffers lie.
	Memory *memory.Memory
	// Index is the queue's number in its device, used in errors.
	Index int
	// Size is the number of descriptors, a power of two up to MaxQueueSize.
	Size uint16
	// Desc, Avail and Used are the guest-physical addresses of the three
	// areas, aligned to 16, 2 and 4 bytes and each inside one region of Memory.
	Desc, Avail, Used uint64
	// Features are the negotiated features; FeatureIndirectDesc and
	// FeatureEventIdx matter to the queue.
	Features uint64
	// Next is the number of chains that an earlier incarnation of the queue
	// has taken, modulo 2^16: what Save returned, or 0. All of them are
	// answered but those in Kept.
	Next uint16
	// Kept are the heads of chains that an earlier incarnation took and has
	// not answered: what Save returned, or nothing. They count as in
	// flight, and the device gets them back from Retake, in this order.
	Kept []uint16
	// Interrupt notifies the driver of used buffers. It is called from
	// Publish without a lock held. It may be nil.
	Interrupt func()
	// Broken is called once, without a lock held, when the driver has broken
	// the queue beyond a single chain. It may be nil.
	Broken func(error)
	// Malformed is called, without a lock held, with what is wrong with the
	// first malformed chain, for a log. It may be nil.
	Malformed func(error)
}

// Queue is one split virtqueue (virtio 1.2, section 2.7), seen from the device.
//
// Pop, Unpop, Retake, Pending and SetNotify belong to one goroutine at a time; Push
// and Publish may be called from any goroutine, beside them and each other.
type Queue struct {
	rings

	cfg      QueueConfig
	size     uint16
	eventIdx bool
	indirect bool

	// The consumer's side.
	next     uint16 // next entry of the available ring to take
	seen     uint16 // available index as last loaded and checked
	armedAt  uint16 // available event index as last stored
	armed    bool   // armedAt is valid
	noNotify bool   // the device does not want notifications

	state   atomic.Uint32 // queueLive, queueBroken or queueDead
	budget  atomic.Int32  // chains that this drain may still take, <0: no limit
	starved atomic.Bool   // a drain ended for want of budget
	warned  atomic.Bool   // Malformed was called

	inFlight []uint32 // bitmap by head
	kept     []uint16 // heads for Retake
	keep     []uint16 // heads of the last Keep

	mu        sync.Mutex // guards the used ring and the fields below
	usedIdx   uint16     // next entry of the used ring to fill
	published uint16     // used index as the driver sees it
	signalAll bool       // interrupt at the next Publish, come what may
}

const (
	queueLive = iota
	queueBroken
	queueDead
)

// NewQueue checks the ring areas and returns a queue over them. Transports
// call it; a program that implements a transport or a test of its own may as well.
func NewQueue(cfg QueueConfig) (*Queue, error) {
	fail := func(format string, args ...any) (*Queue, error) {
		return nil, fmt.Errorf("%w %d: %w", ErrQueue, cfg.Index, fmt.Errorf(format, args...))
	}
	switch {
	case cfg.Memory == nil:
		return fail("no memory")
	case cfg.Size == 0 || cfg.Size&(cfg.Size-1) != 0 || cfg.Size > MaxQueueSize:
		return fail("size %d is not a power of two up to %d", cfg.Size, MaxQueueSize)
	case cfg.Desc%16 != 0:
		return fail("descriptor table at %#x is not aligned to 16", cfg.Desc)
	case cfg.Avail%2 != 0:
		return fail("available ring at %#x is not aligned to 2", cfg.Avail)
	case cfg.Used%4 != 0:
		return fail("used ring at %#x is not aligned to 4", cfg.Used)
	}
	q := &Queue{
		cfg:       cfg,
		size:      cfg.Size,
		eventIdx:  cfg.Features&FeatureEventIdx != 0,
		indirect:  cfg.Features&FeatureIndirectDesc != 0,
		next:      cfg.Next,
		seen:      cfg.Next,
		usedIdx:   cfg.Next,
		published: cfg.Next,
		signalAll: cfg.Next != 0,
		inFlight:  make([]uint32, (int(cfg.Size)+31)/32),
	}
	q.budget.Store(-1)
	for _, head := range cfg.Kept {
		if head >= q.size {
			return fail("kept head %d of %d", head, q.size)
		}
		word, bit := &q.inFlight[head/32], uint32(1)<<(head%32)
		if *word&bit != 0 {
			return fail("head %d is kept twice", head)
		}
		*word |= bit
	}
	q.kept = slices.Clone(cfg.Kept)
	q.usedIdx -= uint16(len(q.kept))
	q.published = q.usedIdx
	if err := q.resolve(cfg.Memory, cfg.Size, cfg.Desc, cfg.Avail, cfg.Used); err != nil {
		return fail("%w", err)
	}
	return q, nil
}

// Size is the number of descriptors.
func (q *Queue) Size() uint16 { return q.size }

// InFlight is the number of chains popped and not yet pushed.
func (q *Queue) InFlight() int {
	n := 0
	for i := range q.inFlight {
		n += bits.OnesCount32(atomic.LoadUint32(&q.inFlight[i]))
	}
	return n
}

// Keep says that the device, which is pausing, leaves the chains with these
// heads in flight: one that is saved now hands them to its next incarnation. It
// replaces what an earlier Keep said.
func (q *Queue) Keep(heads []uint16) { q.keep = append(q.keep[:0], heads...) }

// Save returns the queue's position, for QueueConfig.Next of its next
// incarnation, and the heads of the chains that the device keeps, for
// QueueConfig.Kept. It is an error while other chains are in flight.
func (q *Queue) Save() (next uint16, kept []uint16, err error) {
	if q.state.Load() != queueLive {
		return q.next, nil, nil
	}
	kept = append(append(kept, q.keep...), q.kept...)
	for _, head := range kept {
		if head >= q.size || atomic.LoadUint32(&q.inFlight[head/32])&(1<<(head%32)) == 0 {
			return 0, nil, fmt.Errorf("%w %d: head %d is kept, but not in flight", ErrQueue, q.cfg.Index, head)
		}
	}
	if n := q.InFlight(); n != len(kept) {
		return 0, nil, fmt.Errorf("%w %d: %d chains in flight, %d of them kept", ErrQueue, q.cfg.Index, n, len(kept))
	}
	return q.next, kept, nil
}

// Retake takes the next of the chains in QueueConfig.Kept into c and reports
// whether there was one. Its descriptors are read and checked as those of any
// chain. A device that keeps chains calls it before Pop, but not while it is
// paused: what is malformed is answered, as by Pop.
func (q *Queue) Retake(c *Chain) bool {
	for len(q.kept) > 0 && q.state.Load() == queueLive {
		head := q.kept[0]
		q.kept = q.kept[1:]
		c.reset()
		c.Head, c.pos = head, -1
		if q.check(c) {
			return true
		}
	}
	return false
}

// Pop takes the next available chain into c and reports whether there was one.
//
// A malformed chain is answered at once with a used length of 0 and passed
// over; one that cannot even be answered breaks the queue, which then stays
// empty until the driver resets the device. Within one call of a device's
// Notify, Pop yields at most as many chains as the queue has descriptors; the
// transport then calls Notify again if there are more.
//
// When Pop finds the queue empty it asks the driver for a notification, unless
// SetNotify(false) is in force.
func (q *Queue) Pop(c *Chain) bool {
	for n := q.size; ; n-- {
		if q.next == q.seen && !q.refill() {
			return false
		}
		if n == 0 || !q.spend() {
			q.starved.Store(true)
			return false
		}
		pos := q.next
		head := q.availEntry(pos)
		q.next++
		if head >= q.size {
			q.fail(fmt.Errorf("head %d of %d", head, q.size))
			return false
		}
		word, bit := &q.inFlight[head/32], uint32(1)<<(head%32)
		if atomic.OrUint32(word, bit)&bit != 0 {
			q.fail(fmt.Errorf("head %d made available while in flight", head))
			return false
		}
		c.reset()
		c.Head, c.pos = head, int32(pos)
		if q.check(c) {
			return true
		}
	}
}

// check collects the buffers of chain c and reports whether it is well formed;
// otherwise it answers it.
func (q *Queue) check(c *Chain) bool {
	err := q.walk(c)
	if err == nil {
		return true
	}
	c.reset()
	q.Push(c, 0)
	if q.cfg.Malformed != nil && !q.warned.Swap(true) {
		q.cfg.Malformed(fmt.Errorf("%w %d: head %d: %w", ErrQueue, q.cfg.Index, c.Head, err))
	}
	return false
}

// Unpop puts back the chain that Pop took last and that was not pushed. After
// it the one before may be put back, and so on. It reports whether c was that
// chain.
func (q *Queue) Unpop(c *Chain) bool {
	word, bit := &q.inFlight[(c.Head&q.mask)/32], uint32(1)<<(c.Head%32)
	if c.pos != int32(q.next-1) || c.Head >= q.size || atomic.LoadUint32(word)&bit == 0 {
		return false
	}
	atomic.AndUint32(word, ^bit)
	q.next--
	if b := q.budget.Load(); b >= 0 {
		q.budget.Add(1)
	}
	c.reset()
	return true
}

// Pending reports whether Pop would find a chain.
func (q *Queue) Pending() bool {
	return q.state.Load() == queueLive && (q.next != q.seen || q.availIdx() != q.next)
}

// spend takes one chain from the drain's budget.
func (q *Queue) spend() bool {
	switch b := q.budget.Load(); {
	case b < 0:
		return true
	case b == 0:
		return false
	}
	q.budget.Add(-1)
	return true
}

// refill loads the available index and reports whether it is ahead.
func (q *Queue) refill() bool {
	if q.state.Load() != queueLive {
		return false
	}
	idx := q.availIdx()
	if idx == q.next && !q.noNotify && q.arm() {
		idx = q.availIdx()
	}
	n := idx - q.next
	if n == 0 {
		return false
	}
	if n > q.size {
		q.fail(fmt.Errorf("available index %d is %d past %d, more than the queue's %d", idx, n, q.next, q.size))
		return false
	}
	q.seen = idx
	return true
}

// arm publishes the index at which the driver shall notify. It reports
// whether it had to, in which case the available index must be looked at again.
func (q *Queue) arm() bool {
	if !q.eventIdx || q.armed && q.armedAt == q.next {
		return false
	}
	q.armed, q.armedAt = true, q.next
	q.setAvailEvent(q.next)
	q.cfg.Memory.MarkDirty(q.cfg.Used+4+8*uint64(q.size), 2)
	return true
}

// SetNotify suppresses (on == false) or re-arms the driver's notifications. It
// returns true when re-arming found chains that the driver will not notify
// about, so that the caller must drain again. With EVENT_IDX notifications
// are suppressed while a drain is under way without this call.
func (q *Queue) SetNotify(on bool) bool {
	if q.state.Load() != queueLive {
		return false
	}
	was := q.noNotify
	q.noNotify = !on
	if !q.eventIdx {
		if was != q.noNotify {
			var flags uint16
			if q.noNotify {
				flags = usedNoNotify
			}
			q.setUsedFlags(flags)
			q.cfg.Memory.MarkDirty(q.cfg.Used, 2)
		}
	} else if on {
		q.arm()
	}
	if !on || !q.Pending() {
		return false
	}
	if q.budget.Load() == 0 {
		q.starved.Store(true) // the transport comes back
		return false
	}
	return true
}

// walk follows the chain that starts at c.Head and collects its buffers.
// Every descriptor is loaded once.
func (q *Queue) walk(c *Chain) error {
	table, entries := q.desc, uint32(q.size)
	indirect := false
	i := uint32(c.Head)
	var total uint64
	for n := uint16(0); ; n++ {
		if n == q.size {
			return fmt.Errorf("chain longer than the queue's %d descriptors", q.size)
		}
		if i >= entries {
			return fmt.Errorf("descriptor %d of %d", i, entries)
		}
		addr, length, flags, next := loadDesc(table, i)
		if flags&descIndirect != 0 {
			if indirect {
				return errors.New("nested indirect table")
			}
			t, err := q.indirectTable(addr, length, flags)
			if err != nil {
				return err
			}
			table, entries, indirect, i = t, length/descSize, true, 0
			n-- // the table's descriptor carries no buffer
			continue
		}
		total += uint64(length)
		if total > math.MaxUint32 {
			return errors.New("sum of lengths overflows 32 bits")
		}
		if err := q.collect(c, addr, length, flags&descWrite != 0); err != nil {
			return err
		}
		if flags&descNext == 0 {
			return nil
		}
		i = uint32(next)
	}
}

func (q *Queue) indirectTable(addr uint64, length uint32, flags uint16) ([]byte, error) {
	switch {
	case !q.indirect:
		return nil, errors.New("indirect table without the feature")
	case flags&descNext != 0:
		return nil, errors.New("indirect table followed by a descriptor")
	case length == 0 || length%descSize != 0:
		return nil, fmt.Errorf("indirect table of %d bytes", length)
	case addr%8 != 0: // the alignment of its 64-bit fields; a driver's allocator may give no more
		return nil, fmt.Errorf("misaligned indirect table at %#x", addr)
	}
	b, err := q.cfg.Memory.Slice(addr, uint64(length))
	if err != nil {
		return nil, fmt.Errorf("indirect table: %w", err)
	}
	return b, nil
}

// collect adds one buffer to c.
func (q *Queue) collect(c *Chain, addr uint64, length uint32, write bool) (err error) {
	if !write && len(c.writes) != 0 {
		return errors.New("readable buffer after a writable one")
	}
	if write {
		c.writes = append(c.writes, guestRun{addr, length})
	}
	if length == 0 {
		return nil
	}
	if write {
		c.Writable, err = q.cfg.Memory.AppendSlices(c.Writable, addr, uint64(length))
		c.WriteLen += length
	} else {
		c.Readable, err = q.cfg.Memory.AppendSlices(c.Readable, addr, uint64(length))
		c.ReadLen += length
	}
	return err
}

// fail breaks the queue.
func (q *Queue) fail(err error) {
	if q.state.CompareAndSwap(queueLive, queueBroken) && q.cfg.Broken != nil {
		q.cfg.Broken(fmt.Errorf("%w %d: %w", ErrQueue, q.cfg.Index, err))
	}
}

// beginDrain limits the chains that Pop yields until endDrain, which reports
// whether that limit cut the drain short.
func (q *Queue) beginDrain() { q.budget.Store(int32(q.size)) }

func (q *Queue) endDrain() bool {
	q.budget.Store(-1)
	return q.starved.Swap(false)
}

// kill ends all access to guest memory through the queue.
func (q *Queue) kill() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.state.Store(queueDead)
}
