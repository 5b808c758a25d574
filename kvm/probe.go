package kvm

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// probes remembers what Probe found out. Only conclusive answers get here.
type probes struct {
	mu     sync.Mutex
	answer map[Cap]error // nil or wrapping ErrUnsupported
}

// Probe finds out whether the host has c: nil if so, an error wrapping ErrUnsupported
// if not. For capabilities with an ioctl of this package it tries that, on a VM of its own, because
// some hosts announce what then does not work; for others it believes
// KVM_CHECK_EXTENSION. Any other error says that it could not find out, say for want of
// file descriptors; conclusive answers are remembered, these are not.
func (s *System) Probe(c Cap) error {
	if !s.h.acquire() {
		return s.h.closedError("Probe")
	}
	defer s.h.release()
	s.probes.mu.Lock()
	defer s.probes.mu.Unlock()
	if err, ok := s.probes.answer[c]; ok {
		return err
	}
	err := s.probe(c)
	if err == nil || errors.Is(err, ErrUnsupported) {
		if s.probes.answer == nil {
			s.probes.answer = map[Cap]error{}
		}
		s.probes.answer[c] = err
	}
	return err
}

func (s *System) probe(c Cap) error {
	n, err := s.CheckExtension(c)
	if err != nil {
		return err
	}
	if n == 0 {
		return &UnsupportedError{Op: "Probe", Cap: c}
	}
	try := trials[c]
	if try == nil {
		return nil
	}
	vm, err := s.CreateVM(0)
	if err != nil {
		return err
	}
	defer vm.Close()
	err = try(vm)
	var e *Error
	if errors.As(err, &e) {
		switch e.Errno {
		case unix.ENOTTY, unix.EINVAL, unix.ENXIO, unix.ENOSYS, unix.EOPNOTSUPP, unix.ENODEV, unix.EIO:
			// It is announced and does not work.
			return fmt.Errorf("%w (%w)", &UnsupportedError{Op: "Probe", Cap: c}, err)
		}
	}
	return err
}

