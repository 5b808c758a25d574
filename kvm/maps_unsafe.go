package kvm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapRun maps what the kernel shares: kvm_run, PIO data, coalesced MMIO ring.
func (v *VCPU) mapRun(size int) error {
	if size < int(unsafe.Sizeof(Run{})) {
		return &Error{Op: "mmap", Detail: v.h.name, Errno: unix.EINVAL}
	}
	m, err := mmap(v.h.fd, 0, size)
	if err != nil {
		return &Error{Op: "mmap", Detail: v.h.name, Errno: err.(unix.Errno)}
	}
	v.mapping = m
	v.run = (*Run)(unsafe.Pointer(unsafe.SliceData(m)))
	return nil
}

func mmap(fd int, offset int64, size int) ([]byte, error) {
	p, err := unix.MmapPtr(fd, offset, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(p), size), nil
}

func (v *VCPU) unmap() error {
	var first error
	for _, m := range [][]byte{v.mapping, v.ringMap} {
		if m == nil {
			continue
		}
		if err := unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(m)), uintptr(len(m))); err != nil && first == nil {
			first = &Error{Op: "munmap", Detail: v.h.name, Errno: err.(unix.Errno)}
		}
	}
	return first
}

// PIC views the state of a PIC.
func (c *IRQChip) PIC() *PICState { return (*PICState)(unsafe.Pointer(&c.chip)) }

// IOAPIC views the state of the IOAPIC.
func (c *IRQChip) IOAPIC() *IOAPICState { return (*IOAPICState)(unsafe.Pointer(&c.chip)) }
