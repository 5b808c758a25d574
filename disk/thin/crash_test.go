package thin_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
	"github.com/vmkit-go/vmkit/disk/thin"
)

// rounds is the number of rounds of a crash test: that of VMKIT_SOAK, or else
// def; fewer with -short.
func rounds(def int) int {
	if n, err := strconv.Atoi(os.Getenv("VMKIT_SOAK")); err == nil && n > 0 {
		return n
	}
	if testing.Short() {
		return max(1, def/5)
	}
	return def
}

// stamp is what tests write into a sector: whose it is, which, and how often
// it was written. Nothing else but zeroes may ever be read.
type stamp struct{ disk, sector, version uint32 }

func (s stamp) put(p []byte) {
	for ; len(p) > 0; p = p[16:] {
		binary.LittleEndian.PutUint32(p, 0x7a7a0001)
		binary.LittleEndian.PutUint32(p[4:], s.disk)
		binary.LittleEndian.PutUint32(p[8:], s.sector)
		binary.LittleEndian.PutUint32(p[12:], s.version)
	}
}

// parse reads a sector, which must hold a stamp of that disk and place, or
// zeroes, which give version 0.
func parse(p []byte, owner, place uint32) (version uint32, err error) {
	version = binary.LittleEndian.Uint32(p[12:])
	want := make([]byte, len(p))
	if version != 0 {
		stamp{owner, place, version}.put(want)
	}
	if string(want) != string(p) {
		return 0, fmt.Errorf("sector %d of disk %d holds %x", place, owner, p[:16])
	}
	return version, nil
}

// model is what a disk may hold: for each sector the versions that a crash may
// leave, of which the last is what is there without one.
type model struct {
	id      uint32
	sectors [][]uint32
	version uint32
}

func newModel(id uint32, sectors int) *model {
	m := &model{id: id, sectors: make([][]uint32, sectors)}
	for i := range m.sectors {
		m.sectors[i] = []uint32{0}
	}
	return m
}

func (m *model) add(first, n int64, version uint32) {
	for i := first; i < first+n; i++ {
		m.sectors[i] = append(m.sectors[i], version)
	}
}

// flushed says that what is there now is durable.
func (m *model) flushed() {
	for i, v := range m.sectors {
		m.sectors[i] = v[len(v)-1:]
	}
}

// check reads the disk. After a crash any of the versions will do, and what is
// found is taken over.
func (m *model) check(d *thin.Disk, crashed bool) error {
	p := make([]byte, len(m.sectors)*512)
	if d.Size() != int64(len(p)) {
		return fmt.Errorf("disk %d has %d bytes, want %d", m.id, d.Size(), len(p))
	}
	if _, err := d.ReadAt(p, 0); err != nil {
		return err
	}
	for i, allowed := range m.sectors {
		v, err := parse(p[i*512:][:512], m.id, uint32(i))
		if err != nil {
			return err
		}
		if !crashed {
			allowed = allowed[len(allowed)-1:]
		}
		ok := false
		for _, a := range allowed {
			ok = ok || a == v
		}
		if !ok {
			return fmt.Errorf("sector %d of disk %d is of version %d, want one of %v", i, m.id, v, allowed)
		}
		if crashed {
			m.sectors[i] = []uint32{v}
		}
	}
	return nil
}

// step does one random thing to the disk, as the model has it.
func (m *model) step(r *rand.Rand, d *thin.Disk) error {
	n := int64(len(m.sectors))
	first := r.Int64N(n)
	count := 1 + r.Int64N(min(n-first, 40))
	switch r.IntN(10) {
	case 0:
		err := d.Flush()
		if err == nil {
			m.flushed()
		} else if !errors.Is(err, disk.ErrUnavailable) {
			return err
		}
	case 1, 2:
		// Until it is read, the old content or zero.
		m.add(first, count, 0)
		if err := d.Discard(first*512, count*512); err != nil && !errors.Is(err, disk.ErrUnavailable) {
			return err
		}
		return m.note(d, first, count)
	case 3:
		m.add(first, count, 0)
		return m.forgive(d, first, count, d.WriteZeroes(first*512, count*512, r.IntN(3) > 0))
	default:
		m.version++
		p := make([]byte, count*512)
		for i := range count {
			stamp{m.id, uint32(first + i), m.version}.put(p[i*512:][:512])
		}
		m.add(first, count, m.version)
		_, err := d.WriteAt(p, first*512)
		return m.forgive(d, first, count, err)
	}
	return nil
}

// forgive forgives a change that failed for want of space or of the store for
// a moment. Any part of it may have been done; find out.
func (m *model) forgive(d *thin.Disk, first, count int64, err error) error {
	if !errors.Is(err, disk.ErrNoSpace) && !errors.Is(err, disk.ErrUnavailable) {
		return err
	}
	return m.note(d, first, count)
}

// note takes over what a range reads as now.
func (m *model) note(d *thin.Disk, first, count int64) error {
	p := make([]byte, count*512)
	if _, err := d.ReadAt(p, first*512); err != nil {
		return err
	}
	for i := range count {
		v, err := parse(p[i*512:][:512], m.id, uint32(first+i))
		if err != nil {
			return err
		}
		m.sectors[first+i] = append(m.sectors[first+i], v)
	}
	return nil
}

// flaky is a store that cannot be reached now and then, for changes.
type flaky struct {
	*disktest.Volatile
	mu sync.Mutex
	r  *rand.Rand
	on bool
}

func (f *flaky) set(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = on
}

func (f *flaky) fails() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.on && f.r.IntN(12) == 0
}

