// Package soft is the engine that runs CPUs in pure Go: x86-64 decoded into blocks of
// micro-operations and interpreted. It needs nothing of the host, and is deterministic:
// given the same inputs at the same instruction counts it makes the same machine, bit
// for bit. Time is the count of instructions; idle time is skipped.
//
//	mem, err := memory.New(memory.Config{Size: 512 << 20})
//	eng, err := soft.New(mem, soft.Config{CPUs: 2})
//	defer eng.Close()
//	cpu, err := eng.NewCPU(0)
//	loop := vcpu.NewLoop(eng.Runner(), vcpu.LoopConfig{Ports: &ports, Memory: &mmio})
//	reason, err := loop.Run(ctx)
package soft

import (
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
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
	// CPUs is the number of CPUs, 1 to MaxCPUs. 0 means 1.
	CPUs int
}

// ErrConfig is wrapped by the errors of a Config that cannot be.
var ErrConfig = errors.New("soft: invalid configuration")

// Engine makes the CPUs of one machine.
type Engine struct {
	mem     *memory.Memory
	release func()
	regions []*ramRegion
	cpus    []*CPU
	code    codeCache

	reservedPTE uint64 // bits of a page-table entry that must be zero
	huge        bool   // the CPUs have 1 GiB pages
}

// New makes an engine for guest memory mem and holds mem until Close.
func New(mem *memory.Memory, cfg Config) (_ *Engine, err error) {
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	switch {
	case mem == nil:
		return nil, fmt.Errorf("%w: no memory", ErrConfig)
	case cfg.CPUs < 0 || cfg.CPUs > MaxCPUs:
		return nil, fmt.Errorf("%w: %d CPUs, want 1 to %d", ErrConfig, cfg.CPUs, MaxCPUs)
	}
	e := &Engine{mem: mem, huge: true}
	e.code.e = e
	if e.release, err = mem.Hold(); err != nil {
		return nil, err
	}
	for _, r := range mem.Regions() {
		e.regions = append(e.regions, newRegion(r))
	}
	for i := range cfg.CPUs {
		c := &CPU{e: e, id: i, base: e.regions[0].host}
		c.flushTLB()
		e.cpus = append(e.cpus, c)
	}
	return e, nil
}

// readChip and writeChip serve the pages of the interrupt chips. They report false
// for any other address.
func (e *Engine) readChip(c *CPU, gpa uint64, size uint8) (uint64, bool) { return 0, false }

func (e *Engine) writeChip(c *CPU, gpa uint64, size uint8, v uint64) bool { return false }
