package vcpu

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
)

// Leaf is what CPUID returns for one value of EAX, and of ECX if Indexed.
type Leaf struct {
	Function uint32
	Index    uint32
	Indexed  bool // Index matters
	EAX      uint32
	EBX      uint32
	ECX      uint32
	EDX      uint32
}

// CPUID is a set of leaves. It is plain data, saved with a machine.
type CPUID []Leaf

const maxLeaves = 256

// Get returns a leaf; without one, all registers are zero and ok is false.
func (c CPUID) Get(function, index uint32) (l Leaf, ok bool) {
	if i := c.find(function, index); i >= 0 {
		return c[i], true
	}
	return Leaf{Function: function, Index: index}, false
}

func (c CPUID) find(function, index uint32) int {
	return slices.IndexFunc(c, func(l Leaf) bool {
		return l.Function == function && (!l.Indexed || l.Index == index)
	})
}

// Vendor returns the vendor string of leaf 0, such as "GenuineIntel".
func (c CPUID) Vendor() string {
	l, _ := c.Get(0, 0)
	var b [12]byte
	binary.LittleEndian.PutUint32(b[0:], l.EBX)
	binary.LittleEndian.PutUint32(b[4:], l.EDX)
	binary.LittleEndian.PutUint32(b[8:], l.ECX)
	return string(b[:])
}

// PhysicalBits returns the width of guest-physical addresses.
func (c CPUID) PhysicalBits() int {
	if l, ok := c.Get(0x80000008, 0); ok && l.EAX&0xff != 0 {
		return int(l.EAX & 0xff)
	}
	return 36
}

// Validate reports leaves that no engine should be asked for: too many, or the
// same one twice.
func (c CPUID) Validate() error {
	if len(c) == 0 || len(c) > maxLeaves {
		return fmt.Errorf("%w: %d CPUID leaves, want 1 to %d", ErrState, len(c), maxLeaves)
	}
	for i := range c {
		if j := c.find(c[i].Function, c[i].Index); j != i {
			return fmt.Errorf("%w: CPUID leaf %#x index %d twice", ErrState, c[i].Function, c[i].Index)
		}
	}
	return nil
}

// remove takes every leaf of a function away.
func (c *CPUID) remove(function uint32) {
	*c = slices.DeleteFunc(*c, func(l Leaf) bool { return l.Function == function })
}

// ForCPU returns the leaves as CPU id of a machine of cpus CPUs sees them: its
// APIC ID, and a topology of one package of single-threaded cores, in which
// each core has its own first and second level caches and all share the third.
func (c CPUID) ForCPU(id, cpus int) CPUID {
	cpus = max(cpus, 1)
	out := slices.Clone(c)
	apic := uint32(id)
	shift := uint32(bits.Len(uint(cpus - 1))) // APIC ID bits that name the core
	span := uint32(1) << shift                // APIC IDs that the package spans
	amd := isAMD(c.Vendor())
	for i := range out {
		l := &out[i]
		switch l.Function {
		case 1:
			l.EBX = l.EBX&0xff00 | apic<<24 | min(span, 255)<<16
			l.EDX = setBit(l.EDX, 28, cpus > 1) // HTT: the field above is valid
		case 4: // Intel's cache parameters
			if l.EAX&0x1f == 0 {
				continue
			}
			l.EAX = l.EAX&0x3fff | min(span-1, 63)<<26
			if l.EAX>>5&7 >= 3 {
				l.EAX |= (span - 1) & 0xfff << 14
			}
		case 0x8000001d: // AMD's cache parameters
			if l.EAX&0x1f == 0 {
				continue
			}
			l.EAX &= 0x3fff
			if l.EAX>>5&7 >= 3 {
				l.EAX |= (span - 1) & 0xfff << 14
			}
		case 0x80000001:
			if amd {
				l.ECX = setBit(l.ECX, 1, cpus > 1) // CmpLegacy: cores, not threads
			}
		case 0x80000008:
			l.ECX = 0
			if amd {
				l.ECX = shift&15<<12 | uint32(cpus-1)&0xff
			}
		case 0x8000001e:
			l.EAX, l.EBX, l.ECX, l.EDX = apic, apic&0xff, 0, 0
		}
	}
	for _, f := range []uint32{0xb, 0x1f} {
		if l, _ := out.Get(0, 0); l.EAX < f {
			continue
		}
		out.remove(f)
		out = append(out,
			Leaf{Function: f, Index: 0, Indexed: true, EAX: 0, EBX: 1, ECX: 1 << 8, EDX: apic},
			Leaf{Function: f, Index: 1, Indexed: true, EAX: shift, EBX: uint32(cpus), ECX: 2<<8 | 1, EDX: apic},
			Leaf{Function: f, Index: 2, Indexed: true, ECX: 2, EDX: apic})
	}
	return out
}

func isAMD(vendor string) bool { return vendor == "AuthenticAMD" || vendor == "HygonGenuine" }

func setBit(v uint32, bit uint, on bool) uint32 {
	if on {
		return v | 1<<bit
	}
	return v &^ (1 << bit)
}
