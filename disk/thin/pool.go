package thin

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"slices"
	"sync"

	"github.com/vmkit-go/vmkit/disk"
)

var (
	errClosed = fmt.Errorf("the pool is closed: %w", os.ErrClosed)
	errFull   = fmt.Errorf("the pool is full: %w", disk.ErrNoSpace)
)

// Config says how a pool behaves. The zero value tells nobody of anything.
type Config struct {
	// Warn and Critical are the watermarks, in percent of the capacity; 0
	// means 80 and 95.
	Warn, Critical int
	// Notify, if not nil, is told when the pool's level changes. It is called
	// on a goroutine of its own, one call at a time, may use the pool as it
	// likes, and learns of the latest change only if there are several while
	// it runs.
	Notify func(Event)
}

// Pool is an open pool. Its methods may be called from any goroutine. The
// store belongs to the caller, who closes it after the pool; nothing else may
// use it meanwhile.
type Pool struct {
	store    disk.Backend
	imm      disk.Immediate // nil if the store is none
	name     string
	info     disk.Info
	cfg      Config
	readOnly bool

	// adminMu keeps one change of the set of disks, or of the pool's size,
	// at a time.
	adminMu sync.Mutex

	// refillMu keeps one refill at a time. It comes before mu.
	refillMu sync.Mutex

	// work counts goroutines.
	work sync.WaitGroup

	mu       sync.Mutex
	lay      layout // only extents changes
	superSeq uint64
	closed   bool
	table    [][]entry // by group; nil: all free
	slots    []record
	volumes  map[string]*volume
	nextID   uint64

	// Every extent is owned or counted in exactly one of these: free ones
	// have that entry, the others are unclean.
	free   set     // to be marked unclean before use
	ready  set     // can be taken
	limbo  []freed // given back; to be zeroed
	zeroed []uint32
	used   int64 // owned, or taken to be so

	// Extents ever put into zeroed, and ever moved on to ready.
	zeroedCount, readyCount uint64

	tending bool
	space   chan struct{} // closed when there is space again; may be nil

	// Metadata to be written, by the offset of the sector.
	dirty   map[int64]struct{}
	next    *round
	writing bool

	level   Level
	news    Event
	unread  bool
	telling bool
}

// volume is a disk of the pool, open or not.
type volume struct {
	id      uint32
	slot    int
	name    string
	used    int64 // extents; guarded by Pool.mu
	open    bool  // guarded by Pool.mu
	extents mapping
	readers grace

	// gate is held for reading by every request, so that neither a resize
	// nor the pool's end comes between.
	gate sync.RWMutex
	shut bool // the pool is closed

	// claims are the ranges of extents that somebody maps or unmaps.
	mu     sync.Mutex
	claims []*claim
}

// Open opens the pool in store. A store that is read-only gives a pool of
// read-only disks.
func Open(store disk.Backend, cfg Config) (*Pool, error) {
	if cfg.Warn == 0 {
		cfg.Warn = 80
	}
	if cfg.Critical == 0 {
		cfg.Critical = 95
	}
	info := store.Info()
	p := &Pool{
		store: store, name: info.Name, info: info, cfg: cfg, readOnly: info.ReadOnly,
		volumes: map[string]*volume{}, dirty: map[int64]struct{}{}, nextID: 1,
	}
	p.imm, _ = store.(disk.Immediate)
	if cfg.Warn < 1 || cfg.Critical < cfg.Warn || cfg.Critical > 100 {
		return nil, fmt.Errorf("thin pool %s: watermarks at %d and %d percent", p.name, cfg.Warn, cfg.Critical)
	}
	if err := p.load(); err != nil {
		return nil, fmt.Errorf("thin pool %s: open: %w", p.name, err)
	}
	return p, nil
}

// Usage reports what the pool has and has promised.
func (p *Pool) Usage() Usage {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.usage()
}

// DiskUsage is one disk of a pool.
type DiskUsage struct {
	Name string
	// Size is what the disk promises, Allocated what it takes, in bytes.
	Size, Allocated int64
	Open            bool
}

