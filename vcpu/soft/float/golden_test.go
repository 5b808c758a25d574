package float

import (
	"encoding/binary"
	"hash/fnv"
	"testing"
)

// Every host gives the same results: all instructions on the same operands are
// hashed. Beside an amd64, where they are compared with the processor's, the hash
// proves them for other architectures.
func TestGolden(t *testing.T) {
	h := fnv.New64a()
	var buf []byte
	s := source{newRand(1)}
	for _, c := range append(x87Cases(), transCases()...) {
		for range 2000 {
			a := s.f80(nil)
			b := s.f80(&a)
			o := outcome{st0: a, st1: b, mem: s.memFor(c.name)}
			e := X87{CW: s.cw()}
			c.soft(&e, &o)
			buf = binary.LittleEndian.AppendUint64(buf[:0], o.st0.Mant)
			buf = binary.LittleEndian.AppendUint16(buf, o.st0.SE)
			buf = binary.LittleEndian.AppendUint64(buf, o.st1.Mant)
			buf = binary.LittleEndian.AppendUint16(buf, o.st1.SE)
			buf = append(buf, o.mem[:]...)
			buf = binary.LittleEndian.AppendUint16(buf, e.SW)
			h.Write(append(buf, o.zpc))
		}
	}
	for _, c := range sseCases() {
		for range 2000 {
			v := int64(s.mant(64)) >> s.IntN(64)
			var a, b uint64
			if c.from != nil {
				a = s.ieee(c.from, nil)
				b = s.ieee(c.from, &a)
			}
			m := s.mxcsr()
			buf = binary.LittleEndian.AppendUint64(buf[:0], c.soft(&m, a, b, v))
			h.Write(binary.LittleEndian.AppendUint32(buf, uint32(m)))
		}
	}
	for range 2000 {
		a := uint32(s.ieee(&binary32, nil))
		buf = binary.LittleEndian.AppendUint32(buf[:0], Rcp32(a))
		h.Write(binary.LittleEndian.AppendUint32(buf, Rsqrt32(a)))
	}
	const want = 0xa042d0792e09683c
	if got := h.Sum64(); got != want {
		t.Errorf("results hash to %#x, want %#x", got, uint64(want))
	}
}

// Nothing allocates.
func TestAllocations(t *testing.T) {
	s := source{newRand(1)}
	cases := append(x87Cases(), transCases()...)
	n := testing.AllocsPerRun(100, func() {
		for i := range cases {
			e := X87{CW: s.cw()}
			a := s.f80(nil)
			switch i % 4 {
			case 0:
				e.Add(a, a)
			case 1:
				e.Sin(a)
			case 2:
				e.YLog2X(a, a)
			case 3:
				e.StoreBCD(a)
			}
			m := s.mxcsr()
			v := s.ieee(&binary64, nil)
			m.Add64(v, v)
			m.Sqrt64(v)
			m.RoundInt64(v, 4)
			Rcp32(uint32(v))
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
