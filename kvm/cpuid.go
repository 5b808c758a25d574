package kvm

import (
	"errors"

	"golang.org/x/sys/unix"
)

// maxCPUIDEntries is KVM_MAX_CPUID_ENTRIES, the kernel's own limit.
const maxCPUIDEntries = 256

// getCPUID asks with growing room: the kernel answers E2BIG when there is too
// little. It says how much was used by changing the count.
func getCPUID(h *handle, o *op) ([]CPUIDEntry, error) {
	for n := 64; ; n *= 2 {
		f := newFlex[cpuidHeader, CPUIDEntry](n)
		f.hdr.count = uint32(n)
		_, err := ioctlPtr(h, o, f.hdr)
		if err == nil {
			return f.entries[:min(int(f.hdr.count), n)], nil
		}
		if !errors.Is(err, unix.E2BIG) || n >= maxCPUIDEntries {
			return nil, err
		}
	}
}

// SetCPUID2 is KVM_SET_CPUID2: what CPUID answers in the guest. Call it before the
// first Run.
func (v *VCPU) SetCPUID2(entries []CPUIDEntry) error {
	if len(entries) > maxCPUIDEntries {
		return invalid(opSetCPUID2.name, "%d entries, of at most %d", len(entries), maxCPUIDEntries)
	}
	f := newFlex[cpuidHeader, CPUIDEntry](len(entries))
	f.hdr.count = uint32(len(entries))
	copy(f.entries, entries)
	_, err := ioctlPtr(&v.h, &opSetCPUID2, f.hdr)
	return err
}

// GetCPUID2 is KVM_GET_CPUID2.
func (v *VCPU) GetCPUID2() ([]CPUIDEntry, error) {
	entries, err := getCPUID(&v.h, &opGetCPUID2)
	// Up to 6.2 kernels left the count alone here. What they did not fill is
	// zero, which after the first entry says no more than its absence.
	for n := len(entries); n > 0 && entries[n-1] == (CPUIDEntry{}); n = len(entries) {
		entries = entries[:n-1]
	}
	return entries, err
}