// Disks lists the disks, in the order of their slots.
func (p *Pool) Disks() []DiskUsage {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []DiskUsage
	for i := range p.slots {
		if r := &p.slots[i]; r.id != 0 && !r.ended {
			v := p.volumes[r.name]
			all = append(all, DiskUsage{Name: r.name, Size: r.size, Allocated: v.used * p.lay.extent, Open: v.open})
		}
	}
	return all
}

// begin starts a change of the set of disks or the pool's size.
func (p *Pool) begin() (end func(), err error) {
	p.adminMu.Lock()
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		err = errClosed
	case p.readOnly:
		err = disk.ErrReadOnly
	}
	if err != nil {
		p.adminMu.Unlock()
		return nil, err
	}
	return p.adminMu.Unlock, nil
}

func (p *Pool) fail(op string, err error) error {
	return fmt.Errorf("thin pool %s: %s: %w", p.name, op, err)
}

// Create adds a disk of size bytes that reads as zeroes and takes no space.
// It is durable when Create returns. Names are up to 255 bytes of printable
// UTF-8; one in use is an error wrapping fs.ErrExist. A directory without a
// free slot is one wrapping [disk.ErrNoSpace].
func (p *Pool) Create(name string, size int64) error {
	fail := func(err error) error { return p.fail(fmt.Sprintf("create %q", name), err) }
	end, err := p.begin()
	if err != nil {
		return fail(err)
	}
	defer end()
	if err := errors.Join(checkName(name), p.lay.checkSize(size)); err != nil {
		return fail(err)
	}
	p.mu.Lock()
	slot := 0
	for slot < len(p.slots) && p.slots[slot].id != 0 {
		slot++
	}
	switch {
	case p.volumes[name] != nil:
		err = fs.ErrExist
	case slot == len(p.slots):
		err = fmt.Errorf("%w: the pool has room for %d disks", disk.ErrNoSpace, len(p.slots))
	case p.nextID > math.MaxUint32:
		err = errors.New("no number left for another disk")
	default:
		p.slots[slot] = record{id: uint32(p.nextID), size: size, name: name}
		p.nextID++
		p.dirtySlot(slot)
	}
	p.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	if err := p.sync(); err != nil {
		p.mu.Lock()
		p.slots[slot] = record{}
		p.dirtySlot(slot)
		p.mu.Unlock()
		return fail(err)
	}
	p.mu.Lock()
	p.volumes[name] = &volume{id: p.slots[slot].id, slot: slot, name: name}
	p.mu.Unlock()
	return nil
}

// dirtySlot is called with mu held.
func (p *Pool) dirtySlot(slot int) { p.dirty[dirOffset+int64(slot)*sector] = struct{}{} }

// sync writes the metadata that has changed and makes everything durable.
func (p *Pool) sync() error {
	if err := p.commit(); err != nil {
		return err
	}
	return p.flush()
}

// Delete removes a disk that is not open; one that is gives an error wrapping
// [disk.ErrLocked]. It is durable when Delete returns. The space can be used
// from then on.
func (p *Pool) Delete(name string) error {
	fail := func(err error) error { return p.fail(fmt.Sprintf("delete %q", name), err) }
	end, err := p.begin()
	if err != nil {
		return fail(err)
	}
	defer end()
	p.mu.Lock()
	v := p.volumes[name]
	switch {
	case v == nil:
		err = fs.ErrNotExist
	case v.open:
		err = fmt.Errorf("%w: the disk is open", disk.ErrLocked)
	default:
		p.slots[v.slot].ended = true
		p.dirtySlot(v.slot)
		v.open = true // nobody opens it any more
	}
	p.mu.Unlock()
	if err != nil {
		return fail(err)
	}
	if err := p.sync(); err != nil {
		p.mu.Lock()
		p.slots[v.slot].ended = false
		p.dirtySlot(v.slot)
		v.open = false
		p.mu.Unlock()
		return fail(err)
	}
	p.mu.Lock()
	delete(p.volumes, name)
	p.mu.Unlock()
	p.release(v, 0)
	if err := p.commit(); err != nil {
		// Nothing refers to it any more; the slot stays taken until the
		// pool is opened anew.
		return nil
	}
	p.mu.Lock()
	p.slots[v.slot] = record{}
	p.dirtySlot(v.slot)
	p.mu.Unlock()
	return nil
}

