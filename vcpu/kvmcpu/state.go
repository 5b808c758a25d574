package kvmcpu

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
)

// scratch is what State and SetState use again each time.
type scratch struct {
	msrs  []kvm.MSREntry
	xsave []byte
}

const (
	msrTSC      = 0x10
	lapicPage   = 4096
	errorFormat = "kvmcpu: cpu %d: %w"
)

// State copies the whole state of the CPU to s. The order matters to KVM:
//   - first the pending access, since it still changes registers;
//   - then the MP state, since KVM_GET_MP_STATE takes a pending INIT or SIPI,
//     which changes registers and the local APIC;
//   - the events last, since the other reads may change them: KVM_GET_LAPIC
//     and KVM_GET_MSRS run down timers.
func (c *CPU) State(s *vcpu.State) error {
	if err := c.getState(s); err != nil {
		return fmt.Errorf(errorFormat, c.id, err)
	}
	return nil
}

func (c *CPU) getState(s *vcpu.State) error {
	if err := c.complete(); err != nil {
		return err
	}
	*s = vcpu.State{}
	var err error
	if c.local != nil {
		err = c.takeAll()
	} else {
		s.MP, err = c.getMP()
	}
	if err != nil {
		return err
	}
	regs, err := c.v.Regs()
	if err != nil {
		return err
	}
	s.Regs = fromRegs(&regs)
	if err := c.getSregs(s); err != nil {
		return err
	}
	if c.e.caps.xcrs {
		x, err := c.v.XCRs()
		if err != nil {
			return err
		}
		for _, r := range x.XCRs[:min(int(x.Count), len(x.XCRs))] {
			s.XCRs = append(s.XCRs, vcpu.XCR{Index: r.XCR, Value: r.Value})
		}
	}
	n, err := c.v.XSaveSize()
	if err != nil {
		return err
	}
	s.XSAVE = make([]byte, n)
	if n > kvm.XSaveMinSize {
		err = c.v.XSave2(s.XSAVE)
	} else {
		err = c.v.XSave(s.XSAVE)
	}
	if err != nil {
		return err
	}
	d, err := c.v.DebugRegs()
	if err != nil {
		return err
	}
	s.Debug = vcpu.DebugRegisters{DR: d.DB, DR6: d.DR6, DR7: d.DR7}
	if c.e.chips == ChipsKernel {
		l, err := c.v.LAPIC()
		if err != nil {
			return err
		}
		s.LAPIC = make([]byte, lapicPage)
		copy(s.LAPIC, l.Regs[:])
	}
	if err := c.getMSRs(s); err != nil {
		return err
	}
	if khz, err := c.v.TSCKHz(); err == nil && khz > 0 {
		s.TSCHz = uint64(khz) * 1000
	}
	ev, err := c.v.VCPUEvents()
	if err != nil {
		return err
	}
	s.Events = fromEvents(&ev)
	if c.local != nil {
		c.getLocal(s)
	}
	return nil
}

// SetState gives the CPU the state s, which it checks first. The order matters
// to KVM:
//   - the TSC's frequency before any TSC value;
//   - control registers before everything whose meaning depends on the mode,
//     and IA32_APIC_BASE, which is among them, before the local APIC;
//   - registers before events, since KVM_SET_REGS drops a pending exception;
//   - XCR0 before the XSAVE area that it sizes;
//   - the local APIC before MSRs, since the TSC deadline is only taken while
//     its timer is in that mode; the TSC before the deadline that counts on it;
//   - the MP state after all, since KVM_SET_SREGS wakes a bootstrap processor
//     at the reset vector.
func (c *CPU) SetState(s *vcpu.State) error {
	if err := c.setState(s); err != nil {
		return fmt.Errorf(errorFormat, c.id, err)
	}
	return nil
}

