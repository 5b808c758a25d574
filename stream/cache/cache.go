// Package cache keeps chunks of images on the local disk, by the hash of their
// content, so that what was fetched once is never fetched again.
//
//	c, err := cache.Open("/var/cache/vmkit", cache.Config{})
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//	if _, err := c.ReadAt(hash, p, 0); errors.Is(err, cache.ErrMissing) {
//		// fetch the chunk, verify it, and then
//		c.Put(hash, data)
//	}
//
// A directory holds a sparse file of chunks and an append-only journal that
// says where in it which chunk lies. Chunks are written first, then made
// durable, then journaled: after a crash at any moment, those that the journal
// names are whole. Nothing is believed for good, though: the first use of a
// chunk in a process compares it with its hash, and one that is damaged counts
// as missing.
//
// Any number of guests in one process share a Cache. A second Open of the same
// directory, from wherever, fails.
package cache

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/durable"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrMissing is returned for a chunk that is not there, or not any more.
	ErrMissing = errors.New("chunk is not in the cache")
	// ErrFull is wrapped by the error of a Put for which there is no space. A
	// later one may succeed.
	ErrFull = errors.New("cache is full")
	// ErrBroken is wrapped by the error of a Put after a failure from which
	// the cache cannot recover while it is open. What it holds stays readable.
	ErrBroken = errors.New("cache takes no more chunks")
	// ErrDamaged is wrapped by the error of Open for a directory that holds
	// something else than a cache, or one that is damaged beyond use.
	ErrDamaged = errors.New("not a usable cache")
)

// MaxChunk is the largest chunk in bytes.
const MaxChunk = 16 << 20

// align is the alignment of chunks in the data file.
const align = 4096

// Config says how a cache works. The zero value is sensible.
type Config struct {
	// MaxBytes bounds the file of chunks; 0 is as much as the file system has.
	MaxBytes int64
	// BatchBytes is how many bytes of chunks may wait to be made durable, 0
	// means 16 MiB.
	BatchBytes int64
	// BatchTime is how long a chunk may wait to be made durable, 0 means a
	// second. Until then a crash of the host loses it, and nothing more.
	BatchTime time.Duration

	// open opens a file for reading and writing, and makes it if need be.
	open func(path string) (file, error)
	// now is the clock.
	now func() time.Time
}

// file is what a cache needs of a file; tests cut its power.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Sync makes content and size durable.
	Sync() error
}

// Stats are the numbers of a cache.
type Stats struct {
	// Chunks and Bytes are what the cache holds.
	Chunks int   `json:"chunks"`
	Bytes  int64 `json:"bytes"`
	// Damaged counts chunks that turned out not to be what they should.
	Damaged int `json:"damaged"`
	// Refused counts chunks for which there was no space, or that came after
	// a failure.
	Refused int `json:"refused"`
	// Full and Broken mean that chunks are refused at the moment, or for good.
	Full   bool `json:"full"`
	Broken bool `json:"broken"`
}

// Cache is an open cache. Its methods may be called from any goroutine.
type Cache struct {
	dir  string
	cfg  Config
	lock *os.File
	data file
	log  journal

	commitMu sync.Mutex // one commit at a time; before mu

	mu      sync.Mutex
	closed  bool
	index   map[[32]byte]*slot
	bytes   int64
	end     int64 // where the next chunk goes
	pending []*slot
	waiting int64 // bytes of pending
	broken  error
	fullTil time.Time // Puts are refused until then
	damaged int
	refused int

	users sync.WaitGroup // of the files
	wake  chan struct{}
	done  chan struct{}
	wg    sync.WaitGroup
}

// slot is where a chunk lies.
type slot struct {
	hash     [32]byte
	off      int64
	n        int
	verified atomic.Bool
}

// retryFull is how long a full disk is left alone.
const retryFull = 5 * time.Second

