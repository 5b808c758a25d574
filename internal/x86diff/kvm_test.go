package x86diff

import (
	"flag"
	"os"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
)

var (
	coverage = flag.Bool("coverage", false, "print the table of forms")
)

// TestHardware runs every form on hardware, and each case twice with the same
// outcome: what it compares is no accident.
func TestHardware(t *testing.T) {
	k, err := NewKVM(kvmtest.Open(t))
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	cov := NewCoverage()
	start := time.Now()
	n := 0
	run := func(c Case) {
		var a, b Outcome
		for _, o := range []*Outcome{&a, &b} {
			if err := k.Run(&c, o); err != nil {
				t.Fatal(err)
			}
			n++
		}
		d := Compare(&c, &a, &b)
		if d != "" || a.Vector < Finished {
			f := &Forms[c.Forms[0]]
			t.Errorf("%s (%v) % x seed %#x: %s %v\n%s", f.Name, f, c.Code, c.Seed, vectorName(a.Vector), a.Err, d)
		}
		cov.Add(&c, &a, d != "")
	}
	g := NewGenerator(1, V2|Extras)
	for _, f := range g.Forms() {
		for range 20 {
			run(g.Single(f))
		}
	}
	for range 2000 {
		run(g.Sequence())
	}
	t.Logf("%d cases, %.0f a second", n, float64(n)/time.Since(start).Seconds())
	for _, m := range cov.Missing(V2 | Extras) {
		t.Errorf("not covered: %s", m)
	}
	if *coverage {
		cov.Print(os.Stdout)
	}
}

func BenchmarkKVM(b *testing.B) {
	k, err := NewKVM(kvmtest.Open(b))
	if err != nil {
		b.Fatal(err)
	}
	defer k.Close()
	var out Outcome
	g := NewGenerator(1, V2)
	for b.Loop() {
		c := g.Next()
		if err := k.Run(&c, &out); err != nil {
			b.Fatal(err)
		}
	}
}
