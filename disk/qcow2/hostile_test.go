package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// Where the tables are in what victim returns: clusters of 512 bytes.
const (
	victimCluster  = 512
	victimRefTable = 1 * victimCluster
	victimBlock    = 2 * victimCluster
	victimL1       = 3 * victimCluster
	victimSize     = 64 << 10
)

// victim is a small sound image with data, compressed and zero clusters.
func victim(t testing.TB, cc qcow2.CreateConfig) []byte {
	t.Helper()
	m := keep{memory(t, 0)}
	if cc.ClusterSize == 0 {
		cc.ClusterSize = victimCluster
	}
	cc.Size = victimSize
	im := image(t, m, cc, qcow2.Config{})
	p := bytes.Repeat([]byte("data"), 4*int(cc.ClusterSize)/4)
	_, err := im.WriteAt(p, 0)
	require.NoError(t, err)
	require.NoError(t, im.WriteCompressedAt(p[:cc.ClusterSize], 4*cc.ClusterSize))
	require.NoError(t, im.WriteCompressedAt(p[:cc.ClusterSize], 5*cc.ClusterSize))
	if cc.Version != 2 {
		require.NoError(t, im.WriteZeroes(cc.ClusterSize, cc.ClusterSize, true))
	}
	require.NoError(t, im.Close())
	return content(t, m.Memory)
}

func holding(t testing.TB, p []byte) *disk.Memory {
	t.Helper()
	m := memory(t, int64(len(p)))
	_, err := m.WriteAt(p, 0)
	require.NoError(t, err)
	return m
}

