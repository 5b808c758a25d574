package decode

import (
	"bytes"
	"errors"
	"testing"
)

// FuzzDecode: the length is 1 to 15 and that of the instruction alone, whatever follows.
func FuzzDecode(f *testing.F) {
	for m := range uint8(3) {
		for _, code := range []string{
			"\x90", "\xf3\x0f\x1e\xfa", "\x48\x8b\x84\xc8\x78\x56\x34\x12", "\xc8\x10\x00\x03", "\xea\x01\x02\x03\x04\x05\x06",
			"\xc4\xe2\x78\xf2\xc1", "\xc5\xf8\x77", "\x62\x01\x02\x03\x04\x05", "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90",
			"\x48\xb8\x01\x02\x03\x04\x05\x06\x07\x08", "\x67\x66\x2e\xf0\x48\x81\x84\x25\x01\x02\x03\x04\x05\x06\x07\x08", "\x0f\x3a\x0f\xc1\x08", "\x0f", "",
		} {
			f.Add(m, []byte(code))
		}
	}
	f.Fuzz(func(t *testing.T, mode uint8, code []byte) {
		m := Mode(mode % 3)
		var in, again Inst
		n, err := Decode(code, m, &in)
		if err != nil {
			if !errors.Is(err, ErrShort) && !errors.Is(err, ErrLong) && !errors.Is(err, ErrUndefined) {
				t.Fatal(err)
			}
			if errors.Is(err, ErrShort) && len(code) >= MaxLen {
				t.Fatalf("%x: cut off after %d bytes", code, len(code))
			}
			return
		}
		if n < 1 || n > MaxLen || n > len(code) || int(in.Len) != n {
			t.Fatalf("%x: length %d, %d", code, n, in.Len)
		}
		if k, err := Decode(code[:n:n], m, &again); err != nil || k != n || again != in {
			t.Fatalf("%x: alone %d, %v, %+v, want %+v", code, k, err, again, in)
		}
		more := append(bytes.Clone(code[:n]), 0xff, 0xff)
		if k, err := Decode(more, m, &again); err != nil || k != n || again != in {
			t.Fatalf("%x: with more %d, %v, %+v, want %+v", code, k, err, again, in)
		}
	})
}
