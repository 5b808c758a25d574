// Package memory is guest-physical memory: regions of RAM backed by one memfd,
// or by anonymous memory, and mapped into this process, bounds-checked access to them by
// guest-physical address, host slices for zero-copy I/O, and the log of pages
// that were written.
//
//	m, err := memory.New(memory.Config{Size: 4 << 30})
//	if err != nil {
//		return err
//	}
//	defer m.Close()
//	err = m.PutUint32(0x1000, 42)           // typed access, little-endian
//	bufs, err = m.AppendSlices(bufs, gpa, n) // for readv and writev
//
// An address outside every region is an error wrapping [ErrRange], whatever
// the address and length. Lookups take no lock and allocate nothing; regions
// can be added while others look.
package memory

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// Sizes and the x86 layout. RAM below 4 GiB ends at LowEnd; between there and
// HighBase lie PCI windows, interrupt chips and firmware.
const (
	PageSize     = 4096
	HugePageSize = 2 << 20
	LowEnd       = 3 << 30
	HighBase     = 4 << 30
	// MaxAddr bounds guest-physical addresses: 52 bits (Intel SDM volume 3,
	// section 4.1.4).
	MaxAddr = 1 << 52
)

var (
	// ErrRange is wrapped by errors for addresses outside every region.
	ErrRange = errors.New("outside guest memory")
	// ErrClosed is wrapped by errors of a closed Memory.
	ErrClosed = errors.New("guest memory is closed")
	// ErrNoHugePages is wrapped by the error of New and AddRegion when the
	// host has too few reserved huge pages.
	ErrNoHugePages = errors.New("not enough reserved huge pages")
	// ErrDirtyActive is wrapped by the error of StartDirty when tracking is
	// already on.
	ErrDirtyActive = errors.New("dirty tracking is already on")
)

// RangeError is the error for an access outside guest memory. It wraps
// [ErrRange].
type RangeError struct {
	Addr, Len uint64
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("address %#x, length %#x: %v", e.Addr, e.Len, ErrRange)
}

// Unwrap returns ErrRange.
func (e *RangeError) Unwrap() error { return ErrRange }

// Config says how to make a Memory.
type Config struct {
	// Size is the RAM in bytes: a multiple of PageSize, or of HugePageSize
	// with HugePages, and not zero. Host memory is taken only as pages are
	// touched, so it may exceed what the host has.
	Size uint64
	// HugePages takes 2 MiB pages from the host's reserved pool (sysctl
	// vm.nr_hugepages). They are all claimed at once.
	HugePages bool
	// Anonymous makes memory private to this process, without a memfd to
	// share it by. The host then backs it with transparent huge pages where
	// it has them enabled, as memfds get only if the administrator sets
	// transparent_hugepage/shmem_enabled; with them a guest takes hundreds
	// of times fewer page faults while it first touches its memory.
	Anonymous bool
}

// Region is one run of guest RAM. It stays as it is until the Memory closes.
type Region struct {
	// Base is the guest-physical address and Size the length, in bytes and
	// multiples of PageSize.
	Base, Size uint64
	// Host is the memory as mapped into this process; len(Host) == Size.
	Host []byte
	// FD is the memfd behind it and Offset the region's place in there; -1
	// and 0 if the memory is anonymous. The Memory owns FD.
	FD     int
	Offset int64
}

// End is the address just past the region.
func (r Region) End() uint64 { return r.Base + r.Size }

// region is a Region with its dirty log, which is nil while tracking is off.
type region struct {
	Region
	log *atomic.Pointer[[]uint64]
}

// Memory is a machine's guest-physical memory. Its methods may be called from
// any goroutine. See [Memory.Close] for the one rule of lifetime.
type Memory struct {
	regions  atomic.Pointer[[]region] // sorted by Base; nil once closed
	tracking atomic.Bool
	writes   atomic.Pointer[func(gpa, n uint64)] // see WatchWrites

	mu       sync.Mutex // everything below, and writers of the two above
	fd       int        // -1 for anonymous memory
	huge     bool
	fileSize int64     // bytes of the memfd
	fileUsed int64     // of these, bytes that have an owner
	mapped   []mapping // to undo, also of refused regions
	holds    int       // Hold calls not yet released, plus one until Close
	closed   bool
	watchers []*func(Region) error
	sources  []DirtySource
}

// New makes memory of cfg.Size bytes: RAM from address 0 to at most 3 GiB,
// the rest from 4 GiB on. All of it reads as zero.
func New(cfg Config) (*Memory, error) {
	unit := uint64(PageSize)
	if cfg.HugePages {
		unit = HugePageSize
	}
	if cfg.Size == 0 || cfg.Size%unit != 0 || cfg.Size > MaxAddr-(HighBase-LowEnd) {
		return nil, fmt.Errorf("guest memory of %#x bytes: the size must be a nonzero multiple of %#x and below %#x",
			cfg.Size, unit, uint64(MaxAddr))
	}
	m := &Memory{fd: -1, huge: cfg.HugePages, holds: 1}
	m.regions.Store(&[]region{})
	if !cfg.Anonymous {
		if err := m.openFile(); err != nil {
			return nil, fmt.Errorf("guest memory: memfd: %w", err)
		}
	}
	if _, err := m.AddRegion(0, min(cfg.Size, LowEnd)); err != nil {
		m.Close()
		return nil, err
	}
	if cfg.Size > LowEnd {
		if _, err := m.AddRegion(HighBase, cfg.Size-LowEnd); err != nil {
			m.Close()
			return nil, err
		}
	}
	return m, nil
}

