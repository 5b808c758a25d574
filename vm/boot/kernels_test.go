package boot

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// testSegment is a segment of a kernel made for a test.
type testSegment struct {
	base, off, mem uint64
	data           []byte
	noted          bool // also a PT_NOTE
}

// makeELF makes a 64-bit ELF executable, size bytes long or as long as its
// segments need.
func makeELF(entry uint64, size int, segments ...testSegment) []byte {
	b := make([]byte, max(size, 64+56*2*len(segments)))
	copy(b, elf.ELFMAG)
	b[elf.EI_CLASS], b[elf.EI_DATA], b[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	le.PutUint16(b[16:], uint16(elf.ET_EXEC))
	le.PutUint16(b[18:], uint16(elf.EM_X86_64))
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[24:], entry)
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	n := 0
	for _, s := range segments {
		if end := int(s.off) + len(s.data); end > len(b) {
			b = append(b, make([]byte, end-len(b))...)
		}
		copy(b[s.off:], s.data)
		types := []elf.ProgType{elf.PT_LOAD}
		if s.noted {
			types = append(types, elf.PT_NOTE)
		}
		for _, t := range types {
			h := b[64+56*n:]
			le.PutUint32(h, uint32(t))
			le.PutUint64(h[8:], s.off)
			le.PutUint64(h[16:], 0xffffffff80000000+s.base)
			le.PutUint64(h[24:], s.base)
			le.PutUint64(h[32:], uint64(len(s.data)))
			le.PutUint64(h[40:], max(s.mem, uint64(len(s.data))))
			n++
		}
	}
	le.PutUint16(b[56:], uint16(n))
	return b
}

// note makes one ELF note.
func note(name string, kind uint32, desc []byte) []byte {
	b := le.AppendUint32(nil, uint32(len(name)))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, kind)
	b = append(b, name...)
	b = append(b, make([]byte, -len(b)&3)...)
	b = append(b, desc...)
	return append(b, make([]byte, -len(b)&3)...)
}

func xenNote(entry uint32) []byte {
	return note("Xen\x00", xenPhys32Entry, le.AppendUint32(nil, entry))
}

// smallELF has code at 2 MiB and a PVH entry point 0x40 bytes into it.
func smallELF() []byte {
	return makeELF(0x200000, 0,
		testSegment{base: 0x200000, off: 0x1000, data: bytes.Repeat([]byte("kernel text "), 500), mem: 0x4000},
		testSegment{base: 0x300000, off: 0x4000, data: append(note("GNU\x00", 3, make([]byte, 20)), xenNote(0x200040)...), noted: true})
}

// makeBzImage wraps a payload in a kernel of boot protocol 2.15.
func makeBzImage(payload []byte) []byte {
	const setupSects, payloadOff = 4, 0x400
	b := make([]byte, (setupSects+1)*512)
	b[hdrSetupSects] = setupSects
	le.PutUint16(b[hdrBootFlag:], magicBoot)
	b[hdrJump], b[hdrJump+1] = 0xeb, 0x6a
	le.PutUint32(b[hdrMagic:], magicHdrS)
	le.PutUint16(b[hdrVersion:], 0x20f)
	b[hdrLoadFlags] = loadedHigh
	le.PutUint32(b[hdrInitrdMax:], 0x7fffffff)
	le.PutUint32(b[hdrAlignment:], 0x200000)
	b[hdrRelocatable] = 1
	le.PutUint16(b[hdrXLoadFlags:], xlfKernel64)
	le.PutUint32(b[hdrCmdlineSize:], 2047)
	le.PutUint32(b[hdrPayloadOffset:], payloadOff)
	le.PutUint32(b[hdrPayloadLength:], uint32(len(payload)))
	le.PutUint64(b[hdrPrefAddress:], 0x200000)
	le.PutUint32(b[hdrInitSize:], 0x200000)
	code := bytes.Repeat([]byte{0xf4}, payloadOff)
	code = append(code, payload...)
	code = append(code, make([]byte, -len(code)&15)...)
	le.PutUint32(b[hdrSysSize:], uint32(len(code)/16))
	return append(b, code...)
}

func withSize(b []byte, size int) []byte { return le.AppendUint32(b, uint32(size)) }

func packGzip(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w, _ := gzip.NewWriterLevel(&out, gzip.BestSpeed)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// packZstd packs as the kernel's build does: with a window that covers all,
// and without knowing the size in advance.
func packZstd(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(128<<20), zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ReadFrom(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return withSize(out.Bytes(), len(b))
}

// packLZ4 makes a legacy frame.
func packLZ4(b []byte) []byte {
	out := le.AppendUint32(nil, lz4Magic)
	for at := 0; at < len(b); at += lz4BlockSize {
		packed := packLZ4Block(b[at:min(at+lz4BlockSize, len(b))])
		out = le.AppendUint32(out, uint32(len(packed)))
		out = append(out, packed...)
	}
	return withSize(out, len(b))
}

// packLZ4Block is a greedy encoder. It keeps the format's rule that a block
// ends with at least five literals.
func packLZ4Block(b []byte) []byte {
	var out []byte
	length := func(n int) {
		for n -= 15; n >= 255; n -= 255 {
			out = append(out, 255)
		}
		out = append(out, byte(n))
	}
	var table [1 << 14]int // where each hash was last seen, plus one
	start := 0
	for at := 0; at+12 < len(b); {
		v := binary.LittleEndian.Uint32(b[at:])
		h := v * 2654435761 >> 18
		from := table[h] - 1
		table[h] = at + 1
		if from < 0 || at-from > 65535 || binary.LittleEndian.Uint32(b[from:]) != v {
			at++
			continue
		}
		n := 4
		for at+n < len(b)-5 && b[from+n] == b[at+n] {
			n++
		}
		lit := at - start
		out = append(out, byte(min(lit, 15)<<4|min(n-4, 15)))
		if lit >= 15 {
			length(lit)
		}
		out = append(out, b[start:at]...)
		out = append(out, byte(at-from), byte((at-from)>>8))
		if n-4 >= 15 {
			length(n - 4)
		}
		at += n
		start = at
	}
	lit := len(b) - start
	out = append(out, byte(min(lit, 15)<<4))
	if lit >= 15 {
		length(lit)
	}
	return append(out, b[start:]...)
}

// texture returns n bytes with literals, near and far matches, overlapping
// ones, and runs of zeros.
func texture(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 0, n+(1<<17))
	for len(b) < n {
		switch r.IntN(6) {
		case 0:
			for range r.IntN(300) {
				b = append(b, byte(r.Uint32()))
			}
		case 1:
			b = append(b, make([]byte, r.IntN(1<<r.IntN(17)))...)
		case 2, 3:
			if len(b) > 0 {
				from := len(b) - 1 - r.IntN(min(len(b), 1<<r.IntN(17)))
				for i := range r.IntN(100) {
					b = append(b, b[from+i])
				}
			}
		default:
			b = append(b, "the quick brown fox"[:r.IntN(19)]...)
		}
	}
	return b[:n]
}
