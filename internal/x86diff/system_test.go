package x86diff

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
)

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
	count, differ := map[string]int{}, map[string]int{}
	begin := time.Now()
	n := 0
	for ; n < *systemCases; n++ {
		c := NewSystemCase(*seed<<32 + uint64(n))
		var want, got SystemOutcome
		if err := hw.RunSystem(&c, &want); err != nil {
			t.Fatalf("%s, seed %#x: %v", c.Kind, c.Seed, err)
		}
		if err := sw.RunSystem(&c, &got); err != nil {
			t.Fatalf("%s, seed %#x: %v", c.Kind, c.Seed, err)
		}
		count[c.Kind]++
		d := CompareSystem(&c, &want, &got)
		if d == "" {
			continue
		}
		if differ[c.Kind]++; differ[c.Kind] <= 2 {
			t.Errorf("%s at CPL %d, seed %#x: % x\n%s", c.Kind, c.CPL, c.Seed, c.Code, d)
		}
	}
	var list []string
	for _, k := range kinds {
		list = append(list, fmt.Sprintf("%s %d", k.name, count[k.name]))
		if d := differ[k.name]; d > 0 {
			t.Errorf("%s: %d of %d cases differ", k.name, d, count[k.name])
		}
		if count[k.name] == 0 && *systemCases >= 1000 {
			t.Errorf("%s: no case", k.name)
		}
	}
	t.Logf("%d cases, %.0f a second: %s", n, float64(n)/time.Since(begin).Seconds(), strings.Join(list, ", "))
}
