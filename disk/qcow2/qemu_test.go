package qcow2_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// pattern is content with holes, zeroes, text that compresses, and noise.
func pattern(size int64, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 7))
	p := make([]byte, size)
	for off := int64(0); off < size; {
		n := min(size-off, 1+r.Int64N(300<<10))
		switch r.IntN(3) {
		case 0:
			disktest.Fill(r, p[off:off+n])
		case 1:
			word := fmt.Appendf(nil, "cluster %d of %d; ", off, seed)
			for i := off; i < off+n; i++ {
				p[i] = word[int(i)%len(word)]
			}
		}
		off += n
	}
	return p
}

func writeFile(t testing.TB, path string, p []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, p, 0o644))
}

// openPath opens an image file whose backing files may be any.
func openPath(t testing.TB, path string) *qcow2.File {
	t.Helper()
	f, err := qcow2.OpenFile(path, qcow2.FileConfig{Allow: func(string, string) bool { return true }})
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// scribble makes random changes to b and to its model.
func scribble(t testing.TB, b disk.Backend, model []byte, r *rand.Rand, steps int) {
	t.Helper()
	size := int64(len(model))
	for range steps {
		off := r.Int64N(size)
		n := min(size-off, 1+r.Int64N(1<<(6+r.IntN(12))))
		p := model[off : off+n]
		switch r.IntN(8) {
		case 0:
			require.NoError(t, b.WriteZeroes(off, n, r.IntN(2) == 0))
			clear(p)
		case 1:
			require.NoError(t, b.Discard(off, n))
			_, err := b.ReadAt(p, off)
			require.NoError(t, err)
		case 2:
			require.NoError(t, b.Flush())
		default:
			disktest.Fill(r, p)
			_, err := b.WriteAt(p, off)
			require.NoError(t, err)
		}
	}
}

// requireFile has QEMU find the image at path clean and equal to want.
func requireFile(t testing.TB, path string, want []byte) {
	t.Helper()
	requireQEMU(t, "check", "-f", "qcow2", path)
	raw := filepath.Join(t.TempDir(), "want")
	writeFile(t, raw, want)
	requireQEMU(t, "compare", "-f", "qcow2", "-F", "raw", path, raw)
}

// QEMU's images are read, changed, and read by QEMU again.
func TestQEMUImages(t *testing.T) {
	for i, args := range [][]string{
		{"-o", "compat=0.10"},
		{"-o", "compat=0.10,cluster_size=4k", "-c"},
		{"-o", "compat=1.1"},
		{"-o", "cluster_size=512"},
		{"-o", "cluster_size=2M"},
		{"-o", "lazy_refcounts=on"},
		{"-o", "refcount_bits=1"},
		{"-o", "refcount_bits=8,cluster_size=1k"},
		{"-o", "refcount_bits=64,preallocation=metadata"},
		{"-c"},
		{"-c", "-o", "cluster_size=512"},
		{"-c", "-o", "compression_type=zstd"},
		{"-c", "-o", "compression_type=zstd,cluster_size=2M,refcount_bits=4"},
	} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			dir := t.TempDir()
			raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "image")
			model := pattern(5<<20+512, uint64(i))
			writeFile(t, raw, model)
			requireQEMU(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, path)...)
			f := openPath(t, path)
			requireSame(t, model, content(t, f))
			scribble(t, f, model, rand.New(rand.NewPCG(uint64(i), 3)), 120)
			requireSame(t, model, content(t, f))
			require.NoError(t, f.Close())
			requireFile(t, path, model)
		})
	}
}

// Images made here are what QEMU makes of the same options.
func TestQEMUReadsCreated(t *testing.T) {
	for i, cc := range []qcow2.CreateConfig{
		{},
		{Version: 2, ClusterSize: 4096},
		{ClusterSize: 512, RefcountBits: 1},
		{ClusterSize: 2 << 20, RefcountBits: 64},
		{LazyRefcounts: true, Compression: qcow2.Zstd},
	} {
		for _, compress := range []bool{false, true} {
			t.Run(fmt.Sprintf("%+v/%v", cc, compress), func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "image")
				file, err := disk.Create(path, 0, disk.FileConfig{})
				require.NoError(t, err)
				model := pattern(3<<20+512, uint64(i))
				src := memory(t, int64(len(model)))
				_, err = src.WriteAt(model, 0)
				require.NoError(t, err)
				cc.Size = src.Size()
				im := image(t, file, cc, qcow2.Config{})
				require.NoError(t, im.CopyFrom(src, compress))
				requireSame(t, model, content(t, im))
				require.NoError(t, im.Close())
				requireFile(t, path, model)

				var info struct {
					Size    int64 `json:"virtual-size"`
					Cluster int64 `json:"cluster-size"`
					Dirty   bool  `json:"dirty-flag"`
					Format  struct {
						Data map[string]any `json:"data"`
					} `json:"format-specific"`
				}
				require.NoError(t, json.Unmarshal([]byte(requireQEMU(t, "info", "--output=json", path)), &info))
				require.Equal(t, cc.Size, info.Size)
				require.False(t, info.Dirty)
				if cc.ClusterSize > 0 {
					require.Equal(t, cc.ClusterSize, info.Cluster)
				}
				require.Equal(t, cc.Compression.String(), info.Format.Data["compression-type"])
				if cc.Version != 2 {
					require.Equal(t, cc.LazyRefcounts, info.Format.Data["lazy-refcounts"])
					require.EqualValues(t, max(cc.RefcountBits, 1)*map[bool]int{true: 16, false: 1}[cc.RefcountBits == 0],
						info.Format.Data["refcount-bits"])
				}
				// Compressed clusters are overwritten and go on being valid.
				f := openPath(t, path)
				scribble(t, f, model, rand.New(rand.NewPCG(uint64(i), 4)), 100)
				require.NoError(t, f.Close())
				requireFile(t, path, model)
			})
		}
	}
}

