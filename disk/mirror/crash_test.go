package mirror_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/mirror"
)

// rounds is how many rounds a crash test runs: few, or VMKIT_SOAK.
func rounds(t testing.TB, few int) int {
	if s := os.Getenv("VMKIT_SOAK"); s != "" {
		n, err := strconv.Atoi(s)
		require.NoError(t, err)
		return n
	}
	if testing.Short() {
		return (few + 3) / 4
	}
	return few
}

const sector = 512

// writer changes the sectors of a stripe, and knows what each may hold after a
// crash: a version that was written since the last flush, or the last before.
// Version 0 is all zeroes.
type writer struct {
	d        disk.Backend
	sure     bool  // no request whose outcome is the disk's choice
	base     int64 // sectors
	n        int64
	versions [][]uint64
	next     uint64
}

func newWriter(base, n int64) *writer {
	w := &writer{base: base, n: n, versions: make([][]uint64, n), next: 1}
	for i := range w.versions {
		w.versions[i] = []uint64{0}
	}
	return w
}

// put fills one sector with a version.
func put(p []byte, sector int64, version uint64) {
	if version == 0 {
		clear(p)
		return
	}
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], uint64(sector)+1)
		binary.LittleEndian.PutUint64(p[i+8:], version)
	}
}

func get(p []byte, sector int64) (uint64, error) {
	version := binary.LittleEndian.Uint64(p[8:])
	var want [512]byte
	put(want[:], sector, version)
	if string(want[:]) != string(p) {
		at := 0
		for want[at] == p[at] {
			at++
		}
		return 0, fmt.Errorf("sector %d is torn or another's: % x and from byte %d on % x", sector, p[:16], at, p[at:min(at+32, len(p))])
	}
	return version, nil
}

// step makes one random request.
func (w *writer) step(r *rand.Rand) error {
	at := r.Int64N(w.n)
	n := min(1+r.Int64N(20), w.n-at)
	if r.IntN(20) == 0 {
		n = min(400, w.n-at)
	}
	add := func(version uint64) {
		for i := range n {
			w.versions[at+i] = append(w.versions[at+i], version)
		}
	}
	off := (w.base + at) * sector
	p := make([]byte, n*sector)
	kind := r.IntN(10)
	if kind == 2 && w.sure {
		kind = 1
	}
	switch kind {
	case 0:
		known := make([]int, w.n)
		for i := range known {
			known[i] = len(w.versions[i]) - 1
		}
		if err := w.d.Flush(); err != nil {
			return err
		}
		for i, k := range known {
			w.versions[i] = w.versions[i][k:]
		}
		return nil
	case 1:
		add(0)
		return w.d.WriteZeroes(off, n*sector, r.IntN(2) == 0)
	case 2:
		if err := w.d.Discard(off, n*sector); err != nil {
			add(0)
			return err
		}
		if _, err := w.d.ReadAt(p, off); err != nil {
			add(0)
			return err
		}
		for i := range n {
			v, err := get(p[i*sector:][:sector], w.base+at+i)
			if err != nil {
				return err
			}
			w.versions[at+i] = append(w.versions[at+i], v)
		}
		return nil
	default:
		add(w.next)
		for i := range n {
			put(p[i*sector:][:sector], w.base+at+i, w.next)
		}
		w.next++
		_, err := w.d.WriteAt(p, off)
		return err
	}
}

// check compares a disk with what may be there, and takes what is there as
// known. If sure, it must be what was written last.
func (w *writer) check(t testing.TB, b disk.Backend, sure bool, msg string) {
	t.Helper()
	p := make([]byte, w.n*sector)
	_, err := b.ReadAt(p, w.base*sector)
	require.NoError(t, err, msg)
	for i := range w.n {
		v, err := get(p[i*sector:][:sector], w.base+i)
		if err != nil {
			t.Fatalf("%s: %v", msg, err)
		}
		may := w.versions[i]
		if sure {
			may = may[len(may)-1:]
		}
		// Not require.Contains, which would be most of what a round costs.
		if !slices.Contains(may, v) {
			t.Fatalf("%s: sector %d holds version %d, want one of %d", msg, w.base+i, v, may)
		}
		w.versions[i] = append(w.versions[i][:0], v)
	}
}