func TestHostileImages(t *testing.T) {
	good := victim(t, qcow2.CreateConfig{})
	be := binary.BigEndian
	l2 := int64(be.Uint64(good[victimL1:]) &^ (1 << 63))
	put32 := func(off int, v uint32) func([]byte) []byte {
		return func(p []byte) []byte { be.PutUint32(p[off:], v); return p }
	}
	put64 := func(off int64, v uint64) func([]byte) []byte {
		return func(p []byte) []byte { be.PutUint64(p[off:], v); return p }
	}
	const copied = 1 << 63
	for _, c := range []struct {
		name   string
		change func([]byte) []byte
		want   error
		text   string // in the error
	}{
		{"empty", func(p []byte) []byte { return nil }, qcow2.ErrCorrupt, "no qcow2 header at offset 0"},
		{"raw", func(p []byte) []byte { return make([]byte, 4096) }, qcow2.ErrCorrupt, "no qcow2 header"},
		{"cut in the header", func(p []byte) []byte { return p[:100] }, qcow2.ErrCorrupt, "cut short"},
		{"cut behind the header", func(p []byte) []byte { return p[:512] }, qcow2.ErrCorrupt, "offset 40 "},
		{"version 1", put32(4, 1), errors.ErrUnsupported, "version 1"},
		{"version 4", put32(4, 4), errors.ErrUnsupported, "version 4"},
		{"tiny clusters", put32(20, 8), qcow2.ErrCorrupt, "offset 20 "},
		{"huge clusters", put32(20, 63), qcow2.ErrCorrupt, "offset 20 "},
		{"cluster bits that overflow", put32(20, math.MaxUint32), qcow2.ErrCorrupt, "offset 20 "},
		{"huge disk", put64(24, 1<<62), qcow2.ErrCorrupt, "offset 36 "},
		{"disk size that overflows", put64(24, math.MaxUint64), qcow2.ErrCorrupt, "offset 24 "},
		{"encrypted", put32(32, 2), errors.ErrUnsupported, "encryption method 2"},
		{"L1 table too short", put32(36, 1), qcow2.ErrCorrupt, "offset 36 "},
		{"L1 table too long", put32(36, math.MaxUint32), qcow2.ErrCorrupt, "offset 40 "},
		{"L1 table past the end", put32(36, 1<<20), qcow2.ErrCorrupt, "past the end"},
		{"L1 table in the header", put64(40, 0), qcow2.ErrCorrupt, "offset 40 "},
		{"L1 table in the refcount table", put64(40, victimRefTable), qcow2.ErrCorrupt, "the L1 table and the refcount table"},
		{"L1 table misaligned", put64(40, victimL1+8), qcow2.ErrCorrupt, "offset 40 "},
		{"refcount table in the header", put64(48, 0), qcow2.ErrCorrupt, "offset 48 "},
		{"refcount table past the end", put64(48, 1<<40), qcow2.ErrCorrupt, "past the end"},
		{"refcount table beyond the format", put64(48, 1<<63), qcow2.ErrCorrupt, "offset 48 "},
		{"no refcount table", put32(56, 0), qcow2.ErrCorrupt, "offset 56 "},
		{"huge refcount table", put32(56, 1<<31), qcow2.ErrCorrupt, "offset 56 "},
		{"too many snapshots", put32(60, 1<<30), qcow2.ErrCorrupt, "offset 60 "},
		{"snapshots nowhere", put32(60, 1), qcow2.ErrCorrupt, "offset 64 "},
		{"snapshots that are none", func(p []byte) []byte { return put64(64, uint64(l2))(put32(60, 9)(p)) }, qcow2.ErrCorrupt, "snapshot 0"},
		{"external data", put64(72, 1<<2), errors.ErrUnsupported, "external data file"},
		{"extended L2", put64(72, 1<<4), errors.ErrUnsupported, "extended L2 entries"},
		{"unknown feature", put64(72, 1<<40), errors.ErrUnsupported, "incompatible feature 40"},
		{"corrupt", put64(72, 1<<1), qcow2.ErrCorrupt, "marked"},
		{"unknown compression", func(p []byte) []byte { p[104] = 7; return put64(72, 1<<3)(p) }, errors.ErrUnsupported, "compression type 7"},
		{"wide refcounts", put32(96, 7), qcow2.ErrCorrupt, "offset 96 "},
		{"short header", put32(100, 72), qcow2.ErrCorrupt, "offset 100 "},
		{"long header", put32(100, 1<<20), qcow2.ErrCorrupt, "offset 100 "},
		{"huge extension", put32(116, 1<<30), qcow2.ErrCorrupt, "extension"},
		{"backing name past its cluster", func(p []byte) []byte { return put64(8, 500)(put32(16, 100)(p)) }, qcow2.ErrCorrupt, "offset 8 "},
		{"backing name too long", func(p []byte) []byte { return put64(8, 112)(put32(16, 1<<31)(p)) }, qcow2.ErrCorrupt, "offset 8 "},
		{"backing name not allowed", func(p []byte) []byte { copy(p[500:], "/etc/shadow"); return put64(8, 500)(put32(16, 11)(p)) }, qcow2.ErrBacking, "/etc/shadow"},
		{"L2 table is the L1 table", put64(victimL1, victimL1|copied), qcow2.ErrCorrupt, "the L1 table and L2 table 0"},
		{"L2 table is the header", put64(victimL1, copied), qcow2.ErrCorrupt, "L1 entry 0"},
		{"L2 table twice", put64(victimL1+8, uint64(l2)|copied), qcow2.ErrCorrupt, "L2 table 0 and L2 table 1"},
		{"L2 table misaligned", put64(victimL1, uint64(l2+8)|copied), qcow2.ErrCorrupt, fmt.Sprintf("offset %d ", victimL1)},
		{"L2 table past the end", put64(victimL1, 1<<50|copied), qcow2.ErrCorrupt, "past the end"},
		{"refcount block is the table", put64(victimRefTable, victimRefTable), qcow2.ErrCorrupt, "refcount block 0"},
		{"refcount block twice", put64(victimRefTable+8, victimBlock), qcow2.ErrCorrupt, "refcount block 0 and refcount block 1"},
		{"refcount block past the end", put64(victimRefTable, 1<<50), qcow2.ErrCorrupt, "refcount table entry 0"},
		// Found when the entry is used.
		{"data in the header", put64(l2, copied), qcow2.ErrCorrupt, fmt.Sprintf("offset %d ", l2)},
		{"data in the L1 table", put64(l2, victimL1|copied), qcow2.ErrCorrupt, "where a table is"},
		{"data in an L2 table", put64(l2, uint64(l2)|copied), qcow2.ErrCorrupt, "where a table is"},
		{"data in a refcount block", put64(l2, victimBlock|copied), qcow2.ErrCorrupt, "where a table is"},
		{"data misaligned", put64(l2, uint64(l2+8)|copied), qcow2.ErrCorrupt, fmt.Sprintf("offset %d ", l2)},
		{"data past the end", put64(l2, 1<<50|copied), qcow2.ErrCorrupt, "past the end"},
		{"reserved bits", put64(l2, 1<<57|copied), qcow2.ErrCorrupt, "reserved"},
		{"compressed data past the end", put64(l2, 1<<62|1<<50), qcow2.ErrCorrupt, "past the end"},
		{"compressed data in the L1 table", put64(l2, 1<<62|victimL1), qcow2.ErrCorrupt, "where a table is"},
		{"compressed and copied", put64(l2, 1<<62|1<<63|uint64(l2+victimCluster)), qcow2.ErrCorrupt, "copied flag"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := holding(t, c.change(bytes.Clone(good)))
			im, err := qcow2.Open(file, qcow2.Config{})
			if err == nil {
				_, err = im.ReadAt(make([]byte, 2048), 0)
				require.Error(t, err)
				_, werr := im.WriteAt(make([]byte, 100), 0)
				require.ErrorIs(t, werr, c.want)
				require.ErrorIs(t, im.Discard(0, 512), c.want)
			}
			require.ErrorIs(t, err, c.want)
			de, ok := errors.AsType[*disk.Error](err)
			require.True(t, ok)
			require.Equal(t, "memory", de.Name, "the error names the file")
			require.ErrorContains(t, err, c.text)
			if errors.Is(c.want, qcow2.ErrCorrupt) && c.name != "corrupt" {
				r, err := qcow2.Check(file, qcow2.CheckConfig{})
				require.NoError(t, err)
				require.NotZero(t, r.Corruptions)
			}
		})
	}
}

