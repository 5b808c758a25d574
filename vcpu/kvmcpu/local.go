package kvmcpu

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/irqchip"
	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
)

// local is what a CPU of ChipsUser does in place of KVM: it waits in HLT and for
// start-up, and takes what its local APIC has for it.
type local struct {
	*irqchip.LAPIC
	mp     vcpu.MPState
	ifSet  bool          // RFLAGS.IF
	window bool          // KVM takes an interrupt at once
	inside atomic.Bool   // the thread is about to be, or is, in KVM_RUN
	wake   chan struct{} // there is news for a CPU that waits

	tsc [1]kvm.MSREntry // for reading it
}

// flagIF is RFLAGS.IF.
const flagIF = 1 << 9

func newLocal(l *irqchip.LAPIC) *local {
	s := vcpu.PowerUp(l.Base()&vcpu.APICBaseBSP != 0)
	return &local{LAPIC: l, mp: s.MP, wake: make(chan struct{}, 1), tsc: [1]kvm.MSREntry{{Index: msrTSC}}}
}

// poke has the CPU look for news, without an exit.
func (c *CPU) poke() {
	c.v.SetImmediateExit(true)
	if c.local.inside.Load() {
		if tid := c.tid.Load(); tid != 0 {
			_ = unix.Tgkill(unix.Getpid(), int(tid), kickSignal)
		}
	}
	c.local.nudge()
}

