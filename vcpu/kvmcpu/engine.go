// Package kvmcpu is the engine that runs CPUs on hardware, through Linux's KVM.
//
//	mem, err := memory.New(memory.Config{Size: 512 << 20})
//	eng, err := kvmcpu.New(mem, kvmcpu.Config{CPUs: 2, Model: vcpu.ModelV3})
//	defer eng.Close()
//	cpu, err := eng.NewCPU(0)
//	loop := vcpu.NewLoop(cpu, vcpu.LoopConfig{Ports: &ports, Memory: &mmio})
//	reason, err := loop.Run(ctx)
//
// [Probe] finds out whether a host's KVM can run a kernel at all.
package kvmcpu

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Guest-physical pages that KVM takes for itself on Intel hosts: the identity
// map (one page) and the TSS (three). They lie in the hole below 4 GiB.
const (
	identityMapBase = 0xfeffb000
	tssBase         = 0xfeffc000
)

// MaxCPUs is the largest number of CPUs, bounded by 8-bit APIC IDs.
const MaxCPUs = 254

// Chips says which interrupt chips the engine provides.
type Chips uint8

const (
	// ChipsKernel has KVM emulate the local APICs, two PICs, the I/O APIC
	// and the PIT. HLT waits in the kernel for an interrupt, and AP start
	// by INIT and SIPI is the kernel's.
	ChipsKernel Chips = iota
	// ChipsNone has none: one CPU without interrupts, whose HLT is an exit.
	ChipsNone
	// ChipsUser has the same chips as ChipsKernel in user space, where whoever
	// records a machine can tell at which instruction an interrupt is taken.
	// Each access to them is an exit, and HLT waits in Run. KVM's paravirtual
	// features that need its local APICs are hidden from the guest.
	ChipsUser
)

// Config configures an engine. The zero value is one CPU with all features of
// the host and the interrupt chips in the kernel.
type Config struct {
	// Model is what the guest sees of the host's CPU.
	Model vcpu.Model
	// Within, if not empty, hides what these leaves have not, such as those
	// of another engine to which the guest may move.
	Within vcpu.CPUID
	// CPUID, if not empty, is used in place of Model and Within: the leaves
	// that a saved machine was given, from [Engine.CPUID].
	CPUID vcpu.CPUID
	// CPUs is the number of CPUs, 1 to MaxCPUs. 0 means 1.
	CPUs int
	// Chips are the interrupt chips.
	Chips Chips
	// KVM is the system to use; it stays the caller's. If nil, New opens
	// Path, or /dev/kvm.
	KVM  *kvm.System
	Path string
}

// ErrConfig is wrapped by the errors of a Config that cannot be.
var ErrConfig = errors.New("kvmcpu: invalid configuration")

// Engine makes the CPUs of one machine. It implements [vcpu.Engine]; its
// methods may be called from any goroutine.
type Engine struct {
	sys     *kvm.System
	ownSys  bool
	vm      *kvm.VM
	mem     *memory.Memory
	release func()
	unwatch func()
	chips   Chips
	user    *userChips // of ChipsUser, else nil
	cpus    int
	cpuid   vcpu.CPUID
	caps    caps
	dirty   dirtyLog

	mu        sync.Mutex
	closed    bool
	live      []*CPU
	doorbells map[*doorbell]struct{}
	msrs      []uint32 // what makes up a CPU's state; see msrList
}

// caps are what the host's KVM has, as far as the engine cares.
type caps struct {
	payload     bool // exceptions have a payload
	tripleFault bool // triple faults are events
	sregs2      bool
	xcrs        bool
	tscScaling  bool
	memSlots    int
}

var _ vcpu.Engine = (*Engine)(nil)

