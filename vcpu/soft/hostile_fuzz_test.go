package soft

import "testing"

// FuzzCode runs code in a mode, with everything else made from a seed.
func FuzzCode(f *testing.F) {
	for m := range hostileModes {
		f.Add(uint8(m), uint64(m), []byte{0x0f, 0x01, 0xf8, 0xcd, 0x03, 0xf3, 0xa4, 0x0f, 0xae, 0x28, 0xf4})
		f.Add(uint8(m), uint64(m), []byte{0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x80, 0xf4, 0x04, 0x0f, 0x30, 0xea, 0, 0, 1, 0, 8, 0})
		f.Add(uint8(m), uint64(m), []byte{0x9c, 0x80, 0x4c, 0x24, 0x01, 0x01, 0x9d, 0xff, 0xe0})
	}
	h := newHostile(f, 1, 1)
	h.round(1)
	f.Fuzz(func(t *testing.T, mode uint8, seed uint64, code []byte) {
		h.t = t
		h.seedAs(seed)
		h.mode = int(mode) % len(hostileModes)
		h.reset(false)
		h.pageTables(h.mode)
		h.tables(h.mode > 4)
		c := h.e.cpus[0]
		s := h.state(h.mode, true)
		s.MSRs, s.LAPIC = nil, nil
		_ = c.SetState(&s)
		if len(code) > 2*pageSize {
			code = code[:2*pageSize]
		}
		at := s.Segments.CS.Base + s.Regs.RIP
		if at+uint64(len(code)) < hostileSize {
			h.write(at, code)
		}
		h.run(500)
	})
}
