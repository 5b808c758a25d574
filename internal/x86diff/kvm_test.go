package x86diff

import (
	"os"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
)

// hardware returns the host's processor as a subject. That of the nested host is QEMU's emulation, which
// differs from any, and breaks down over some cases.
func hardware(t testing.TB) *KVM {
	t.Helper()
	if os.Getenv("VMKIT_NESTED") == "1" {
		t.Skip("the processor here is an emulated one; the host around this one compares with its own")
	}
	k, err := NewKVM(kvmtest.Open(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func run(t testing.TB, s Subject, c *Case) Outcome {
	t.Helper()
	var out Outcome
	if err := s.Run(c, &out); err != nil {
		t.Fatalf("%s%v", Report(c, ""), err)
	}
	return out
}

// steady compares two ways to run a case, and again if they differ: an interrupt of
// the host can come at a bad moment, and this KVM then loses flags that the guest has
// set (NT). It returns the outcome of the first and the difference.
func steady(c *Case, first, second func() Outcome) (a Outcome, d string) {
	for range 3 {
		a = first()
		b := second()
		if d = Compare(c, &a, &b); d == "" {
			break
		}
	}
	return a, d
}

// TestHardware runs every form on hardware, and each case twice with the same
// outcome: what it compares is no accident.
func TestHardware(t *testing.T) {
	k := hardware(t)
	cov := NewCoverage()
	start := time.Now()
	n := 0
	try := func(c Case) {
		once := func() Outcome { return run(t, k, &c) }
		a, d := steady(&c, once, once)
		n += 2
		if d != "" || a.Vector < Finished {
			t.Errorf("%s%s %v", Report(&c, d), vectorName(a.Vector), a.Err)
		}
		cov.Add(&c, &a, d != "")
	}
	g := NewGenerator(1, V2|Extras)
	for _, f := range g.Forms() {
		for i := 0; i < 20 || i < 400 && cov.n[f].finished == 0 && !Forms[f].fault; i++ {
			try(g.Single(f))
		}
	}
	for range 2000 {
		try(g.Sequence())
	}
	t.Logf("%d cases, %.0f a second", n, float64(n)/time.Since(start).Seconds())
	for _, m := range cov.Missing(V2 | Extras) {
		t.Errorf("not covered: %s", m)
	}
	if *coverage {
		cov.Print(os.Stdout)
	}
}

// TestEngineOnHardware holds the two ways to run a case to the same outcome.
func TestEngineOnHardware(t *testing.T) {
	k := hardware(t)
	sys := kvmtest.Open(t)
	e, err := NewEngine(func(mem *memory.Memory) (vcpu.Engine, error) {
		return kvmcpu.New(mem, kvmcpu.Config{KVM: sys, Chips: kvmcpu.ChipsNone})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	g := NewGenerator(2, V2|Extras)
	for range 500 {
		c := g.Next()
		if _, d := steady(&c, func() Outcome { return run(t, k, &c) }, func() Outcome { return run(t, e, &c) }); d != "" {
			t.Errorf("%s", Report(&c, d))
		}
	}
}

func BenchmarkKVM(b *testing.B) {
	k := hardware(b)
	var out Outcome
	g := NewGenerator(1, V2)
	for b.Loop() {
		c := g.Next()
		if err := k.Run(&c, &out); err != nil {
			b.Fatal(err)
		}
	}
}