// Open opens the cache in a directory, which is made if it is not there. An
// error wraps disk.ErrLocked if somebody else has it open.
func Open(dir string, cfg Config) (_ *Cache, err error) {
	if cfg.BatchBytes <= 0 {
		cfg.BatchBytes = 16 << 20
	}
	if cfg.BatchTime <= 0 {
		cfg.BatchTime = time.Second
	}
	if cfg.open == nil {
		cfg.open = openFile
	}
	if cfg.now == nil {
		cfg.now = time.Now
	}
	c := &Cache{
		dir: dir, cfg: cfg, index: make(map[[32]byte]*slot),
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			c.closeFiles()
			err = fmt.Errorf("cache %s: %w", dir, err)
		}
	}()
	if err := os.MkdirAll(filepath.Join(dir, filesDir), 0o700); err != nil {
		return nil, err
	}
	if c.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	if c.data, err = cfg.open(filepath.Join(dir, "chunks")); err != nil {
		return nil, err
	}
	f, err := cfg.open(filepath.Join(dir, "journal"))
	if err != nil {
		return nil, err
	}
	c.log.file = f
	if err := durable.SyncDir(dir); err != nil {
		return nil, err
	}
	if err := c.load(); err != nil {
		return nil, err
	}
	c.wg.Go(c.commitLoop)
	return c, nil
}

// load reads the journal.
func (c *Cache) load() error {
	size, err := c.data.Size()
	if err != nil {
		return err
	}
	err = c.log.load(func(r record) {
		if r.off+int64(r.n) > size {
			return // someone has cut the file
		}
		if old := c.index[r.hash]; old != nil {
			c.bytes -= int64(old.n)
		}
		c.index[r.hash] = &slot{hash: r.hash, off: r.off, n: r.n}
		c.bytes += int64(r.n)
		c.end = max(c.end, r.off+int64(r.n))
	})
	if err != nil {
		return err
	}
	c.end = roundUp(c.end)
	if size > c.end {
		// What was written and not journaled before the last crash.
		return c.data.Truncate(c.end)
	}
	return nil
}

func roundUp(n int64) int64 { return (n + align - 1) &^ (align - 1) }

// Dir is the cache's directory.
func (c *Cache) Dir() string { return c.dir }

// Has reports whether a chunk is there. It may still turn out to be damaged.
func (c *Cache) Has(hash [32]byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.index[hash] != nil
}

// find returns a chunk's slot, and registers a user of the files.
func (c *Cache) find(hash [32]byte) (*slot, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, os.ErrClosed
	}
	s := c.index[hash]
	if s == nil {
		return nil, ErrMissing
	}
	c.users.Add(1)
	return s, nil
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// ReadAt reads bytes of a chunk, from off within it. It returns ErrMissing if
// the chunk is not there, or is damaged, which it forgets then; io.EOF if p
// reaches past the chunk's end; and no other error but os.ErrClosed.
func (c *Cache) ReadAt(hash [32]byte, p []byte, off int64) (int, error) {
	s, err := c.find(hash)
	if err != nil {
		return 0, err
	}
	defer c.users.Done()
	if off < 0 || off > int64(s.n) {
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), int64(s.n)-off)]
	if s.verified.Load() {
		if _, err := c.data.ReadAt(want, s.off+off); err != nil {
			c.drop(s)
			return 0, ErrMissing
		}
	} else {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		if cap(*buf) < s.n {
			*buf = make([]byte, s.n)
		}
		all := (*buf)[:s.n]
		if _, err := c.data.ReadAt(all, s.off); err != nil || sha256.Sum256(all) != hash {
			c.drop(s)
			return 0, ErrMissing
		}
		s.verified.Store(true)
		copy(want, all[off:])
	}
	if len(want) < len(p) {
		return len(want), io.EOF
	}
	return len(want), nil
}

// drop forgets a damaged chunk. Its place is not used again while the cache is
// open, since others may be reading there.
func (c *Cache) drop(s *slot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.damaged++
	c.forget(s)
}

// forget takes a slot out of the index. The caller holds mu.
func (c *Cache) forget(s *slot) {
	if c.index[s.hash] == s {
		delete(c.index, s.hash)
		c.bytes -= int64(s.n)
	}
}

// Put adds a chunk, whose SHA-256 the caller has found to be hash. It can be
// read when Put returns, and is durable some time later; see [Cache.Flush]. An
// error wraps ErrFull or ErrBroken; the caller does without the cache then.
func (c *Cache) Put(hash [32]byte, data []byte) error {
	if len(data) == 0 || len(data) > MaxChunk {
		return fmt.Errorf("cache %s: chunk of %d bytes: want 1 to %d: %w", c.dir, len(data), MaxChunk, disk.ErrRange)
	}
	s := &slot{hash: hash, n: len(data)}
	s.verified.Store(true)
	if ok, err := c.allocate(s); !ok {
		return err
	}
	defer c.users.Done()
	if _, err := c.data.WriteAt(data, s.off); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.refused++
		if noSpace(err) {
			c.fullTil = c.cfg.now().Add(retryFull)
			return fmt.Errorf("cache %s: %w: %w", c.dir, ErrFull, err)
		}
		return c.fail(err)
	}
	c.mu.Lock()
	if c.broken != nil {
		defer c.mu.Unlock()
		return c.fail(nil)
	}
	if c.index[hash] == nil {
		c.index[hash] = s
		c.bytes += int64(s.n)
		c.pending = append(c.pending, s)
		c.waiting += int64(s.n)
	}
	soon := c.waiting >= c.cfg.BatchBytes
	c.mu.Unlock()
	if soon {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	return nil
}

