// Package cputest is one conformance suite for engines of vcpu: short programs for
// each instruction group, mode and exception, with expectations that come
// from the manuals and not from any engine.
//
//	func TestConformance(t *testing.T) {
//		cputest.Run(t, cputest.Config{
//			New: func(t testing.TB, mem *memory.Memory) vcpu.Engine {
//				eng, err := soft.New(mem, soft.Config{})
//				...
//				return eng
//			},
//		})
//	}
//
// Where vendors differ, expectations follow the vendor that CPUID names, and what
// CPUID does not offer is not tested.
package cputest

import (
	"strings"
	"testing"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Config says what to test.
type Config struct {
	// New makes an engine with one CPU for mem. The suite closes it before it
	// closes mem.
	New func(t testing.TB, mem *memory.Memory) vcpu.Engine
	// Known are the tests that this engine is known to fail, and why: those
	// are left out. A name stands for all tests below it.
	Known map[string]string
}

// test is one program, or several about one thing.
type test struct {
	name string
	run  func(g *guest)
}

// Run runs the suite as subtests of t, by group and name. Each has an engine of its own,
// and fails where that does not do what the manuals say.
func Run(t *testing.T, cfg Config) {
	groups := []struct {
		name  string
		tests []test
	}{
		{"instructions", instructionTests()},
		{"strings", stringTests},
		{"exceptions", exceptionTests},
		{"paging", pagingTests},
		{"segments", segmentTests},
		{"transfers", transferTests},
		{"system", systemTests},
		{"debug", debugTests},
		{"float", floatTests},
		{"modes", modeTests},
		{"code", codeTests},
	}
	for _, group := range groups {
		t.Run(group.name, func(t *testing.T) {
			for _, tc := range group.tests {
				t.Run(tc.name, func(t *testing.T) {
					for prefix, why := range cfg.Known {
						full := group.name + "/" + tc.name
						if full == prefix || strings.HasPrefix(full, prefix+"/") {
							t.Logf("left out: %s", why)
							return
						}
					}
					tc.run(newGuest(t, cfg))
				})
			}
		})
	}
}
