package soft_test

import (
	"testing"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/cputest"
	"github.com/vmkit-go/vmkit/vcpu/soft"
)

// TestConformance runs the suite that every engine has to pass.
func TestConformance(t *testing.T) {
	cputest.Run(t, cputest.Config{
		New: func(t testing.TB, mem *memory.Memory) vcpu.Engine {
			eng, err := soft.New(mem, soft.Config{})
			if err != nil {
				t.Fatal(err)
			}
			return eng
		},
	})
}