// A clone of a clone, the lower made by QEMU and the upper here.
func TestQEMUChain(t *testing.T) {
	dir := t.TempDir()
	raw, mid, top := filepath.Join(dir, "raw"), filepath.Join(dir, "mid"), filepath.Join(dir, "top")
	model := pattern(6<<20, 1)
	writeFile(t, raw, model)
	requireQEMU(t, "create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", mid)
	f := openPath(t, mid)
	r := rand.New(rand.NewPCG(5, 5))
	scribble(t, f, model, r, 60)
	require.NoError(t, f.Close())
	requireFile(t, mid, model)

	// The upper one is larger than what it covers.
	model = append(model, make([]byte, 1<<20)...)
	file, err := disk.Create(top, 0, disk.FileConfig{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(file, qcow2.CreateConfig{
		Size: int64(len(model)), BackingName: "mid", BackingFormat: "qcow2", ClusterSize: 4096,
	}))
	require.NoError(t, file.Close())
	requireFile(t, top, model)
	f = openPath(t, top)
	requireSame(t, model, content(t, f))
	scribble(t, f, model, r, 150)
	requireSame(t, model, content(t, f))
	require.NoError(t, f.Close())
	requireFile(t, top, model)

	t.Run("qemu writes, again read here", func(t *testing.T) {
		requireQEMU(t, "bench", "-w", "-q", "-f", "qcow2", "-c", "50", "-s", "5000", "-S", "70000", "--pattern", "77", top)
		f := openPath(t, top)
		got := content(t, f)
		require.NoError(t, f.Close())
		requireFile(t, top, got)
		model = got
	})
	t.Run("grow and shrink", func(t *testing.T) {
		f := openPath(t, top)
		require.NoError(t, f.Resize(2<<20+512))
		scribble(t, f, model[:2<<20+512], r, 20)
		require.NoError(t, f.Resize(40<<20))
		model = append(model[:2<<20+512:2<<20+512], make([]byte, 38<<20-512)...)
		requireSame(t, model, content(t, f))
		scribble(t, f, model, r, 20)
		require.NoError(t, f.Close())
		requireFile(t, top, model)
	})
	t.Run("rebase", func(t *testing.T) {
		other := filepath.Join(dir, "other")
		writeFile(t, other, pattern(9<<20, 9))
		below, err := disk.Open(other, disk.FileConfig{ReadOnly: true})
		require.NoError(t, err)
		defer below.Close()
		f := openPath(t, top)
		require.NoError(t, f.Rebase(below, "other", "raw"))
		requireSame(t, model, content(t, f))
		scribble(t, f, model, r, 20)
		require.NoError(t, f.Close())
		requireFile(t, top, model)
		f = openPath(t, top)
		require.NoError(t, f.Rebase(nil, "", ""))
		requireSame(t, model, content(t, f))
		require.NoError(t, f.Close())
		requireFile(t, top, model)
		info, err := qcow2.Inspect(openRaw(t, top))
		require.NoError(t, err)
		require.Empty(t, info.BackingName)
	})
}

func openRaw(t testing.TB, path string) *disk.File {
	t.Helper()
	f, err := disk.Open(path, disk.FileConfig{ReadOnly: true})
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func TestCommit(t *testing.T) {
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base"), filepath.Join(dir, "top")
	model := pattern(3<<20, 2)
	raw := filepath.Join(dir, "raw")
	writeFile(t, raw, model)
	requireQEMU(t, "convert", "-f", "raw", "-O", "qcow2", raw, base)
	file, err := disk.Create(top, 0, disk.FileConfig{})
	require.NoError(t, err)
	model = append(model, make([]byte, 1<<20)...)
	require.NoError(t, qcow2.Create(file, qcow2.CreateConfig{Size: int64(len(model)), BackingName: "base", BackingFormat: "qcow2"}))
	require.NoError(t, file.Close())
	open := func() *qcow2.File {
		f, err := qcow2.OpenFile(top, qcow2.FileConfig{
			Chain: []qcow2.Layer{{Path: base, Format: qcow2.FormatQcow2}}, BackingWritable: true,
		})
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	f := open()
	scribble(t, f, model, rand.New(rand.NewPCG(1, 1)), 60)
	require.NoError(t, f.Commit())
	requireSame(t, model, content(t, f))
	require.NoError(t, f.Close())
	requireFile(t, top, model)
	requireFile(t, base, model)
	out := requireQEMU(t, "map", "--output=json", top)
	require.NotContains(t, out, `"depth": 0, "present": true`)
	f = open()
	scribble(t, f, model, rand.New(rand.NewPCG(2, 2)), 10)
	require.NoError(t, f.Close())
	requireFile(t, top, model)
}

// Internal snapshots stay as they are, whatever is written.
func TestSnapshots(t *testing.T) {
	for i, args := range [][]string{{}, {"-c"}, {"-o", "compat=0.10,cluster_size=4k"}, {"-o", "refcount_bits=64"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			dir := t.TempDir()
			raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "image")
			model := pattern(4<<20, uint64(i))
			writeFile(t, raw, model)
			requireQEMU(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, path)...)
			r := rand.New(rand.NewPCG(uint64(i), 9))
			var kept [][]byte
			for k := range 3 {
				requireQEMU(t, "snapshot", "-c", fmt.Sprint("s", k), path)
				kept = append(kept, bytes.Clone(model))
				f := openPath(t, path)
				require.Error(t, f.Resize(1<<20))
				scribble(t, f, model, r, 40)
				requireSame(t, model, content(t, f))
				require.NoError(t, f.Close())
				requireFile(t, path, model)
				file := openRaw(t, path)
				rep, err := qcow2.Check(file, qcow2.CheckConfig{})
				require.NoError(t, err)
				require.NoError(t, file.Close())
				require.Empty(t, rep.Problems)
			}
			for _, k := range []int{1, 0, 2} {
				requireQEMU(t, "snapshot", "-a", fmt.Sprint("s", k), path)
				requireFile(t, path, kept[k])
			}
		})
	}
}

