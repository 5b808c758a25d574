package kvm

import (
	"fmt"
	"unsafe"
)

// SetUserMemory is SetUserMemoryRegion for memory given as a slice: it maps mem at
// guestPhysAddr. Mem comes from mmap and stays mapped as long as the slot exists; it
// must not be memory of Go's own.
func (vm *VM) SetUserMemory(slot, flags uint32, guestPhysAddr uint64, mem []byte) error {
	if len(mem) == 0 {
		return fmt.Errorf("%w: slot %d: no memory; SetUserMemoryRegion deletes a slot", ErrInvalid, slot)
	}
	return vm.SetUserMemoryRegion(UserMemoryRegion{
		Slot:          slot,
		Flags:         flags,
		GuestPhysAddr: guestPhysAddr,
		MemorySize:    uint64(len(mem)),
		UserspaceAddr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))),
	})
}