// New makes an engine for guest memory mem and holds mem until Close. Its
// errors wrap ErrConfig, vcpu.ErrMissing (the host lacks features that the model
// needs; each is named), those of package kvm, or fs.ErrNotExist and
// fs.ErrPermission if KVM cannot be opened.
func New(mem *memory.Memory, cfg Config) (_ *Engine, err error) {
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	switch {
	case mem == nil:
		return nil, fmt.Errorf("%w: no memory", ErrConfig)
	case cfg.CPUs < 0 || cfg.CPUs > MaxCPUs:
		return nil, fmt.Errorf("%w: %d CPUs, want 1 to %d", ErrConfig, cfg.CPUs, MaxCPUs)
	case cfg.Chips > ChipsUser:
		return nil, fmt.Errorf("%w: chips %d", ErrConfig, cfg.Chips)
	case cfg.Chips == ChipsNone && cfg.CPUs > 1:
		return nil, fmt.Errorf("%w: %d CPUs need interrupt chips", ErrConfig, cfg.CPUs)
	}
	e := &Engine{mem: mem, sys: cfg.KVM, chips: cfg.Chips, cpus: cfg.CPUs, doorbells: map[*doorbell]struct{}{}}
	e.dirty.e = e
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	if e.sys == nil {
		path := cfg.Path
		if path == "" {
			path = kvm.DevicePath
		}
		if e.sys, err = kvm.OpenPath(path); err != nil {
			return nil, err
		}
		e.ownSys = true
	}
	host, err := Supported(e.sys)
	if err != nil {
		return nil, err
	}
	if cfg.Chips == ChipsUser {
		host = withoutKernelAPIC(host)
	}
	if len(cfg.CPUID) > 0 {
		if err := cfg.CPUID.Validate(); err != nil {
			return nil, err
		}
		if missing := vcpu.Missing(cfg.CPUID, host); len(missing) > 0 {
			return nil, fmt.Errorf("kvmcpu: %w: %q", vcpu.ErrMissing, missing)
		}
		e.cpuid = slices.Clone(cfg.CPUID)
	} else {
		if len(cfg.Within) > 0 {
			host = host.Common(cfg.Within)
		}
		if e.cpuid, err = cfg.Model.Apply(host); err != nil {
			return nil, err
		}
	}
	if e.release, err = mem.Hold(); err != nil {
		return nil, err
	}
	if e.vm, err = e.sys.CreateVM(0); err != nil {
		return nil, err
	}
	if err := e.setUp(); err != nil {
		return nil, err
	}
	// A region may arrive while we look: watch first, map twice never.
	e.unwatch = mem.Watch(e.dirty.addRegion)
	for _, r := range mem.Regions() {
		if err := e.dirty.addRegion(r); err != nil {
			return nil, err
		}
	}
	if err := mem.AddDirtySource(&e.dirty); err != nil {
		return nil, err
	}
	return e, nil
}

// setUp does what must come before the first vCPU.
func (e *Engine) setUp() error {
	has := func(c kvm.Cap) bool {
		n, err := e.vm.CheckExtension(c)
		return err == nil && n > 0
	}
	if n, err := e.vm.CheckExtension(kvm.CapNRVCPUs); err == nil && n > 0 {
		if m, err := e.vm.CheckExtension(kvm.CapMaxVCPUs); err == nil {
			n = max(n, m)
		}
		if e.cpus > n {
			return fmt.Errorf("%w: %d CPUs, this host's KVM has at most %d", ErrConfig, e.cpus, n)
		}
	}
	if err := e.vm.SetTSSAddr(tssBase); err != nil {
		return err
	}
	if err := e.vm.SetIdentityMapAddr(identityMapBase); err != nil {
		return err
	}
	switch e.chips {
	case ChipsUser:
		if err := e.setUpUserChips(); err != nil {
			return err
		}
	case ChipsKernel:
		if err := e.vm.CreateIRQChip(); err != nil {
			return err
		}
		// The speaker port is the kernel's too: guests calibrate with it.
		if err := e.vm.CreatePIT2(kvm.PITSpeakerDummy); err != nil {
			return err
		}
		if err := e.vm.SetGSIRouting(routes()); err != nil {
			return err
		}
		if err := e.vm.SetBootCPUID(0); err != nil {
			return err
		}
	}
	// Without these, a pending exception looks like an injected one, and a
	// pending triple fault is lost.
	e.caps.payload = e.vm.EnableCap(kvm.CapExceptionPayload, 1) == nil
	e.caps.tripleFault = e.vm.EnableCap(kvm.CapX86TripleFaultEvent, 1) == nil
	e.caps.sregs2 = has(kvm.CapSregs2)
	e.caps.xcrs = has(kvm.CapXCRs)
	e.caps.tscScaling = has(kvm.CapTSCControl)
	if n, err := e.vm.CheckExtension(kvm.CapNRMemSlots); err == nil {
		e.caps.memSlots = n
	}
	// With manual protect a harvest write-protects again only the pages it
	// takes.
	if err := e.vm.EnableManualDirtyProtect(kvm.DirtyManualProtect); err == nil {
		e.dirty.manual = true
	}
	return nil
}

// CPUID returns the leaves that CPUs are given, without what differs between
// them. They belong to the saved state of a machine.
func (e *Engine) CPUID() vcpu.CPUID { return slices.Clone(e.cpuid) }

// CPUs returns the number of CPUs that the machine has.
func (e *Engine) CPUs() int { return e.cpus }

// VM returns the engine's VM, for what this package does not cover. It stays
// the engine's.
func (e *Engine) VM() *kvm.VM { return e.vm }

// Close releases the machine. CPUs that still run are to be stopped first;
// their state and the doorbells are gone. A second Close does nothing.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	live, bells := e.live, e.doorbells
	e.live, e.doorbells = nil, nil
	e.mu.Unlock()

	if e.unwatch != nil {
		e.unwatch()
	}
	if e.user != nil {
		e.user.close()
	}
	e.mem.RemoveDirtySource(&e.dirty)
	var errs []error
	for d := range bells {
		errs = append(errs, d.Close())
	}
	for _, c := range live {
		errs = append(errs, c.close())
	}
	if e.vm != nil {
		errs = append(errs, e.vm.Close())
	}
	if e.ownSys {
		errs = append(errs, e.sys.Close())
	}
	if e.release != nil {
		e.release()
	}
	return errors.Join(errs...)
}
