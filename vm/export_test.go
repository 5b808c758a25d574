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
