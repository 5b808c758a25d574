package vm

import (
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// WithEngine makes cfg's machine run on the engine that f makes.
func WithEngine(cfg Config, f func(*memory.Memory, Config, vcpu.CPUID) (vcpu.Engine, error)) Config {
	cfg.engine = f
	return cfg
}

// EngineOf is the engine of m.
func EngineOf(m *Machine) vcpu.Engine { return m.engine }

// StatesOf are the states of m's CPUs, taken without stopping them: for the
// goroutine that runs them, between two instructions.
func StatesOf(m *Machine) ([]vcpu.State, error) {
	states := make([]vcpu.State, len(m.cpus))
	for i, c := range m.cpus {
		if err := c.State(&states[i]); err != nil {
			return nil, err
		}
	}
	return states, nil
}
