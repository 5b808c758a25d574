package vm

import (
	"fmt"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
)

// newEngine is the one place that decides what runs the CPUs.
// With cpuid the guest sees exactly that, otherwise cfg.Model.
func newEngine(mem *memory.Memory, cfg Config, cpuid vcpu.CPUID) (vcpu.Engine, error) {
	switch cfg.Engine {
	case "", "kvm":
		e, err := kvmcpu.New(mem, kvmcpu.Config{CPUs: cfg.CPUs, Model: cfg.Model, CPUID: cpuid})
		if err != nil {
			return nil, err // not e: a nil *Engine is no nil Engine
		}
		return e, nil
	}
	return nil, fmt.Errorf("unknown engine %q: this build has kvm", cfg.Engine)
}

// addCPUs makes the CPUs with a loop each.
func (m *Machine) addCPUs() error {
	for i := range m.cfg.CPUs {
		cpu, err := m.engine.NewCPU(i)
		if err != nil {
			return err
		}
		m.loops = append(m.loops, vcpu.NewLoop(cpu, vcpu.LoopConfig{Ports: &m.ports, Memory: &m.mmio}))
	}
	return nil
}

// boot loads the first program and points CPU 0 at it.
func (m *Machine) boot() error {
	entry, err := m.cfg.Boot.Load(m.mem, m.hardware())
	if err != nil {
		return err
	}
	state := entry.State()
	return m.loops[0].Do(func(c vcpu.CPU) error { return c.SetState(&state) })
}
