package kvm

import (
	"errors"
	"fmt"
)

// dirtyLog and clearDirtyLog hold a pointer, in the kernel's union with a uint64.
type dirtyLog struct {
	slot   uint32
	_      uint32
	bitmap *uint64
}

type clearDirtyLog struct {
	slot      uint32
	numPages  uint32
	firstPage uint64
	bitmap    *uint64
}

// Flags of VM.EnableManualDirtyProtect.
const (
	DirtyManualProtect uint64 = 1 << 0
	DirtyInitiallySet  uint64 = 1 << 1 // a slot's log starts full; spares a pass over its pages
)

// GetDirtyLog is KVM_GET_DIRTY_LOG: it fills bitmap with a bit for each page of a slot that
// has MemLogDirtyPages, page n of the slot being bit n%64 of word n/64. Bits are set for pages
// written since the last call; with manual protect, since their ClearDirtyLog. The bitmap
// must have a bit for every page of the slot, or the kernel would write beyond it:
// this cannot be checked here.
//
// Preconditions: len(bitmap) >= (pages of the slot + 63) / 64.
func (vm *VM) GetDirtyLog(slot uint32, bitmap []uint64) error {
	if len(bitmap) == 0 {
		return invalid(opGetDirtyLog.name, "slot %d: empty bitmap", slot)
	}
	_, err := ioctlPtr(&vm.h, &opGetDirtyLog, &dirtyLog{slot: slot, bitmap: &bitmap[0]})
	return detail(err, func() string { return fmt.Sprintf("slot %d", slot) })
}

// ClearDirtyLog is KVM_CLEAR_DIRTY_LOG, for manual protect: it clears the log of, and
// protects again, those pages of [firstPage, firstPage+numPages) of the slot whose bit is
// set, page firstPage being bit 0 of the bitmap. firstPage is a multiple of 64, and
// numPages too unless the range ends with the slot.
func (vm *VM) ClearDirtyLog(slot uint32, firstPage uint64, numPages uint32, bitmap []uint64) error {
	if need := (uint64(numPages) + 63) / 64; numPages == 0 || uint64(len(bitmap)) < need {
		return invalid(opClearDirtyLog.name, "slot %d: %d words for %d pages", slot, len(bitmap), numPages)
	}
	k := clearDirtyLog{slot: slot, numPages: numPages, firstPage: firstPage, bitmap: &bitmap[0]}
	_, err := ioctlPtr(&vm.h, &opClearDirtyLog, &k)
	return detail(err, func() string { return fmt.Sprintf("slot %d, pages %d+%d", slot, firstPage, numPages) })
}

// EnableManualDirtyProtect is CapManualDirtyLogProtect2: GetDirtyLog no longer protects
// pages again, ClearDirtyLog does. Flags are DirtyManualProtect, and DirtyInitiallySet
// if CheckExtension's answer has that bit.
func (vm *VM) EnableManualDirtyProtect(flags uint64) error {
	return vm.EnableCap(CapManualDirtyLogProtect2, flags)
}

// EnableDirtyRing replaces the dirty log by a ring in each vCPU, of the given number of
// entries: a power of two that makes at least a page of 16-byte entries. Before the
// first vCPU. GetDirtyLog then fails; a guest write for which there is no room
// leaves Run with ExitDirtyRingFull. Pages written by the kernel on no vCPU's behalf
// do not occur on x86.
func (vm *VM) EnableDirtyRing(entries int) error {
	if entries < 1 || entries > 1<<26 || entries&(entries-1) != 0 {
		return invalid(opEnableCap.name, "a dirty ring of %d entries", entries)
	}
	size := uint64(entries) * dirtyGFNSize
	// On x86 the two capabilities differ in name only; old kernels have the second.
	err := vm.EnableCap(CapDirtyLogRingAcqRel, size)
	if errors.Is(err, ErrUnsupported) {
		err = vm.EnableCap(CapDirtyLogRing, size)
	}
	if err == nil {
		vm.mu.Lock()
		vm.dirtyRingSize = uint32(size)
		vm.mu.Unlock()
	}
	return err
}

// ResetDirtyRings is KVM_RESET_DIRTY_RINGS: it protects again the pages that were
// taken from the rings of the vCPUs, and frees their entries. It returns how many.
// Harvest a page's content after this, not before.
func (vm *VM) ResetDirtyRings() (int, error) { return vm.h.ioctl(&opResetDirtyRings, 0) }

// DirtyPage is an entry of a dirty ring.
type DirtyPage struct {
	Slot uint32 // low 16 bits; the high 16 are the address space
	Page uint64 // within the slot
}
