package qcow2_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// memory returns a disk in memory.
func memory(t testing.TB, size int64) *disk.Memory {
	t.Helper()
	m, err := disk.NewMemory("memory", size)
	require.NoError(t, err)
	return m
}

// image makes an image in file and opens it.
func image(t testing.TB, file disk.Backend, cc qcow2.CreateConfig, c qcow2.Config) *qcow2.Image {
	t.Helper()
	require.NoError(t, qcow2.Create(file, cc))
	im, err := qcow2.Open(file, c)
	require.NoError(t, err)
	return im
}

// filled returns a disk in memory with random content.
func filled(t testing.TB, size int64, seed uint64) (*disk.Memory, []byte) {
	t.Helper()
	m, p := memory(t, size), make([]byte, size)
	disktest.Fill(rand.New(rand.NewPCG(seed, 0)), p)
	_, err := m.WriteAt(p, 0)
	require.NoError(t, err)
	return m, p
}

func content(t testing.TB, b disk.Backend) []byte {
	t.Helper()
	p := make([]byte, b.Size())
	n, err := b.ReadAt(p, 0)
	require.NoError(t, err)
	require.Equal(t, len(p), n)
	return p
}

func requireSame(t testing.TB, want, got []byte) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	require.Equal(t, len(want), len(got))
	i := 0
	for want[i] == got[i] {
		i++
	}
	t.Fatalf("content differs first at %d: want %#x, got %#x", i, want[i], got[i])
}

// save writes all of b to a new file.
func save(t testing.TB, b disk.Backend) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := disk.Create(path, b.Size(), disk.FileConfig{})
	require.NoError(t, err)
	for off := int64(0); off < b.Size(); {
		e, err := b.(disk.Mapper).Extent(off)
		require.NoError(t, err)
		if !e.Zero {
			_, err = io.Copy(io.NewOffsetWriter(f, off), io.NewSectionReader(b, off, e.Len))
			require.NoError(t, err)
		}
		off += e.Len
	}
	require.NoError(t, f.Close())
	return path
}

// qemuImg runs qemu-img and returns what it says.
func qemuImg(t testing.TB, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatalf("%v (the package qemu-utils is needed: make deps)", err)
	}
	return string(out), err
}

func requireQEMU(t testing.TB, args ...string) string {
	t.Helper()
	out, err := qemuImg(t, args...)
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return out
}

// requireClean has QEMU and Check find nothing wrong, leaks included.
func requireClean(t testing.TB, b disk.Backend) {
	t.Helper()
	r, err := qcow2.Check(b, qcow2.CheckConfig{})
	require.NoError(t, err)
	require.Empty(t, r.Problems)
	requireQEMU(t, "check", "-f", "qcow2", save(t, b))
}

type variant struct {
	name    string
	cc      qcow2.CreateConfig
	backing bool
	fixed   int64 // size of a container that cannot grow
}

func variants() (v []variant) {
	for _, version := range []int{2, 3} {
		for _, backing := range []bool{false, true} {
			for _, cluster := range []int64{512, 4096, 64 << 10, 2 << 20} {
				v = append(v, variant{
					name: fmt.Sprintf("v%d/cluster %d/backing %v", version, cluster, backing), backing: backing,
					cc: qcow2.CreateConfig{Version: version, ClusterSize: cluster},
				})
			}
		}
	}
	return append(v,
		variant{name: "refcounts 1", cc: qcow2.CreateConfig{RefcountBits: 1}},
		variant{name: "refcounts 2", cc: qcow2.CreateConfig{RefcountBits: 2, ClusterSize: 1024}},
		variant{name: "refcounts 64", cc: qcow2.CreateConfig{RefcountBits: 64, ClusterSize: 512}},
		variant{name: "lazy", cc: qcow2.CreateConfig{LazyRefcounts: true, ClusterSize: 4096}},
		variant{name: "fixed", fixed: 16 << 20},
	)
}

// fixed is a container that cannot grow.
type fixed struct{ disk.Backend }

// keep lets a container outlive an image.
type keep struct {
	*disk.Memory
}

func (keep) Close() error { return nil }

func TestConformance(t *testing.T) {
	for i, v := range variants() {
		if testing.Short() && i%4 != 3 {
			continue // each kind of table is met by some of the rest
		}
		t.Run(v.name, func(t *testing.T) {
			files := map[disk.Backend]keep{}
			below := map[disk.Backend]disk.Backend{}
			open := func(t *testing.T, b disk.Backend, readOnly bool) disk.Backend {
				require.NoError(t, b.Close())
				requireClean(t, files[b].Memory)
				im, err := qcow2.Open(files[b], qcow2.Config{ReadOnly: readOnly, Backing: below[b]})
				require.NoError(t, err)
				files[im], below[im] = files[b], below[b]
				return im
			}
			m := disktest.Maker{New: func(t *testing.T, size int64) disk.Backend {
				cc, c := v.cc, qcow2.Config{CacheSize: 1}
				cc.Size = size
				if v.backing {
					cc.BackingName, cc.BackingFormat = "/dev/null", "raw"
					c.Backing = memory(t, size-size/3)
				}
				file := keep{memory(t, v.fixed)}
				var b disk.Backend = file
				if v.fixed > 0 {
					b = fixed{file}
				}
				im := image(t, b, cc, c)
				files[im], below[im] = file, c.Backing
				t.Cleanup(func() {
					require.NoError(t, im.Close())
					requireClean(t, file.Memory)
				})
				return im
			}}
			m.Reopen = func(t *testing.T, b disk.Backend) disk.Backend { return open(t, b, false) }
			m.ReadOnly = func(t *testing.T, b disk.Backend) disk.Backend { return open(t, b, true) }
			disktest.Run(t, m)
		})
	}
}
