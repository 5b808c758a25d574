package memory

// Indices of virtqueues are 16-bit words that the guest and the VMM read and
// write at the same time, and sync/atomic has nothing of 16 bits. These
// functions are tiny assembly, so the compiler can neither tear, repeat, drop
// nor move the access past another one (a call to assembly is opaque to it).
// On amd64 that is all it takes: an aligned 16-bit access is atomic (Intel SDM
// volume 3, section 9.1.1), loads are not reordered with later accesses and
// stores not with earlier ones (section 9.2.2), which is acquire and release.
// The one order that the CPU does not give, a store before a later load, is
// what StoreSeqCst16 and Fence are for.
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

//go:noescape
func load16(p *byte) uint16

//go:noescape
func store16(p *byte, v uint16)

//go:noescape
func xchg16(p *byte, v uint16)

func fence()
