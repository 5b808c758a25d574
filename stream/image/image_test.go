package image_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/stream/fetch"
	"github.com/vmkit-go/vmkit/stream/image"
)

func TestRoundTrip(t *testing.T) {
	for seed, size := range []int{0, 1, 4096, 5000, 64 << 10, 3<<20 + 512, 8 << 20, 17<<20 + 4095} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			content := sparse(r, size)
			dir := t.TempDir()
			img, sum := pack(t, content, image.PackConfig{Dir: dir, PackSize: 1 << 20, Label: "x 1"})
			require.EqualValues(t, size, img.Size())
			require.Equal(t, sum.Chunks, img.Chunks())
			require.Equal(t, sum.ID, img.ID())
			require.Equal(t, sum.Packs, img.Packs())
			require.Equal(t, "x 1", img.Manifest().Label)
			requireContent(t, img, content)
			requireRules(t, img, content)
			requirePacks(t, dir)

			// Random ranges, through a reader whose index was not read.
			img, err := image.Open(t.Context(), fetch.Dir(dir), "manifest.json", image.Config{AllowUnsigned: true})
			require.NoError(t, err)
			rd := img.Reader(t.Context())
			for range min(size, 40) {
				off := r.IntN(size)
				p := make([]byte, 1+r.IntN(300<<10))
				n, err := rd.ReadAt(p, int64(off))
				if off+len(p) > size {
					require.Equal(t, io.EOF, err)
					p = p[:size-off]
				} else {
					require.NoError(t, err)
				}
				require.Equal(t, len(p), n)
				require.True(t, bytes.Equal(content[off:][:n], p))
			}
			_, err = rd.ReadAt(make([]byte, 1), int64(size))
			require.Equal(t, io.EOF, err)
		})
	}
}

// requireRules checks every chunk against what the format promises, and Find
// against a search.
func requireRules(t *testing.T, img *image.Image, content []byte) {
	t.Helper()
	end, n := int64(0), 0
	var all []image.Chunk
	require.NoError(t, img.Scan(t.Context(), func(c image.Chunk) error {
		all = append(all, c)
		require.Equal(t, n, c.N)
		require.Zero(t, c.Off%image.BlockSize)
		require.GreaterOrEqual(t, c.Off, end)
		require.Positive(t, c.Len)
		require.LessOrEqual(t, c.Len, image.MaxChunk)
		require.LessOrEqual(t, c.PackLen, image.MaxFrame)
		require.True(t, c.Len%image.BlockSize == 0 || c.End() == img.Size())
		p := content[c.Off:c.End()]
		require.Equal(t, image.Hash(sha256.Sum256(p)), c.Hash)
		require.NotZero(t, p[:min(4096, len(p))], "a chunk starts with a zero block")
		for _, b := range content[end:c.Off] {
			if b != 0 {
				t.Fatalf("content between %d and %d is in no chunk", end, c.Off)
			}
		}
		got, err := img.Chunk(t.Context(), n)
		require.NoError(t, err)
		require.Equal(t, c, got)
		end, n = c.End(), n+1
		return nil
	}))
	require.Equal(t, img.Chunks(), n)
	require.True(t, bytes.Equal(content[end:], make([]byte, int64(len(content))-end)))
	_, err := img.Chunk(t.Context(), n)
	require.Error(t, err)
	_, err = img.Chunk(t.Context(), -1)
	require.Error(t, err)
	for off := int64(0); off < img.Size()+8192; off += 2048 {
		want := 0
		for want < len(all) && all[want].End() <= off {
			want++
		}
		got, err := img.Find(t.Context(), off)
		require.NoError(t, err)
		require.Equal(t, want, got, "at %d", off)
	}
	if len(all) > 0 {
		last := all[len(all)-1].Hash
		ns, err := img.Resolve(t.Context(), []image.Hash{last, {1, 2, 3}, all[0].Hash})
		require.NoError(t, err)
		require.Equal(t, last, all[ns[0]].Hash)
		require.Equal(t, []int{-1, 0}, ns[1:])
	}
}

