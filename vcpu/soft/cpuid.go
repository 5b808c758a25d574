package soft

import (
	"encoding/binary"

	"github.com/vmkit-go/vmkit/vcpu"
)

// Features of leaf 1, 7 and 0x80000001 that change what a CPU does.
const (
	feat1ECXXSAVE    = 1 << 26
	feat1ECXOSXSAVE  = 1 << 27
	feat7EBXFSGSBASE = 1 << 0
	feat7EBXSMEP     = 1 << 7
	feat7EBXSMAP     = 1 << 20
	feat7ECXUMIP     = 1 << 2
	featExtEDXNX     = 1 << 20
	featExtEDXHuge   = 1 << 26
	featExtEDXRDTSCP = 1 << 27
)

// Supported returns the CPUID leaves that the engine can give, which every model is cut
// from. They are those of an AMD processor of family 15, which is what QEMU's qemu64
// model says as well: kernels have no microcode to look for there, no errata of the Zen
// families to look after, and know it not to be subject to Meltdown, L1TF, MDS and other
// side channels that do not exist here and whose mitigations cost time.
func Supported() vcpu.CPUID {
	const (
		// FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36
		// CLFLUSH MMX FXSR SSE SSE2; no VME.
		edx = 0x078bfbff &^ (1 << 1)
		// SSE3 SSSE3 CX16 SSE4.1 SSE4.2 x2APIC MOVBE POPCNT TSC-deadline XSAVE
		// hypervisor
		ecx = 1<<0 | 1<<9 | 1<<13 | 1<<19 | 1<<20 | 1<<21 | 1<<22 | 1<<23 | 1<<24 | feat1ECXXSAVE | 1<<31
		// FSGSBASE TSC_ADJUST BMI1 SMEP BMI2 ADX SMAP
		ebx7 = feat7EBXFSGSBASE | 1<<1 | 1<<3 | feat7EBXSMEP | 1<<8 | 1<<19 | feat7EBXSMAP
		// What AMD repeats, SYSCALL NX MMXEXT 1GB pages RDTSCP LM.
		edxExt = edx&0x0183f3ff | 1<<11 | featExtEDXNX | 1<<22 | featExtEDXHuge | featExtEDXRDTSCP | 1<<29
		// LAHF LZCNT 3DNOWPREFETCH
		ecxExt    = 1<<0 | 1<<5 | 1<<8
		signature = 0x60fb1 // family 15, model 107, stepping 1
	)
	vendor := vcpu.Leaf{EAX: 0xd, EBX: 0x68747541, EDX: 0x69746e65, ECX: 0x444d4163} // AuthenticAMD
	ext := vendor
	ext.Function, ext.EAX = 0x80000000, 0x80000008
	out := vcpu.CPUID{
		vendor,
		{Function: 1, EAX: signature, EBX: 8 << 8, ECX: ecx, EDX: edx}, // CLFLUSH of 64 bytes
		{Function: 6, EAX: 1 << 2},                                     // ARAT
		{Function: 7, Indexed: true, EBX: ebx7, ECX: feat7ECXUMIP},
		{Function: 0xd, Indexed: true, EAX: xcr0Valid, EBX: xsaveSize, ECX: xsaveSize},
		{Function: 0xd, Index: 1, Indexed: true},
		ext,
		{Function: 0x80000001, EAX: signature, ECX: ecxExt, EDX: edxExt},
	}
	var name [48]byte
	copy(name[:], "vmkit software CPU")
	for i := range uint32(3) {
		b := name[16*i:]
		out = append(out, vcpu.Leaf{
			Function: 0x80000002 + i,
			EAX:      binary.LittleEndian.Uint32(b), EBX: binary.LittleEndian.Uint32(b[4:]),
			ECX: binary.LittleEndian.Uint32(b[8:]), EDX: binary.LittleEndian.Uint32(b[12:]),
		})
	}
	return append(out,
		// TLBs, and 64 KiB of data and instruction cache, 2-way, lines of 64 bytes.
		vcpu.Leaf{Function: 0x80000005, EAX: 0x01ff01ff, EBX: 0x01ff01ff, ECX: 0x40020140, EDX: 0x40020140},
		// 512 KiB of second-level cache, 16-way.
		vcpu.Leaf{Function: 0x80000006, EBX: 0x42004200, ECX: 0x02008140},
		vcpu.Leaf{Function: 0x80000007, EDX: 1 << 8},                        // invariant TSC
		vcpu.Leaf{Function: 0x80000008, EAX: 48<<8 | physBits, EBX: 1 << 2}, // XSAVEERPTR
	)
}

// physBits is the width of guest-physical addresses.
const physBits = 40

// setCPUID gives the CPU the leaves that CPUID reports, and what follows from them.
func (c *CPU) setCPUID(leaves vcpu.CPUID) {
	c.leaves = leaves
	c.amd = leaves.Vendor() == "AuthenticAMD" || leaves.Vendor() == "HygonGenuine"
	l1, _ := leaves.Get(1, 0)
	l7, _ := leaves.Get(7, 0)
	ext, _ := leaves.Get(0x80000001, 0)
	c.cr4Valid = cr4TSD | cr4DE | cr4PSE | cr4PAE | cr4MCE | cr4PGE | cr4PCE | cr4OSFXSR | cr4OSXMMEXCPT
	for _, f := range [...]struct {
		has bool
		bit uint64
	}{
		{l1.ECX&feat1ECXXSAVE != 0, cr4OSXSAVE},
		{l7.EBX&feat7EBXFSGSBASE != 0, cr4FSGSBASE},
		{l7.EBX&feat7EBXSMEP != 0, cr4SMEP},
		{l7.EBX&feat7EBXSMAP != 0, cr4SMAP},
		{l7.ECX&feat7ECXUMIP != 0, cr4UMIP},
	} {
		if f.has {
			c.cr4Valid |= f.bit
		}
	}
	c.eferValid = eferSCE | eferLME
	if ext.EDX&featExtEDXNX != 0 {
		c.eferValid |= eferNXE
	}
	c.hasRDTSCP = ext.EDX&featExtEDXRDTSCP != 0
}

// reservedBits are the bits of a page-table entry that must be zero with a width of
// physical addresses.
func reservedBits(physBits int) uint64 { return pteAddr &^ (1<<physBits - 1) }

// cpuidInsn is CPUID.
func (c *CPU) cpuidInsn(*uop) stop {
	f := uint32(c.r[regRAX])
	l, _ := c.leaves.Get(f, uint32(c.r[regRCX]))
	if f == 1 && c.cr4&cr4OSXSAVE != 0 {
		l.ECX |= feat1ECXOSXSAVE
	}
	c.r[regRAX], c.r[regRBX] = uint64(l.EAX), uint64(l.EBX)
	c.r[regRCX], c.r[regRDX] = uint64(l.ECX), uint64(l.EDX)
	return next
}
