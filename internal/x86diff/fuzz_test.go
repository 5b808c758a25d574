package x86diff

import "testing"

// FuzzSoft compares the engine in software with this host's processor for as long
// as it is given: each input is a seed of many cases.
func FuzzSoft(f *testing.F) {
	hw, sw := hardware(f), software(f)
	for seed := range uint64(4) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		x := newComparison(t, hw, sw)
		g := NewGenerator(seed, V2)
		for range 200 {
			c := g.Next()
			x.try(&c)
		}
		for range 50 {
			c := g.Sequence()
			x.try(&c)
		}
	})
}