func (f *flaky) WriteAt(p []byte, off int64) (int, error) {
	if f.fails() {
		// Some of it may have been written all the same.
		n, err := f.Volatile.WriteAt(p[:len(p)/1024*512], off)
		if err == nil {
			err = &disk.Error{Op: "write", Name: "store", Off: off, Len: int64(len(p)), Err: disk.ErrUnavailable}
		}
		return n, err
	}
	return f.Volatile.WriteAt(p, off)
}

func (f *flaky) WriteZeroes(off, n int64, mayUnmap bool) error {
	if f.fails() {
		return &disk.Error{Op: "write zeroes", Name: "store", Off: off, Len: n, Err: disk.ErrUnavailable}
	}
	return f.Volatile.WriteZeroes(off, n, mayUnmap)
}

// The power fails at any moment, of work on several disks in a pool that is
// mostly full; disks come and go. In every other round the store also fails for
// moments.
func TestPowerCut(t *testing.T) {
	const sectors = 300
	for round := range rounds(300) {
		r := rand.New(rand.NewPCG(77, uint64(round)))
		store := disktest.NewVolatile("store", 400<<10)
		require.NoError(t, thin.Format(store, thin.Layout{ExtentSize: 4096, Capacity: 64 * 4096, Disks: 6}))
		disks := map[string]*model{}
		next := uint32(0)
		for life := range 4 {
			fl := &flaky{Volatile: store, r: rand.New(rand.NewPCG(78, uint64(round*10+life)))}
			p, err := thin.Open(fl, thin.Config{})
			require.NoError(t, err, "round %d, life %d", round, life)
			require.NoError(t, p.Check(), "round %d, life %d", round, life)
			have := map[string]bool{}
			for _, d := range p.Disks() {
				have[d.Name] = true
			}
			open := map[string]*thin.Disk{}
			for name, m := range disks {
				if m.sectors == nil && !have[name] {
					delete(disks, name) // its deletion, or creation, was under way
					continue
				}
				if m.sectors == nil {
					*m = *newModel(m.id, sectors) // an end unknown: look below
					d := openDisk(t, p, name)
					b := make([]byte, sectors*512)
					_, err := d.ReadAt(b, 0)
					require.NoError(t, err)
					for i := range m.sectors {
						v, err := parse(b[i*512:][:512], m.id, uint32(i))
						require.NoError(t, err, "round %d, life %d", round, life)
						m.sectors[i] = []uint32{v}
					}
					m.version = 1 << 20
					open[name] = d
					continue
				}
				require.True(t, have[name], "round %d, life %d: disk %s is gone", round, life, name)
				open[name] = openDisk(t, p, name)
				require.NoError(t, m.check(open[name], true), "round %d, life %d", round, life)
			}
			require.Equal(t, len(disks), len(have))
			store.CutAfter(r.IntN(120))
			err = func() error {
				for {
					k := r.IntN(40)
					fl.set(round%2 == 1 && k > 2 && len(disks) > 0)
					switch {
					case k == 0 || len(disks) == 0:
						if len(disks) == 5 {
							continue
						}
						next++
						name := fmt.Sprint("disk", next)
						m := &model{id: next}
						disks[name] = m
						if err := p.Create(name, sectors*512); err != nil {
							return err
						}
						*m = *newModel(next, sectors)
						d, err := p.OpenDisk(name, thin.DiskConfig{})
						if err != nil {
							return err
						}
						open[name] = d
					case k == 1:
						name := pick(r, disks)
						if err := open[name].Close(); err != nil {
							return err
						}
						delete(open, name)
						disks[name].sectors = nil
						if err := p.Delete(name); err != nil {
							return err
						}
						delete(disks, name)
					case k == 2:
						if err := p.Grow(p.Usage().Capacity + 4096*r.Int64N(8)); err != nil {
							return err
						}
					default:
						name := pick(r, disks)
						if err := disks[name].step(r, open[name]); err != nil {
							return err
						}
						if k == 3 {
							if err := disks[name].check(open[name], false); err != nil && !errors.Is(err, disktest.ErrPowerCut) {
								t.Fatalf("round %d, life %d: %v", round, life, err)
							} else if err != nil {
								return err
							}
						}
					}
				}
			}()
			require.ErrorIs(t, err, disktest.ErrPowerCut, "round %d, life %d", round, life)
			p.Close()
			fl.set(false)
			store = store.Reboot(r)
		}
	}
}

func pick(r *rand.Rand, disks map[string]*model) string {
	best, n := "", 0
	// The order of a map is random, but must not be here.
	k := r.Uint64()
	for name, m := range disks {
		if h := uint64(m.id)*0x9e3779b97f4a7c15 ^ k; best == "" || int(h>>40) > n {
			best, n = name, int(h>>40)
		}
	}
	return best
}

// A pool that was closed and emptied is as it was at first.
func TestNothingLeaks(t *testing.T) {
	store := disktest.NewVolatile("store", 0)
	p := newPool(t, store, thin.Layout{ExtentSize: 4096, Capacity: 1 << 20, Disks: 4}, thin.Config{})
	r := rand.New(rand.NewPCG(3, 3))
	for i := range 20 {
		d := create(t, p, "d", 4<<20)
		for {
			if _, err := d.WriteAt(make([]byte, 40000), r.Int64N(3<<20)); err != nil {
				require.ErrorIs(t, err, disk.ErrNoSpace)
				break
			}
		}
		require.EqualValues(t, thin.Full, p.Usage().Level)
		require.NoError(t, d.Close())
		if i%2 == 0 {
			require.NoError(t, p.Close())
			p = openPool(t, store, thin.Config{})
		}
		require.NoError(t, p.Delete("d"))
		require.NoError(t, p.Check())
		require.Zero(t, p.Usage().Allocated)
	}
}
