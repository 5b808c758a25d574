// Package virtiotest is the driver's side of virtio for tests of devices: it
// builds virtqueues in guest memory, offers buffers, and reads what came back.
//
//	ring, err := virtiotest.NewRing(mem, 0x10000, 64, features)
//	head, err := ring.Add(virtiotest.Buf{Addr: req, Len: 16}, virtiotest.Buf{Addr: resp, Len: 1, Write: true})
//	...
//	head, n, ok := ring.Used1()
package virtiotest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// MaxIndirect is the number of descriptors that a Ring's indirect tables hold.
const MaxIndirect = 32

// ErrFull is wrapped by the error of Add when descriptors are lacking.
var ErrFull = errors.New("ring full")

// Buf is one buffer of a chain.
type Buf struct {
	Addr  uint64 // guest-physical
	Len   uint32
	Write bool // for the device to write
}

// Desc is a descriptor as it lies in memory (virtio 1.2, section 2.7.5).
type Desc struct {
	Addr        uint64
	Len         uint32
	Flags, Next uint16
}

// Ring is a split virtqueue seen from the driver. It is not safe for
// concurrent use, except that the device works on the same memory.
type Ring struct {
	Mem               *memory.Memory
	Desc, Avail, Used uint64 // guest-physical addresses of the areas
	Tables            uint64 // of the indirect tables, one of MaxIndirect for each head
	End               uint64 // end of everything
	Size              uint16
	Features          uint64 // FeatureEventIdx matters
	Indirect          bool   // Add uses indirect tables

	desc, avail, used, tables []byte

	free     []uint16 // free descriptors
	chain    []uint16 // descriptors of the chain with that head; 0: not in use
	next     []uint16 // copy of the descriptors' next fields
	availIdx uint16
	notified uint16 // availIdx at the last NeedNotify
	lastUsed uint16
	noIntr   bool
}

// RingBytes is the guest memory that a Ring of the given size takes.
func RingBytes(size uint16) uint64 {
	n := uint64(size)
	return 16*n + (6+2*n+3)&^3 + (6+8*n+15)&^15 + 16*n*MaxIndirect
}

// NewRing lays a queue out in mem from base, aligned to 16, on and clears it.
func NewRing(mem *memory.Memory, base uint64, size uint16, features uint64) (*Ring, error) {
	if base%16 != 0 || size == 0 {
		return nil, fmt.Errorf("ring of %d at %#x", size, base)
	}
	n := uint64(size)
	r := &Ring{Mem: mem, Size: size, Features: features, Desc: base}
	r.Avail = r.Desc + 16*n
	r.Used = (r.Avail + 6 + 2*n + 3) &^ 3
	r.Tables = (r.Used + 6 + 8*n + 15) &^ 15
	r.End = r.Tables + 16*n*MaxIndirect
	var err error
	for _, a := range []struct {
		b       *[]byte
		gpa, to uint64
	}{{&r.desc, r.Desc, r.Avail}, {&r.avail, r.Avail, r.Used}, {&r.used, r.Used, r.Tables}, {&r.tables, r.Tables, r.End}} {
		if *a.b, err = mem.Slice(a.gpa, a.to-a.gpa); err != nil {
			return nil, err
		}
		clear(*a.b)
	}
	r.next = make([]uint16, n)
	r.chain = make([]uint16, n)
	for i := int(size) - 1; i >= 0; i-- {
		r.free = append(r.free, uint16(i))
	}
	return r, nil
}

// Add offers a chain of the given buffers and returns its head.
func (r *Ring) Add(bufs ...Buf) (head uint16, err error) {
	need := len(bufs)
	if r.Indirect {
		need = 1
		if len(bufs) > MaxIndirect {
			return 0, fmt.Errorf("%w: %d buffers", ErrFull, len(bufs))
		}
	}
	if need == 0 || need > len(r.free) {
		return 0, fmt.Errorf("%w: %d of %d descriptors free, %d needed", ErrFull, len(r.free), r.Size, need)
	}
	head = r.free[len(r.free)-1]
	if r.Indirect {
		r.free = r.free[:len(r.free)-1]
		r.chain[head] = 1
		off := int(head) * 16 * MaxIndirect
		for i, b := range bufs {
			putDesc(r.tables[off+16*i:], b.desc(i+1 < len(bufs), uint16(i+1)))
		}
		putDesc(r.desc[16*int(head):], Desc{r.Tables + uint64(off), uint32(16 * len(bufs)), 4, 0})
	} else {
		r.chain[head] = uint16(len(bufs))
		for i, b := range bufs {
			d := r.free[len(r.free)-1]
			r.free = r.free[:len(r.free)-1]
			more := i+1 < len(bufs)
			if more {
				r.next[d] = r.free[len(r.free)-1]
			}
			putDesc(r.desc[16*int(d):], b.desc(more, r.next[d]))
		}
	}
	r.Offer(head)
	return head, nil
}