// What Check finds is what QEMU finds, and what it repairs QEMU accepts.
func TestCheckRepairs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "image")
	file, err := disk.Create(path, 0, disk.FileConfig{})
	require.NoError(t, err)
	im := image(t, file, qcow2.CreateConfig{Size: 4 << 20, ClusterSize: 4096}, qcow2.Config{})
	model := pattern(4<<20, 3)
	_, err = im.WriteAt(model, 0)
	require.NoError(t, err)
	require.NoError(t, im.Close())
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for _, c := range []struct {
		name    string
		off, n  int // of refcounts: the block is in the third cluster
		to      byte
		leaks   int64
		corrupt int64
	}{
		{"too high", 2*4096 + 2*100 + 1, 1, 2, 1, 0},
		{"too low", 2*4096 + 2*100, 40, 0, 0, 20},
		{"table gone", 1 * 4096, 8, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := bytes.Clone(good)
			for i := range c.n {
				p[c.off+i] = c.to
			}
			writeFile(t, path, p)
			_, err := qemuImg(t, "check", "-f", "qcow2", path)
			require.Error(t, err)
			f, err := disk.Open(path, disk.FileConfig{})
			require.NoError(t, err)
			defer f.Close()
			r, err := qcow2.Check(f, qcow2.CheckConfig{})
			require.NoError(t, err)
			require.NotEmpty(t, r.Problems)
			if c.corrupt > 0 {
				require.Equal(t, c.corrupt, r.Corruptions)
			}
			if c.leaks > 0 {
				require.Equal(t, c.leaks, r.Leaks)
			}
			r, err = qcow2.Check(f, qcow2.CheckConfig{Repair: true})
			require.NoError(t, err)
			require.Equal(t, r.Corruptions+r.Leaks, r.Repaired)
			r, err = qcow2.Check(f, qcow2.CheckConfig{})
			require.NoError(t, err)
			require.Empty(t, r.Problems)
			require.NoError(t, f.Close())
			requireFile(t, path, model)
			g := openPath(t, path)
			scribble(t, g, bytes.Clone(model), rand.New(rand.NewPCG(1, 1)), 30)
			require.NoError(t, g.Close())
			requireQEMU(t, "check", path)
		})
	}
}
