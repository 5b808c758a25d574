package vcpu

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Model is a CPU model: what part of a host's features a guest may see. A
// guest of a named level runs on, and migrates between, all hosts that have
// that level, whatever else they have (VMware calls this EVC).
type Model uint8

// The models. The levels are those of the x86-64 psABI, with the features
// that a system needs besides; they hide all others, including those that
// only newer CPUs have against side channels.
const (
	ModelHost Model = iota // everything the engine supports
	ModelV1                // x86-64-v1: the first x86-64 CPUs
	ModelV2                // x86-64-v2: about Nehalem, 2008
	ModelV3                // x86-64-v3: about Haswell, 2013
)

var modelNames = [...]string{"host", "x86-64-v1", "x86-64-v2", "x86-64-v3"}

// Errors of models.
var (
	ErrModel   = errors.New("unknown CPU model")
	ErrMissing = errors.New("missing CPU features")
)

// ParseModel returns the model of a name: host, x86-64-v1, x86-64-v2 or
// x86-64-v3; "" is host.
func ParseModel(name string) (Model, error) {
	if name == "" {
		return ModelHost, nil
	}
	if i := slices.Index(modelNames[:], name); i >= 0 {
		return Model(i), nil
	}
	return 0, fmt.Errorf("%w %q: have %s", ErrModel, name, strings.Join(modelNames[:], ", "))
}

// String returns the model's name.
func (m Model) String() string {
	if int(m) < len(modelNames) {
		return modelNames[m]
	}
	return fmt.Sprintf("Model(%d)", uint8(m))
}

// Bits of leaf 1 and 0x80000001 that the levels are made of.
const (
	// FPU PSE TSC MSR PAE CX8 APIC PGE CMOV MMX FXSR SSE SSE2: x86-64-v1
	// and what no kernel does without.
	needEDX = 1<<0 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<8 | 1<<9 | 1<<13 | 1<<15 | 1<<23 | 1<<24 | 1<<25 | 1<<26
	// Those and VME DE MCE SEP MTRR MCA PAT PSE36 CLFLUSH.
	baseEDX = 0x078bfbff
	// What AMD repeats of them in 0x80000001: without SEP and CLFLUSH.
	aliasEDX = 0x0183f3ff
	// Emulated by every engine, whatever the host: x2APIC, TSC deadline
	// timer, hypervisor.
	emulatedECX = 1<<21 | 1<<24 | 1<<31

	sse3, ssse3, fma, cx16        = 1 << 0, 1 << 9, 1 << 12, 1 << 13
	sse41, sse42, movbe, popcnt   = 1 << 19, 1 << 20, 1 << 22, 1 << 23
	xsave, osxsave, avx, f16c     = 1 << 26, 1 << 27, 1 << 28, 1 << 29
	syscallBit, nxBit, longMode   = 1 << 11, 1 << 20, 1 << 29
	lahfBit, lzcntBit, topologyX  = 1 << 0, 1 << 5, 1 << 22
	bmi1, avx2, bmi2, tscAdjust   = 1 << 3, 1 << 5, 1 << 8, 1 << 1
	invariantTSC, aratBit, ebxCLF = 1 << 8, 1 << 2, 0xff00
)

// level is what a model needs and what it lets through besides.
type level struct {
	need, allow CPUID
}

func (m Model) level() level {
	ecx1, ext, ebx7 := uint32(0), uint32(0), uint32(0)
	if m >= ModelV2 {
		ecx1 |= sse3 | ssse3 | cx16 | sse41 | sse42 | popcnt
		ext |= lahfBit
	}
	var need CPUID
	if m >= ModelV3 {
		ecx1 |= fma | movbe | xsave | avx | f16c
		ext |= lzcntBit
		ebx7 |= bmi1 | avx2 | bmi2
		need = append(need, Leaf{Function: 0xd, Indexed: true, EAX: 7},
			Leaf{Function: 0xd, Index: 2, Indexed: true, EAX: 256, EBX: 576})
	}
	need = append(need,
		Leaf{Function: 1, ECX: ecx1, EDX: needEDX},
		Leaf{Function: 7, Indexed: true, EBX: ebx7},
		Leaf{Function: 0x80000001, ECX: ext, EDX: syscallBit | nxBit | longMode})
	return level{
		need: need,
		allow: CPUID{
			{Function: 1, ECX: emulatedECX, EDX: baseEDX},
			{Function: 6, EAX: aratBit},
			{Function: 7, Indexed: true, EBX: tscAdjust},
			{Function: 0x80000001, ECX: topologyX, EDX: aliasEDX},
			{Function: 0x80000007, EDX: invariantTSC},
		},
	}
}

