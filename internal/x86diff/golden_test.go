package x86diff

import (
	"encoding/binary"
	"encoding/json"
	"hash"
	"hash/fnv"
	"testing"
)

// golden is what the cases of TestGolden leave behind in software.
const golden = 0x482265bb6a6878c1

// TestGolden holds the engine in software to the same bits on every host, also
// where the manuals leave them undefined or processors differ, which a comparison
// with hardware passes over. make test runs it on amd64 and on arm64.
func TestGolden(t *testing.T) {
	sw := software(t)
	h := fnv.New64a()
	g := NewGenerator(7, V2|Extras)
	var out Outcome
	add := func(c Case) {
		if err := sw.Run(&c, &out); err != nil || out.Vector == Failed || out.Vector == Hung {
			t.Fatalf("%s%s: %v, %v", Report(&c, ""), vectorName(out.Vector), err, out.Err)
		}
		hashOutcome(h, &out)
	}
	for range 5 {
		for _, f := range g.Forms() {
			add(g.Single(f))
		}
	}
	for range 2000 {
		add(g.Sequence())
	}
	for n := range uint64(200) {
		c := NewSystemCase(n)
		var out SystemOutcome
		if err := sw.RunSystem(&c, &out); err != nil || out.Vector == Failed || out.Vector == Hung {
			t.Fatalf("%s, seed %#x: %s: %v, %v", c.Kind, c.Seed, vectorName(out.Vector), err, out.Err)
		}
		if err := json.NewEncoder(h).Encode(&out); err != nil {
			t.Fatal(err)
		}
	}
	if got := h.Sum64(); got != golden {
		t.Errorf("outcomes hash to %#x, want %#x: if the cases are others now, or the engine is meant to "+
			"do something else, and this host is an amd64, then this is what golden should be", got, uint64(golden))
	}
}

func hashOutcome(h hash.Hash, out *Outcome) {
	le := binary.LittleEndian
	_ = binary.Write(h, le, int64(out.Vector)) // a hash returns no error, and all sizes are fixed
	_ = binary.Write(h, le, out.ErrorCode)
	_ = binary.Write(h, le, out.CR2)
	_ = binary.Write(h, le, &out.Regs)
	_ = binary.Write(h, le, out.frame)
	h.Write(out.FX[:])
	for _, m := range out.Memory {
		_ = binary.Write(h, le, m.Addr)
		h.Write(m.Data)
	}
}
