package virtio

import (
	"encoding/binary"

	"github.com/vmkit-go/vmkit/memory"
)

// Descriptor flags (virtio 1.2, section 2.7.5).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	descSize     = 16
)

// Ring flags (virtio 1.2, sections 2.7.6 and 2.7.8).
const (
	availNoInterrupt = 1
	usedNoNotify     = 1
)

// rings are one virtqueue's three areas, in place. They are resolved and
// checked once. The guest changes them at any time: every field is loaded
// exactly once and then checked.
type rings struct {
	desc, avail, used []byte
	mask              uint16
}

// resolve finds the three areas. The caller has checked alignment and size.
func (r *rings) resolve(m *memory.Memory, size uint16, desc, avail, used uint64) (err error) {
	n := uint64(size)
	if r.desc, err = m.Slice(desc, descSize*n); err != nil {
		return err
	}
	if r.avail, err = m.Slice(avail, 6+2*n); err != nil {
		return err
	}
	if r.used, err = m.Slice(used, 6+8*n); err != nil {
		return err
	}
	r.mask = size - 1
	return nil
}

func (r *rings) availFlags() uint16 { return memory.LoadAcquire16(r.avail) }
func (r *rings) availIdx() uint16   { return memory.LoadAcquire16(r.avail[2:]) }

func (r *rings) availEntry(i uint16) uint16 {
	return memory.LoadAcquire16(r.avail[4+2*int(i&r.mask):])
}

// usedEvent is the used index at which the driver wants an interrupt.
func (r *rings) usedEvent() uint16 {
	return memory.LoadAcquire16(r.avail[4+2*(int(r.mask)+1):])
}

func (r *rings) setUsedEntry(i uint16, head uint16, written uint32) {
	binary.LittleEndian.PutUint64(r.used[4+8*int(i&r.mask):], uint64(head)|uint64(written)<<32)
}

// The next two publish an index or flags, and are full barriers: what follows
// checks whether the driver did something meanwhile.

func (r *rings) setUsedFlags(v uint16) { memory.StoreSeqCst16(r.used, v) }

// setAvailEvent names the available index at which the driver shall notify.
func (r *rings) setAvailEvent(v uint16) {
	memory.StoreSeqCst16(r.used[4+8*(int(r.mask)+1):], v)
}

// setUsedIdx publishes the used entries before v. It is a full barrier too:
// the driver's wish for an interrupt is read after it.
func (r *rings) setUsedIdx(v uint16) { memory.StoreSeqCst16(r.used[2:], v) }

// loadDesc loads descriptor i of table.
func loadDesc(table []byte, i uint32) (addr uint64, length uint32, flags, next uint16) {
	d := table[descSize*int(i):]
	addr = binary.LittleEndian.Uint64(d)
	rest := binary.LittleEndian.Uint64(d[8:])
	return addr, uint32(rest), uint16(rest >> 32), uint16(rest >> 48)
}
