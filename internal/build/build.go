// Package build holds what checks this repository as a whole: the rules that its
// tests enforce (which package may import which, how long a file may be), and
// beside it the script and the programs behind the Makefile's targets.
package build

import (
	"fmt"
	"strings"
)

// Module is the module's path.
const Module = "github.com/vmkit-go/vmkit"

// rule says what the packages below a path may import beside the standard
// library and golang.org/x/sys. Paths are relative to the module unless their
// first element has a dot.
type rule struct {
	path  string
	allow []string
}

// rules are tried in order: the first whose path matches counts. A path matches
// a package and those below it; so does an entry of allow, except that one with
// a $ at its end means that package alone.
var rules = []rule{
	{"kvm", nil},
	{"memory", nil},
	{"vm/device", nil},
	{"vcpu/kvmcpu", []string{"kvm", "vcpu$", "memory", "vm/device", "internal/irqchip", "internal/platform"}},
	{"vcpu/soft", []string{"vcpu$", "memory", "vm/device", "internal"}},
	{"vcpu", []string{"memory", "vm/device"}},
	{"vm/virtio", []string{"memory", "vm/device", "internal"}},
	{"vm/boot", []string{"memory", "vcpu$", "vm/device", "internal", "github.com/klauspost/compress"}},
	{"disk/qcow2", []string{"disk", "internal", "github.com/klauspost/compress"}},
	{"disk", []string{"vm/virtio", "vm/device", "memory", "internal"}},
	{"netdev", []string{"vm/virtio", "vm/device", "memory", "internal"}},
	{"stream", []string{"disk", "vm/virtio", "vm/device", "memory", "internal", "github.com/klauspost/compress"}},
	{"replay", []string{"vcpu$", "memory", "vm/device", "internal", "github.com/klauspost/compress"}},
	{"migrate", []string{"vcpu$", "memory", "vm/device", "disk", "internal", "github.com/klauspost/compress"}},
	{"vm", []string{"vcpu", "kvm", "memory", "disk", "netdev", "internal", "github.com/klauspost/compress"}},
	// Benchmarks compose whole machines, as the examples do.
	{"internal/bench", []string{""}},
	{"internal/netbench", []string{""}},
	{"internal", []string{"vcpu", "kvm", "memory", "disk", "netdev", "vm/virtio", "vm/device", "vm/boot",
		"internal", "github.com/klauspost/compress"}},
	{"examples", []string{""}},
	{"docs", nil},
}

// checkImport returns an error if package pkg, a path relative to the module,
// must not import the package with path imp.
func checkImport(pkg, imp string) error {
	if !strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") {
		if imp == "C" {
			return fmt.Errorf("%s imports C: there is no cgo in vmkit", pkg)
		}
		return nil // standard library
	}
	if below(imp, "golang.org/x/sys") {
		return nil
	}
	for _, dep := range testDeps {
		if below(imp, dep) && strings.HasSuffix(pkg, "test") {
			return nil // a package that only tests import
		}
	}
	if rel, ok := strings.CutPrefix(imp, Module+"/"); ok {
		imp = rel
	}
	for _, r := range rules {
		if !below(pkg, r.path) {
			continue
		}
		if below(imp, r.path) && (r.path != "vcpu" || !isEngine(imp)) {
			return nil // the same tree
		}
		for _, a := range r.allow {
			if exact, ok := strings.CutSuffix(a, "$"); ok && imp == exact || !ok && below(imp, a) {
				return nil
			}
		}
		return fmt.Errorf("%s imports %s: %s may import %q", pkg, imp, r.path, r.allow)
	}
	return fmt.Errorf("%s has no place in the import rules (internal/build)", pkg)
}

// testDeps are the modules that tests may import.
var testDeps = []string{"github.com/google/go-cmp", "github.com/stretchr/testify"}

// isEngine reports whether a package is a CPU engine, which the CPU contract
// must not know.
func isEngine(imp string) bool {
	return below(imp, "vcpu/kvmcpu") || below(imp, "vcpu/soft")
}

// below reports whether path is dir or lies below it; all paths lie below "".
func below(path, dir string) bool {
	return dir == "" || path == dir || strings.HasPrefix(path, dir+"/")
}