// release gives back all extents of v from first on, of which no request can
// take or give any meanwhile. The next commit writes that.
func (p *Pool) release(v *volume, first int64) {
	const step = 1 << 10 // extents for which mu is held at once
	for l := first; l < maxExtents; {
		p.mu.Lock()
		for range step {
			if l = v.extents.next(l, maxExtents); l == maxExtents {
				break
			}
			x, _ := v.extents.get(uint32(l))
			v.extents.drop(uint32(l))
			p.setEntry(x, entryUnclean)
			v.used--
			p.give(v, x)
		}
		p.mu.Unlock()
	}
}

// Grow raises the capacity to n bytes, rounded up to whole extents. The store
// is resized if it is too small. A pool does not shrink.
func (p *Pool) Grow(n int64) error {
	end, err := p.begin()
	if err != nil {
		return p.fail("grow", err)
	}
	defer end()
	old := p.lay
	lay := old
	lay.extents = (n-1)/lay.extent + 1
	switch {
	case n < old.extents*old.extent || lay.extents > maxExtents:
		return p.fail("grow", fmt.Errorf("%w: capacity %d, want %d to %d", disk.ErrRange, n, old.extents*old.extent, int64(maxExtents)*old.extent))
	case lay.extents == old.extents:
		return nil
	}
	if err := enlarge(p.store, lay.size()); err != nil {
		return p.fail("grow", err)
	}
	// What a store had there before the pool was made or enlarged.
	if err := zero(p.store, old.size(), lay.size()-old.size()); err != nil {
		return p.fail("grow", err)
	}
	if err := p.flush(); err != nil {
		return p.fail("grow", err)
	}
	// The copy that is not the newest is overwritten.
	off := int64(superA)
	if p.superSeq%2 == 1 {
		off = superB
	}
	var buf [sector]byte
	lay.putSuper(buf[:], p.superSeq+1, off)
	if _, err := p.store.WriteAt(buf[:], off); err != nil {
		return p.fail("grow", err)
	}
	if err := p.flush(); err != nil {
		return p.fail("grow", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.superSeq++
	p.resize(lay)
	p.watch()
	p.wake()
	return nil
}

// resize makes the pool as large as lay says. It is called with mu held.
func (p *Pool) resize(lay layout) {
	old := p.lay.extents
	p.lay.extents = lay.extents
	p.table = append(p.table, make([][]entry, lay.groups()-int64(len(p.table)))...)
	p.free.grow(lay.extents)
	p.ready.grow(lay.extents)
	for x := old; x < lay.extents; x++ {
		p.free.set(uint32(x))
	}
}

// wake lets those go on who wait for space. It is called with mu held.
func (p *Pool) wake() {
	if p.space != nil {
		close(p.space)
		p.space = nil
	}
}

// Close ends the pool's work. Disks that are still open answer no more
// requests. It does not flush and does not close the store. A second Close
// returns nil.
func (p *Pool) Close() error {
	p.adminMu.Lock()
	defer p.adminMu.Unlock()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.wake()
	p.mu.Unlock()
	// Requests in flight end first; those that come now fail.
	p.mu.Lock()
	volumes := slices.Collect(maps.Values(p.volumes))
	p.mu.Unlock()
	for _, v := range volumes {
		v.gate.Lock()
		v.shut = true
		v.gate.Unlock()
	}
	p.work.Wait()
	if p.readOnly {
		return nil
	}
	// What is ready holds zeroes on the medium, so the next Open need not
	// zero it; whether that reaches the medium does not matter.
	p.mu.Lock()
	for x, ok := p.ready.any(); ok; x, ok = p.ready.any() {
		p.ready.clear(x)
		p.free.set(x)
		p.setEntry(x, entryFree)
	}
	changed := len(p.dirty) > 0
	p.mu.Unlock()
	if changed {
		if err := p.commit(); err != nil {
			return p.fail("close", err)
		}
	}
	return nil
}
