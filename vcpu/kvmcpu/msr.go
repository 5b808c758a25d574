package kvmcpu

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
)

// MSRs that need thought.
const (
	msrAPICBase    = 0x1b
	msrMCGCap      = 0x179
	msrMTRRBase    = 0x200 // IA32_MTRR_PHYSBASE0
	msrDebugCtl    = 0x1d9
	msrMCBase      = 0x400 // IA32_MC0_CTL, 4 MSRs for each bank
	msrTSCDeadline = 0x6e0
)

// elsewhere are MSRs of KVM's index list whose value is in another field of
// vcpu.State, or which are two names of one register.
var elsewhere = []uint32{
	msrTSC,
	msrAPICBase,
	0x11, 0x12, // KVM's old names of its clock, below 0x4b564d00 now
	0xc0000080, // EFER
	0xc0000100, // FS base
	0xc0000101, // GS base
}

// extra are MSRs that make up a CPU but are not in KVM's list: the memory type
// ranges.
var extra = []uint32{
	0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207,
	0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e, 0x20f,
	0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
	0x2ff, // IA32_MTRR_DEF_TYPE
}

// findMSRs finds out, on the first CPU before it runs, which MSRs make up its
// state: those that KVM lists and some more, as far as this guest's CPU takes
// back the value that it gives. The list names what the host has for any
// guest, so trying is the only way to know.
func (e *Engine) findMSRs(v *kvm.VCPU) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.msrs != nil {
		return nil
	}
	list, err := e.sys.MSRIndexList()
	if err != nil {
		return err
	}
	list = append(list, extra...)
	// For AMD guests KVM has none, yet takes a write with a complaint in the
	// host's log.
	if e.cpuid.Vendor() == "GenuineIntel" {
		list = append(list, msrDebugCtl)
	}
	bank := []kvm.MSREntry{{Index: msrMCGCap}}
	if _, err := v.GetMSRs(bank); err == nil {
		for i := range uint32(min(bank[0].Data&0xff, 32)) * 4 {
			list = append(list, msrMCBase+i)
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	// A guest to which KVM does not show itself cannot use KVM's own ones, yet
	// they have values, which no other engine would take.
	_, shown := e.cpuid.Get(0x40000001, 0)
	// The deadline last: it counts on the TSC and the local APIC's mode.
	list = slices.DeleteFunc(list, func(m uint32) bool {
		hyperV := m >= 0x40000000 && m < 0x40000200 // not offered to the guest
		kvms := m >= 0x4b564d00 && m < 0x4b564e00
		return hyperV || kvms && !shown || slices.Contains(elsewhere, m) || m == msrTSCDeadline
	})
	list = append(list, msrTSCDeadline)

	one := make([]kvm.MSREntry, 1)
	out := make([]uint32, 0, len(list))
	for _, m := range list {
		one[0] = kvm.MSREntry{Index: m}
		ok, err := tried(v.GetMSRs(one))
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if ok, err = tried(v.SetMSRs(one)); err != nil {
			return err
		}
		if ok {
			out = append(out, m)
		}
	}
	e.msrs = out
	return nil
}

// tried tells an MSR that the kernel refuses from a call that failed.
func tried(_ int, err error) (bool, error) {
	var refused *kvm.MSRError
	if errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

func (c *CPU) getMSRs(s *vcpu.State) error {
	k := append(c.state.msrs[:0], kvm.MSREntry{Index: msrTSC})
	for _, m := range c.e.msrs {
		k = append(k, kvm.MSREntry{Index: m})
	}
	c.state.msrs = k
	if _, err := c.v.GetMSRs(k); err != nil {
		return err
	}
	s.TSC = k[0].Data
	s.MSRs = make([]vcpu.MSR, len(k)-1)
	for i, m := range k[1:] {
		s.MSRs[i] = vcpu.MSR{Index: m.Index, Value: m.Data}
	}
	return nil
}

// setMSRs writes the TSC and then the MSRs in order. One that this host does
// not have is no error while its value is zero, which is what the guest
// would read from the lack of it.
//
// KVM keeps the TSCs of CPUs in step: a value within a second of what another
// CPU's would be now, and zero, it takes for that CPU's value, which is right
// for CPUs that are loaded one after another. A fresh machine's own TSC is
// near zero, though, and so may be that of a guest which has run for less
// than a second. So if the state is ahead of CPU 0, CPU 0 leads it away first.
// If it is behind, it is most likely this machine's own of a moment ago, and
// going on in step is what the guest expects.
func (c *CPU) setMSRs(s *vcpu.State) error {
	k := c.state.msrs[:0]
	if c.id == 0 && s.TSC != 0 {
		k = append(k, kvm.MSREntry{Index: msrTSC})
		if _, err := c.v.GetMSRs(k); err != nil {
			return err
		}
		if s.TSC > k[0].Data {
			k[0].Data = s.TSC + 1<<48
		} else {
			k = k[:0]
		}
	}
	k = append(k, kvm.MSREntry{Index: msrTSC, Data: s.TSC})
	for _, m := range s.MSRs {
		if slices.Contains(elsewhere, m.Index) {
			return fmt.Errorf("%w: MSR %#x has a field of its own", vcpu.ErrState, m.Index)
		}
		k = append(k, kvm.MSREntry{Index: m.Index, Data: m.Value})
	}
	c.state.msrs = k
	for len(k) > 0 {
		n, err := c.v.SetMSRs(k)
		if err == nil {
			return nil
		}
		if ok, err := tried(n, err); err != nil || ok {
			return err
		}
		if k[n].Data != 0 {
			return err
		}
		k = k[n+1:]
	}
	return nil
}
