package qcow2

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

// Config says how to open an image. The zero value is for an image without a
// backing file, to read and write.
type Config struct {
	// ReadOnly opens the image for reading. The container is not changed.
	ReadOnly bool
	// Backing is the disk below the image, which must name one. It stays the
	// caller's, who closes it after the image, and may serve any number of
	// images if it is not written.
	Backing disk.Backend
	// CacheSize bounds, in bytes, the L2 tables kept in memory: 32 MiB if 0.
	// With 64 KiB clusters, one byte maps 8 KiB of the disk.
	CacheSize int64
}

const (
	defaultCache = 32 << 20
	minTables    = 4 // L2 tables kept at least

	// maxChain is how many images may lie below each other.
	maxChain = 64

	// closeGrace is how long Close waits for requests before it closes the
	// container under them.
	closeGrace = 10 * time.Second
)

// Image is an open qcow2 image. It implements [disk.Backend], [disk.Vectored],
// [disk.Immediate], [disk.Resizer] and [disk.Mapper].
type Image struct {
	layout

	file      disk.Backend
	vectored  disk.Vectored  // nil if the container is not
	grow      disk.Resizer   // nil if the container has a fixed size
	immediate disk.Immediate // nil if the container is not
	info      disk.Info
	size      atomic.Int64

	// gate is held for reading by flushes, and for writing by what needs the
	// image for itself, see lock: Close, Resize, Commit, the end of Rebase.
	gate     sync.RWMutex
	closed   atomic.Bool
	backing  disk.Backend // nil: none; changes under lock
	requests epochs
	ruined   atomic.Pointer[error] // why the image may not be changed any more

	// The L1 table, and the L2 tables in memory, by L1 index. Replaced under
	// lock, entries changed under mu.
	l1     []atomic.Uint64
	tables []atomic.Pointer[l2Table]
	loads  [16]sync.Mutex // held while table i%16 is read

	inflater inflater

	mu      sync.Mutex // all below
	hdr     *header
	marked  bool // the dirty bit is set, by this Image
	changed bool // tables were changed since Open
	cached  []*l2Table
	hand    int             // of the clock that picks a table to drop
	limit   int             // tables kept
	l1Dirty map[int64]bool  // sectors of the L1 table
	meta    metaClusters    // where the tables lie
	refs    refcounts       //
	alloc   allocator       //
	pending []*allocation   // clusters being written for the first time
	freed   []uint64        // L2 entries that no table holds any more
	blob    compressedSpace // where compressed data goes next

	sync group // Flush

	reclaiming []retired // used by flushTables only
}

// Open opens the image in file, which is its container and belongs to the
// Image from then on: it is closed with it. If Open fails, file stays the
// caller's.
//
// An image that was not closed properly is checked first if it is to be
// written, see the package documentation. Every error names what is wrong and
// where; an image that needs a feature that this package lacks is an error
// wrapping errors.ErrUnsupported.
func Open(file disk.Backend, cfg Config) (*Image, error) {
	im, err := open(file, cfg)
	if err != nil {
		return nil, openError(file, err)
	}
	return im, nil
}

func open(file disk.Backend, cfg Config) (*Image, error) {
	h, err := readHeader(file)
	if err != nil {
		return nil, err
	}
	switch {
	case h.backing != "" && cfg.Backing == nil:
		return nil, fmt.Errorf("%w: the image names %q", ErrBacking, h.backing)
	case h.backing == "" && cfg.Backing != nil:
		return nil, errors.New("the image has no backing file, but one was given")
	}
	im, err := load(file, h, cfg, !cfg.ReadOnly)
	if err != nil {
		return nil, err
	}
	if cfg.ReadOnly {
		return im, nil
	}
	if err := im.prepare(); err != nil {
		return nil, err
	}
	switch {
	case h.incompat&incompatCorrupt != 0:
		return nil, fmt.Errorf("%w: it is marked so; only reading and Check are allowed", ErrCorrupt)
	case h.incompat&incompatDirty != 0:
		c := checker{im: im, repair: true}
		if err := c.run(); err != nil {
			return nil, fmt.Errorf("check of an image that was not closed: %w", err)
		}
		if r := c.report; r.Repaired < r.Corruptions+r.Leaks {
			return nil, fmt.Errorf("%w: %s", ErrCorrupt, r.Problems[0])
		}
	}
	return im, nil
}

// prepare makes the container fit for changes.
func (im *Image) prepare() error {
	// The last cluster need not be complete, but writes must fit.
	if size := im.up(im.file.Size()); size > im.file.Size() && im.grow != nil {
		if err := im.grow.Resize(size); err != nil {
			return err
		}
	}
	// Data of others, such as dirty bitmaps, will not match any more.
	if im.hdr.autoclear == 0 {
		return nil
	}
	im.hdr.autoclear = 0
	if err := im.hdr.write(im.file); err != nil {
		return err
	}
	return im.file.Flush()
}

