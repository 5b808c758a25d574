package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/qcow2"
)

// rounds is how often a test with crashes in it repeats: n, or VMKIT_SOAK if
// that is more.
func rounds(t *testing.T, n int) int {
	if testing.Short() {
		n = max(1, n/4)
	}
	if s := os.Getenv("VMKIT_SOAK"); s != "" {
		k, err := strconv.Atoi(s)
		require.NoError(t, err)
		n = max(n, k)
	}
	return n
}

// crashModel knows what each 512-byte sector of a disk may hold after a power
// cut: what it held at the last flush, or anything written since.
type crashModel struct {
	now     []byte
	may     map[int64][][]byte // sector -> contents written since the flush
	durable []byte
}

const crashSector = 512

func newCrashModel(p []byte) *crashModel {
	return &crashModel{now: bytes.Clone(p), durable: bytes.Clone(p), may: map[int64][][]byte{}}
}

func (m *crashModel) change(off int64, p []byte) {
	copy(m.now[off:], p)
	for s := off &^ (crashSector - 1); s < off+int64(len(p)); s += crashSector {
		m.may[s] = append(m.may[s], bytes.Clone(m.now[s:min(s+crashSector, int64(len(m.now)))]))
	}
}

func (m *crashModel) flushed() {
	copy(m.durable, m.now)
	clear(m.may)
}

// adopt checks what a disk holds after a crash, and goes on from there.
func (m *crashModel) adopt(t *testing.T, got []byte) {
	t.Helper()
	for s := int64(0); s < int64(len(got)); s += crashSector {
		p := got[s:min(s+crashSector, int64(len(got)))]
		ok := bytes.Equal(p, m.durable[s:s+int64(len(p))])
		for _, v := range m.may[s] {
			ok = ok || bytes.Equal(p, v)
		}
		if !ok {
			t.Fatalf("sector at %d holds neither what was flushed nor anything written since (%d times)", s, len(m.may[s]))
		}
	}
	copy(m.now, got)
	m.flushed()
}

// A power cut at any moment leaves an image without corruption, in which every
// sector holds what was flushed last or something written since.
func TestPowerCut(t *testing.T) {
	for i, v := range []struct {
		cc        qcow2.CreateConfig
		backing   bool
		snapshots bool
	}{
		{cc: qcow2.CreateConfig{ClusterSize: 4096}, backing: true},
		{cc: qcow2.CreateConfig{ClusterSize: 512}},
		{cc: qcow2.CreateConfig{ClusterSize: 512, Version: 2}, backing: true},
		{cc: qcow2.CreateConfig{}, backing: true},
		{cc: qcow2.CreateConfig{ClusterSize: 1024, LazyRefcounts: true}, backing: true},
	} {
		t.Run(fmt.Sprintf("%d", i), func(t *testing.T) {
			t.Parallel()
			const size = 1 << 20
			r := rand.New(rand.NewPCG(uint64(i), 20))
			n := rounds(t, 8)
			for round := range n {
				if round > 0 && round%100 == 0 {
					t.Logf("%d of %d rounds", round, n)
				}
				base, model := filled(t, size*2/3, uint64(i))
				model = append(model, make([]byte, size-len(model))...)
				cc, c := v.cc, qcow2.Config{CacheSize: 1}
				cc.Size = size
				if v.backing {
					cc.BackingName, cc.BackingFormat, c.Backing = "/dev/null", "raw", base
				} else {
					clear(model)
				}
				file := disktest.NewVolatile("image", 0)
				require.NoError(t, qcow2.Create(file, cc))
				require.NoError(t, file.Flush())
				m := newCrashModel(model)
				for cut := range 12 {
					file.CutAfter(r.IntN(1 << (1 + r.IntN(9))))
					im, err := qcow2.Open(file, c)
					if err == nil {
						err = crashSteps(im, m, r)
					}
					require.ErrorIs(t, err, disktest.ErrPowerCut)
					if im != nil {
						im.Close()
					}
					file = file.Reboot(r)
					rep, err := qcow2.Check(file, qcow2.CheckConfig{})
					require.NoError(t, err)
					if !cc.LazyRefcounts {
						require.Zero(t, rep.Corruptions, "cut %d: %v", cut, rep.Problems)
					}
					if cut%4 == 0 && !cc.LazyRefcounts {
						requireQEMUNoErrors(t, file)
					}
					im, err = qcow2.Open(file, c)
					require.NoError(t, err)
					m.adopt(t, content(t, im))
					require.NoError(t, im.Flush())
					if cc.Version != 2 {
						// Leaks were given back as well.
						rep, err = qcow2.Check(file, qcow2.CheckConfig{})
						require.NoError(t, err)
						require.Empty(t, rep.Problems)
					}
				}
			}
		})
	}
}

// requireQEMUNoErrors has QEMU find nothing but leaks.
func requireQEMUNoErrors(t *testing.T, b disk.Backend) {
	t.Helper()
	path := save(t, b)
	out, err := qemuImg(t, "check", "-f", "qcow2", path)
	var exit interface{ ExitCode() int }
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
		t.Fatalf("qemu-img check: %v\n%s", err, out)
	}
	// Thousands of rounds would fill the file system before the test ends.
	require.NoError(t, os.RemoveAll(filepath.Dir(path)))
}

// crashSteps changes im at random until it fails.
func crashSteps(im *qcow2.Image, m *crashModel, r *rand.Rand) error {
	size := int64(len(m.now))
	for step := range 4000 {
		off := r.Int64N(size)
		if r.IntN(3) > 0 {
			off &^= 4095
		}
		n := min(size-off, 1+r.Int64N(1<<(4+r.IntN(12))))
		switch k := r.IntN(24); {
		case k == 0:
			if err := im.Flush(); err != nil {
				return err
			}
			m.flushed()
		case k < 3:
			m.change(off, make([]byte, n))
			if err := im.WriteZeroes(off, n, k == 1); err != nil {
				return err
			}
		case k < 5:
			// Reads as it was or as zero: both are in the model then.
			m.change(off, make([]byte, n))
			if err := im.Discard(off, n); err != nil {
				return err
			}
			p := make([]byte, n)
			if _, err := im.ReadAt(p, off); err != nil {
				return err
			}
			m.change(off, p)
		case k == 5 && step%8 == 0:
			if err := im.Close(); err != nil {
				return err
			}
			return errClosedInTime
		default:
			p := make([]byte, n)
			disktest.Fill(r, p)
			m.change(off, p)
			if _, err := im.WriteAt(p, off); err != nil {
				return err
			}
		}
	}
	return errors.New("no power cut came")
}

var errClosedInTime = fmt.Errorf("closed before: %w", disktest.ErrPowerCut)
