package memory

// Indices of virtqueues are 16-bit words that the guest and the VMM read and
// write at the same time, and sync/atomic has nothing of 16 bits. See
// atomic_amd64.go for how they are accessed, and atomic_other_unsafe.go for
// processors other than amd64.
//
// The race detector does not follow memory outside the Go heap, so guest
// memory is unknown to it either way. It takes these accesses for no
// synchronization: Go values that one goroutine hands another through a ring
// index alone are reported as races.

// LoadAcquire16 loads the little-endian 16-bit number at the start of p, which
// must have 2 bytes and be 2-aligned. Later accesses stay after it.
func LoadAcquire16(p []byte) uint16 {
	_ = p[1]
	return load16(&p[0])
}

// StoreRelease16 stores v at the start of p, which must have 2 bytes and be
// 2-aligned. Earlier accesses stay before it.
func StoreRelease16(p []byte, v uint16) {
	_ = p[1]
	store16(&p[0], v)
}

// StoreSeqCst16 is StoreRelease16 followed by [Fence].
func StoreSeqCst16(p []byte, v uint16) {
	_ = p[1]
	xchg16(&p[0], v)
}

// Fence is a full memory barrier: no access moves across it in either
// direction. It is needed between publishing an index and checking whether
// the other side wants to be told.
func Fence() { fence() }