// Close ends the use of m: from now on every access fails with [ErrClosed].
// Its memory is unmapped and its descriptor closed as soon as no [Memory.Hold]
// is outstanding, at once if there is none. Whoever keeps host slices or has
// an access running while another goroutine may close m must be inside a
// Hold: touching a slice of unmapped memory kills the process. A second Close
// does nothing.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	m.tracking.Store(false)
	m.regions.Store(nil)
	return m.unhold()
}

// Hold keeps m's mappings and descriptor alive until release is called, even
// if m is closed meanwhile. Devices and engines hold memory while they run.
// Calling release again does nothing.
func (m *Memory) Hold() (release func(), err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	m.holds++
	return sync.OnceFunc(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		_ = m.unhold()
	}), nil
}

// unhold drops one hold and frees everything with the last. mu is held.
func (m *Memory) unhold() error {
	m.holds--
	if m.holds > 0 {
		return nil
	}
	var errs []error
	for _, p := range m.mapped {
		errs = append(errs, p.unmap())
	}
	m.mapped = nil
	if m.fd >= 0 {
		errs = append(errs, closeFile(m.fd))
		m.fd = -1
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("guest memory: close: %w", err)
	}
	return nil
}

// Size is the RAM in bytes, over all regions; 0 once closed.
func (m *Memory) Size() uint64 {
	var n uint64
	for i := range m.list() {
		n += m.list()[i].Size
	}
	return n
}

// Regions returns the regions in order of address. The slice is the caller's.
func (m *Memory) Regions() []Region {
	list := m.list()
	out := make([]Region, len(list))
	for i := range list {
		out[i] = list[i].Region
	}
	return out
}

// AddRegion adds size bytes of zeroed RAM at base, both multiples of PageSize
// (of HugePageSize with huge pages), overlapping no other region. Every
// watcher is told before lookups find the region. If one refuses, the region
// is not added; its backing lives until Close, since an earlier watcher may
// have it mapped into a guest.
func (m *Memory) AddRegion(base, size uint64) (Region, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Region{}, ErrClosed
	}
	unit := uint64(PageSize)
	if m.huge {
		unit = HugePageSize
	}
	if size == 0 || base%unit != 0 || size%unit != 0 || base > MaxAddr || size > MaxAddr-base {
		return Region{}, fmt.Errorf("add memory region at %#x, size %#x: must be nonzero, in multiples of %#x, and end by %#x",
			base, size, unit, uint64(MaxAddr))
	}
	old := m.list()
	at := 0
	for at < len(old) && old[at].Base < base {
		at++
	}
	if at > 0 && old[at-1].End() > base {
		return Region{}, overlapError(base, size, old[at-1].Region)
	}
	if at < len(old) && base+size > old[at].Base {
		return Region{}, overlapError(base, size, old[at].Region)
	}
	r, err := m.backing(base, size)
	if err != nil {
		return Region{}, fmt.Errorf("add memory region at %#x, size %#x: %w", base, size, err)
	}
	for _, w := range m.watchers {
		if err := (*w)(r.Region); err != nil {
			return Region{}, fmt.Errorf("add memory region at %#x, size %#x: %w", base, size, err)
		}
	}
	if m.tracking.Load() {
		r.startLog()
	}
	next := slices.Insert(slices.Clone(old), at, r)
	m.regions.Store(&next)
	return r.Region, nil
}

func overlapError(base, size uint64, r Region) error {
	return fmt.Errorf("add memory region at %#x, size %#x: overlaps the region at %#x, size %#x", base, size, r.Base, r.Size)
}

// backing maps fresh memory for a region. mu is held.
func (m *Memory) backing(base, size uint64) (region, error) {
	if uint64(int(size)) != size || int(size) < 0 || m.fileUsed+int64(size) < 0 {
		return region{}, errors.New("too large for this host")
	}
	p, err := m.allocate(size)
	if err != nil {
		return region{}, err
	}
	m.mapped = append(m.mapped, p)
	host := p.bytes()
	r := region{
		Region: Region{Base: base, Size: size, Host: host[:size:size], FD: m.fd, Offset: m.fileUsed},
		log:    new(atomic.Pointer[[]uint64]),
	}
	if m.fd >= 0 {
		m.fileUsed += int64(len(host))
	}
	return r, nil
}

// Watch calls f for each region added from now on, before any access finds
// it; an error from f refuses the region. f must not call AddRegion, Watch,
// Hold, Close or the dirty-tracking methods. The returned stop ends the watch.
func (m *Memory) Watch(f func(Region) error) (stop func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := &f
	m.watchers = append(m.watchers, w)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if i := slices.Index(m.watchers, w); i >= 0 {
			m.watchers = slices.Delete(m.watchers, i, i+1)
		}
	}
}
