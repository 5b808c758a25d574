package memory

// Tiny assembly, so that the compiler can neither tear, repeat, drop nor move the
// access past another one (a call to assembly is opaque to it). On amd64 that is all
// it takes: an aligned 16-bit access is atomic (Intel SDM volume 3, section 9.1.1),
// loads are not reordered with later accesses and stores not with earlier ones
// (section 9.2.2), which is acquire and release. The one order that the CPU does not
// give, a store before a later load, is what xchg16 and fence are for.

//go:noescape
func load16(p *byte) uint16

//go:noescape
func store16(p *byte, v uint16)

//go:noescape
func xchg16(p *byte, v uint16)

func fence()
