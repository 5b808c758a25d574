package vm

import (
	"fmt"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
	"github.com/vmkit-go/vmkit/vm/boot"
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

// load starts to load the first program into the machine's memory. The
// function returned waits for the end of that and, if the machine is otherwise
// complete, points CPU 0 at the program.
func (m *Machine) load(l boot.Loader) (enter func(complete bool) error) {
	type result struct {
		entry boot.Entry
		err   error
	}
	loaded := make(chan result, 1)
	go func() {
		entry, err := l.Load(m.mem, m.hardware())
		loaded <- result{entry, err}
	}()
	return func(complete bool) error {
		r := <-loaded
		if r.err != nil || !complete {
			return r.err
		}
		state := r.entry.State()
		return m.loops[0].Do(func(c vcpu.CPU) error { return c.SetState(&state) })
	}
}
