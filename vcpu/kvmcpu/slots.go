package kvmcpu

import (
	"fmt"
	"sync"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/memory"
)

// dirtyLog owns the memory slots and is the memory's source of pages that the
// guest has written (memory.DirtySource).
type dirtyLog struct {
	e      *Engine
	manual bool

	mu       sync.Mutex
	slots    []slot // slot i of the VM
	tracking bool
}

type slot struct {
	r      memory.Region
	bitmap []uint64 // scratch, while tracking
}

var _ memory.DirtySource = (*dirtyLog)(nil)

// addRegion maps a region into the guest.
func (d *dirtyLog) addRegion(r memory.Region) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.slots {
		if d.slots[i].r.Base == r.Base {
			return nil
		}
	}
	n := len(d.slots)
	if limit := d.e.caps.memSlots; limit > 0 && n >= limit {
		return fmt.Errorf("kvmcpu: memory at %#x: all %d slots are taken", r.Base, limit)
	}
	if r.Base < tssBase+3*memory.PageSize && r.End() > identityMapBase {
		return fmt.Errorf("%w: memory at %#x-%#x covers %#x-%#x, which KVM needs", ErrConfig, r.Base, r.End()-1, uint64(identityMapBase), uint64(tssBase+3*memory.PageSize-1))
	}
	s := slot{r: r}
	if d.tracking {
		s.bitmap = make([]uint64, words(r))
	}
	if err := d.set(n, &s, d.tracking); err != nil {
		return err
	}
	d.slots = append(d.slots, s)
	return nil
}

func (d *dirtyLog) set(n int, s *slot, log bool) error {
	k := kvm.UserMemoryRegion{
		Slot: uint32(n), GuestPhysAddr: s.r.Base, MemorySize: s.r.Size,
		UserspaceAddr: hostAddress(s.r.Host),
	}
	if log {
		k.Flags = kvm.MemLogDirtyPages
	}
	return d.e.vm.SetUserMemoryRegion(k)
}

func words(r memory.Region) uint64 { return (r.Size/memory.PageSize + 63) / 64 }

// StartDirty turns the log of every slot on. The kernel starts each empty.
func (d *dirtyLog) StartDirty() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.slots {
		s := &d.slots[i]
		s.bitmap = make([]uint64, words(s.r))
		if err := d.set(i, s, true); err != nil {
			d.stop()
			return err
		}
	}
	d.tracking = true
	return nil
}

// StopDirty turns the logs off and forgets them.
func (d *dirtyLog) StopDirty() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stop()
}

func (d *dirtyLog) stop() error {
	d.tracking = false
	var first error
	for i := range d.slots {
		s := &d.slots[i]
		s.bitmap = nil
		if err := d.set(i, s, false); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// HarvestDirty takes the written pages of r out of the log.
func (d *dirtyLog) HarvestDirty(r memory.Region, bitmap []uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.tracking {
		return nil
	}
	for i := range d.slots {
		if s := &d.slots[i]; s.r.Base == r.Base {
			if len(bitmap) < len(s.bitmap) {
				return fmt.Errorf("kvmcpu: dirty bitmap of %d words for %d pages", len(bitmap), s.r.Size/memory.PageSize)
			}
			return d.harvest(uint32(i), s, bitmap)
		}
	}
	return nil
}

func (d *dirtyLog) harvest(n uint32, s *slot, bitmap []uint64) error {
	if err := d.e.vm.GetDirtyLog(n, s.bitmap); err != nil {
		return err
	}
	if !d.manual { // the kernel has cleared them already
		for i, w := range s.bitmap {
			bitmap[i] |= w
		}
		return nil
	}
	// Protect the pages again before anyone reads their contents, run by run
	// of words with a page in them: an ioctl costs more than a few
	// clean words. A page goes to the caller only once it is cleared, so that
	// after an error the rest is still in the log.
	const gap, most = 16, 1 << 16 // words
	pages := s.r.Size / memory.PageSize
	for i := 0; i < len(s.bitmap); {
		if s.bitmap[i] == 0 {
			i++
			continue
		}
		last := i
		for j := i + 1; j < len(s.bitmap) && j-last <= gap && j-i < most; j++ {
			if s.bitmap[j] != 0 {
				last = j
			}
		}
		run := s.bitmap[i : last+1]
		first := uint64(i) * 64
		count := min(uint64(len(run))*64, pages-first)
		if err := d.e.vm.ClearDirtyLog(n, first, uint32(count), run); err != nil {
			return err
		}
		for k, w := range run {
			bitmap[i+k] |= w
		}
		i = last + 1
	}
	return nil
}
