package profile_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/stream/profile"
)

func hash(n int) [32]byte { return sha256.Sum256([]byte(fmt.Sprint(n))) }

// random makes a profile of runs in which some of 200 chunks were touched.
func random(t *testing.T, seed uint64, runs int) *profile.Profile {
	r := rand.New(rand.NewPCG(seed, 0))
	var all []*profile.Profile
	for range runs {
		p := &profile.Profile{Runs: 1}
		at := time.Duration(0)
		for _, n := range r.Perm(200)[:100] {
			p.Entries = append(p.Entries, profile.Entry{
				Hash: hash(n), At: at, Seen: 1, Phase: []string{"boot", "service"}[r.IntN(2)],
			})
			at += time.Duration(1+r.IntN(1000)) * time.Microsecond
		}
		all = append(all, p)
	}
	m, err := profile.Merge(all...)
	require.NoError(t, err)
	return m
}

func encode(t *testing.T, p *profile.Profile) string {
	var b bytes.Buffer
	n, err := p.WriteTo(&b)
	require.NoError(t, err)
	require.EqualValues(t, b.Len(), n)
	return b.String()
}

func TestRoundTrip(t *testing.T) {
	for _, p := range []*profile.Profile{{}, {Runs: 3}, random(t, 1, 1), random(t, 2, 4)} {
		text := encode(t, p)
		got, err := profile.Read(strings.NewReader(text), "x")
		require.NoError(t, err)
		require.Empty(t, cmp.Diff(p, got))
		require.Equal(t, text, encode(t, got))
	}
}

func TestMergeInAnyOrder(t *testing.T) {
	a, b, c := random(t, 1, 2), random(t, 2, 1), random(t, 3, 3)
	merge := func(p ...*profile.Profile) *profile.Profile {
		m, err := profile.Merge(p...)
		require.NoError(t, err)
		return m
	}
	want := merge(a, b, c)
	require.Equal(t, 6, want.Runs)
	require.NoError(t, want.Check())
	for _, got := range []*profile.Profile{merge(c, b, a), merge(merge(b, c), a), merge(merge(c, a), b), merge(want)} {
		require.Empty(t, cmp.Diff(want, got))
	}
	for _, e := range want.Entries {
		n := 0
		for _, p := range []*profile.Profile{a, b, c} {
			for _, f := range p.Entries {
				if f.Hash == e.Hash {
					n += f.Seen
					require.LessOrEqual(t, e.At, f.At)
				}
			}
		}
		require.Equal(t, n, e.Seen)
	}
}

// sealed is a profile with a right checksum around the given lines.
func sealed(lines ...string) string {
	s := strings.Join(lines, "\n") + "\n"
	return s + fmt.Sprintf("sum %x\n", sha256.Sum256([]byte(s)))
}

func TestBadFiles(t *testing.T) {
	h1, h2 := fmt.Sprintf("%064x", 1), fmt.Sprintf("%064x", 2)
	const magic = "vmkit-profile 1"
	good := sealed(magic, "runs 2", h1+" 10 1 boot", h2+" 10 2 boot")
	_, err := profile.Read(strings.NewReader(good), "x")
	require.NoError(t, err)
	for name, s := range map[string]string{
		"empty":          "",
		"other version":  sealed("vmkit-profile 2", "runs 1"),
		"no runs":        sealed(magic, h1+" 10 1 boot"),
		"negative runs":  sealed(magic, "runs -1"),
		"many runs":      sealed(magic, "runs 99999999"),
		"plus":           sealed(magic, "runs +1"),
		"leading zero":   sealed(magic, "runs 2", h1+" 010 1 boot"),
		"too often seen": sealed(magic, "runs 2", h1+" 10 3 boot"),
		"never seen":     sealed(magic, "runs 2", h1+" 10 0 boot"),
		"late":           sealed(magic, "runs 2", h1+" 86400000001 1 boot"),
		"huge time":      sealed(magic, "runs 2", h1+" 99999999999999999999 1 boot"),
		"short hash":     sealed(magic, "runs 2", h1[1:]+" 10 1 boot"),
		"upper case":     sealed(magic, "runs 2", strings.Repeat("A", 64)+" 10 1 boot"),
		"no phase":       sealed(magic, "runs 2", h1+" 10 1"),
		"empty phase":    sealed(magic, "runs 2", h1+" 10 1 "),
		"bad phase":      sealed(magic, "runs 2", h1+" 10 1 bo/ot"),
		"long phase":     sealed(magic, "runs 2", h1+" 10 1 "+strings.Repeat("a", 33)),
		"long line":      sealed(magic, "runs 2", strings.Repeat("a", 1<<20)),
		"two spaces":     sealed(magic, "runs 2", h1+"  10 1 boot"),
		"carriage":       sealed(magic, "runs 2\r"),
		"order":          sealed(magic, "runs 2", h2+" 10 1 boot", h1+" 10 1 boot"),
		"order of times": sealed(magic, "runs 2", h1+" 11 1 boot", h2+" 10 1 boot"),
		"twice":          sealed(magic, "runs 2", h1+" 10 1 boot", h1+" 11 1 boot"),
		"sum":            strings.Replace(good, " 10 1 ", " 10 2 ", 1),
		"cut":            good[:len(good)-1],
		"cut line":       good[:100],
		"tail":           good + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := profile.Read(strings.NewReader(s), "some.profile")
			require.ErrorIs(t, err, profile.ErrFormat)
			require.ErrorContains(t, err, "some.profile: line ")
		})
	}
	broken := errors.New("broken cable")
	_, err = profile.Read(failing{broken}, "x")
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, profile.ErrFormat)
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzRead(f *testing.F) {
	h := fmt.Sprintf("%064x", 1)
	f.Add([]byte(sealed("vmkit-profile 1", "runs 2", h+" 10 1 boot")))
	f.Add([]byte(sealed("vmkit-profile 1", "runs 0")))
	f.Add([]byte("vmkit-profile 1\nruns 1\nsum "))
	f.Fuzz(func(t *testing.T, data []byte) {
		// A checksum that is right lets the fuzzer see the rest.
		if i := bytes.LastIndex(data, []byte("sum ")); i >= 0 {
			data = fmt.Appendf(data[:i:i], "sum %x\n", sha256.Sum256(data[:i]))
		}
		p, err := profile.Read(bytes.NewReader(data), "x")
		if err != nil {
			require.ErrorIs(t, err, profile.ErrFormat)
			return
		}
		require.Equal(t, string(data), encode(t, p))
	})
}

