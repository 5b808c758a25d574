package image

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

// files is a source that holds everything in memory.
type files map[string][]byte

var errNoFile = errors.New("no such file")

func (f files) Fetch(_ context.Context, name string, off int64, p []byte, check func([]byte) error) error {
	data, ok := f[name]
	if !ok || off+int64(len(p)) > int64(len(data)) {
		return errNoFile
	}
	copy(p, data[off:])
	if check == nil {
		return nil
	}
	return check(p)
}

func (f files) Load(_ context.Context, name string, limit int64, check func([]byte) error) ([]byte, error) {
	data, ok := f[name]
	if !ok || int64(len(data)) > limit {
		return nil, errNoFile
	}
	return data, check(data)
}

// published packs a small disk and returns its files.
func published(t testing.TB, key ed25519.PrivateKey) (files, []byte) {
	t.Helper()
	dir := t.TempDir()
	content := make([]byte, 2<<20+512)
	r := rand.New(rand.NewPCG(1, 1))
	disktest.Fill(r, content[:1<<20])
	disktest.Fill(r, content[1500<<10:])
	m, err := disk.NewMemory("test", int64(len(content)))
	require.NoError(t, err)
	defer m.Close()
	_, err = m.WriteAt(content, 0)
	require.NoError(t, err)
	_, err = Pack(t.Context(), m, PackConfig{Dir: dir, Key: key, BootProfile: []byte("{}"), PackSize: 300 << 10, Created: time.Unix(1, 0)})
	require.NoError(t, err)
	f := files{}
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	for _, n := range names {
		f[filepath.Base(n)], err = os.ReadFile(n)
		require.NoError(t, err)
	}
	return f, content
}

func open(f files, cfg Config) (*Image, error) {
	return Open(context.Background(), f, "manifest.json", cfg)
}

var unsigned = Config{AllowUnsigned: true}

func TestSignature(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	other, _, err := ed25519.GenerateKey(nil)
	require.NoError(t, err)
	f, _ := published(t, key)
	img, err := open(f, Config{Keys: []ed25519.PublicKey{other, pub}})
	require.NoError(t, err)
	require.Equal(t, pub, img.Signer())
	img, err = open(f, unsigned)
	require.NoError(t, err)
	require.Nil(t, img.Signer(), "a key that nobody named counts for nothing")
	for _, cfg := range []Config{{}, {Keys: []ed25519.PublicKey{other}}, {Keys: []ed25519.PublicKey{nil, {1}}}} {
		_, err = open(f, cfg)
		require.ErrorIs(t, err, ErrSignature)
	}
	bare, _ := published(t, nil)
	_, err = open(bare, Config{Keys: []ed25519.PublicKey{pub}})
	require.ErrorIs(t, err, ErrSignature)
	require.ErrorContains(t, err, "manifest.json")

	// Any change of the payload, and any of the signature, is noticed, also
	// where unsigned images are allowed.
	var e envelope
	require.NoError(t, json.Unmarshal(f["manifest.json"], &e))
	for name, change := range map[string]func(*envelope){
		"payload": func(e *envelope) {
			e.Payload = bytes.Replace(e.Payload, []byte(`"size":2097664`), []byte(`"size":2097663`), 1)
		},
		"signature": func(e *envelope) { e.Signatures[0].Signature[3] ^= 1 },
		"length":    func(e *envelope) { e.Signatures[0].Signature = nil },
	} {
		c := envelope{bytes.Clone(e.Payload), []signature{{e.Signatures[0].Key, bytes.Clone(e.Signatures[0].Signature)}}}
		change(&c)
		g := files{}
		for k, v := range f {
			g[k] = v
		}
		g["manifest.json"], err = json.Marshal(c)
		require.NoError(t, err)
		for _, allow := range []bool{false, true} {
			_, err = open(g, Config{Keys: []ed25519.PublicKey{pub}, AllowUnsigned: allow})
			require.ErrorIs(t, err, ErrSignature, name)
		}
	}
}

