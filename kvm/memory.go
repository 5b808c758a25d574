package kvm

import "fmt"

// Flags of UserMemoryRegion.
const (
	MemLogDirtyPages uint32 = 1 << 0
	MemReadOnly      uint32 = 1 << 1 // guest writes leave Run with ExitMMIO
)

// UserMemoryRegion is struct kvm_userspace_memory_region: a memory slot. Addresses
// and size are multiples of the page size. The memory at UserspaceAddr must stay
// mapped while the slot exists and must not be Go's own heap. Size 0 deletes the slot.
type UserMemoryRegion struct {
	Slot          uint32 // the low 16 bits; the high 16 are the address space (SMM)
	Flags         uint32
	GuestPhysAddr uint64
	MemorySize    uint64
	UserspaceAddr uint64
}

// SetUserMemoryRegion is KVM_SET_USER_MEMORY_REGION.
func (vm *VM) SetUserMemoryRegion(r UserMemoryRegion) error {
	_, err := ioctlPtr(&vm.h, &opSetUserMemoryRegion, &r)
	return detail(err, func() string {
		return fmt.Sprintf("slot %d, flags %#x, %#x bytes at %#x", r.Slot, r.Flags, r.MemorySize, r.GuestPhysAddr)
	})
}

// detail adds to an *Error what it was about.
func detail(err error, text func() string) error {
	if e, ok := err.(*Error); ok {
		e.Detail = text()
	}
	return err
}