// Tables and data that two entries share: nothing is known to be right, but
// nothing breaks, and Check finds it.
func TestHostileSharing(t *testing.T) {
	good := victim(t, qcow2.CreateConfig{})
	be := binary.BigEndian
	l2 := be.Uint64(good[victimL1:]) &^ (1 << 63)
	be.PutUint64(good[l2+2*8:], be.Uint64(good[l2:])) // clusters 0 and 2 of the disk
	file := keep{holding(t, good)}
	r, err := qcow2.Check(file, qcow2.CheckConfig{})
	require.NoError(t, err)
	require.NotZero(t, r.Corruptions)
	im, err := qcow2.Open(file, qcow2.Config{})
	require.NoError(t, err)
	require.NoError(t, im.Discard(0, 4*victimCluster))
	err = im.Flush()
	require.ErrorIs(t, err, qcow2.ErrCorrupt)
	require.ErrorContains(t, err, "refcount 1 in use 2 times")
	_, err = im.WriteAt([]byte{1}, 0)
	require.ErrorIs(t, err, qcow2.ErrCorrupt, "a damaged image is not written any more")
	im.Close()
	_, err = qcow2.Open(file, qcow2.Config{})
	require.ErrorContains(t, err, "marked")
	r, err = qcow2.Check(file, qcow2.CheckConfig{Repair: true})
	require.NoError(t, err)
	require.Equal(t, r.Corruptions+r.Leaks, r.Repaired)
	requireClean(t, file.Memory)
	im, err = qcow2.Open(file, qcow2.Config{})
	require.NoError(t, err)
	require.NoError(t, im.Close())
}

// Compressed data that would inflate without end fills one cluster and no more.
func TestHostileCompression(t *testing.T) {
	for _, method := range []qcow2.Compression{qcow2.Zlib, qcow2.Zstd} {
		t.Run(method.String(), func(t *testing.T) {
			cc := qcow2.CreateConfig{ClusterSize: 64 << 10, Compression: method, Size: 1 << 30}
			file := keep{memory(t, 0)}
			im := image(t, file, cc, qcow2.Config{})
			require.NoError(t, im.WriteCompressedAt(make([]byte, 64<<10), 0))
			require.NoError(t, im.Close())
			p := content(t, file.Memory)
			l1 := binary.BigEndian.Uint64(p[40:])
			l2 := binary.BigEndian.Uint64(p[l1:]) &^ (1 << 63)
			e := binary.BigEndian.Uint64(p[l2:])
			at := e & (1<<54 - 1)
			// Every cluster of the disk is the same compressed data.
			for i := uint64(0); i < 8192; i++ {
				binary.BigEndian.PutUint64(p[l2+8*i:], e)
			}
			r := rand.New(rand.NewPCG(1, 1))
			for range 200 {
				q := bytes.Clone(p)
				for range 1 + r.IntN(8) {
					q[at+r.Uint64N(64)] = byte(r.Uint32())
				}
				im, err := qcow2.Open(holding(t, q), qcow2.Config{ReadOnly: true})
				require.NoError(t, err)
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				_, err = im.ReadAt(make([]byte, 10), r.Int64N(512<<20))
				runtime.ReadMemStats(&after)
				require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(32<<20))
				if err != nil {
					require.ErrorIs(t, err, qcow2.ErrCorrupt)
				}
			}
		})
	}
}

