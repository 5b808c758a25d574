package kvmcpu

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
)

// CPU is one virtual CPU. It implements [vcpu.CPU].
type CPU struct {
	e  *Engine
	id int
	v  *kvm.VCPU

	// tid is the thread in Run, or 0; kicked says that a kick has not yet
	// become an ExitKick. See Kick.
	tid      atomic.Int32
	kicked   atomic.Bool
	attached bool // tid stays between Runs

	// pending says that the kernel has yet to complete the access of the
	// last exit: it writes a read's data to the guest's register and moves
	// RIP only when Run is entered again.
	pending bool

	// local is for ChipsUser, else nil.
	local *local

	eventFlags uint32 // what KVM_GET_VCPU_EVENTS calls valid
	state      scratch
}

var (
	_ vcpu.CPU      = (*CPU)(nil)
	_ vcpu.Attacher = (*CPU)(nil)
)

// ErrPending is wrapped by the error of State when the guest's last access has
// parts that have not been served, as one across pages has; Run serves them.
var ErrPending = errors.New("an access is pending")

// NewCPU makes CPU id, from 0 to the configured number less one.
func (e *Engine) NewCPU(id int) (vcpu.CPU, error) {
	if id < 0 || id >= e.cpus {
		return nil, fmt.Errorf("%w: no CPU %d among %d", ErrConfig, id, e.cpus)
	}
	v, err := e.vm.CreateVCPU(id)
	if err != nil {
		return nil, err
	}
	c := &CPU{e: e, id: id, v: v}
	if err := c.setUp(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errors.Join(kvm.ErrClosed, v.Close())
	}
	e.live = append(e.live, c)
	if e.user != nil {
		e.user.cpus[id].Store(c)
	}
	return c, nil
}

func (c *CPU) setUp() error {
	if err := c.v.SetCPUID2(entries(c.e.cpuid.ForCPU(c.id, c.e.cpus))); err != nil {
		return err
	}
	ev, err := c.v.VCPUEvents()
	if err != nil {
		return err
	}
	c.eventFlags = ev.Flags
	if c.e.user != nil {
		c.local = newLocal(c.e.user.LAPIC(c.id))
		base := []kvm.MSREntry{{Index: msrAPICBase, Data: c.local.Base()}}
		if _, err := c.v.SetMSRs(base); err != nil {
			return err
		}
	}
	return c.e.findMSRs(c.v)
}

// ID is the CPU's index and APIC ID.
func (c *CPU) ID() int { return c.id }

// VCPU returns KVM's handle, for what this package does not cover. It stays the
// CPU's.
func (c *CPU) VCPU() *kvm.VCPU { return c.v }

// Close releases the CPU, which must not be in Run. Another Close does nothing.
func (c *CPU) Close() error {
	if err := c.close(); !errors.Is(err, kvm.ErrClosed) {
		return err
	}
	return nil
}

func (c *CPU) close() error {
	err := c.v.Close()
	if errors.Is(err, kvm.ErrClosed) {
		return nil
	}
	return err
}

// kickSignal makes KVM_RUN return. The Go runtime has a handler for it, which
// it uses itself to preempt goroutines and which tolerates others' signals. A
// program must not ignore it (signal.Ignore).
const kickSignal = unix.SIGURG

// Kick makes the current Run, or else the next one, return ExitKick.
//
// immediate_exit catches a Run that is about to enter the guest, the signal one
// that is inside, and kicked tells the kick from the runtime's own signals.
// kicked is set first and Run clears immediate_exit before it takes kicked:
// so if Run takes a kick too early for immediate_exit, all that remains is an
// immediate_exit without kicked, which makes one KVM_RUN return for nothing.
// Never the other way round. Likewise Run publishes tid before it enters, so
// that it sees immediate_exit or Kick sees tid.
func (c *CPU) Kick() {
	c.kicked.Store(true)
	c.v.SetImmediateExit(true)
	if tid := c.tid.Load(); tid != 0 {
		// The thread may have left Run, or be gone: then there is
		// nothing to interrupt.
		_ = unix.Tgkill(unix.Getpid(), int(tid), kickSignal)
	}
	if c.local != nil {
		c.local.nudge()
	}
}

func (c *CPU) takeKick() bool {
	c.v.RunData().SetImmediateExit(false)
	return c.kicked.Swap(false)
}

