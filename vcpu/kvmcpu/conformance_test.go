package kvmcpu

import (
	"testing"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/cputest"
)

// TestConformance runs the suite that every engine has to pass.
func TestConformance(t *testing.T) {
	sys := kvmtest.Open(t)
	kvmtest.NeedNative(t, sys)
	cputest.Run(t, cputest.Config{
		New: func(t testing.TB, mem *memory.Memory) vcpu.Engine {
			eng, err := New(mem, Config{KVM: sys, Chips: ChipsNone})
			must(t, err)
			return eng
		},
	})
}
