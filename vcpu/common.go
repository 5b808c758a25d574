package vcpu

import "slices"

// Common returns what is left of c when everything is taken away that other
// has not: features, paravirtual leaves, bits of the physical address, parts of
// the XSAVE area. A guest that was shown it can go on under either. The vendor and
// what merely describes the processor stay c's. The result is for all CPUs of
// a machine, as c is.
func (c CPUID) Common(other CPUID) CPUID {
	var out CPUID
	for _, l := range c {
		if !describes(l.Function) {
			if _, ok := other.Get(l.Function, l.Index); !ok {
				continue
			}
		}
		out = append(out, l)
	}
	for i := range featureWords {
		w := &featureWords[i]
		if j := out.find(w.function, w.index); j >= 0 {
			// Bits that are no features are counted by whoever sets them.
			*w.in(&out[j]) &= w.of(other) | w.ignore
		}
	}
	for i := range out {
		switch l := &out[i]; l.Function {
		case 6: // frequencies and temperatures
			l.EBX, l.ECX, l.EDX = 0, 0, 0
		case 0x80000008:
			l.EAX = l.EAX&^0xff | uint32(min(c.PhysicalBits(), other.PhysicalBits()))
		}
	}
	out.trimXSAVE()
	return out
}

// describes reports whether a leaf is for any guest to know, or is dealt with
// register by register.
func describes(function uint32) bool {
	switch function {
	case 0, 1, 2, 4, 6, 7, 0xb, 0xd, 0x1f, 0x8000001d, 0x8000001e:
		return true
	}
	return function >= 0x80000000 && function <= 0x80000008
}

// in is the word's register in a leaf.
func (w *featureWord) in(l *Leaf) *uint32 {
	switch w.reg {
	case 'a':
		return &l.EAX
	case 'b':
		return &l.EBX
	case 'c':
		return &l.ECX
	}
	return &l.EDX
}

// trimXSAVE makes the leaves of the XSAVE area agree with the components that
// are left in XCR0.
func (c *CPUID) trimXSAVE() {
	main := c.find(0xd, 0)
	if main < 0 {
		return
	}
	components := (*c)[main].EAX
	size := uint32(576) // the legacy area and the header
	*c = slices.DeleteFunc(*c, func(l Leaf) bool {
		if l.Function != 0xd || l.Index < 2 {
			return false
		}
		if l.Index > 31 || components>>l.Index&1 == 0 {
			return true
		}
		size = max(size, l.EAX+l.EBX)
		return false
	})
	if main = c.find(0xd, 0); components == 0 {
		size = 0
	}
	l := &(*c)[main]
	// EBX is for what XCR0 enables now, which the engine fills in.
	l.EBX, l.ECX, l.EDX = size, size, 0
	if j := c.find(0xd, 1); j >= 0 {
		l := &(*c)[j]
		if l.ECX, l.EDX = 0, 0; l.EAX == 0 {
			l.EBX = 0
		}
	}
}
