package soft

import "testing"

// TestDirtyLogIsUnseen: a guest that changes the page tables without INVLPG keeps its
// old translations, and so can tell when tables are walked again. The host reads the
// dirty log whenever it likes, so that must not be the occasion.
func TestDirtyLogIsUnseen(t *testing.T) {
	const (
		page  = atData
		other = atData + 0x1000
		pte   = atTables + 0x3000 + page>>12*8
		flags = ptePresent | pteWritable | pteAccessed | pteDirty
	)
	first := map[string][]byte{
		"written": {0x89, 0x03}, // MOV [RBX], EAX
		"read":    {0x8b, 0x3b}, // MOV EDI, [RBX]
	}
	log := func(t *testing.T, f func() error) {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	for name, insn := range first {
		for _, when := range []string{"never", "always", "harvested", "started", "stopped"} {
			t.Run(name+" "+when, func(t *testing.T) {
				m := newLong(t)
				d := dirtyLog{m.e}
				harvest := func() []uint64 {
					bitmap := make([]uint64, 16<<20/pageSize/64)
					log(t, func() error { return d.HarvestDirty(m.mem.Regions()[0], bitmap) })
					return bitmap
				}
				m.put64(pte, page|flags)
				// ...; MOV [RCX], RDX; MOV [RBX], ESI; LOCK XADD [RBX], ESI; HLT
				m.kernel(append(insn, 0x48, 0x89, 0x11, 0x89, 0x33, 0xf0, 0x0f, 0xc1, 0x33, 0xf4)...)
				m.r[regRBX], m.r[regRCX], m.r[regRDX], m.r[regRSI] = page, pte, other|flags, 0x5a5a
				if when != "never" && when != "started" {
					log(t, d.StartDirty)
				}
				m.steps(2)
				switch when {
				case "started":
					log(t, d.StartDirty)
				case "stopped":
					log(t, d.StopDirty)
				case "harvested":
					harvest()
				}
				m.runs()
				if got, not := m.get(page, 4), m.get(other, 4); got != 2*0x5a5a || not != 0 {
					t.Errorf("the page has %#x, the one that was mapped later %#x", got, not)
				}
				if when == "never" || when == "stopped" {
					return
				}
				if b := harvest()[page>>12/64]; b>>(page>>12%64)&3 != 1 {
					t.Errorf("the log has %#b", b)
				}
			})
		}
	}
}