func TestHostileManifest(t *testing.T) {
	f, _ := published(t, nil)
	img, err := open(f, unsigned)
	require.NoError(t, err)
	base := img.Manifest()
	for name, c := range map[string]struct {
		change func(*Manifest)
		want   error
	}{
		"format":          {func(m *Manifest) { m.Format = "other" }, ErrVersion},
		"version":         {func(m *Manifest) { m.Version = 2 }, ErrVersion},
		"chunking":        {func(m *Manifest) { m.Chunking.Max = 1 << 30 }, ErrVersion},
		"compression":     {func(m *Manifest) { m.Compression = "xz" }, ErrVersion},
		"negative size":   {func(m *Manifest) { m.Size = -1 }, ErrInvalid},
		"huge size":       {func(m *Manifest) { m.Size = 1 << 62 }, ErrInvalid},
		"label":           {func(m *Manifest) { m.Label = "a\x1b[31m" }, ErrInvalid},
		"parent":          {func(m *Manifest) { m.Parent = "../x" }, ErrInvalid},
		"time":            {func(m *Manifest) { m.Created = m.Created.Add(1) }, ErrInvalid},
		"pack path":       {func(m *Manifest) { m.Packs[0].Name = "../../etc/passwd" }, ErrInvalid},
		"pack name":       {func(m *Manifest) { m.Packs[0].Name = strings.ToUpper(m.Packs[0].Name) }, ErrInvalid},
		"pack size":       {func(m *Manifest) { m.Packs[0].Size = 0 }, ErrInvalid},
		"huge pack":       {func(m *Manifest) { m.Packs[0].Size = 1 << 60 }, ErrInvalid},
		"pack twice":      {func(m *Manifest) { m.Packs = append(m.Packs, m.Packs[0]) }, ErrInvalid},
		"many packs":      {func(m *Manifest) { m.Packs = make([]File, maxPacks+1) }, ErrInvalid},
		"no packs":        {func(m *Manifest) { m.Packs = nil }, ErrInvalid},
		"too few packs":   {func(m *Manifest) { m.Packs = m.Packs[:1] }, ErrInvalid},
		"small packs":     {func(m *Manifest) { m.Packs[1].Size = 100 }, ErrInvalid},
		"index name":      {func(m *Manifest) { m.Index.Name = "x.index" }, ErrInvalid},
		"directory":       {func(m *Manifest) { m.Index.Directory = m.Index.Size + 1 }, ErrInvalid},
		"huge directory":  {func(m *Manifest) { m.Index.Size, m.Index.Directory = 1<<60, 1<<60 }, ErrInvalid},
		"less directory":  {func(m *Manifest) { m.Index.Directory-- }, ErrDamaged},
		"root":            {func(m *Manifest) { m.Index.Root[0]++ }, ErrDamaged},
		"chunks":          {func(m *Manifest) { m.Index.Chunks++ }, ErrInvalid},
		"huge chunks":     {func(m *Manifest) { m.Index.Chunks = 1 << 40 }, ErrInvalid},
		"negative chunks": {func(m *Manifest) { m.Index.Chunks = -1 }, ErrInvalid},
		"data":            {func(m *Manifest) { m.Index.Data-- }, ErrInvalid},
		"much data":       {func(m *Manifest) { m.Index.Data = m.Size + 1 }, ErrInvalid},
		"smaller disk":    {func(m *Manifest) { m.Size -= 512 }, ErrInvalid},
		"profile name":    {func(m *Manifest) { m.BootProfile.Name = "x.profile" }, ErrInvalid},
		"profile size":    {func(m *Manifest) { m.BootProfile.Size = MaxProfile + 1 }, ErrInvalid},
		"profile hash":    {func(m *Manifest) { m.BootProfile.Hash[1]++ }, ErrInvalid},
	} {
		m := base
		m.Packs = append([]File{}, base.Packs...)
		profile := *base.BootProfile
		m.BootProfile = &profile
		c.change(&m)
		payload, err := json.Marshal(m)
		require.NoError(t, err)
		g := files{}
		for k, v := range f {
			g[k] = v
		}
		g["manifest.json"], err = json.Marshal(envelope{payload, []signature{}})
		require.NoError(t, err)
		img, err := open(g, unsigned)
		if err == nil {
			err = img.Scan(t.Context(), func(Chunk) error { return nil })
		}
		require.ErrorIs(t, err, c.want, name)
		fe, ok := errors.AsType[*Error](err)
		require.True(t, ok, "%s: %v", name, err)
		require.NotEmpty(t, fe.Name)
	}
	for name, text := range map[string]string{
		"empty":          "",
		"no JSON":        "<html>",
		"other JSON":     "[]",
		"unknown field":  `{"payload":"","signatures":[],"more":1}`,
		"more text":      string(f["manifest.json"]) + "{}",
		"space":          " " + string(f["manifest.json"]),
		"empty payload":  `{"payload":"","signatures":[]}`,
		"null":           "null",
		"field twice":    `{"payload":"e30=","payload":"","signatures":[]}`,
		"payload fields": strings.Replace(string(f["manifest.json"]), "eyJ", "eyAi", 1),
		"truncated":      string(f["manifest.json"][:100]),
		"deep":           strings.Repeat("[", 1<<20),
	} {
		_, err := open(files{"manifest.json": []byte(text)}, unsigned)
		require.Error(t, err, name)
		require.True(t, errors.Is(err, ErrInvalid) || errors.Is(err, ErrVersion), "%s: %v", name, err)
	}
	// More signatures than one.
	e := envelope{Payload: []byte("{}")}
	for range maxSignatures + 1 {
		e.Signatures = append(e.Signatures, signature{})
	}
	text, err := json.Marshal(e)
	require.NoError(t, err)
	_, err = open(files{"manifest.json": text}, unsigned)
	require.ErrorIs(t, err, ErrInvalid)
}

