package x86diff

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// A corpus is cases with what hardware made of them, for hosts without any: text,
// which is base64 of zstd of
//
//	uvarint number of forms, then each as uvarint length and text
//	cases: seed, place, code, forms as uvarints into that list, outcome
//
// Registers in an outcome are stored where they differ from the input.

// Golden is a case with its outcome on hardware.
type Golden struct {
	Case
	Outcome
}

// ErrCorpus is wrapped by the errors of ReadCorpus.
var ErrCorpus = errors.New("x86diff: damaged corpus")

// WriteCorpus returns the text of a corpus.
func WriteCorpus(cases []Golden) ([]byte, error) {
	ids := map[int]uint64{}
	var names, body []byte
	str := func(b []byte, s []byte) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	for i := range cases {
		g := &cases[i]
		body = binary.LittleEndian.AppendUint64(body, g.Seed)
		body = append(body, byte(g.Place))
		body = str(body, g.Code)
		body = binary.AppendUvarint(body, uint64(len(g.Forms)))
		for _, f := range g.Forms {
			id, ok := ids[f]
			if !ok {
				id = uint64(len(ids))
				ids[f] = id
				names = str(names, []byte(Forms[f].key()))
			}
			body = binary.AppendUvarint(body, id)
		}
		body = binary.AppendVarint(body, int64(g.Vector))
		body = binary.AppendUvarint(body, uint64(g.ErrorCode))
		body = binary.AppendUvarint(body, g.CR2)
		in := g.Case.Input()
		was := flatten(&Outcome{Regs: in.Regs, FX: in.FX})
		now := flatten(&g.Outcome)
		var last int
		for i := 0; i < len(now); {
			if now[i] == was[i] {
				i++
				continue
			}
			j := i
			for j < len(now) && now[j] != was[j] {
				j++
			}
			body = binary.AppendUvarint(body, uint64(i-last)+1)
			body = str(body, now[i:j])
			i, last = j, j
		}
		body = append(body, 0)
		body = binary.AppendUvarint(body, uint64(len(g.Memory)))
		for _, m := range g.Memory {
			body = binary.AppendUvarint(body, m.Addr)
			body = str(body, m.Data)
		}
	}
	raw := append(binary.AppendUvarint(nil, uint64(len(ids))), names...)
	raw = append(raw, body...)
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	text := base64.StdEncoding.EncodeToString(enc.EncodeAll(raw, nil))
	var out bytes.Buffer
	for len(text) > 120 {
		out.WriteString(text[:120] + "\n")
		text = text[120:]
	}
	out.WriteString(text + "\n")
	return out.Bytes(), nil
}

// ReadCorpus reads the text of a corpus. Cases of forms that are no more are
// left out.
func ReadCorpus(text []byte) ([]Golden, error) {
	packed, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorpus, err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	raw, err := dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorpus, err)
	}
	r := corpusReader{b: raw}
	byKey := map[string]int{}
	for i := range Forms {
		byKey[Forms[i].key()] = i
	}
	forms := make([]int, r.count())
	for i := range forms {
		n, ok := byKey[string(r.str())]
		if !ok {
			n = -1
		}
		forms[i] = n
	}
	var out []Golden
	for len(r.b) > 0 && !r.bad {
		var g Golden
		g.Seed = r.u64()
		g.Place = Place(r.take(1)[0])
		g.Code = r.str()
		known := len(g.Code) <= maxCode
		for range r.count() {
			f := r.uvarint()
			if f >= uint64(len(forms)) {
				return nil, ErrCorpus
			}
			known = known && forms[f] >= 0
			g.Forms = append(g.Forms, forms[f])
		}
		g.Vector = int(r.varint())
		g.ErrorCode = uint32(r.uvarint())
		g.CR2 = r.uvarint()
		in := g.Case.Input()
		flat := flatten(&Outcome{Regs: in.Regs, FX: in.FX})
		at := uint64(0)
		for skip := r.uvarint(); skip != 0; skip = r.uvarint() {
			at += skip - 1
			d := r.str()
			if at > uint64(len(flat)) || uint64(len(d)) > uint64(len(flat))-at {
				return nil, ErrCorpus
			}
			copy(flat[at:], d)
			at += uint64(len(d))
		}
		unflatten(&g.Outcome, flat)
		for range r.count() {
			g.Memory = append(g.Memory, Bytes{r.uvarint(), r.str()})
		}
		if known {
			out = append(out, g)
		}
	}
	if r.bad {
		return nil, ErrCorpus
	}
	return out, nil
}

// key names a form for good: its place in the tables may change.
func (f *Form) key() string { return f.Name + " " + f.String() + string(f.size|0x20) }

// flatten puts the registers of an outcome in a row.
func flatten(o *Outcome) []byte {
	le := binary.LittleEndian
	var b []byte
	for _, v := range array(&o.Regs) {
		b = le.AppendUint64(b, v)
	}
	b = le.AppendUint64(b, o.Regs.RIP)
	b = le.AppendUint64(b, o.Regs.RFLAGS)
	return append(b, o.FX[:]...)
}

func unflatten(o *Outcome, b []byte) {
	var g [16]uint64
	for i := range g {
		g[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	o.Regs = registers(&g)
	o.Regs.RIP = binary.LittleEndian.Uint64(b[128:])
	o.Regs.RFLAGS = binary.LittleEndian.Uint64(b[136:])
	copy(o.FX[:], b[144:])
}

// corpusReader reads from b; after the end it reads zeros and is bad.
type corpusReader struct {
	b   []byte
	bad bool
}

func (r *corpusReader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad = true
		r.b = nil
		return make([]byte, min(n, 8))
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

func (r *corpusReader) u64() uint64 { return binary.LittleEndian.Uint64(r.take(8)) }

func (r *corpusReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	r.take(uint64(max(n, 1)))
	return v
}

func (r *corpusReader) varint() int64 {
	v, n := binary.Varint(r.b)
	r.take(uint64(max(n, 1)))
	return v
}

// count reads how many items follow, each of at least a byte.
func (r *corpusReader) count() int {
	n := r.uvarint()
	if n > uint64(len(r.b)) || n > math.MaxInt32 {
		r.bad = true
		return 0
	}
	return int(n)
}

func (r *corpusReader) str() []byte { return r.take(r.uvarint()) }