// allocate gives a slot its place, and registers a user of the files. It
// returns false and no error if the chunk is there.
func (c *Cache) allocate(s *slot) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return false, os.ErrClosed
	case c.index[s.hash] != nil:
		return false, nil
	case c.broken != nil:
		c.refused++
		return false, c.fail(nil)
	case c.cfg.MaxBytes > 0 && c.end+int64(s.n) > c.cfg.MaxBytes:
		c.refused++
		c.fullTil = c.cfg.now().Add(retryFull)
		return false, fmt.Errorf("cache %s: %w: the limit is %d bytes", c.dir, ErrFull, c.cfg.MaxBytes)
	case c.cfg.now().Before(c.fullTil):
		c.refused++
		return false, fmt.Errorf("cache %s: %w: %w", c.dir, ErrFull, unix.ENOSPC)
	}
	s.off = c.end
	c.end = roundUp(c.end + int64(s.n))
	c.users.Add(1)
	return true, nil
}

func noSpace(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// fail makes the cache refuse chunks from now on, if err is not nil, and
// returns the error that says so. The caller holds mu.
func (c *Cache) fail(err error) error {
	if c.broken == nil {
		c.broken = err
	}
	return fmt.Errorf("cache %s: %w: %w", c.dir, ErrBroken, c.broken)
}

// commitLoop makes chunks durable in batches.
func (c *Cache) commitLoop() {
	tick := time.NewTicker(c.cfg.BatchTime)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-c.wake:
		case <-tick.C:
		}
		c.commit() // an error is kept in broken
	}
}

// commit makes the chunks that were put before it durable: data, then journal.
func (c *Cache) commit() error {
	c.commitMu.Lock()
	defer c.commitMu.Unlock()
	c.mu.Lock()
	batch, err := c.pending, c.broken
	c.pending, c.waiting = nil, 0
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("cache %s: %w: %w", c.dir, ErrBroken, err)
	}
	if len(batch) == 0 {
		return nil
	}
	if err := c.data.Sync(); err != nil {
		// The kernel may have dropped what it could not write.
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, s := range append(batch, c.pending...) {
			c.forget(s)
		}
		c.pending, c.waiting = nil, 0
		return c.fail(err)
	}
	err = c.log.add(batch)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		return nil
	case noSpace(err):
		// They stay readable, and are journaled when there is space.
		c.pending = append(batch, c.pending...)
		c.fullTil = c.cfg.now().Add(retryFull)
		return fmt.Errorf("cache %s: %w: %w", c.dir, ErrFull, err)
	}
	return c.fail(err)
}

// Flush makes everything that was put before it durable.
func (c *Cache) Flush() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return os.ErrClosed
	}
	c.users.Add(1)
	c.mu.Unlock()
	defer c.users.Done()
	return c.commit()
}

// Stats returns the cache's numbers.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Chunks: len(c.index), Bytes: c.bytes, Damaged: c.damaged, Refused: c.refused,
		Full:   c.cfg.now().Before(c.fullTil) || c.cfg.MaxBytes > 0 && c.end >= c.cfg.MaxBytes,
		Broken: c.broken != nil,
	}
}

// Close makes chunks durable and closes the cache. Reads and writes in flight
// end first. A second Close returns nil.
func (c *Cache) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	close(c.done)
	c.wg.Wait()
	c.users.Wait()
	err := c.commit()
	if errors.Is(err, ErrFull) {
		err = nil // there will be less in the cache, which is all it means
	}
	return errors.Join(err, c.closeFiles())
}

func (c *Cache) closeFiles() error {
	var errs []error
	if c.data != nil {
		errs = append(errs, c.data.Close())
	}
	if c.log.file != nil {
		errs = append(errs, c.log.file.Close())
	}
	if c.lock != nil {
		errs = append(errs, unlockDir(c.lock))
	}
	return errors.Join(errs...)
}