// requirePacks checks that packs and indexes are named by their hash, that
// nothing else was left, and that zstd itself reads a pack.
func requirePacks(t *testing.T, dir string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	packs := 0
	for _, f := range files {
		p, err := os.ReadFile(filepath.Join(dir, f.Name()))
		require.NoError(t, err)
		hash := fmt.Sprintf("%x", sha256.Sum256(p))
		switch filepath.Ext(f.Name()) {
		case ".pack":
			require.Equal(t, hash+".pack", f.Name())
			if packs++; packs > 2 {
				continue
			}
			cmd := exec.Command("zstd", "-dc")
			cmd.Stdin = bytes.NewReader(p)
			theirs, err := cmd.Output()
			require.NoError(t, err)
			dec, err := zstd.NewReader(nil)
			require.NoError(t, err)
			ours, err := dec.DecodeAll(p, nil)
			require.NoError(t, err)
			require.True(t, bytes.Equal(ours, theirs))
			dec.Close()
		case ".index":
			require.Equal(t, hash+".index", f.Name())
		case ".profile":
		default:
			require.Contains(t, f.Name(), ".json")
		}
	}
}

// The mapper's extents make no difference.
func TestMapper(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	content := sparse(r, 6<<20+100)
	b := memory(t, content)
	_, with := pack(t, content, image.PackConfig{Dir: t.TempDir(), Created: time.Unix(1, 0)})
	for seed := range uint64(4) {
		without, err := image.Pack(t.Context(), extents{b, content, rand.New(rand.NewPCG(seed, 4)), seed == 0},
			image.PackConfig{Dir: t.TempDir(), Created: time.Unix(1, 0), Workers: 3})
		require.NoError(t, err)
		require.Equal(t, with.ID, without.ID)
	}
}

// extents is a disk with a mapper that answers any way that is allowed, or has
// none to speak of.
type extents struct {
	disk.Backend
	content []byte
	r       *rand.Rand
	off     bool
}

func (e extents) Extent(off int64) (disk.Extent, error) {
	if e.off {
		return disk.Extent{Off: off, Len: e.Size() - off, Allocated: true}, nil
	}
	n := int64(1 + e.r.IntN(200_000))
	zero := e.r.IntN(3) > 0
	for i := off; zero && i < min(off+n, e.Size()); i++ {
		if e.content[i] != 0 {
			n = max(i-off, 1)
			zero = i > off
			break
		}
	}
	return disk.Extent{Off: off, Len: min(n, e.Size()-off), Zero: zero}, nil
}

func TestDedupInside(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	part := make([]byte, 4<<20)
	disktest.Fill(r, part)
	content := append(append(bytes.Clone(part), make([]byte, 1<<20)...), part...)
	img, sum := pack(t, content, image.PackConfig{Dir: t.TempDir()})
	requireContent(t, img, content)
	require.EqualValues(t, len(part), sum.UniqueData)
	require.EqualValues(t, 2*len(part), sum.Data)
	require.Equal(t, 2*sum.Unique, sum.Chunks)
}

func TestUpgrade(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	dir := t.TempDir()
	old := make([]byte, 24<<20)
	disktest.Fill(r, old[:20<<20])
	v1, s1 := pack(t, old, image.PackConfig{Dir: dir, PackSize: 4 << 20, Name: "v1.json"})
	// Content moves by blocks, a part goes, a part comes, a block changes.
	now := append(make([]byte, 3*4096), old[:5<<20]...)
	disktest.Fill(r, now[:3*4096])
	now = append(now, old[7<<20:]...)
	extra := make([]byte, 512<<10)
	disktest.Fill(r, extra)
	now = append(now[:10<<20], append(extra, now[10<<20:]...)...)
	now[15<<20]++
	v2, s2 := pack(t, now, image.PackConfig{Dir: dir, Previous: v1, Name: "v2.json"})
	requireContent(t, v2, now)
	requireContent(t, v1, old)
	requireRules(t, v2, now)
	require.Equal(t, v1.ID().String(), v2.Manifest().Parent)
	require.Less(t, s2.NewBytes, int64(512<<10+3*4096+8*image.MaxChunk))
	require.Less(t, s2.NewBytes, s1.NewBytes/5)
	require.Equal(t, 1, s2.NewPacks)

	// The same again adds nothing.
	_, s3 := pack(t, now, image.PackConfig{Dir: dir, Previous: v2, Name: "v3.json"})
	require.Zero(t, s3.New+s3.NewPacks)
	require.Equal(t, s2.Compressed, s3.Compressed)

	// A disk of which nothing is old does not refer to old packs.
	other := make([]byte, 1<<20)
	disktest.Fill(r, other)
	v4, _ := pack(t, other, image.PackConfig{Dir: dir, Previous: v2, Name: "v4.json"})
	require.Equal(t, 1, v4.Packs())
}

func TestBootOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	content := sparse(r, 20<<20)
	first, _ := pack(t, content, image.PackConfig{Dir: t.TempDir()})
	var order []image.Hash
	seen := map[image.Hash]bool{}
	for range 40 {
		c, err := first.Chunk(t.Context(), r.IntN(first.Chunks()))
		require.NoError(t, err)
		if !seen[c.Hash] {
			seen[c.Hash] = true
			order = append(order, c.Hash)
		}
	}
	cfg := image.PackConfig{Dir: t.TempDir(), BootOrder: append([]image.Hash{{9, 9, 9}, order[0]}, order...),
		BootProfile: []byte("the profile"), PackSize: 512 << 10}
	img, sum := pack(t, content, cfg)
	requireContent(t, img, content)
	requireRules(t, img, content)
	p, err := img.BootProfile(t.Context())
	require.NoError(t, err)
	require.Equal(t, "the profile", string(p))

	ns, err := img.Resolve(t.Context(), order)
	require.NoError(t, err)
	pack, off, total := 0, int64(0), int64(0)
	for _, n := range ns {
		c, err := img.Chunk(t.Context(), n)
		require.NoError(t, err)
		if c.Pack != pack {
			require.Equal(t, pack+1, c.Pack)
			require.Equal(t, img.Pack(pack).Size, off, "a boot pack has other chunks too")
			pack, off = c.Pack, 0
		}
		require.Equal(t, off, c.PackOff, "boot chunks are not in order")
		off += int64(c.PackLen)
		total += int64(c.PackLen)
	}
	require.Equal(t, total, sum.BootBytes)

	none, err := first.BootProfile(t.Context())
	require.NoError(t, err)
	require.Nil(t, none)
}

// TestDeterministic packs the same disk with different numbers of workers.
func TestDeterministic(t *testing.T) {
	content := sparse(rand.New(rand.NewPCG(8, 8)), 10<<20)
	var ids []image.Hash
	for _, workers := range []int{1, 2, 7} {
		_, sum := pack(t, content, image.PackConfig{Dir: t.TempDir(), Created: time.Unix(1e9, 5), Workers: workers, PackSize: 1 << 20})
		ids = append(ids, sum.ID)
	}
	require.Equal(t, ids[0], ids[1])
	require.Equal(t, ids[0], ids[2])
}

// A disk of incompressible content, the worst that the index can meet, and one
// of holes after every other block group.
func TestIndexSize(t *testing.T) {
	if testing.Short() {
		t.Skip("compresses much; without -short it does")
	}
	r := rand.New(rand.NewPCG(9, 9))
	for name, fill := range map[string]func([]byte){
		"random": func(p []byte) { rand.NewChaCha8([32]byte{1}).Read(p) },
		"mixed":  func(p []byte) { copy(p, sparse(r, len(p))) },
	} {
		content := make([]byte, 32<<20)
		fill(content)
		img, sum := pack(t, content, image.PackConfig{Dir: t.TempDir(), Level: zstd.SpeedFastest})
		share := float64(sum.Index) / float64(sum.Data)
		mean := sum.Data / int64(sum.Chunks)
		t.Logf("%s: index %.3f %% of %d bytes; chunks of %d bytes", name, 100*share, sum.Data, mean)
		require.LessOrEqual(t, share, 0.003)
		if name == "random" {
			require.InDelta(t, image.AvgChunk, mean, image.AvgChunk/8)
		}
		n := 0
		require.NoError(t, img.Scan(t.Context(), func(image.Chunk) error { n++; return nil }))
		require.Equal(t, sum.Chunks, n)
	}
}

