// Package soft is the engine that runs CPUs in pure Go: x86-64 decoded into blocks of
// micro-operations and interpreted. It needs nothing of the host, and is deterministic:
// given the same inputs at the same instruction counts it makes the same machine, bit
// for bit. Time is the count of instructions; idle time is skipped.
//
//	mem, err := memory.New(memory.Config{Size: 512 << 20})
//	eng, err := soft.New(mem, soft.Config{CPUs: 2})
//	defer eng.Close()
//	cpu, err := eng.NewCPU(0)
//	err = cpu.SetState(&state)
//	loop := vcpu.NewLoop(eng.Runner(), vcpu.LoopConfig{Ports: &ports, Memory: &mmio})
//	reason, err := loop.Run(ctx)
//
// The CPUs take turns on the goroutine of the loop. An instruction takes 4 ns of the
// machine's time, whichever CPU executes it.
//
// The CPU is one of x86-64-v2 with BMI, ADX, MOVBE, LZCNT, FSGSBASE, SMEP, SMAP and UMIP:
// see [Supported]. It has no AVX, no hardware task switching, no virtual-8086 mode,
// no system-management mode, no PCID and no performance counters.
package soft

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/internal/irqchip"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm/device"
)

// MaxCPUs is the largest number of CPUs, bounded by 8-bit APIC IDs.
const MaxCPUs = 254

// Config configures an engine. The zero value is one CPU with all features that the
// engine has.
type Config struct {
	// Model is what the guest sees of the engine's CPU.
	Model vcpu.Model
	// CPUID, if not empty, is used in place of Model: the leaves that a saved
	// machine was given, from any engine's CPUID.
	CPUID vcpu.CPUID
	// TSCHz is the frequency of the time-stamp counters in hertz, 1e6 to 1e12, such
	// as that of a host on whose processor the guest may go on. A saved state brings
	// its own. 0 means TSCHz, the constant.
	TSCHz uint64
	// CPUs is the number of CPUs, 1 to MaxCPUs. 0 means 1.
	CPUs int
	// RealTime makes an idle machine wait until the host's time has caught up with
	// its own. Otherwise idle time is skipped. How much time passes then depends on
	// the host, and two runs are not the same.
	RealTime bool
}

// ErrConfig is wrapped by the errors of a Config that cannot be.
var ErrConfig = errors.New("soft: invalid configuration")

// Engine makes the CPUs of one machine and runs them by turns. It implements
// [vcpu.Turns]. Methods that say nothing else may be called from any goroutine while
// the machine does not run, and from that of Run; Kick, Interject, Line and Signal from
// any at any time.
type Engine struct {
	mem     *memory.Memory
	release func()
	unwatch func()
	regions []*ramRegion
	cpus    []*CPU
	code    codeCache
	chips   *irqchip.Chips
	clock   clock
	cpuid   vcpu.CPUID
	tscHz   uint64 // the frequency of TSCs where no state says another

	reservedPTE uint64 // bits of a page-table entry that must be zero
	huge        bool   // the CPUs have 1 GiB pages
	logging     bool   // of pages written

	runMu    sync.Mutex // held by Run
	enterMu  sync.Mutex // held to enter Run, and to keep it from that
	closed   bool
	count    int64 // instructions executed when no CPU runs
	running  *CPU
	turn     *CPU  // whose turn it is
	turnLeft int64 // instructions
	served   *CPU  // whose access the caller of Run serves
	marks    []mark
	// timesChanged says that timers have been set while a CPU runs.
	timesChanged bool
	realTime     bool
	began        time.Time // with realTime: when the machine's time was 0

	invalidateMu sync.Mutex // held by invalidate

	kicked         atomic.Bool
	wake           chan struct{}
	mu             sync.Mutex // interjected
	interjected    []func()
	spare          []func()
	hasInterjected atomic.Bool
}

var _ vcpu.Turns = (*Engine)(nil)

// errClosed is what a closed engine answers.
var errClosed = errors.New("soft: the engine is closed")