func (l *local) nudge() {
	select {
	case l.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// enter makes everything ready for KVM_RUN. It waits while the CPU does, and returns
// true if there is a kick. As in Kick, the order is what matters: news is looked for
// after immediate_exit is cleared, which poke sets after there is some.
func (c *CPU) enter(r *kvm.Run) (kicked bool, err error) {
	l := c.local
	for {
		r.SetImmediateExit(false)
		if c.kicked.Swap(false) {
			return true, nil
		}
		want, err := c.take(r)
		if err != nil {
			return false, err
		}
		if l.mp == vcpu.MPRunning {
			r.SetRequestInterruptWindow(want)
			r.CR8 = uint64(l.TPR())
			l.inside.Store(true) // a poke before this has set immediate_exit
			return false, nil
		}
		<-l.wake
	}
}

// left notes what the guest left KVM_RUN with.
func (c *CPU) left(r *kvm.Run) {
	l := c.local
	l.inside.Store(false)
	l.ifSet = r.IfFlag != 0
	l.window = r.ReadyForInterruptInjection != 0 && l.ifSet
	if tpr := uint8(r.CR8); tpr != l.TPR() {
		l.SetTPR(tpr)
	}
}

// take takes what the local APIC has and the CPU can take now. It returns true if an
// interrupt waits for the guest to be ready.
func (c *CPU) take(r *kvm.Run) (want bool, err error) {
	l := c.local
	ev := l.Events()
	if ev == 0 {
		return false, nil
	}
	if ev&(irqchip.EventINIT|irqchip.EventSIPI) != 0 {
		if c.pending { // the kernel completes the guest's access first
			r.SetImmediateExit(true)
			return false, nil
		}
		if err := c.takeStartUp(); err != nil {
			return false, err
		}
	}
	halted := l.mp == vcpu.MPHalted
	if !halted && l.mp != vcpu.MPRunning {
		return false, nil
	}
	if ev&irqchip.EventNMI != 0 && l.TakeNMI() {
		if err := c.v.NMI(); err != nil {
			return false, err
		}
		if halted { // in the handler of another, it goes on to wait
			e, err := c.v.VCPUEvents()
			if err != nil {
				return false, err
			}
			if e.NMI.Masked == 0 {
				l.mp, halted = vcpu.MPRunning, false
			}
		}
	}
	if !l.Pending() || halted && !l.ifSet {
		return false, nil
	}
	l.mp = vcpu.MPRunning
	if !l.window || c.pending {
		return true, nil
	}
	if vector, ok := l.Ack(); ok {
		if err := c.v.Interrupt(uint8(vector)); err != nil {
			return false, err
		}
		l.window = false
	}
	return l.Pending(), nil
}

// takeStartUp takes INIT and the start-up interrupt. No access is pending.
func (c *CPU) takeStartUp() error {
	l := c.local
	if l.TakeINIT() {
		if err := c.init(); err != nil {
			return fmt.Errorf("INIT: %w", err)
		}
	}
	if vector, ok := l.TakeSIPI(); ok && l.mp == vcpu.MPInit {
		if err := c.startUp(vector); err != nil {
			return fmt.Errorf("start-up interrupt: %w", err)
		}
	}
	return nil
}

// init is what INIT does (Intel SDM volume 3, table 10-1): everything starts anew but the
// x87, SSE, MSRs and caching.
func (c *CPU) init() error {
	var old vcpu.State
	if err := c.getSregs(&old); err != nil {
		return err
	}
	l := c.local
	l.Reset()
	s := vcpu.PowerUp(true)
	s.Control.CR0 = vcpu.CR0ET | old.Control.CR0&(vcpu.CR0NW|vcpu.CR0CD)
	s.Control.APICBase = l.Base()
	if leaf, ok := c.e.cpuid.Get(1, 0); ok {
		s.Regs.RDX = uint64(leaf.EAX)
	}
	if err := c.setSregs(&s); err != nil {
		return err
	}
	regs := toRegs(&s.Regs)
	if err := c.v.SetRegs(&regs); err != nil {
		return err
	}
	if err := c.v.SetDebugRegs(&kvm.DebugRegs{DR6: s.Debug.DR6, DR7: s.Debug.DR7}); err != nil {
		return err
	}
	ev := c.toEvents(&s)
	if err := c.v.SetVCPUEvents(&ev); err != nil {
		return err
	}
	l.ifSet, l.window = false, false
	l.mp = vcpu.MPRunning
	if s.Control.APICBase&vcpu.APICBaseBSP == 0 {
		l.mp = vcpu.MPInit
	}
	return nil
}

// startUp starts the CPU in page vector.
func (c *CPU) startUp(vector uint8) error {
	var s vcpu.State
	if err := c.getSregs(&s); err != nil {
		return err
	}
	s.Segments.CS.Selector, s.Segments.CS.Base = uint16(vector)<<8, uint64(vector)<<12
	if err := c.setSregs(&s); err != nil {
		return err
	}
	regs, err := c.v.Regs()
	if err != nil {
		return err
	}
	regs.RIP = 0
	if err := c.v.SetRegs(&regs); err != nil {
		return err
	}
	c.local.mp = vcpu.MPRunning
	return nil
}

// serve serves an exit that is the interrupt chips', and reports whether it was.
func (c *CPU) serve(r *kvm.Run) bool {
	u := c.e.user
	switch r.ExitReason {
	case kvm.ExitHLT:
		c.local.mp = vcpu.MPHalted
		return true
	case kvm.ExitIO:
		io := r.IO()
		if !u.port(io.Port, io.Size, io.Direction == kvm.IOOut, c.v.IOData()) {
			return false
		}
	case kvm.ExitMMIO:
		m := r.MMIO()
		if !u.memory(c.id, m.PhysAddr, m.IsWrite != 0, m.Bytes()) {
			return false
		}
	case kvm.ExitRDMSR:
		m := r.MSR()
		v, ok := c.local.ReadMSR(m.Index)
		m.Data, m.Error = v, bit(!ok)
	case kvm.ExitWRMSR:
		m := r.MSR()
		m.Error = bit(!u.writeMSR(c.id, m.Index, m.Data))
	default:
		return false
	}
	c.pending = true
	u.retime()
	return true
}

// getLocal completes s with what KVM does not know. No access is pending.
func (c *CPU) getLocal(s *vcpu.State) {
	l := c.local
	s.MP = l.mp
	s.Control.APICBase, s.Control.CR8 = l.Base(), uint64(l.TPR())
	s.LAPIC = l.SavePage()
	deadline := vcpu.MSR{Index: msrTSCDeadline, Value: l.Deadline()}
	for i := range s.MSRs {
		if s.MSRs[i].Index == msrTSCDeadline {
			s.MSRs[i] = deadline
			return
		}
	}
	s.MSRs = append(s.MSRs, deadline)
}

// takeAll takes what the local APIC has that its page does not tell.
func (c *CPU) takeAll() error {
	if err := c.takeStartUp(); err != nil {
		return err
	}
	if c.local.TakeNMI() {
		return c.v.NMI()
	}
	return nil
}

// setLocal is what SetState does with the rest of s when KVM has its part.
func (c *CPU) setLocal(s *vcpu.State) error {
	l := c.local
	if err := l.Load(s.Control.APICBase, s.LAPIC); err != nil {
		return err
	}
	l.TakeINIT()
	l.TakeSIPI()
	l.TakeNMI()
	if len(s.LAPIC) == 0 {
		l.SetTPR(uint8(s.Control.CR8))
	}
	for _, m := range s.MSRs {
		if m.Index == msrTSCDeadline {
			l.SetDeadline(m.Value)
		}
	}
	l.ifSet, l.window = s.Regs.RFLAGS&flagIF != 0, false
	if l.mp = s.MP; s.MP == vcpu.MPSIPI {
		if err := c.startUp(s.Events.SIPI); err != nil {
			return err
		}
	}
	c.e.user.retime()
	return nil
}