// A chain that leads back to itself ends with an error.
func TestChainLoop(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"a", "b"} {
		f, err := disk.Create(filepath.Join(dir, name), 0, disk.FileConfig{})
		require.NoError(t, err)
		require.NoError(t, qcow2.Create(f, qcow2.CreateConfig{Size: 1 << 20, BackingName: []string{"b", "a"}[i], BackingFormat: "qcow2"}))
		require.NoError(t, f.Close())
	}
	_, err := qcow2.OpenFile(filepath.Join(dir, "a"), qcow2.FileConfig{
		File: disk.FileConfig{ReadOnly: true}, Allow: func(string, string) bool { return true },
	})
	require.ErrorContains(t, err, "chain of more than 64 images")
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	require.Less(t, len(open), 64, "files are left open")

	// Nothing is opened because an image says so.
	_, err = qcow2.OpenFile(filepath.Join(dir, "a"), qcow2.FileConfig{})
	require.ErrorIs(t, err, qcow2.ErrBacking)
	asked := ""
	_, err = qcow2.OpenFile(filepath.Join(dir, "a"), qcow2.FileConfig{Allow: func(path, format string) bool {
		asked = path + " " + format
		return false
	}})
	require.ErrorIs(t, err, qcow2.ErrBacking)
	require.Equal(t, filepath.Join(dir, "b")+" qcow2", asked)
}

// FuzzImage opens whatever it is given, and works with it if it opens.
func FuzzImage(f *testing.F) {
	for _, cc := range []qcow2.CreateConfig{
		{}, {Version: 2}, {RefcountBits: 1}, {RefcountBits: 64, Compression: qcow2.Zstd}, {LazyRefcounts: true, ClusterSize: 1024},
	} {
		p := victim(f, cc)
		f.Add(p, uint16(0), uint64(0), uint64(1))
		f.Add(p, uint16(72), uint64(1), uint64(2)) // dirty
		f.Add(p, uint16(victimL1), uint64(victimL1)|1<<63, uint64(3))
	}
	f.Fuzz(func(t *testing.T, p []byte, off uint16, patch, seed uint64) {
		if len(p) > 1<<20 {
			return
		}
		if int(off)+8 <= len(p) {
			p = bytes.Clone(p)
			binary.BigEndian.PutUint64(p[off:], patch)
		}
		if _, err := qcow2.Check(holding(t, p), qcow2.CheckConfig{}); err != nil {
			var de *disk.Error
			require.ErrorAs(t, err, &de)
		}
		qcow2.Check(holding(t, p), qcow2.CheckConfig{Repair: true})
		for _, readOnly := range []bool{true, false} {
			im, err := qcow2.Open(holding(t, p), qcow2.Config{ReadOnly: readOnly})
			if err != nil {
				continue
			}
			r := rand.New(rand.NewPCG(seed, 1))
			buf := make([]byte, 8192)
			for range 32 {
				off := r.Int64N(max(1, im.Size()))
				if r.IntN(2) == 0 {
					off = r.Int64N(max(1, min(im.Size(), 64<<10)))
				}
				n := min(int64(r.IntN(len(buf))), im.Size()-off)
				switch r.IntN(9) {
				case 0:
					im.Discard(off, n)
				case 1:
					im.WriteZeroes(off, n, true)
				case 2:
					im.Flush()
				case 3:
					im.Extent(off)
				case 4:
					if im.Size() < 1<<30 {
						im.Resize(r.Int64N(1<<20) &^ 511)
					}
				case 5, 6:
					im.WriteAt(buf[:n], off)
				default:
					im.ReadAt(buf[:n], off)
				}
			}
			im.Close()
		}
	})
}
