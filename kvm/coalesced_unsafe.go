package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// coalescedRing is struct kvm_coalesced_mmio_ring, in one page.
type coalescedRing struct {
	first, last uint32
	entries     [coalescedMax]CoalescedWrite
}

const coalescedMax = (4096 - 8) / 24

// CoalescedZone is an area where guest writes are collected in a ring, to be
// read at the next exit, rather than exiting each.
type CoalescedZone struct {
	Addr uint64
	Size uint32 // bytes
	PIO  bool   // Addr is a port; with CapCoalescedPIO
}

// CoalescedWrite is struct kvm_coalesced_mmio: one such write.
type CoalescedWrite struct {
	PhysAddr uint64
	Len      uint32 // 1 to 8
	PIO      uint32 // 1 for a port
	Data     [8]uint8
}

// Bytes returns the Len bytes written.
func (w *CoalescedWrite) Bytes() []byte { return w.Data[:min(w.Len, 8)] }

func (z CoalescedZone) kernel() *coalescedZone {
	k := &coalescedZone{addr: z.Addr, size: z.Size}
	if z.PIO {
		k.pio = 1
	}
	return k
}

func (vm *VM) coalesced(o op, z CoalescedZone) error {
	if z.PIO {
		o.cap = CapCoalescedPIO
	}
	_, err := ioctlPtr(&vm.h, &o, z.kernel())
	return detail(err, func() string { return fmt.Sprintf("%d bytes at %#x", z.Size, z.Addr) })
}

// RegisterCoalescedMMIO is KVM_REGISTER_COALESCED_MMIO. It needs a vCPU to exist,
// through which NextCoalesced reads the ring.
func (vm *VM) RegisterCoalescedMMIO(z CoalescedZone) error {
	return vm.coalesced(opRegisterCoalescedMMIO, z)
}

// UnregisterCoalescedMMIO is KVM_UNREGISTER_COALESCED_MMIO: it removes every zone inside z.
func (vm *VM) UnregisterCoalescedMMIO(z CoalescedZone) error {
	return vm.coalesced(opUnregisterCoalescedMMIO, z)
}

// NextCoalesced takes the oldest write from the ring of coalesced writes, into w, and
// reports whether there was one. The VM has one ring, that each vCPU can read. Empty
// it before handling an exit: its writes came first.
func (v *VCPU) NextCoalesced(w *CoalescedWrite) (bool, error) {
	if !v.h.acquire() {
		return false, v.h.closedError("NextCoalesced")
	}
	defer v.h.release()
	vm := v.vm
	vm.coalescedMu.Lock()
	defer vm.coalescedMu.Unlock()
	if vm.coalescedPage == 0 {
		page, err := vm.CheckExtension(CapCoalescedMMIO)
		if err != nil {
			return false, err
		}
		if page == 0 {
			return false, &UnsupportedError{Op: "NextCoalesced", Cap: CapCoalescedMMIO}
		}
		vm.coalescedPage = page
	}
	offset := vm.coalescedPage * unix.Getpagesize()
	if offset+int(unsafe.Sizeof(coalescedRing{})) > len(v.mapping) {
		return false, fmt.Errorf("kvm: coalesced MMIO ring at page %d is outside the mapping of %s", vm.coalescedPage, v.h.name)
	}
	ring := (*coalescedRing)(unsafe.Pointer(&v.mapping[offset]))
	first, last := atomic.LoadUint32(&ring.first), atomic.LoadUint32(&ring.last)
	if first == last || first >= coalescedMax {
		return false, nil
	}
	*w = ring.entries[first]
	atomic.StoreUint32(&ring.first, (first+1)%coalescedMax)
	return true, nil
}
