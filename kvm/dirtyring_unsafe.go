package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dirtyGFN is struct kvm_dirty_gfn.
type dirtyGFN struct {
	flags  uint32
	slot   uint32
	offset uint64
}

const dirtyGFNSize = 16

const (
	dirtyGFNDirty = 1 << 0
	dirtyGFNReset = 1 << 1

	dirtyRingPage = 64 // KVM_DIRTY_LOG_PAGE_OFFSET
)

// DirtyRing is the user's end of a vCPU's dirty ring. One goroutine at a time
// may take from it, also while the vCPU runs. Not after VCPU.Close.
type DirtyRing struct {
	entries []dirtyGFN
	next    uint32
}

// DirtyRing maps the vCPU's ring, at the first call, after VM.EnableDirtyRing.
func (v *VCPU) DirtyRing() (*DirtyRing, error) {
	if !v.h.acquire() {
		return nil, v.h.closedError("DirtyRing")
	}
	defer v.h.release()
	v.vm.mu.Lock()
	defer v.vm.mu.Unlock()
	if v.ring != nil {
		return v.ring, nil
	}
	size := int(v.vm.dirtyRingSize)
	if size == 0 {
		return nil, fmt.Errorf("%w: the VM has no dirty rings: EnableDirtyRing was not called", ErrInvalid)
	}
	m, err := mmap(v.h.fd, dirtyRingPage*int64(unix.Getpagesize()), size)
	if err != nil {
		return nil, &Error{Op: "mmap", Detail: v.h.name + " dirty ring", Errno: err.(unix.Errno)}
	}
	v.ringMap = m
	v.ring = &DirtyRing{
		entries: unsafe.Slice((*dirtyGFN)(unsafe.Pointer(unsafe.SliceData(m))), size/dirtyGFNSize),
	}
	return v.ring, nil
}

// Next takes the oldest entry, and reports whether there was one. Its page is
// logged again only after VM.ResetDirtyRings.
func (r *DirtyRing) Next() (DirtyPage, bool) {
	e := &r.entries[r.next&uint32(len(r.entries)-1)]
	// The kernel publishes an entry by its flags, hence acquire and release.
	if atomic.LoadUint32(&e.flags)&(dirtyGFNDirty|dirtyGFNReset) != dirtyGFNDirty {
		return DirtyPage{}, false
	}
	p := DirtyPage{Slot: e.slot, Page: e.offset}
	atomic.StoreUint32(&e.flags, dirtyGFNReset)
	r.next++
	return p, true
}

// Len is the number of entries that the ring has room for.
func (r *DirtyRing) Len() int { return len(r.entries) }