// rebuilt replaces the index, with hashes that fit.
func rebuilt(t *testing.T, f files, change func(pages [][]byte, counts, spans []int)) (*Image, error) {
	t.Helper()
	img, err := open(f, unsigned)
	require.NoError(t, err)
	m := img.Manifest()
	old := f[m.Index.Name]
	var pages [][]byte
	var counts, spans []int
	for _, r := range img.pages {
		pages = append(pages, bytes.Clone(old[r.off:][:r.len]))
		counts, spans = append(counts, r.end-r.first), append(spans, int(r.stop-r.start))
	}
	change(pages, counts, spans)
	var file, dir []byte
	for i, p := range pages {
		h := sha256.Sum256(p)
		file = append(file, p...)
		dir = binary.AppendUvarint(dir, uint64(len(p)))
		dir = binary.AppendUvarint(dir, uint64(counts[i]))
		dir = binary.AppendUvarint(dir, uint64(spans[i]))
		dir = append(dir, h[:]...)
	}
	file = append(file, dir...)
	h := Hash(sha256.Sum256(file))
	m.Index.Name, m.Index.Size = h.String()+indexSuffix, int64(len(file))
	m.Index.Directory, m.Index.Root = int64(len(dir)), sha256.Sum256(dir)
	payload, err := json.Marshal(m) // seal would refuse some
	require.NoError(t, err)
	text, err := json.Marshal(envelope{payload, []signature{}})
	require.NoError(t, err)
	g := files{"manifest.json": text, m.Index.Name: file}
	if img, err = open(g, unsigned); err != nil {
		return nil, err
	}
	return img, img.Scan(t.Context(), func(Chunk) error { return nil })
}

func TestHostileIndex(t *testing.T) {
	f, content := published(t, nil)
	_, err := rebuilt(t, f, func([][]byte, []int, []int) {})
	require.NoError(t, err)
	// Every byte of the page changed in some ways. Whatever is accepted
	// keeps to the bounds that its users rely on.
	img, err := open(f, unsigned)
	require.NoError(t, err)
	n := img.pages[0].len
	step := 1
	if testing.Short() {
		step = 11
	}
	for i := 0; i < n; i += step {
		for _, v := range []byte{0, 1, 0x7f, 0x80, 0xff} {
			img, err := rebuilt(t, f, func(p [][]byte, _, _ []int) { p[0][i] = v })
			if err != nil {
				require.ErrorIs(t, err, ErrInvalid)
				continue
			}
			end := int64(0)
			require.NoError(t, img.Scan(t.Context(), func(c Chunk) error {
				if c.Off < end || c.End() > int64(len(content)) || c.Len <= 0 || c.Len > MaxChunk || c.PackLen <= 0 ||
					c.PackLen > MaxFrame || c.PackOff < 0 || c.PackOff+int64(c.PackLen) > img.Pack(c.Pack).Size {
					t.Fatalf("byte %d = %#x: %+v", i, v, c)
				}
				end = c.End()
				return nil
			}))
		}
	}
	for name, change := range map[string]func([][]byte, []int, []int){
		"a page of too many":  func(_ [][]byte, c, _ []int) { c[0]++ },
		"a page of too few":   func(_ [][]byte, c, _ []int) { c[0]-- },
		"a page of none":      func(_ [][]byte, c, _ []int) { c[0] = 0 },
		"a page too far":      func(_ [][]byte, _, s []int) { s[0] = 1 << 40 },
		"a page too short":    func(_ [][]byte, _, s []int) { s[0]-- },
		"a page of no blocks": func(_ [][]byte, _, s []int) { s[0] = 0 },
		"a truncated page":    func(p [][]byte, _, _ []int) { p[0] = p[0][:len(p[0])-1] },
		"an empty page":       func(p [][]byte, _, _ []int) { p[0] = nil },
		"a longer page":       func(p [][]byte, _, _ []int) { p[0] = append(p[0], 0) },
		"a huge page":         func(p [][]byte, _, _ []int) { p[0] = append(p[0], make([]byte, maxPage)...) },
		"no short form": func(p [][]byte, _, _ []int) {
			p[0] = append([]byte{p[0][0] | 0x80, 0}, p[0][1:]...)
		},
	} {
		_, err := rebuilt(t, f, change)
		require.ErrorIs(t, err, ErrInvalid, name)
		require.ErrorContains(t, err, ": offset", name)
	}
	// A damaged page of a good image is damaged, with its place.
	name := img.Manifest().Index.Name
	g := files{}
	for k, v := range f {
		g[k] = bytes.Clone(v)
	}
	g[name][100] ^= 4
	img, err = open(g, unsigned)
	require.NoError(t, err)
	_, err = img.Chunk(t.Context(), 0)
	require.ErrorIs(t, err, ErrDamaged)
	require.ErrorContains(t, err, name)
}