// Attach says that Run will be called on this thread only, which saves it a
// system call each time. A kick between Runs then signals the thread for
// nothing, which does no harm.
func (c *CPU) Attach() {
	c.tid.Store(int32(unix.Gettid()))
	c.attached = true
}

// Detach ends what Attach began.
func (c *CPU) Detach() {
	c.attached = false
	c.tid.Store(0)
}

// Run enters the guest until something needs attention.
func (c *CPU) Run(exit *vcpu.Exit) error {
	if c.attached {
		return c.run(exit)
	}
	c.tid.Store(int32(unix.Gettid()))
	err := c.run(exit)
	c.tid.Store(0)
	return err
}

func (c *CPU) run(exit *vcpu.Exit) error {
	r := c.v.RunData()
	for {
		if c.local != nil {
			kicked, err := c.enter(r)
			if err != nil {
				return err
			}
			if kicked {
				*exit = vcpu.Exit{Reason: vcpu.ExitKick}
				return nil
			}
		}
		err := c.v.Run()
		if c.local != nil {
			c.left(r)
		}
		switch err {
		case nil:
		case unix.EINTR:
			c.pending = false
			if c.local == nil && c.takeKick() {
				*exit = vcpu.Exit{Reason: vcpu.ExitKick}
				return nil
			}
			continue
		case unix.EAGAIN: // INIT or SIPI came
			c.pending = false
			continue
		default:
			return err
		}
		c.pending = false
		if c.local != nil && c.serve(r) {
			continue
		}
		switch r.ExitReason {
		case kvm.ExitIO:
			io := r.IO()
			*exit = vcpu.Exit{
				Reason: vcpu.ExitIO, Write: io.Direction == kvm.IOOut,
				Size: io.Size, Port: io.Port, Count: io.Count, Data: c.v.IOData(),
			}
			c.pending = true
			return nil
		case kvm.ExitMMIO:
			m := r.MMIO()
			*exit = vcpu.Exit{Reason: vcpu.ExitMMIO, Write: m.IsWrite != 0, Addr: m.PhysAddr, Data: m.Bytes()}
			c.pending = true
			return nil
		case kvm.ExitIntr, kvm.ExitIRQWindowOpen, kvm.ExitSetTPR:
			continue
		case kvm.ExitHLT:
			*exit = vcpu.Exit{Reason: vcpu.ExitHalt}
		case kvm.ExitShutdown:
			*exit = vcpu.Exit{Reason: vcpu.ExitShutdown}
		case kvm.ExitDebug:
			d := r.Debug()
			*exit = vcpu.Exit{Reason: vcpu.ExitDebug, Addr: d.PC, DR6: d.DR6}
		case kvm.ExitSystemEvent:
			switch t := r.SystemEvent().Type; t {
			case kvm.SystemEventShutdown:
				*exit = vcpu.Exit{Reason: vcpu.ExitPowerOff}
			case kvm.SystemEventReset:
				*exit = vcpu.Exit{Reason: vcpu.ExitReset}
			case kvm.SystemEventCrash:
				*exit = vcpu.Exit{Reason: vcpu.ExitCrash}
			default:
				return fmt.Errorf("kvmcpu: system event %d", t)
			}
		default:
			return c.exitError(r)
		}
		return nil
	}
}

// complete has the kernel finish the access of the last exit without entering
// the guest. A kick that comes meanwhile stays for the next Run.
func (c *CPU) complete() error {
	if !c.pending {
		return nil
	}
	r := c.v.RunData()
	r.SetImmediateExit(true)
	err := c.v.Run()
	r.SetImmediateExit(false)
	if c.kicked.Load() {
		r.SetImmediateExit(true)
	}
	switch err {
	case unix.EINTR, unix.EAGAIN:
		c.pending = false
		return nil
	case nil:
		return fmt.Errorf("kvmcpu: %w: the guest's access is split, more of it follows (%v)", ErrPending, r.ExitReason)
	}
	return err
}

// SetSingleStep makes Run return ExitDebug after each instruction.
func (c *CPU) SetSingleStep(on bool) error {
	var d kvm.GuestDebug
	if on {
		d.Control = kvm.GuestDebugEnable | kvm.GuestDebugSingleStep
	}
	return c.v.SetGuestDebug(&d)
}
