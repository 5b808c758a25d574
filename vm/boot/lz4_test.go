package boot

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

// slowLZ4 decodes a block byte by byte, straight from the format's
// description.
func slowLZ4(src []byte, limit int) ([]byte, error) {
	var out []byte
	length := func(n int) (int, bool) {
		if n < 15 {
			return n, true
		}
		for len(src) > 0 {
			b := src[0]
			src = src[1:]
			n += int(b)
			if b != 255 {
				return n, true
			}
		}
		return 0, false
	}
	for {
		if len(src) == 0 {
			return nil, errLZ4Short
		}
		token := src[0]
		src = src[1:]
		lit, ok := length(int(token >> 4))
		if !ok {
			return nil, errLZ4Short
		}
		if lit > len(src) || lit > limit-len(out) {
			return nil, errors.Join(errLZ4Short, errLZ4Long)
		}
		out = append(out, src[:lit]...)
		if src = src[lit:]; len(src) == 0 {
			return out, nil
		}
		if len(src) < 2 {
			return nil, errLZ4Short
		}
		offset := int(src[0]) | int(src[1])<<8
		src = src[2:]
		n, ok := length(int(token & 15))
		if offset == 0 || offset > len(out) {
			return nil, errLZ4Offset
		}
		if n += 4; !ok || n > limit-len(out) {
			return nil, errors.Join(errLZ4Short, errLZ4Long)
		}
		for range n {
			out = append(out, out[len(out)-offset])
		}
	}
}

// decodeAll decodes block src in every way and checks that they agree with
// slowLZ4. limit is the most that the block may make.
func decodeAll(t testing.TB, src []byte, limit int) []byte {
	t.Helper()
	want, wantErr := slowLZ4(src, limit)
	in := section{r: bytes.NewReader(src), size: int64(len(src))}
	check := func(how string, got []byte, err error) {
		t.Helper()
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%s: error %v, want %v", how, err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%s: wrong content", how)
		}
	}
	for _, buf := range []int{2 * lz4Margin, 1000, lz4InBuffer} {
		for _, sparse := range []bool{false, true} {
			const guard = 64
			dst := make([]byte, limit+guard)
			for i := range dst[limit:] {
				dst[limit+i] = 0xee
			}
			z := lz4Decoder{in: in, buf: make([]byte, buf), sparse: sparse}
			n, err := z.decode(dst[:limit:limit])
			check(fmt.Sprintf("in place, buffer %d, sparse %v", buf, sparse), dst[:n], err)
			if !bytes.Equal(dst[limit:], bytes.Repeat([]byte{0xee}, guard)) {
				t.Fatal("wrote past the target")
			}
		}
		var got []byte
		z := lz4Decoder{in: in, buf: make([]byte, buf), emit: func(b []byte) error {
			if len(b) > limit-len(got) {
				return errLZ4Long
			}
			got = append(got, b...)
			return nil
		}}
		n, err := z.decode(make([]byte, 2*lz4History+buf))
		if err == nil && n != len(got) {
			t.Fatalf("window: says %d bytes, made %d", n, len(got))
		}
		check(fmt.Sprintf("window, buffer %d", buf), got, err)
	}
	for _, n := range []int{0, 1, 17, 100, len(want) / 2, len(want)} {
		if wantErr != nil || n > len(want) {
			continue
		}
		dst := make([]byte, n)
		z := lz4Decoder{in: in, buf: make([]byte, 2*lz4Margin), prefix: true}
		got, err := z.decode(dst)
		if got != n || err != nil || !bytes.Equal(dst, want[:n]) {
			t.Fatalf("prefix of %d: got %d bytes, error %v", n, got, err)
		}
	}
	return want
}

func TestLZ4Decode(t *testing.T) {
	for seed := range uint64(20) {
		want := texture(int(seed*seed)*3000, seed)
		if got := decodeAll(t, packLZ4Block(want), len(want)); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: wrong content", seed)
		}
	}
	for name, src := range map[string][]byte{
		"empty":              {},
		"no literals":        {0x50, 1, 2},
		"half an offset":     {0x10, 1, 1},
		"offset zero":        {0x10, 1, 0, 0, 0},
		"offset too far":     {0x10, 1, 2, 0, 0},
		"endless literals":   bytes.Repeat([]byte{0xff}, 1000),
		"endless match":      append([]byte{0x1f, 1, 1, 0}, bytes.Repeat([]byte{0xff}, 1000)...),
		"too long":           append(append([]byte{0x1f, 0, 1, 0}, bytes.Repeat([]byte{0xff}, 1000)...), 0, 0),
		"ends after a match": {0x10, 1, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if decodeAll(t, src, 4096) != nil {
				t.Error("accepted")
			}
		})
	}
}

func FuzzLZ4(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(packLZ4Block(texture(2000, seed)))
	}
	f.Add(packLZ4Block(make([]byte, 100_000)))
	f.Add([]byte{0x1f, 0, 1, 0, 255, 255, 255, 3, 0x50, 1, 2, 3, 4, 5})
	f.Fuzz(func(t *testing.T, src []byte) {
		decodeAll(t, src, 140<<10)
	})
}

func TestReadLZ4FrameRefuses(t *testing.T) {
	good := packLZ4(texture(1000, 1))
	change := func(off int, v uint32) []byte {
		b := bytes.Clone(good)
		le.PutUint32(b[off:], v)
		return b
	}
	read := func(b []byte) error {
		_, err := readLZ4Frame(section{r: bytes.NewReader(b), size: int64(len(b))}, uint64(le.Uint32(b[len(b)-4:])))
		return err
	}
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"magic alone":          good[:4],
		"too short":            good[:10],
		"block too long":       change(4, uint32(len(good))),
		"block far too long":   change(4, 0xffffffff),
		"block of no bytes":    change(4, 0),
		"stray bytes":          change(4, le.Uint32(good[4:])-2),
		"size for more blocks": change(len(good)-4, lz4BlockSize+1),
		"size of nothing":      change(len(good)-4, 0),
	} {
		if read(b) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	two := append(bytes.Clone(good[:len(good)-4]), good[4:]...)
	if read(two) == nil {
		t.Error("more blocks than its size needs: accepted")
	}
}

func BenchmarkLZ4(b *testing.B) {
	want := texture(4<<20, 1)
	src := packLZ4Block(want)
	dst := make([]byte, len(want))
	z := lz4Decoder{in: section{r: bytes.NewReader(src), size: int64(len(src))}, buf: make([]byte, lz4InBuffer)}
	b.SetBytes(int64(len(want)))
	for b.Loop() {
		z.at = 0
		if _, err := z.decode(dst); err != nil {
			b.Fatal(err)
		}
	}
}