// encode makes a frame as any zstd could.
func encode(t testing.TB, p []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, opts...)
	require.NoError(t, err)
	defer e.Close()
	return e.EncodeAll(p, nil)
}

func TestHostileFrame(t *testing.T) {
	content := make([]byte, 100<<10)
	disktest.Fill(rand.New(rand.NewPCG(1, 1)), content)
	frame := encode(t, content, zstd.WithSingleSegment(true))
	chunk := Chunk{Len: len(content), Hash: sha256.Sum256(content), PackLen: len(frame)}
	dst := make([]byte, chunk.Len)
	require.NoError(t, Decode(dst, chunk, frame))
	require.Equal(t, content, dst)

	// A stream without a content size.
	var stream bytes.Buffer
	w, err := zstd.NewWriter(&stream)
	require.NoError(t, err)
	_, err = w.Write(content)
	require.NoError(t, err)
	require.NoError(t, w.Flush())
	require.NoError(t, w.Close())
	skip := append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, frame...)
	bomb := encode(t, make([]byte, 64<<20), zstd.WithSingleSegment(true))
	claim := bytes.Clone(frame)
	half := encode(t, content[:50<<10], zstd.WithSingleSegment(true))
	for name, p := range map[string][]byte{
		"empty":          {},
		"no frame":       []byte("hello, this is no frame at all"),
		"no size":        stream.Bytes(),
		"skippable":      skip,
		"skippable only": skip[:12],
		"bomb":           bomb,
		"two frames":     append(bytes.Clone(half), half...),
		"more":           append(bytes.Clone(frame), half...),
		"truncated":      frame[:len(frame)-1],
		"other content":  encode(t, make([]byte, len(content)), zstd.WithSingleSegment(true)),
		"huge claim":     append(append([]byte{}, claim[:4]...), 0xe0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0),
	} {
		c := chunk
		c.PackLen = len(p)
		require.ErrorIs(t, Decode(dst, c, p), ErrDamaged, name)
	}
	require.ErrorIs(t, Decode(dst, chunk, append(frame, 0)), ErrDamaged)
	require.Error(t, Decode(dst[1:], chunk, frame))
	for i := 0; i < len(frame); i += 7 {
		p := bytes.Clone(frame)
		p[i] ^= 1 << (i % 8)
		if err := Decode(dst, chunk, p); err == nil {
			require.Equal(t, content, dst)
		} else {
			require.ErrorIs(t, err, ErrDamaged)
		}
	}
}