// A small memory for the index means more fetches and the same answers.
func TestIndexMemory(t *testing.T) {
	content := make([]byte, 60<<20)
	for off := 0; off < len(content); off += 20 << 10 {
		disktest.Fill(rand.New(rand.NewPCG(uint64(off), 1)), content[off:][:4096]) // many small chunks
	}
	dir := t.TempDir()
	pack(t, content, image.PackConfig{Dir: dir})
	src := &counting{Dir: fetch.Dir(dir)}
	img, err := image.Open(t.Context(), src, "manifest.json", image.Config{AllowUnsigned: true, IndexMemory: 1})
	require.NoError(t, err)
	require.Equal(t, 3072, img.Chunks())
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 2))
			for range 200 {
				n := r.IntN(img.Chunks())
				c, err := img.Chunk(t.Context(), n)
				if err != nil || c.Off != int64(n)*20<<10 || c.N != n {
					t.Errorf("chunk %d: %+v, %v", n, c, err)
					return
				}
			}
		})
	}
	wg.Wait()
	// One after another, all within a group cost one fetch.
	img, err = image.Open(t.Context(), src, "manifest.json", image.Config{AllowUnsigned: true})
	require.NoError(t, err)
	before := src.fetches()
	for n := range img.Chunks() {
		_, err := img.Chunk(t.Context(), n)
		require.NoError(t, err)
	}
	require.LessOrEqual(t, src.fetches()-before, 3)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		n, err := img.Find(t.Context(), 30<<20)
		if err == nil {
			_, err = img.Chunk(t.Context(), n)
		}
		if err != nil {
			t.Fatal(err)
		}
	}))
}

// counting counts fetches, and loses bytes where told to.
type counting struct {
	fetch.Dir
	mu sync.Mutex
	n  int
}

func (c *counting) fetches() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *counting) Fetch(ctx context.Context, name string, off int64, p []byte, check func([]byte) error) error {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
	return c.Dir.Fetch(ctx, name, off, p, check)
}

func TestPackErrors(t *testing.T) {
	b := memory(t, make([]byte, 1<<20))
	for _, name := range []string{"a/b", "..", "/x", "../x"} {
		_, err := image.Pack(t.Context(), b, image.PackConfig{Dir: t.TempDir(), Name: name})
		require.ErrorContains(t, err, "manifest name")
	}
	_, err := image.Pack(t.Context(), b, image.PackConfig{Dir: t.TempDir(), Label: "a\nb"})
	require.ErrorIs(t, err, image.ErrInvalid)

	// A disk that fails in the middle leaves no manifest.
	dir := t.TempDir()
	content := sparse(rand.New(rand.NewPCG(1, 1)), 8<<20)
	_, err = image.Pack(t.Context(), failing{memory(t, content)}, image.PackConfig{Dir: dir, PackSize: 1 << 20})
	require.ErrorIs(t, err, errFailing)
	left, err := filepath.Glob(filepath.Join(dir, "*.json"))
	require.NoError(t, err)
	require.Empty(t, left)
	left, err = filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, left, "temporary files stay")
	// The packs that were finished are found again.
	img, sum := pack(t, content, image.PackConfig{Dir: dir, PackSize: 1 << 20})
	requireContent(t, img, content)
	packs, err := filepath.Glob(filepath.Join(dir, "*.pack"))
	require.NoError(t, err)
	require.Len(t, packs, sum.Packs)
}

var errFailing = errors.New("bad sector")

type failing struct{ disk.Backend }

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off >= 4<<20 {
		return 0, errFailing
	}
	return f.Backend.ReadAt(p, off)
}

func TestProgress(t *testing.T) {
	content := sparse(rand.New(rand.NewPCG(2, 1)), 30<<20)
	var last image.Progress
	_, sum := pack(t, content, image.PackConfig{Dir: t.TempDir(), Progress: func(p image.Progress) {
		require.GreaterOrEqual(t, p.Done, last.Done)
		last = p
	}})
	require.Empty(t, cmp.Diff(image.Progress{Done: sum.Size, Size: sum.Size, Data: sum.Data, Written: sum.NewBytes}, last))
}
