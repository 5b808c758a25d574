package x86diff

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/soft"
)

// software returns a subject on the engine in software.
func software(t testing.TB) *Engine {
	t.Helper()
	e, err := NewEngine(func(mem *memory.Memory) (vcpu.Engine, error) { return soft.New(mem, soft.Config{}) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// comparison compares two subjects and keeps a report of each form's first
// differences.
type comparison struct {
	testing.TB
	hw, sw  Subject
	cov     *Coverage
	reports map[string]int
	shown   int

	doubtful int // cases of which hardware's outcome is not known
	unsteady int // cases that differed once, and not again
}

func newComparison(t testing.TB, hw, sw Subject) *comparison {
	return &comparison{TB: t, hw: hw, sw: sw, cov: NewCoverage(), reports: map[string]int{}}
}

// mostReports bounds the reports of one run, and of one form.
const (
	mostReports = 60
	formReports = 2
)

func (x *comparison) try(c *Case) {
	x.Helper()
	want := run(x, x.hw, c)
	if want.Vector < Finished {
		x.Fatalf("%shardware: %s %v", Report(c, ""), vectorName(want.Vector), want.Err)
	}
	if want.Doubtful {
		x.doubtful++
		return
	}
	x.against(c, &want)
}

// against runs a case in software and compares.
func (x *comparison) against(c *Case, want *Outcome) {
	x.Helper()
	got := run(x, x.sw, c)
	d := Compare(c, want, &got)
	if d != "" && x.hw != nil {
		// An interrupt of the host can come at a bad moment, and this KVM then loses
		// flags that the guest has set (NT): hardware has to say it twice.
		if again := run(x, x.hw, c); Compare(c, &again, &got) == "" {
			x.unsteady++
			d = ""
		}
	}
	x.cov.Add(c, want, d != "")
	if d == "" {
		return
	}
	x.Fail()
	var key []string
	for _, f := range c.Forms {
		key = append(key, Forms[f].Name)
	}
	if len(c.Forms) > 1 {
		key = []string{"sequence"}
	}
	k := strings.Join(key, " ")
	if want.Vector != got.Vector && want.Vector == 17 {
		k = "alignment check"
	}
	if x.reports[k]++; x.reports[k] > formReports || x.shown >= mostReports {
		return
	}
	x.shown++
	if x.hw != nil && len(c.Forms) > 1 {
		small := Minimize(*c, func(t *Case) bool {
			w, g := run(x, x.hw, t), run(x, x.sw, t)
			return !w.Doubtful && Compare(t, &w, &g) != ""
		})
		w, g := run(x, x.hw, &small), run(x, x.sw, &small)
		c, d = &small, Compare(&small, &w, &g)
	}
	x.Errorf("%s", Report(c, d))
}

// done prints what has been compared.
func (x *comparison) done(start time.Time) {
	x.Helper()
	var cases, differ uint64
	var list []string
	for i, n := range x.cov.n {
		cases += n.cases
		differ += n.differ
		if n.differ > 0 {
			list = append(list, Forms[i].Name+" ("+Forms[i].String()+")")
		}
	}
	x.Logf("%d instructions, %.0f a second, %d of them in cases that differ; %d cases left out as doubtful, %d that differed once only",
		cases, float64(cases)/time.Since(start).Seconds(), differ, x.doubtful, x.unsteady)
	if len(list) > 0 {
		slices.Sort(list)
		x.Logf("%d forms differ: %s", len(list), strings.Join(slices.Compact(list), "; "))
	}
	if *coverage {
		x.cov.Print(os.Stdout)
	}
}

// TestSoftCorpus holds the engine in software to what hardware has been seen to
// do. It needs no hardware.
func TestSoftCorpus(t *testing.T) {
	x := newComparison(t, nil, software(t))
	start := time.Now()
	groups := left(t)
	for _, g := range corpus(t) {
		if slices.ContainsFunc(g.Forms, func(f int) bool { return Forms[f].Group&groups == 0 }) {
			continue
		}
		x.against(&g.Case, &g.Outcome)
	}
	x.done(start)
}

// TestSoft compares the engine in software with this host's processor.
func TestSoft(t *testing.T) {
	x := newComparison(t, hardware(t), software(t))
	start := time.Now()
	g := NewGenerator(*seed, left(t)&^Extras)
	for range *cases {
		c := g.Next()
		x.try(&c)
	}
	for range *cases / 5 {
		c := g.Sequence()
		x.try(&c)
	}
	x.done(start)
}
