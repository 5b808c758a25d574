package soft

import "github.com/vmkit-go/vmkit/memory"

// dirtyLog is the engine's log of the pages that CPUs write. It implements
// [memory.DirtySource]. A page is logged at its first write after it was harvested,
// because no TLB lets a write to a clean page through.
//
// Its methods stop the machine for a moment, and so must not be called from the
// goroutine of Run.
type dirtyLog struct{ e *Engine }

var _ memory.DirtySource = dirtyLog{}

// halted calls f while no CPU runs. A Run that was kicked does not begin anew before.
func (d dirtyLog) halted(f func()) {
	d.e.enterMu.Lock()
	defer d.e.enterMu.Unlock()
	if !d.e.runMu.TryLock() {
		d.e.kick()
		d.e.runMu.Lock()
	}
	defer d.e.runMu.Unlock()
	f()
	for _, c := range d.e.cpus {
		c.flushWrites()
	}
}

// StartDirty implements memory.DirtySource.
func (d dirtyLog) StartDirty() error {
	d.halted(func() {
		for _, r := range d.e.regions {
			r.startLog()
		}
		d.e.logging = true
	})
	return nil
}

// StopDirty implements memory.DirtySource.
func (d dirtyLog) StopDirty() error {
	d.halted(func() {
		for _, r := range d.e.regions {
			r.dirty = nil
		}
		d.e.logging = false
	})
	return nil
}

// HarvestDirty implements memory.DirtySource.
func (d dirtyLog) HarvestDirty(r memory.Region, bitmap []uint64) error {
	d.halted(func() {
		for _, own := range d.e.regions {
			if own.base == r.Base {
				for i, w := range own.dirty {
					bitmap[i] |= w
					own.dirty[i] = 0
				}
			}
		}
	})
	return nil
}

func (r *ramRegion) startLog() { r.dirty = make([]uint64, (r.size/pageSize+63)/64) }