// Apply returns the leaves of the model on a host, given those that the engine
// supports there. If the host lacks what the model needs, the error wraps
// ErrMissing and names each missing feature. The result is the same for all
// CPUs of a machine; see [CPUID.ForCPU].
func (m Model) Apply(host CPUID) (CPUID, error) {
	if int(m) >= len(modelNames) {
		return nil, fmt.Errorf("%w %d", ErrModel, uint8(m))
	}
	if m == ModelHost {
		return slices.Clone(host), nil
	}
	lv := m.level()
	if missing := missingFeatures(lv.need, host); len(missing) > 0 {
		return nil, fmt.Errorf("CPU model %s: %w: %s", m, ErrMissing, strings.Join(missing, ", "))
	}
	var out CPUID
	for _, l := range host {
		need, _ := lv.need.Get(l.Function, l.Index)
		allow, _ := lv.allow.Get(l.Function, l.Index)
		mask := func(v, n, a uint32) uint32 { return v & (n | a) }
		switch f := l.Function; {
		case f == 0:
			// Nothing above the XSAVE leaf is part of a level.
			l.EAX = min(l.EAX, 0xd)
		case f == 1:
			l.ECX = mask(l.ECX, need.ECX, allow.ECX)
			l.EDX = mask(l.EDX, need.EDX, allow.EDX)
			l.EBX &= ebxCLF
		case f == 6:
			l.EAX, l.EBX, l.ECX, l.EDX = l.EAX&allow.EAX, 0, 0, 0
		case f == 7:
			if l.Index != 0 {
				continue
			}
			l.EAX, l.EBX, l.ECX, l.EDX = 0, mask(l.EBX, need.EBX, allow.EBX), 0, 0
		case f == 0xd:
			if m < ModelV3 || l.Index > 2 {
				continue
			}
			switch l.Index {
			case 0: // x87, SSE and AVX; sizes for all of them
				l.EAX, l.EBX, l.ECX, l.EDX = need.EAX, 832, 832, 0
			case 1:
				l.EAX, l.EBX, l.ECX, l.EDX = 0, 0, 0, 0
			case 2:
				l.ECX, l.EDX = 0, 0
			}
		case f == 0x80000000:
			l.EAX = min(l.EAX, 0x8000001e)
		case f == 0x80000001:
			l.ECX = mask(l.ECX, need.ECX, allow.ECX)
			l.EDX = mask(l.EDX, need.EDX, allow.EDX)
		case f == 0x80000007:
			l.EAX, l.EBX, l.ECX, l.EDX = 0, 0, 0, l.EDX&allow.EDX
		case f == 0x80000008:
			l.EBX, l.EDX = 0, 0
		case f == 2, f == 4, f == 0xb,
			f >= 0x40000000 && f < 0x40000100, // the engine's paravirtual features
			f >= 0x80000002 && f <= 0x80000006,
			f == 0x8000001d, f == 0x8000001e:
		default:
			continue
		}
		out = append(out, l)
	}
	return out, nil
}

// Missing compares the leaves that a guest was given with those that a host
// can give and lists what the host lacks, each by name: features, a narrower
// physical address, an XSAVE component at another place, another vendor. An
// empty list means that the guest may go on there.
func Missing(need, have CPUID) []string {
	var out []string
	if n, h := need.Vendor(), have.Vendor(); n != h {
		out = append(out, fmt.Sprintf("vendor %s (have %s)", n, h))
	}
	if n, h := need.PhysicalBits(), have.PhysicalBits(); n > h {
		out = append(out, fmt.Sprintf("%d physical address bits (have %d)", n, h))
	}
	out = append(out, missingFeatures(need, have)...)
	for _, n := range need {
		if n.Function != 0xd || n.Index < 2 || n.EAX == 0 {
			continue
		}
		h, _ := have.Get(0xd, n.Index)
		// Bit 0 of ECX: a supervisor component, which has no offset.
		if n.ECX&1 == 0 && (h.EAX != n.EAX || h.EBX != n.EBX) {
			out = append(out, fmt.Sprintf("XSAVE component %d of %d bytes at %d (have %d at %d)", n.Index, n.EAX, n.EBX, h.EAX, h.EBX))
		}
	}
	return out
}