// New makes an engine for guest memory mem and holds mem until Close. Its errors wrap
// ErrConfig, or vcpu.ErrMissing if the engine lacks features that the model or the
// leaves need; each is named.
func New(mem *memory.Memory, cfg Config) (_ *Engine, err error) {
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	switch {
	case mem == nil:
		return nil, fmt.Errorf("%w: no memory", ErrConfig)
	case cfg.CPUs < 0 || cfg.CPUs > MaxCPUs:
		return nil, fmt.Errorf("%w: %d CPUs, want 1 to %d", ErrConfig, cfg.CPUs, MaxCPUs)
	case cfg.TSCHz != 0 && (cfg.TSCHz < 1e6 || cfg.TSCHz > 1e12):
		return nil, fmt.Errorf("%w: TSC of %d Hz, want 1e6 to 1e12", ErrConfig, cfg.TSCHz)
	}
	e := &Engine{mem: mem, tscHz: TSCHz, turnLeft: quantum, realTime: cfg.RealTime, began: time.Now(), wake: make(chan struct{}, 1)}
	e.code.e, e.clock.e = e, e
	if cfg.TSCHz != 0 {
		e.tscHz = cfg.TSCHz
	}
	if err := e.setCPUID(cfg); err != nil {
		return nil, err
	}
	if e.release, err = mem.Hold(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			e.Close()
		}
	}()
	e.chips, err = irqchip.New(irqchip.Config{
		CPUs: cfg.CPUs, Now: e.clock.Now, TSCTime: e.tscTime,
		Wake: func(int) { e.poke() },
	})
	if err != nil {
		return nil, err
	}
	regions := mem.Regions()
	if len(regions) == 0 || regions[0].Base != 0 {
		return nil, fmt.Errorf("%w: no memory at address 0", ErrConfig)
	}
	e.unwatch = mem.Watch(e.addRegion)
	for _, r := range regions {
		if err := e.addRegion(r); err != nil {
			return nil, err
		}
	}
	for i := range cfg.CPUs {
		c := &CPU{e: e, id: i, base: e.regions[0].host}
		c.setCPUID(e.cpuid.ForCPU(i, cfg.CPUs))
		c.reset()
		e.cpus = append(e.cpus, c)
	}
	e.turn = e.cpus[0]
	if err := mem.AddDirtySource(dirtyLog{e}); err != nil {
		return nil, err
	}
	mem.WatchWrites(e.invalidate)
	return e, nil
}

// setCPUID decides what the guest sees of the CPU.
func (e *Engine) setCPUID(cfg Config) (err error) {
	have := Supported()
	if len(cfg.CPUID) == 0 {
		e.cpuid, err = cfg.Model.Apply(have)
		if err != nil {
			return err
		}
	} else {
		if err := cfg.CPUID.Validate(); err != nil {
			return err
		}
		// The vendor is no feature: the engine is no vendor's.
		if missing := vcpu.Missing(cfg.CPUID, withVendor(have, cfg.CPUID)); len(missing) > 0 {
			return fmt.Errorf("soft: %w: %q", vcpu.ErrMissing, missing)
		}
		e.cpuid = slices.Clone(cfg.CPUID)
	}
	e.reservedPTE = reservedBits(min(e.cpuid.PhysicalBits(), 52))
	if l, ok := e.cpuid.Get(0x80000001, 0); ok {
		e.huge = l.EDX>>26&1 != 0
	}
	return nil
}

// withVendor returns have with the vendor string of need.
func withVendor(have, need vcpu.CPUID) vcpu.CPUID {
	out := slices.Clone(have)
	n, _ := need.Get(0, 0)
	for i := range out {
		if out[i].Function == 0 {
			out[i].EBX, out[i].ECX, out[i].EDX = n.EBX, n.ECX, n.EDX
		}
	}
	return out
}

// addRegion takes a region of guest memory into the engine's own list.
func (e *Engine) addRegion(r memory.Region) error {
	own := newRegion(r)
	if e.logging {
		own.startLog()
	}
	e.regions = append(slices.Clone(e.regions), own)
	return nil
}

// NewCPU returns CPU id, from 0 to the configured number less one.
func (e *Engine) NewCPU(id int) (vcpu.CPU, error) {
	if id < 0 || id >= len(e.cpus) {
		return nil, fmt.Errorf("%w: no CPU %d among %d", ErrConfig, id, len(e.cpus))
	}
	return e.cpus[id], nil
}

// CPUID returns the leaves that CPUs are given, without what differs between them.
func (e *Engine) CPUID() vcpu.CPUID { return slices.Clone(e.cpuid) }

// Clock is the machine's clock.
func (e *Engine) Clock() device.Clock { return &e.clock }

// Doorbell reports that there are none: notifications arrive on the bus.
func (e *Engine) Doorbell(uint64, int, *uint64) (device.Doorbell, error) {
	return nil, errors.ErrUnsupported
}

// Close releases the machine, which must not run. A second Close does nothing.
func (e *Engine) Close() error {
	e.runMu.Lock()
	defer e.runMu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	if e.unwatch != nil {
		e.unwatch()
		e.mem.RemoveDirtySource(dirtyLog{e})
		e.mem.WatchWrites(nil)
	}
	e.release()
	return nil
}

// ID is the CPU's index and APIC ID.
func (c *CPU) ID() int { return c.id }

// Kick makes the machine's Run return.
func (c *CPU) Kick() { c.e.kick() }

// Run is an error: [Engine.Runner] runs all CPUs.
func (c *CPU) Run(*vcpu.Exit) error {
	return fmt.Errorf("soft: CPU %d runs with the others, by Engine.Runner", c.id)
}

// SetSingleStep makes the machine's Run return ExitDebug after each instruction of this
// CPU. The machine must not run.
func (c *CPU) SetSingleStep(on bool) error {
	c.step = on
	c.updateMode()
	return nil
}

// Close does nothing: the engine owns the CPU.
func (c *CPU) Close() error { return nil }
