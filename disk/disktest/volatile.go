package disktest

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/vmkit-go/vmkit/disk"
)

// ErrPowerCut is wrapped by every error of a [Volatile] whose power was cut.
var ErrPowerCut = errors.New("the power was cut")

const sector = 512 // what a disk writes whole or not at all

// Volatile is a disk in memory with a write cache that a power cut loses: what
// was changed since the last flush survives or not, each 512-byte sector on
// its own and in any order. It is for tests of what keeps its state on a disk:
//
//	v := disktest.NewVolatile("image", size)
//	v.CutAfter(n)          // the n-th change from here meets a dead disk
//	...                    // use it until it fails
//	v = v.Reboot(rand)     // what the next start finds
//
// All methods may be called concurrently.
type Volatile struct {
	mu      sync.Mutex
	now     *disk.Memory // what reads show
	medium  *disk.Memory // what the last flush made durable
	pending map[int64][][]byte
	sizes   []int64 // set since the last flush
	left    int     // changes until the power is cut; negative means never
	dead    bool
}

// NewVolatile returns a disk of size bytes, all zero and durable.
func NewVolatile(name string, size int64) *Volatile {
	now, err := disk.NewMemory(name, size)
	if err != nil {
		panic(err)
	}
	medium, err := disk.NewMemory(name, size)
	if err != nil {
		panic(err)
	}
	return &Volatile{now: now, medium: medium, pending: map[int64][][]byte{}, left: -1}
}

// CutAfter cuts the power at the n-th change or flush from now, counted from
// 0: that one and all requests after it fail, reads too. The change itself
// may have reached the medium in part.
func (v *Volatile) CutAfter(n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.left = n
}

// Cut cuts the power now.
func (v *Volatile) Cut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dead = true
}

// Reboot returns the disk as it is found after a cut of the power, which it
// makes if that has not happened. Each sector holds what the last flush left
// there or something written since, as r decides. v is of no use afterwards.
func (v *Volatile) Reboot(r *rand.Rand) *Volatile {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dead = true
	size := v.medium.Size()
	if k := r.IntN(len(v.sizes) + 1); k > 0 {
		size = v.sizes[k-1]
	}
	must(v.medium.Resize(size))
	// Mostly all or nothing of what is pending: mixtures alone would seldom
	// show what a single lost or single surviving sector does.
	odds := []float64{0, 0.02, 0.5, 0.98, 1}[r.IntN(5)]
	for _, s := range sortedKeys(v.pending) {
		if r.Float64() >= odds || s >= size {
			continue
		}
		versions := v.pending[s]
		k := len(versions) - 1
		if r.IntN(4) == 0 {
			k = r.IntN(len(versions))
		}
		p := versions[k][:min(int64(len(versions[k])), size-s)]
		_, err := v.medium.WriteAt(p, s)
		must(err)
	}
	next := NewVolatile(v.now.Info().Name, size)
	buf := make([]byte, 64<<10)
	for off := int64(0); off < size; {
		e, err := v.medium.Extent(off)
		must(err)
		for end := off + e.Len; off < end; {
			n := min(int64(len(buf)), end-off)
			if !e.Zero {
				_, err := v.medium.ReadAt(buf[:n], off)
				must(err)
				_, err = next.now.WriteAt(buf[:n], off)
				must(err)
				_, err = next.medium.WriteAt(buf[:n], off)
				must(err)
			}
			off += n
		}
	}
	return next
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func sortedKeys(m map[int64][][]byte) []int64 {
	keys := make([]int64, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys) // so that a seed gives the same result
	return keys
}

// change does fn, which changes n bytes at off, unless the power is cut, and
// notes which sectors a cut may lose.
func (v *Volatile) change(op string, off, n int64, fn func() error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	fail := func() error {
		return &disk.Error{Op: op, Name: v.now.Info().Name, Off: off, Len: n, Err: ErrPowerCut}
	}
	if v.dead {
		return fail()
	}
	err := fn()
	if err == nil {
		for s := off &^ (sector - 1); s < off+n; s += sector {
			p := make([]byte, min(sector, v.now.Size()-s))
			_, err := v.now.ReadAt(p, s)
			must(err)
			v.pending[s] = append(v.pending[s], p)
		}
	}
	if v.spend() {
		return fail()
	}
	return err
}

// spend counts a change and reports whether it meets the cut.
func (v *Volatile) spend() bool {
	if v.left == 0 {
		v.dead = true
	}
	v.left = max(v.left-1, -1)
	return v.dead
}

// WriteAt writes to the cache.
func (v *Volatile) WriteAt(p []byte, off int64) (n int, err error) {
	err = v.change("write", off, int64(len(p)), func() error {
		n, err = v.now.WriteAt(p, off)
		return err
	})
	if err != nil {
		n = 0
	}
	return n, err
}

// Discard discards in the cache.
func (v *Volatile) Discard(off, n int64) error {
	return v.change("discard", off, n, func() error { return v.now.Discard(off, n) })
}

// WriteZeroes zeroes in the cache.
func (v *Volatile) WriteZeroes(off, n int64, mayUnmap bool) error {
	return v.change("write zeroes", off, n, func() error { return v.now.WriteZeroes(off, n, mayUnmap) })
}

// Resize changes the size, which a cut may undo until the next flush.
func (v *Volatile) Resize(size int64) error {
	return v.change("resize", 0, 0, func() error {
		if err := v.now.Resize(size); err != nil {
			return err
		}
		v.sizes = append(v.sizes, size)
		for s := range v.pending {
			if s >= size {
				delete(v.pending, s) // what comes back later reads as zeroes
			}
		}
		return nil
	})
}

// Flush makes all changes durable.
func (v *Volatile) Flush() error {
	return v.change("flush", 0, 0, func() error {
		if v.left == 0 { // this flush meets the cut: it does nothing
			return nil
		}
		if len(v.sizes) > 0 {
			// A disk that shrank and grew again reads as zeroes there.
			must(v.medium.Resize(min(slices.Min(v.sizes), v.medium.Size())))
			must(v.medium.Resize(v.now.Size()))
			v.sizes = nil
		}
		for s, versions := range v.pending {
			if p := versions[len(versions)-1]; s < v.medium.Size() {
				_, err := v.medium.WriteAt(p[:min(int64(len(p)), v.medium.Size()-s)], s)
				must(err)
			}
		}
		clear(v.pending)
		return v.now.Flush()
	})
}

// ReadAt reads what was last written.
func (v *Volatile) ReadAt(p []byte, off int64) (int, error) {
	if err := v.alive("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	return v.now.ReadAt(p, off)
}

// Extent maps what was last written.
func (v *Volatile) Extent(off int64) (disk.Extent, error) {
	if err := v.alive("map", off, 0); err != nil {
		return disk.Extent{}, err
	}
	return v.now.Extent(off)
}

func (v *Volatile) alive(op string, off, n int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.dead {
		return &disk.Error{Op: op, Name: v.now.Info().Name, Off: off, Len: n, Err: ErrPowerCut}
	}
	return nil
}

// Size is the number of bytes.
func (v *Volatile) Size() int64 { return v.now.Size() }

// Info describes the disk.
func (v *Volatile) Info() disk.Info { return v.now.Info() }

// Close closes the disk, which loses nothing by itself.
func (v *Volatile) Close() error { return v.now.Close() }