// trials have a fresh VM each. They fail as the operation does.
var trials = map[Cap]func(vm *VM) error{
	CapIRQChip: (*VM).CreateIRQChip,
	CapPIT2: func(vm *VM) error {
		return errors.Join(vm.CreateIRQChip(), vm.CreatePIT2(0))
	},
	CapPITState2: func(vm *VM) error {
		if err := errors.Join(vm.CreateIRQChip(), vm.CreatePIT2(0)); err != nil {
			return err
		}
		p, err := vm.GetPIT2()
		return errors.Join(err, vm.SetPIT2(&p))
	},
	CapSplitIRQChip: func(vm *VM) error {
		if err := vm.SplitIRQChip(IOAPICPins); err != nil {
			return err
		}
		return withVCPU(vm, func(v *VCPU) error {
			_, err := v.LAPIC()
			return err
		})
	},
	CapIRQRouting: func(vm *VM) error {
		return errors.Join(vm.CreateIRQChip(), vm.SetGSIRouting([]IRQRoutingEntry{RouteToChip(0, ChipIOAPIC, 2)}))
	},
	CapSignalMSI: func(vm *VM) error {
		if err := vm.CreateIRQChip(); err != nil {
			return err
		}
		return withVCPU(vm, func(*VCPU) error {
			// The local APIC is off: the message is blocked, which is no error.
			_, err := vm.SignalMSI(MSI{AddressLo: 0xfee00000, Data: 0x30})
			return err
		})
	},
	CapIRQFD: func(vm *VM) error {
		if err := vm.CreateIRQChip(); err != nil {
			return err
		}
		return withEventFD(func(fd int) error { return vm.IRQFD(IRQFD{FD: uint32(fd), GSI: 4}) })
	},
	CapIOEventFD: func(vm *VM) error {
		return withEventFD(func(fd int) error {
			return vm.IOEventFD(IOEventFD{Addr: 0xe9, Len: 1, FD: fd, Flags: IOEventFDPIO})
		})
	},
	CapAdjustClock: func(vm *VM) error {
		c, err := vm.GetClock()
		return errors.Join(err, vm.SetClock(&ClockData{Clock: c.Clock}))
	},
	CapManualDirtyLogProtect2: func(vm *VM) error { return vm.EnableManualDirtyProtect(DirtyManualProtect) },
	CapDirtyLogRing:           tryDirtyRing,
	CapDirtyLogRingAcqRel:     tryDirtyRing,
	CapX86MSRFilter:           func(vm *VM) error { return vm.SetMSRFilter(MSRFilter{}) },
	CapX86UserSpaceMSR:        func(vm *VM) error { return vm.EnableUserSpaceMSR(MSRExitFilter) },
	CapCoalescedMMIO:          func(vm *VM) error { return tryCoalesced(vm, false) },
	CapCoalescedPIO:           func(vm *VM) error { return tryCoalesced(vm, true) },
	CapXSave: onVCPU(func(v *VCPU) error {
		buf := make([]byte, XSaveMinSize)
		return errors.Join(v.XSave(buf), v.SetXSave(buf))
	}),
	CapXSave2: onVCPU(func(v *VCPU) error {
		n, err := v.XSaveSize()
		if err != nil {
			return err
		}
		return v.XSave2(make([]byte, n))
	}),
	CapXCRs:       onVCPU(roundTrip((*VCPU).XCRs, (*VCPU).SetXCRs)),
	CapSregs2:     onVCPU(roundTrip((*VCPU).Sregs2, (*VCPU).SetSregs2)),
	CapDebugRegs:  onVCPU(roundTrip((*VCPU).DebugRegs, (*VCPU).SetDebugRegs)),
	CapVCPUEvents: onVCPU(roundTrip((*VCPU).VCPUEvents, (*VCPU).SetVCPUEvents)),
	CapMPState: onVCPU(func(v *VCPU) error {
		_, err := v.MPState()
		return err
	}),
	CapGetTSCKHz: onVCPU(func(v *VCPU) error {
		_, err := v.TSCKHz()
		return err
	}),
	CapTSCControl: onVCPU(func(v *VCPU) error {
		khz, err := v.TSCKHz()
		if err != nil {
			return err
		}
		return v.SetTSCKHz(khz - khz/8)
	}),
	CapSetGuestDebug: onVCPU(func(v *VCPU) error {
		return v.SetGuestDebug(&GuestDebug{Control: GuestDebugEnable | GuestDebugSingleStep})
	}),
	CapUserNMI:       onVCPU((*VCPU).NMI),
	CapImmediateExit: onVCPU(tryRun),
	CapSyncRegs: onVCPU(func(v *VCPU) error {
		v.RunData().ValidRegs = SyncRegsRegs
		return tryRun(v)
	}),
}

func onVCPU(try func(*VCPU) error) func(*VM) error {
	return func(vm *VM) error { return withVCPU(vm, try) }
}

func withVCPU(vm *VM, try func(*VCPU) error) error {
	v, err := vm.CreateVCPU(0)
	if err != nil {
		return err
	}
	defer v.Close()
	return try(v)
}

func withEventFD(try func(fd int) error) error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("kvm: eventfd: %w", err)
	}
	defer unix.Close(fd)
	return try(fd)
}

func roundTrip[T any](get func(*VCPU) (T, error), set func(*VCPU, *T) error) func(*VCPU) error {
	return func(v *VCPU) error {
		t, err := get(v)
		if err != nil {
			return err
		}
		return set(v, &t)
	}
}

// tryRun enters KVM_RUN with immediate exit, so that no instruction is run: it checks its
// arguments, and returns EINTR.
func tryRun(v *VCPU) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v.SetImmediateExit(true)
	if err := v.Run(); err != nil && err != unix.EINTR {
		return err
	}
	return nil
}

func tryDirtyRing(vm *VM) error {
	if err := vm.EnableDirtyRing(1024); err != nil {
		return err
	}
	return withVCPU(vm, func(v *VCPU) error {
		_, err := v.DirtyRing()
		return err
	})
}

func tryCoalesced(vm *VM, pio bool) error {
	return withVCPU(vm, func(v *VCPU) error {
		if err := vm.RegisterCoalescedMMIO(CoalescedZone{Addr: 0xe9, Size: 1, PIO: pio}); err != nil {
			return err
		}
		_, err := v.NextCoalesced(new(CoalescedWrite))
		return err
	})
}