func FuzzManifest(f *testing.F) {
	good, _ := published(f, nil)
	f.Add(good["manifest.json"])
	f.Add([]byte(`{"payload":"e30=","signatures":[]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		m, _, _, err := parseManifest(p, unsigned)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		if m.Size < 0 || m.Size > MaxSize || len(m.Packs) > maxPacks || m.Index.Directory > maxDirectory {
			t.Fatalf("%+v", m)
		}
	})
}

// FuzzPayload is past the envelope, whose base64 hides it from a fuzzer.
func FuzzPayload(f *testing.F) {
	good, _ := published(f, nil)
	var e envelope
	require.NoError(f, json.Unmarshal(good["manifest.json"], &e))
	f.Add(e.Payload)
	f.Fuzz(func(t *testing.T, p []byte) {
		file, err := json.Marshal(envelope{p, []signature{}})
		require.NoError(t, err)
		if _, _, _, err := parseManifest(file, unsigned); err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrVersion) {
			t.Fatal(err)
		}
	})
}

func FuzzIndex(f *testing.F) {
	good, _ := published(f, nil)
	img, err := open(good, unsigned)
	require.NoError(f, err)
	index := good[img.Manifest().Index.Name]
	r := img.pages[0]
	f.Add(index[:r.len], index[r.len:], uint16(r.end), uint32(img.Size()))
	f.Fuzz(func(t *testing.T, page, dir []byte, chunks uint16, size uint32) {
		refs, _, err := parseDirectory(dir, int64(len(page)), int(chunks), blocks(int64(size)))
		if err == nil {
			next := 0
			for _, r := range refs {
				if r.first != next || r.end <= r.first || r.stop-r.start < int64(r.end-r.first) || r.off+int64(r.len) > int64(len(page)) {
					t.Fatalf("%+v", refs)
				}
				next = r.end
			}
		}
		packs := []File{{"a", 1 << 20}, {"b", 3}}
		ref := pageRef{len: len(page), end: int(chunks), stop: blocks(int64(size))}
		list, off, err := parsePage(page, ref, int64(size), packs)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || off < 0 || off > len(page) {
				t.Fatal(off, err)
			}
			return
		}
		end := int64(0)
		for _, c := range list {
			if c.Off < end || c.Len <= 0 || c.Len > MaxChunk || c.End() > int64(size) || c.PackLen <= 0 || c.PackLen > MaxFrame ||
				c.PackOff < 0 || c.PackOff+int64(c.PackLen) > packs[c.Pack].Size {
				t.Fatalf("%+v", c)
			}
			end = c.End()
		}
	})
}

func FuzzFrame(f *testing.F) {
	content := bytes.Repeat([]byte("some content "), 1000)
	f.Add(encode(f, content, zstd.WithSingleSegment(true)), len(content))
	f.Add(encode(f, nil, zstd.WithZeroFrames(true)), 0)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		if n < 0 || n > MaxChunk {
			return
		}
		dst := make([]byte, n)
		c := Chunk{Len: n, PackLen: len(p)}
		if err := Decode(dst, c, p); !errors.Is(err, ErrDamaged) {
			t.Fatal("content without the right hash: ", err)
		}
	})
}

// FuzzCut checks the rules of cutting on any content, and that packing in
// pieces of zero runs makes no difference.
func FuzzCut(f *testing.F) {
	f.Add([]byte{1, 2, 3, 0, 0, 0, 0, 0, 4}, uint16(5))
	f.Add([]byte{1, 0, 0, 0, 1, 0, 0, 0, 0, 1}, uint16(0))
	f.Fuzz(func(t *testing.T, kinds []byte, tail uint16) {
		if len(kinds) > 300 {
			return
		}
		type piece struct{ off, n int64 }
		cut := func(joined bool) (list []piece) {
			c := &cutter{buf: make([]byte, 0, MaxChunk)}
			c.emit = func(off int64, p []byte) ([]byte, error) {
				list = append(list, piece{off, int64(len(p))})
				return make([]byte, 0, MaxChunk), nil
			}
			run := int64(0)
			for i, k := range kinds {
				block := make([]byte, BlockSize)
				if i == len(kinds)-1 && tail%BlockSize > 0 {
					block = block[:tail%BlockSize]
				}
				if k == 0 && joined {
					run++
					continue
				}
				if run > 0 {
					require.NoError(t, c.zero(run))
					run = 0
				}
				for j := range block {
					block[j] = k
				}
				require.NoError(t, c.block(int64(i)*BlockSize, block))
			}
			require.NoError(t, c.zero(run))
			require.NoError(t, c.flush())
			return list
		}
		list := cut(false)
		require.Equal(t, list, cut(true))
		covered := make([]bool, len(kinds))
		for _, p := range list {
			if p.n <= 0 || p.n > MaxChunk || p.off%BlockSize != 0 || kinds[p.off/BlockSize] == 0 {
				t.Fatalf("%+v", list)
			}
			zeros := 0
			for b := p.off / BlockSize; b < p.off/BlockSize+blocks(p.n); b++ {
				if covered[b] {
					t.Fatalf("block %d is in two chunks", b)
				}
				covered[b] = true
				if zeros++; kinds[b] != 0 {
					zeros = 0
				}
				if zeros >= holeBlocks {
					t.Fatalf("a hole inside a chunk: %+v", p)
				}
			}
			if zeros > 0 {
				t.Fatalf("a chunk ends with zeroes: %+v", p)
			}
		}
		for i, k := range kinds {
			if k != 0 && !covered[i] {
				t.Fatalf("block %d is in no chunk", i)
			}
		}
	})
}