// layout cuts a disk into chunks of 16 KiB, of which every fourth is zero.
func layout(off int64) ([32]byte, int64, bool, error) {
	n := off / (16 << 10)
	return hash(int(n)), (n + 1) * (16 << 10), n%4 == 3, nil
}

func TestRecorder(t *testing.T) {
	mem, err := disk.NewMemory("m", 1<<20)
	require.NoError(t, err)
	r := profile.NewRecorder(mem)
	read := func(off, n int64) {
		t.Helper()
		_, err := r.ReadAt(make([]byte, n), off)
		require.NoError(t, err)
	}
	chunk := int64(16 << 10)
	read(5*chunk+100, 1)
	read(5*chunk, chunk) // the same chunk once more
	_, err = r.WriteAt(make([]byte, chunk), 8*chunk)
	require.NoError(t, err)
	read(8*chunk, chunk) // overwritten before it was read
	require.NoError(t, r.Mark("service"))
	read(2*chunk-1, 2) // two chunks
	read(3*chunk, 1)   // zeroes
	_, err = r.ReadVAt([][]byte{make([]byte, 10), make([]byte, 4096)}, 10*chunk)
	require.NoError(t, err)
	_, err = r.WriteAt(make([]byte, 10), 12*chunk) // of a page, the rest is needed
	require.NoError(t, err)
	read(12*chunk, 1)
	require.Error(t, r.Mark("a b"))

	p, err := r.Profile(layout)
	require.NoError(t, err)
	require.Equal(t, 1, p.Runs)
	phases := map[[32]byte]string{}
	for _, e := range p.Entries {
		phases[e.Hash] = e.Phase
	}
	require.Equal(t, map[[32]byte]string{
		hash(5): "boot", hash(1): "service", hash(2): "service", hash(10): "service", hash(12): "service",
	}, phases)
	require.Equal(t, hash(5), p.Entries[0].Hash)

	r.Restart()
	p, err = r.Profile(layout)
	require.NoError(t, err)
	require.Zero(t, p.Entries[0].At)

	_, err = r.Profile(func(off int64) (h [32]byte, end int64, zero bool, err error) { return h, off, false, nil })
	require.Error(t, err, "a layout that does not advance")
	bad := errors.New("bad index")
	_, err = r.Profile(func(off int64) (h [32]byte, end int64, zero bool, err error) { return h, 0, false, bad })
	require.ErrorIs(t, err, bad)
}

func TestRecorderIsABackend(t *testing.T) {
	disktest.Run(t, disktest.Maker{
		Seed: 1,
		New: func(t *testing.T, size int64) disk.Backend {
			mem, err := disk.NewMemory("m", size)
			require.NoError(t, err)
			return closing{profile.NewRecorder(mem)}
		},
	})
}

// closing closes the disk below too.
type closing struct{ *profile.Recorder }

func (c closing) Close() error { return c.Backend.Close() }

func ExampleRecorder() {
	img, err := disk.NewMemory("appliance", 1<<20)
	if err != nil {
		fmt.Println(err)
		return
	}
	rec := profile.NewRecorder(img)
	// A guest would read from rec now.
	rec.ReadAt(make([]byte, 512), 0)
	rec.Mark("service")
	rec.ReadAt(make([]byte, 512), 64<<10)

	p, err := rec.Profile(func(off int64) ([32]byte, int64, bool, error) {
		n := off / (64 << 10)
		return hash(int(n)), (n + 1) * (64 << 10), false, nil
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range p.Entries {
		fmt.Println(e.Phase, e.Seen)
	}
	// Output:
	// boot 1
	// service 1
}

func TestAddToFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.profile")
	a, b := random(t, 1, 1), random(t, 2, 2)
	require.NoError(t, profile.AddToFile(path, a))
	require.NoError(t, profile.AddToFile(path, b))
	got, err := profile.ReadFile(path)
	require.NoError(t, err)
	want, err := profile.Merge(a, b)
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(want, got))
	require.NoError(t, os.WriteFile(path, []byte("x"), 0o600))
	require.ErrorIs(t, profile.AddToFile(path, a), profile.ErrFormat, "what is no profile is not replaced")
}