// Source, target and journal lose their power independently of each other, and
// then the host does, again and again while a move is resumed. What was flushed
// is there, on the side that counts, and when a move has caught up both sides
// hold the same.
func TestPowerCuts(t *testing.T) {
	n := rounds(t, 12)
	const lanes = 4 // side by side: a round waits more than it computes
	for lane := range lanes {
		t.Run(strconv.Itoa(lane), func(t *testing.T) {
			t.Parallel()
			for seed := lane; seed < n; seed += lanes {
				powerCuts(t, uint64(seed))
				if done := seed/lanes + 1; done%50 == 0 {
					t.Logf("%d of %d rounds", done, n/lanes)
				}
			}
		})
	}
}

func powerCuts(t *testing.T, seed uint64) {
	const stripes, perStripe = 3, 2048 // a region of the journal each
	const size = stripes * perStripe * sector
	r := rand.New(rand.NewPCG(seed, 7))
	sides := map[string]*disktest.Volatile{"a": disktest.NewVolatile("a", size), "b": disktest.NewVolatile("b", size)}
	small := disktest.NewVolatile("journal", mirror.JournalSize)
	var ws []*writer
	for i := range int64(stripes) {
		ws = append(ws, newWriter(i*perStripe, perStripe))
	}
	current := "a"
	other := map[string]string{"a": "b", "b": "a"}
	for boot := 0; ; boot++ {
		msg := fmt.Sprintf("seed %d boot %d", seed, boot)
		j, err := mirror.OpenJournal(small)
		require.NoError(t, err, msg)
		rec, ok := j.Record()
		if ok {
			current = rec.Current()
			_, err := mirror.New(sides[other[current]], j)
			require.ErrorIs(t, err, mirror.ErrWrongSide, msg)
		}
		d, err := mirror.New(sides[current], j)
		require.NoError(t, err, msg)
		for _, w := range ws {
			w.d = d
			w.check(t, d, false, msg)
		}
		last := boot == 5
		if !last {
			// Now and then several of them survive longer than the test.
			for _, v := range []*disktest.Volatile{sides["a"], sides["b"], small} {
				if r.IntN(2) == 0 {
					v.CutAfter(r.IntN(150))
				}
			}
		}
		var wg sync.WaitGroup
		var stop atomic.Bool
		run := func(i int) {
			wg.Go(func() {
				rw := rand.New(rand.NewPCG(seed, uint64(boot*10+i)))
				for !stop.Load() {
					if err := ws[i].step(rw); err != nil {
						if last {
							t.Errorf("%s: %v", msg, err)
						}
						return
					}
					if rw.IntN(20) == 0 { // so that marks are taken back
						time.Sleep(time.Duration(rw.IntN(12)) * time.Millisecond)
					}
				}
			})
		}
		// Some write before the move is resumed.
		run(0)
		time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
		m, err := d.Start(t.Context(), sides[other[current]], mirror.Config{
			Hold: last || r.IntN(4) > 0, Patience: time.Hour, Checkpoint: time.Duration(1+r.IntN(3)) * time.Millisecond,
			Lag: time.Duration(1 + r.IntN(2)*50_000_000), CapWrites: r.IntN(2) == 0, Rate: int64(r.IntN(2)) << 24,
		})
		if last {
			require.NoError(t, err, msg)
		}
		run(1)
		run(2)
		if last {
			time.Sleep(10 * time.Millisecond)
			stop.Store(true)
			wg.Wait()
			require.Eventually(t, func() bool { p := m.Progress(); return p.Phase == mirror.InStep && p.Left == 0 }, time.Minute, time.Millisecond, msg)
			for _, w := range ws {
				w.check(t, sides[current], true, msg)
				w.check(t, sides[other[current]], true, msg+": target")
			}
			m.Finish()
			require.NoError(t, m.Wait(t.Context()))
			require.NoError(t, d.Close())
			return
		}
		time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
		// The host goes down.
		order := []*disktest.Volatile{sides["a"], sides["b"], small}
		r.Shuffle(3, func(i, k int) { order[i], order[k] = order[k], order[i] })
		for _, v := range order {
			v.Cut()
		}
		stop.Store(true)
		require.NoError(t, d.Close())
		wg.Wait()
		if m != nil {
			_ = m.Wait(t.Context())
		}
		for name, v := range sides {
			sides[name] = v.Reboot(r)
		}
		small = small.Reboot(r)
	}
}