func (c *CPU) setState(s *vcpu.State) error {
	if err := s.Validate(); err != nil {
		return err
	}
	if err := c.complete(); err != nil {
		return err
	}
	if err := c.setTSCHz(s.TSCHz); err != nil {
		return err
	}
	if err := c.setSregs(s); err != nil {
		return err
	}
	regs := toRegs(&s.Regs)
	if err := c.v.SetRegs(&regs); err != nil {
		return err
	}
	if len(s.XCRs) > 0 && c.e.caps.xcrs {
		var x kvm.XCRs
		x.Count = uint32(len(s.XCRs))
		for i, r := range s.XCRs {
			x.XCRs[i] = kvm.XCR{XCR: r.Index, Value: r.Value}
		}
		if err := c.v.SetXCRs(&x); err != nil {
			return fmt.Errorf("extended control registers %+v: %w", s.XCRs, err)
		}
	}
	if err := c.setXSAVE(s.XSAVE); err != nil {
		return err
	}
	d := kvm.DebugRegs{DB: s.Debug.DR, DR6: s.Debug.DR6, DR7: s.Debug.DR7}
	if err := c.v.SetDebugRegs(&d); err != nil {
		return err
	}
	if len(s.LAPIC) > 0 && c.e.chips == ChipsKernel {
		var l kvm.LAPIC
		copy(l.Regs[:], s.LAPIC)
		if err := c.v.SetLAPIC(&l); err != nil {
			return fmt.Errorf("local APIC: %w", err)
		}
	}
	if err := c.setMSRs(s); err != nil {
		return err
	}
	ev := c.toEvents(s)
	if err := c.v.SetVCPUEvents(&ev); err != nil {
		return fmt.Errorf("events: %w", err)
	}
	if c.local != nil {
		if err := c.setLocal(s); err != nil {
			return err
		}
	} else if err := c.setMP(s.MP); err != nil {
		return err
	}
	// Keep the guest's watchdogs quiet about the time that it has missed.
	// EINVAL: it does not use the paravirtual clock.
	if err := c.v.KVMClockCtrl(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

var mpStates = [...]struct {
	kvm uint32
	our vcpu.MPState
}{
	{kvm.MPStateRunnable, vcpu.MPRunning},
	{kvm.MPStateHalted, vcpu.MPHalted},
	{kvm.MPStateUninitialized, vcpu.MPWait},
	{kvm.MPStateInitReceived, vcpu.MPInit},
	{kvm.MPStateSIPIReceived, vcpu.MPSIPI},
}

func (c *CPU) getMP() (vcpu.MPState, error) {
	k, err := c.v.MPState()
	if err != nil {
		return 0, err
	}
	for _, m := range mpStates {
		if m.kvm == k {
			return m.our, nil
		}
	}
	return 0, fmt.Errorf("MP state %d of KVM has no name", k)
}

func (c *CPU) setMP(s vcpu.MPState) error {
	for _, m := range mpStates {
		if m.our == s {
			return c.v.SetMPState(m.kvm)
		}
	}
	return fmt.Errorf("%w: MP state %d", vcpu.ErrState, s)
}

// setTSCHz changes the TSC's frequency if it must and the host can. A guest
// does not notice 250 parts in a million, which is what NTP corrects. Without
// scaling in hardware, KVM would take a higher frequency and jump ahead at
// each exit; that is refused.
func (c *CPU) setTSCHz(want uint64) error {
	if want == 0 {
		return nil
	}
	khz, err := c.v.TSCKHz()
	if err != nil {
		return err
	}
	have := uint64(khz) * 1000
	diff := max(want, have) - min(want, have)
	if diff < 1000 || !c.e.caps.tscScaling && diff <= have/4000 {
		return nil
	}
	if !c.e.caps.tscScaling {
		return fmt.Errorf("%w: TSC scaling, for a TSC of %d Hz on a host with %d Hz", vcpu.ErrMissing, want, have)
	}
	if err := c.v.SetTSCKHz(int((want + 500) / 1000)); err != nil {
		return fmt.Errorf("%w: a TSC of %d Hz, on a host with %d Hz: %w", vcpu.ErrMissing, want, have, err)
	}
	return nil
}

// setXSAVE fits the area to the size that this host has. What is cut off must
// be unused.
func (c *CPU) setXSAVE(area []byte) error {
	if len(area) == 0 {
		return nil
	}
	n, err := c.v.XSaveSize()
	if err != nil {
		return err
	}
	if len(area) > n && slices.ContainsFunc(area[n:], func(b byte) bool { return b != 0 }) {
		return fmt.Errorf("%w: XSAVE area of %d bytes, this host has %d", vcpu.ErrMissing, len(area), n)
	}
	if cap(c.state.xsave) < n {
		c.state.xsave = make([]byte, n)
	}
	buf := c.state.xsave[:n]
	clear(buf[copy(buf, area):])
	if err := c.v.SetXSave(buf); err != nil {
		return fmt.Errorf("XSAVE area: %w", err)
	}
	return nil
}

func (c *CPU) getSregs(s *vcpu.State) error {
	if c.e.caps.sregs2 {
		k, err := c.v.Sregs2()
		if err != nil {
			return err
		}
		fromSregs2(s, &k)
		return nil
	}
	k, err := c.v.Sregs()
	if err != nil {
		return err
	}
	k2 := widen(&k)
	fromSregs2(s, &k2)
	return nil
}

func (c *CPU) setSregs(s *vcpu.State) error {
	k2 := toSregs2(s)
	var err error
	if c.e.caps.sregs2 {
		err = c.v.SetSregs2(&k2)
	} else {
		// Without the valid flag KVM loads PDPTRs from memory. The
		// interrupt is in the events.
		k := narrow(&k2)
		err = c.v.SetSregs(&k)
	}
	if c.e.chips != ChipsKernel {
		// Without a local APIC, KVM_RUN takes CR8 from here.
		c.v.RunData().CR8 = s.Control.CR8
	}
	if err != nil {
		return fmt.Errorf("control and segment registers (CR0 %#x, CR4 %#x, EFER %#x, APIC base %#x): %w",
			s.Control.CR0, s.Control.CR4, s.Control.EFER, s.Control.APICBase, err)
	}
	return nil
}