// load reads the tables that stay in memory, the refcount table among them if
// refcounts are needed.
func load(file disk.Backend, h *header, cfg Config, refcounts bool) (*Image, error) {
	im := &Image{
		layout: newLayout(h.clusterBits, h.version),
		file:   file, backing: cfg.Backing, hdr: h, l1Dirty: map[int64]bool{},
	}
	im.vectored, _ = file.(disk.Vectored)
	im.grow, _ = file.(disk.Resizer)
	im.immediate, _ = file.(disk.Immediate)
	im.size.Store(h.size)
	im.sync.init()
	im.requests.init()
	im.inflater.init(&im.layout, h.compression)
	if depth(im) > maxChain {
		return nil, fmt.Errorf("chain of more than %d images", maxChain)
	}
	fi := file.Info()
	if fi.ReadOnly && !cfg.ReadOnly {
		return nil, disk.ErrReadOnly
	}
	im.info = disk.Info{
		Name: fi.Name, ReadOnly: cfg.ReadOnly, BlockSize: fi.BlockSize,
		OptimalIO: int(max(im.cluster, int64(fi.BlockSize))), DiscardUnit: int(im.cluster),
	}
	if cfg.ReadOnly || im.v2 && cfg.Backing != nil {
		im.info.DiscardUnit = 0 // version 2 cannot hide what the backing file has
	}
	im.refs.init(im)
	im.alloc.init(im)
	if err := im.meta.load(im, refcounts); err != nil {
		return nil, err
	}
	size := cfg.CacheSize
	if size <= 0 {
		size = defaultCache
	}
	im.limit = int(max(minTables, min(size>>im.bits, math.MaxInt32)))
	im.tables = make([]atomic.Pointer[l2Table], len(im.l1))
	return im, nil
}

// depth is the number of images in the chain that starts with im.
func depth(im *Image) (n int) {
	for n = 1; n <= maxChain; n++ {
		below, ok := im.backing.(*Image)
		if !ok {
			break
		}
		im = below
	}
	return n
}

// Size is the number of bytes.
func (im *Image) Size() int64 { return im.size.Load() }

// Info describes the disk. Its name is the container's.
func (im *Image) Info() disk.Info { return im.info }

// Close writes the tables, marks the image as clean and closes the container.
// Requests in flight end first; those that have not after ten seconds are ended
// by closing the container, and the tables stay as in a crash.
func (im *Image) Close() error {
	if im.closed.Swap(true) {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		im.lock()
		defer im.unlock()
		done <- im.finish()
	}()
	var err error
	select {
	case err = <-done:
		return errors.Join(err, im.file.Close())
	case <-time.After(closeGrace):
		err = im.file.Close()
		return errors.Join(<-done, err)
	}
}

// finish leaves the container as a clean image. The caller holds
// the image's lock.
func (im *Image) finish() error {
	im.mu.Lock()
	changed := im.changed
	im.mu.Unlock()
	if !changed || im.info.ReadOnly {
		return nil
	}
	if err := im.ruined.Load(); err != nil {
		return im.fail("close", 0, 0, *err)
	}
	if err := im.settle(); err != nil {
		return im.fail("close", 0, 0, err)
	}
	return nil
}

// settle makes the container a clean image without leaks. The caller holds
// the image's lock.
func (im *Image) settle() error {
	// Freed clusters are given back once the tables that dropped them are
	// durable, and that changes refcounts.
	for again := true; again; again = im.unsaved() {
		if err := im.flushTables(true); err != nil {
			return err
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if err := im.alloc.trim(); err != nil {
		return err
	}
	if !im.marked {
		return nil
	}
	im.hdr.incompat &^= incompatDirty
	if err := im.hdr.write(im.file); err != nil {
		return err
	}
	im.marked = false
	return im.file.Flush()
}

// fail wraps the error of a request.
func (im *Image) fail(op string, off, n int64, err error) error {
	return &disk.Error{Op: op, Name: im.info.Name, Off: off, Len: n, Err: err}
}

// check is for changes, which must lie within the disk. The caller is a request,
// or holds lock.
func (im *Image) check(off, n int64) error {
	size := im.size.Load()
	switch {
	case im.closed.Load():
		return os.ErrClosed
	case im.info.ReadOnly:
		return disk.ErrReadOnly
	case off < 0 || n < 0 || n > size || off > size-n:
		return fmt.Errorf("%w: size is %d", disk.ErrRange, size)
	}
	if err := im.ruined.Load(); err != nil {
		return *err
	}
	return nil
}
