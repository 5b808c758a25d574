package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

func TestCreateConfig(t *testing.T) {
	for _, c := range []struct {
		cc   qcow2.CreateConfig
		want string
	}{
		{qcow2.CreateConfig{Version: 4}, "version 4"},
		{qcow2.CreateConfig{Version: 2, LazyRefcounts: true}, "version 2"},
		{qcow2.CreateConfig{Version: 2, Compression: qcow2.Zstd}, "version 2"},
		{qcow2.CreateConfig{ClusterSize: 256}, "cluster size"},
		{qcow2.CreateConfig{ClusterSize: 4 << 20}, "cluster size"},
		{qcow2.CreateConfig{ClusterSize: 1000}, "cluster size"},
		{qcow2.CreateConfig{ClusterSize: -4096}, "cluster size"},
		{qcow2.CreateConfig{Size: 1}, "multiple of 512"},
		{qcow2.CreateConfig{Size: -512}, "multiple of 512"},
		{qcow2.CreateConfig{Size: 1 << 50, ClusterSize: 512}, "larger clusters"},
		{qcow2.CreateConfig{RefcountBits: 3}, "refcounts"},
		{qcow2.CreateConfig{RefcountBits: 128}, "refcounts"},
		{qcow2.CreateConfig{BackingName: "x"}, "want both"},
		{qcow2.CreateConfig{BackingFormat: "raw"}, "want both"},
		{qcow2.CreateConfig{BackingName: string(make([]byte, 9)), BackingFormat: "raw"}, "NUL"},
		{qcow2.CreateConfig{BackingName: string(bytes.Repeat([]byte("x"), 1000)), BackingFormat: "raw", ClusterSize: 512}, "header needs"},
		{qcow2.CreateConfig{Compression: 2}, "compression type 2"},
	} {
		require.ErrorContains(t, qcow2.Create(memory(t, 0), c.cc), c.want)
	}
	// The largest disks, with tables of many clusters.
	for _, cc := range []qcow2.CreateConfig{
		{Size: 2 << 40}, {Size: 1 << 30, ClusterSize: 512, RefcountBits: 64}, {Size: 1 << 60, ClusterSize: 2 << 20},
	} {
		file := keep{memory(t, 0)}
		im := image(t, file, cc, qcow2.Config{})
		p := []byte("at the end")
		_, err := im.WriteAt(p, cc.Size-int64(len(p)))
		require.NoError(t, err)
		require.NoError(t, im.Close())
		requireClean(t, file.Memory)
		im, err = qcow2.Open(file, qcow2.Config{ReadOnly: true})
		require.NoError(t, err)
		got := make([]byte, len(p))
		_, err = im.ReadAt(got, cc.Size-int64(len(p)))
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
}

func TestClonesAreSmall(t *testing.T) {
	const size = 4 << 30
	base := memory(t, size)
	want := bytes.Repeat([]byte("base"), 1000)
	_, err := base.WriteAt(want, 1<<30)
	require.NoError(t, err)
	for i := range 25 {
		file := memory(t, 0)
		clone := image(t, file, qcow2.CreateConfig{Size: size, BackingName: "base", BackingFormat: "raw"}, qcow2.Config{Backing: base})
		require.Less(t, file.Size(), int64(1<<20))
		got := make([]byte, len(want))
		_, err := clone.ReadAt(got, 1<<30)
		require.NoError(t, err)
		require.Equal(t, want, got)
		_, err = clone.WriteAt(fmt.Append(nil, "clone ", i), 1<<30)
		require.NoError(t, err)
		require.NoError(t, clone.Close())
		_, err = base.ReadAt(got, 1<<30)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

// Requests to clusters that are there allocate nothing.
func TestRequestsAllocateNothing(t *testing.T) {
	const size = 8 << 20
	base, _ := filled(t, size, 1)
	im := image(t, memory(t, 0), qcow2.CreateConfig{Size: size, BackingName: "b", BackingFormat: "raw"}, qcow2.Config{Backing: base})
	defer im.Close()
	p := make([]byte, 128<<10)
	for off := int64(0); off < size; off += 256 << 10 {
		_, err := im.WriteAt(p, off)
		require.NoError(t, err)
	}
	bufs := [][]byte{p[:4096], p[4096:5000], p[5000:]}
	for name, fn := range map[string]func() error{
		"read":          func() error { _, err := im.ReadAt(p[:4096], 4096); return err },
		"read mixed":    func() error { _, err := im.ReadAt(p, 64<<10); return err },
		"read vectors":  func() error { _, err := im.ReadVAt(bufs, 64<<10); return err },
		"read at once":  func() error { _, err := im.TryReadVAt(bufs, 0); return err },
		"write":         func() error { _, err := im.WriteAt(p[:4096], 4096); return err },
		"write vectors": func() error { _, err := im.WriteVAt(bufs, 0); return err },
		"write at once": func() error { _, err := im.TryWriteVAt(bufs, 0); return err },
	} {
		t.Run(name, func(t *testing.T) {
			allocs := 1.0
			for try := 0; try < 10 && allocs != 0; try++ { // a pool may just have been emptied
				allocs = testing.AllocsPerRun(50, func() {
					if err := fn(); err != nil {
						t.Fatal(err)
					}
				})
			}
			if !raceEnabled {
				require.Zero(t, allocs)
			}
		})
	}
}

// full is a container with room for some bytes only.
type full struct {
	*disk.Memory
	room int64
}

func (f *full) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.room {
		return 0, &disk.Error{Op: "write", Name: "full", Off: off, Len: int64(len(p)), Err: disk.ErrNoSpace}
	}
	return f.Memory.WriteAt(p, off)
}

func (f *full) WriteVAt(bufs [][]byte, off int64) (int, error) {
	n := 0
	for _, p := range bufs {
		k, err := f.WriteAt(p, off+int64(n))
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// A store that is full fails writes, keeps everything, and lets them go on when
// it has room again.
func TestNoSpace(t *testing.T) {
	const size = 4 << 20
	file := &full{memory(t, 0), 1 << 20}
	im := image(t, struct{ *full }{file}, qcow2.CreateConfig{Size: size, ClusterSize: 4096}, qcow2.Config{})
	model := pattern(size, 1)
	done := int64(0)
	for done < size {
		if _, err := im.WriteAt(model[done:done+8192], done); err != nil {
			require.ErrorIs(t, err, disk.ErrNoSpace)
			require.NoError(t, im.Flush(), "what fits is made durable")
			requireSame(t, model[:done], content(t, im)[:done])
			file.room += 512 << 10
			continue
		}
		done += 8192
	}
	requireSame(t, model, content(t, im))
	im2 := file.Memory
	require.NoError(t, im.Flush())
	r, err := qcow2.Check(im2, qcow2.CheckConfig{})
	require.NoError(t, err)
	require.Zero(t, r.Corruptions, "%v", r.Problems)
}

// Writers of the same new clusters, beside flushes and discards.
func TestConcurrentAllocation(t *testing.T) {
	const size, writers, unit = 4 << 20, 8, 512
	base, model := filled(t, size, 4)
	file := keep{memory(t, 0)}
	im := image(t, file, qcow2.CreateConfig{Size: size, BackingName: "/dev/null", BackingFormat: "raw"}, qcow2.Config{Backing: base, CacheSize: 1})
	var wg sync.WaitGroup
	errs := make([]error, writers+1)
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 6))
			// Every writer has its own sectors of every cluster.
			for range 1500 {
				s := r.IntN(size/unit/writers)*writers + w
				p := model[s*unit:][:unit]
				switch r.IntN(6) {
				case 0:
					clear(p)
					errs[w] = errors.Join(errs[w], im.WriteZeroes(int64(s*unit), unit, true))
				default:
					disktest.Fill(r, p)
					_, err := im.WriteAt(p, int64(s*unit))
					errs[w] = errors.Join(errs[w], err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 100 {
			errs[writers] = errors.Join(errs[writers], im.Flush())
		}
	})
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	requireSame(t, model, content(t, im))
	require.NoError(t, im.Close())
	requireClean(t, file.Memory)
}

// A power cut during what changes the whole image leaves it readable, with the
// same content.
func TestPowerCutDuringMaintenance(t *testing.T) {
	const size = 512 << 10
	for name, fn := range map[string]func(im *qcow2.Image, other disk.Backend) error{
		"grow":     func(im *qcow2.Image, _ disk.Backend) error { return im.Resize(64 << 20) },
		"shrink":   func(im *qcow2.Image, _ disk.Backend) error { return im.Resize(size / 4) },
		"rebase":   func(im *qcow2.Image, other disk.Backend) error { return im.Rebase(other, "/dev/zero", "raw") },
		"detach":   func(im *qcow2.Image, _ disk.Backend) error { return im.Rebase(nil, "", "") },
		"commit":   func(im *qcow2.Image, _ disk.Backend) error { return im.Commit() },
		"compress": func(im *qcow2.Image, other disk.Backend) error { return im.CopyFrom(other, true) },
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 1))
			other, otherModel := filled(t, size, 9)
			for cut := 0; ; cut += 1 + r.IntN(1+cut/4) {
				base, model := filled(t, size*2/3, 8)
				model = append(model, make([]byte, size-len(model))...)
				file := disktest.NewVolatile("image", 0)
				c := qcow2.Config{Backing: base}
				require.NoError(t, qcow2.Create(file, qcow2.CreateConfig{
					Size: size, ClusterSize: 512, BackingName: "/dev/null", BackingFormat: "raw",
				}))
				im, err := qcow2.Open(file, c)
				require.NoError(t, err)
				scribble(t, im, model, r, 30)
				require.NoError(t, im.Flush())
				file.CutAfter(cut)
				err = fn(im, other)
				if err == nil {
					err = im.Flush()
				}
				finished := err == nil
				if !finished {
					require.ErrorIs(t, err, disktest.ErrPowerCut)
				}
				im.Close()
				file = file.Reboot(r)
				info, err := qcow2.Inspect(file)
				require.NoError(t, err)
				switch info.BackingName {
				case "":
					c.Backing = nil
				case "/dev/zero":
					c.Backing = other
				}
				rep, err := qcow2.Check(file, qcow2.CheckConfig{})
				require.NoError(t, err)
				require.Zero(t, rep.Corruptions, "cut %d: %v", cut, rep.Problems)
				im, err = qcow2.Open(file, c)
				require.NoError(t, err)
				got := content(t, im)
				switch {
				case name == "compress":
					// Each sector is the old one or the new.
					m := newCrashModel(model)
					m.change(0, otherModel)
					m.adopt(t, got)
				case len(got) > size:
					requireSame(t, append(bytes.Clone(model), make([]byte, len(got)-size)...), got)
				default:
					requireSame(t, model[:len(got)], got)
				}
				if finished {
					break
				}
			}
		})
	}
}
