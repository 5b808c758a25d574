package x86diff

import (
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	coverage    = flag.Bool("coverage", false, "print the table of forms")
	seed        = flag.Uint64("seed", 1, "of the random cases that TestSoft compares")
	without     = flag.String("without", "", "groups whose forms TestSoft and TestSoftCorpus leave out, with commas between")
	cases       = flag.Int("cases", 20_000, "how many")
	systemCases = flag.Int("system", 0, "how many cases TestSystem compares, if not 0")
	regenerate  = flag.Bool("regenerate", false, "capture the corpus anew, from this host's processor")
)

// left returns the groups that -without leaves.
func left(t testing.TB) Groups {
	t.Helper()
	all := V2 | Extras
	for name := range strings.SplitSeq(*without, ",") {
		i := slices.Index(groupNames[:], name)
		if i < 0 && name != "" {
			t.Fatalf("no group %q", name)
		}
		if i >= 0 {
			all &^= 1 << i
		}
	}
	return all
}

const corpusFile = "testdata/corpus.txt"

// corpus returns the committed corpus.
func corpus(t testing.TB) []Golden {
	t.Helper()
	text, err := os.ReadFile(corpusFile)
	if err != nil {
		t.Fatal(err)
	}
	cases, err := ReadCorpus(text)
	if err != nil {
		t.Fatal(err)
	}
	return cases
}

// TestCorpus checks that hardware still does what the corpus says, or with
// -regenerate makes it.
func TestCorpus(t *testing.T) {
	k := hardware(t)
	if *regenerate {
		capture(t, k)
	}
	cases := corpus(t)
	cov := NewCoverage()
	for i := range cases {
		g := &cases[i]
		var got Outcome
		_, d := steady(&g.Case, func() Outcome { return g.Outcome }, func() Outcome {
			got = run(t, k, &g.Case)
			return got
		})
		if d != "" {
			t.Errorf("%s", Report(&g.Case, d))
		}
		cov.Add(&g.Case, &got, d != "")
	}
	for _, m := range cov.Missing(V2 | Extras) {
		t.Errorf("not in the corpus: %s", m)
	}
	t.Logf("%d cases", len(cases))
}

func capture(t *testing.T, k *KVM) {
	var cases []Golden
	add := func(c Case) *Golden {
		out := run(t, k, &c)
		out.Memory = slices.Clone(out.Memory)
		cases = append(cases, Golden{c, out})
		return &cases[len(cases)-1]
	}
	g := NewGenerator(4, V2|Extras)
	for _, f := range g.Forms() {
		n := 9
		if Forms[f].fault {
			n = 3
		}
		// Mostly such as run to their end, and at least one.
		for i, faults := 0, 0; i < n; {
			c := g.Single(f)
			out := run(t, k, &c)
			if out.Doubtful {
				continue
			}
			if bad := out.Vector != Finished; bad && !Forms[f].fault && faults < 400 && (faults >= 3 || i == n-1) {
				faults++
				if !finished(&c, &out) {
					continue
				}
			} else if bad {
				faults++
			}
			add(c)
			i++
		}
	}
	for n := 0; n < 1500; n++ {
		c := g.Sequence()
		if out := run(t, k, &c); out.Doubtful {
			n--
			continue
		}
		add(c)
	}
	text, err := WriteCorpus(cases)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d cases, %d bytes", len(cases), len(text))
	if err := os.WriteFile(corpusFile, text, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCorpusFormat(t *testing.T) {
	want := []Golden{
		{Case{Seed: 1, Code: []byte{0x90}, Forms: []int{3}}, Outcome{Vector: Finished}},
		{Case{Seed: 1 << 63, Place: PlaceEdge, Code: []byte{1, 2, 3}, Forms: []int{5, 3, 5}},
			Outcome{Vector: 14, ErrorCode: 7, CR2: 1 << 63, Memory: []Bytes{{0x50000, []byte("abc")}, {0x51000, []byte{0}}}}},
	}
	want[0].Regs.RAX, want[1].Regs.RFLAGS, want[0].FX[511] = 1<<63, 2, 7
	text, err := WriteCorpus(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadCorpus(text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(Outcome{})); d != "" {
		t.Fatal(d)
	}
	for i := range text {
		bad := slices.Clone(text)
		bad[i] ^= 1
		if cases, err := ReadCorpus(bad); err == nil && len(cases) > 2 || err != nil && !errors.Is(err, ErrCorpus) {
			t.Fatalf("byte %d: %d cases, %v", i, len(cases), err)
		}
	}
	if _, err := ReadCorpus(text[:len(text)/2]); !errors.Is(err, ErrCorpus) {
		t.Fatal(err)
	}
}