func (b Buf) desc(more bool, next uint16) Desc {
	d := Desc{Addr: b.Addr, Len: b.Len}
	if b.Write {
		d.Flags = 2
	}
	if more {
		d.Flags |= 1
		d.Next = next
	}
	return d
}

func putDesc(p []byte, d Desc) {
	binary.LittleEndian.PutUint64(p, d.Addr)
	binary.LittleEndian.PutUint32(p[8:], d.Len)
	binary.LittleEndian.PutUint16(p[12:], d.Flags)
	binary.LittleEndian.PutUint16(p[14:], d.Next)
}

// PutDescs writes raw descriptors, of any kind, from guest address gpa on. It
// panics where there is no memory.
func (r *Ring) PutDescs(gpa uint64, descs ...Desc) {
	for i, d := range descs {
		var p [16]byte
		putDesc(p[:], d)
		if err := r.Mem.Write(gpa+16*uint64(i), p[:]); err != nil {
			panic(err)
		}
	}
}

// Offer makes head, any number, available.
func (r *Ring) Offer(head uint16) {
	memory.StoreRelease16(r.avail[4+2*int(r.availIdx&(r.Size-1)):], head)
	r.SetAvailIdx(r.availIdx + 1)
}

// SetAvailIdx stores any available index.
func (r *Ring) SetAvailIdx(v uint16) {
	r.availIdx = v
	memory.StoreSeqCst16(r.avail[2:], v)
}

// NeedNotify reports whether the device wants to be told of what was added
// since the last call.
func (r *Ring) NeedNotify() bool {
	old := r.notified
	r.notified = r.availIdx
	if r.Features&virtio.FeatureEventIdx != 0 {
		event := memory.LoadAcquire16(r.used[4+8*int(r.Size):])
		return r.availIdx-event-1 < r.availIdx-old
	}
	return old != r.availIdx && memory.LoadAcquire16(r.used)&1 == 0
}

// SetInterrupts says whether the driver wants interrupts.
func (r *Ring) SetInterrupts(on bool) {
	r.noIntr = !on
	switch {
	case r.Features&virtio.FeatureEventIdx == 0:
		var flags uint16
		if !on {
			flags = 1
		}
		memory.StoreSeqCst16(r.avail, flags)
	case on:
		r.setUsedEvent(r.lastUsed)
	default:
		r.setUsedEvent(r.lastUsed + 1<<15)
	}
}

func (r *Ring) setUsedEvent(v uint16) {
	memory.StoreSeqCst16(r.avail[4+2*int(r.Size):], v)
}

// Used1 takes the next used entry, if there is one, and frees its descriptors.
func (r *Ring) Used1() (head uint16, written uint32, ok bool) {
	if memory.LoadAcquire16(r.used[2:]) == r.lastUsed {
		return 0, 0, false
	}
	e := r.used[4+8*int(r.lastUsed&(r.Size-1)):]
	id := binary.LittleEndian.Uint32(e)
	written = binary.LittleEndian.Uint32(e[4:])
	r.lastUsed++
	if r.Features&virtio.FeatureEventIdx != 0 && !r.noIntr {
		r.setUsedEvent(r.lastUsed)
	}
	head = uint16(id)
	if id < uint32(r.Size) {
		d := head
		for n := r.chain[head]; n > 0; n-- {
			r.free = append(r.free, d)
			d = r.next[d]
		}
		r.chain[head] = 0
	}
	return head, written, true
}

// Free is the number of free descriptors.
func (r *Ring) Free() int { return len(r.free) }
