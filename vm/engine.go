package vm

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
	"github.com/vmkit-go/vmkit/vcpu/soft"
)

// The engines, as Config.Engine names them.
const (
	// EngineAuto is KVM where it runs kernel code on the processor, else soft.
	EngineAuto = "auto"
	// EngineKVM runs CPUs on the processor, through /dev/kvm.
	EngineKVM = "kvm"
	// EngineSoft interprets CPUs in Go, on any host, and repeats itself exactly.
	EngineSoft = "soft"
)

// newEngine is the one place that decides what runs the CPUs, and returns its
// name. With cpuid the guest sees exactly that, otherwise cfg.Model.
func newEngine(mem *memory.Memory, cfg Config, cpuid vcpu.CPUID) (vcpu.Engine, string, error) {
	if cfg.engine != nil {
		e, err := cfg.engine(mem, cfg, cpuid)
		return e, "test", err
	}
	name := cfg.Engine
	if name == "" || name == EngineAuto {
		name, _ = ChooseEngine()
	}
	if cfg.Portable && cfg.Model == vcpu.ModelHost {
		// Without XSAVE, of which x87 and SSE alone are common, so that it
		// would save nothing more than FXSAVE does. On QEMU's emulator of a
		// host it fails: an XSETBV goes unnoticed by KVM, which has XCR0 at 1
		// again when the guest next runs.
		cfg.Model = vcpu.ModelV2
	}
	switch name {
	case EngineKVM:
		k := kvmcpu.Config{CPUs: cfg.CPUs, Model: cfg.Model, CPUID: cpuid}
		if cfg.UserChips {
			k.Chips = kvmcpu.ChipsUser
		}
		if cfg.Portable {
			k.Within = soft.Supported()
		}
		e, err := kvmcpu.New(mem, k)
		if err != nil {
			return nil, name, err // not e: a nil *Engine is no nil Engine
		}
		return e, name, nil
	case EngineSoft:
		s := soft.Config{CPUs: cfg.CPUs, Model: cfg.Model, CPUID: cpuid, RealTime: cfg.RealTime}
		if cfg.Portable && len(cpuid) == 0 {
			var err error
			if s.CPUID, s.TSCHz, err = portable(cfg.Model); err != nil {
				return nil, name, err
			}
		}
		e, err := soft.New(mem, s)
		if err != nil {
			return nil, name, err
		}
		return e, name, nil
	}
	return nil, name, fmt.Errorf("unknown engine %q: want %s, %s or %s", name, EngineAuto, EngineKVM, EngineSoft)
}

// portable is what a guest that begins in software is to find so that it can go
// on on this host's KVM: the CPUID that a portable machine shows there, and the
// processor's TSC frequency, which few hosts can change. Without a KVM that runs
// kernel code it is nothing, and the engine's own will do on hosts that have
// the same.
func portable(model vcpu.Model) (id vcpu.CPUID, tscHz uint64, err error) {
	if name, _ := ChooseEngine(); name != EngineKVM {
		return nil, 0, nil
	}
	sys, err := kvm.Open()
	if err != nil {
		return nil, 0, err
	}
	defer sys.Close()
	host, err := kvmcpu.Supported(sys)
	if err != nil {
		return nil, 0, err
	}
	if id, err = model.Apply(host.Common(soft.Supported())); err != nil {
		return nil, 0, fmt.Errorf("for this host's KVM: %w", err)
	}
	tscHz, err = kvmcpu.TSCHz(sys)
	return id, tscHz, err
}

// chosen is the outcome of ChooseEngine, once it is certain: a host's KVM does
// not change.
var chosen struct {
	sync.Mutex
	name, why string
}

// ChooseEngine returns the engine that EngineAuto means on this host, and why,
// if that is not KVM: in words that follow a colon or begin a sentence. The
// first call tries what the host's KVM can do, which takes some milliseconds,
// or some tens of them if it emulates kernel code.
func ChooseEngine() (name, why string) {
	chosen.Lock()
	defer chosen.Unlock()
	if chosen.name != "" {
		return chosen.name, chosen.why
	}
	r, err := kvmcpu.Probe("")
	switch {
	case err == nil && r.Native:
		name = EngineKVM
	case err == nil:
		name, why = EngineSoft, r.String()
	case errors.Is(err, fs.ErrPermission):
		// It may be given meanwhile.
		return EngineSoft, fmt.Sprintf("no permission to use this host's KVM: %v", err)
	default:
		return EngineSoft, fmt.Sprintf("no KVM on this host: %v", err)
	}
	chosen.name, chosen.why = name, why
	return name, why
}

// Engine is the name of the engine that runs the machine's CPUs: EngineKVM or
// EngineSoft.
func (m *Machine) Engine() string { return m.engineName }

// Instructions is how many instructions the guest has executed, on an engine that
// counts them. It may be called while the machine is paused, and where the guest's
// accesses are served, such as from the writer of its serial port.
func (m *Machine) Instructions() (n uint64, ok bool) {
	if c, ok := m.engine.(interface{ Instructions() uint64 }); ok {
		return c.Instructions(), true
	}
	return 0, false
}
