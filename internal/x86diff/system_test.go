package x86diff

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
)

// systemCount is how many cases TestSystem compares: few in a quick run, and as
// many as make a proof with VMKIT_FULL=1.
func systemCount() int {
	switch {
	case *systemCases > 0:
		return *systemCases
	case os.Getenv("VMKIT_FULL") == "1":
		return 1000
	}
	return 50
}

// TestSystem compares the engine in software with a KVM that runs code at CPL 0
// for real, in what only kernels do.
func TestSystem(t *testing.T) {
	sys := kvmtest.Open(t)
	kvmtest.NeedNative(t, sys)
	hw, err := NewEngine(func(mem *memory.Memory) (vcpu.Engine, error) {
		return kvmcpu.New(mem, kvmcpu.Config{KVM: sys, Chips: kvmcpu.ChipsNone})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer hw.Close()
	sw := software(t)
	count, differ, excuses := map[string]int{}, map[string]int{}, map[string]int{}
	begin := time.Now()
	cases := systemCount()
	for n := range cases {
		c := NewSystemCase(*seed<<32 + uint64(n))
		var want, got SystemOutcome
		if err := hw.RunSystem(&c, &want); err != nil {
			t.Fatalf("%s, seed %#x: %v", c.Kind, c.Seed, err)
		}
		if err := sw.RunSystem(&c, &got); err != nil {
			t.Fatalf("%s, seed %#x: %v", c.Kind, c.Seed, err)
		}
		count[c.Kind]++
		d, excused := CompareSystem(&c, &want, &got)
		for _, reason := range excused {
			excuses[reason]++
		}
		if d == "" {
			continue
		}
		if differ[c.Kind]++; differ[c.Kind] <= 3 {
			in := &c.initial
			t.Errorf("%s at CPL %d, seed %#x: % x\nrax %#x, rcx %#x, rdx %#x, descriptors %#x and %#x, cr4 %#x, codes %#x and %#x\n%s",
				c.Kind, c.CPL, c.Seed, c.Code, in.RAX, in.RCX, in.RDX, c.descriptor(in.RAX), c.descriptor(in.RDX),
				want.Control.CR4, want.ErrorCode, got.ErrorCode, d)
		}
	}
	var list []string
	for _, k := range kinds {
		list = append(list, fmt.Sprintf("%s %d", k.name, count[k.name]))
		if d := differ[k.name]; d > 0 {
			t.Errorf("%s: %d of %d cases differ", k.name, d, count[k.name])
		}
		if count[k.name] == 0 && cases >= 1000 {
			t.Errorf("%s: no case", k.name)
		}
	}
	for _, e := range emulated {
		t.Logf("%d cases: %s", excuses[e.reason], e.reason)
	}
	t.Logf("%d cases, %.0f a second: %s", cases, float64(cases)/time.Since(begin).Seconds(), strings.Join(list, ", "))
}
