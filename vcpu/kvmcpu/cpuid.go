package kvmcpu

import (
	"slices"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Supported returns the CPUID leaves that a guest can be given on this host:
// what every model is cut from, and what to compare a saved machine's leaves
// with ([vcpu.Missing]).
func Supported(sys *kvm.System) (vcpu.CPUID, error) {
	entries, err := sys.SupportedCPUID()
	if err != nil {
		return nil, err
	}
	deadline, err := sys.CheckExtension(kvm.CapTSCDeadlineTimer)
	if err != nil {
		return nil, err
	}
	out := make(vcpu.CPUID, 0, len(entries))
	for i := range entries {
		k := &entries[i]
		l := vcpu.Leaf{
			Function: k.Function, Index: k.Index, Indexed: k.Flags&kvm.CPUIDSignificantIndex != 0,
			EAX: k.EAX, EBX: k.EBX, ECX: k.ECX, EDX: k.EDX,
		}
		switch l.Function {
		case 1:
			// KVM leaves it to its user to say that there is a
			// hypervisor, and emulates the deadline timer anywhere.
			l.ECX |= 1 << 31
			if deadline > 0 {
				l.ECX |= 1 << 24
			}
			l.ECX &^= 1 << 27 // OSXSAVE follows CR4
		case 0x40000001:
			// These need help from user space that we do not give:
			// extended MSI destinations and hypercalls that exit.
			l.EAX &^= 1<<15 | 1<<16 | 1<<17
		}
		if _, dup := out.Get(l.Function, l.Index); !dup {
			out = append(out, l)
		}
	}
	return out, nil
}

// kernelAPIC are the paravirtual features (of leaf 0x40000001, EAX) that KVM
// has only with its own local APICs: asynchronous page faults, end of interrupt
// without an exit, kicks of a CPU that waits for a spinlock, IPIs by hypercall,
// and the choice where HLT polls.
const kernelAPIC = 1<<4 | 1<<6 | 1<<7 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14

// withoutKernelAPIC returns c without kernelAPIC.
func withoutKernelAPIC(c vcpu.CPUID) vcpu.CPUID {
	c = slices.Clone(c)
	for i := range c {
		if c[i].Function == 0x40000001 {
			c[i].EAX &^= kernelAPIC
		}
	}
	return c
}

// TSCHz returns the frequency in hertz at which the TSC of a guest counts on this
// host, or 0 if KVM does not tell it. Another can be had only where the
// processor scales it, which [CPU.SetState] finds out.
func TSCHz(sys *kvm.System) (hz uint64, err error) {
	vm, err := sys.CreateVM(0)
	if err != nil {
		return 0, err
	}
	defer vm.Close()
	v, err := vm.CreateVCPU(0)
	if err != nil {
		return 0, err
	}
	defer v.Close()
	khz, err := v.TSCKHz()
	if err != nil || khz < 0 {
		return 0, nil // it is not constant
	}
	return uint64(khz) * 1000, nil
}

// entries is the kernel's form of c.
func entries(c vcpu.CPUID) []kvm.CPUIDEntry {
	out := make([]kvm.CPUIDEntry, len(c))
	for i, l := range c {
		k := &out[i]
		k.Function, k.Index = l.Function, l.Index
		k.EAX, k.EBX, k.ECX, k.EDX = l.EAX, l.EBX, l.ECX, l.EDX
		if l.Indexed {
			k.Flags = kvm.CPUIDSignificantIndex
		}
	}
	return out
}
