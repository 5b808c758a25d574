package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/stream/image"
	"github.com/vmkit-go/vmkit/stream/profile"
)

// Size is the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.img.Size() }

// Info describes the disk.
func (d *Disk) Info() disk.Info { return d.info }

// enter keeps Close waiting until leave; it returns false if it has begun.
func (d *Disk) enter() bool {
	d.gate.RLock()
	defer d.gate.RUnlock()
	if d.closed {
		return false
	}
	d.work.Add(1)
	return true
}

// Close ends requests that wait for content, with os.ErrClosed, and all work
// for the disk. The cache stays open.
func (d *Disk) Close() error {
	d.gate.Lock()
	was := d.closed
	d.closed = true
	d.gate.Unlock()
	d.cancel()
	d.work.Wait()
	if c, ok := d.demand.(io.Closer); ok && !was {
		return c.Close() // idle connections
	}
	return nil
}

func (d *Disk) wrap(op string, off, n int64, err error) error {
	return &disk.Error{Op: op, Name: d.name, Off: off, Len: n, Err: err}
}

// ReadAt implements io.ReaderAt. If content is missing it is fetched first.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	bufs := [1][]byte{p}
	return d.ReadVAt(bufs[:], off)
}

// ReadVAt implements [disk.Vectored].
func (d *Disk) ReadVAt(bufs [][]byte, off int64) (int, error) {
	var n int64
	for _, p := range bufs {
		n += int64(len(p))
	}
	if !d.enter() {
		return 0, d.wrap("read", off, n, os.ErrClosed)
	}
	defer d.work.Done()
	if off < 0 {
		return 0, d.wrap("read", off, n, disk.ErrRange)
	}
	most := max(0, d.Size()-off)
	if err := d.read(bufs, off, min(n, most)); err != nil {
		return 0, d.wrap("read", off, n, err)
	}
	if n > most {
		return int(most), io.EOF
	}
	return int(n), nil
}

// piece is a part of a chunk that somebody wants.
type piece struct {
	chunk image.Chunk
	skip  int // bytes of the chunk before the part
	dst   []byte
}

// read fills bufs with the n bytes at off, which lie within the disk.
func (d *Disk) read(bufs [][]byte, off, n int64) error {
	var missing []piece
	for _, p := range bufs {
		p = p[:min(int64(len(p)), n)]
		n -= int64(len(p))
		for len(p) > 0 {
			c, ok, err := d.find(off)
			if err != nil {
				return err
			}
			var k int
			switch {
			case !ok: // zero up to c
				k = int(min(int64(len(p)), c.Off-off))
				clear(p[:k])
			default:
				k = int(min(int64(len(p)), c.End()-off))
				want := piece{c, int(off - c.Off), p[:k]}
				if !d.local(want) {
					missing = append(missing, want)
				}
			}
			p, off = p[k:], off+int64(k)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return d.await(missing)
}

// find returns the chunk that holds the byte at off; or, with false, a chunk of
// which only Off is set: the disk is zero up to there.
func (d *Disk) find(off int64) (c image.Chunk, ok bool, err error) {
	err = d.insist(func() error {
		n, err := d.img.Find(d.ctx, off)
		if err != nil {
			return err
		}
		if n == d.img.Chunks() {
			c.Off = d.Size()
			return nil
		}
		if c, err = d.img.Chunk(d.ctx, n); err != nil {
			return err
		}
		if ok = c.Off <= off; !ok {
			c = image.Chunk{Off: c.Off}
		}
		return nil
	})
	return c, ok, err
}

// local reads a piece that is there, and reports whether it was.
func (d *Disk) local(p piece) bool {
	if c := d.cfg.Cache; c != nil {
		if n, _ := c.ReadAt(p.chunk.Hash, p.dst, int64(p.skip)); n == len(p.dst) {
			d.touched(p.chunk.N)
			return true
		}
	}
	if data := d.mem.get(p.chunk.Hash); data != nil {
		copy(p.dst, data[p.skip:])
		d.touched(p.chunk.N)
		return true
	}
	return false
}

// touched notes that a chunk was read that was there.
func (d *Disk) touched(n int) {
	if d.chunks.use(n) {
		d.mu.Lock()
		d.count.lastUse = time.Now()
		d.mu.Unlock()
	}
}

// insist calls fn until it works, by the policy for outages.
func (d *Disk) insist(fn func() error) error {
	var t tries
	for {
		err := fn()
		if err == nil {
			t.done(d)
			return nil
		}
		if err := t.again(d, err); err != nil {
			return err
		}
	}
}

// refuse is the answer to all changes.
func (d *Disk) refuse(op string, off, n int64) error {
	if !d.enter() {
		return d.wrap(op, off, n, os.ErrClosed)
	}
	defer d.work.Done()
	if off < 0 || n < 0 || off > d.Size()-n {
		return d.wrap(op, off, n, fmt.Errorf("%w: size is %d", disk.ErrRange, d.Size()))
	}
	return d.wrap(op, off, n, disk.ErrReadOnly)
}

// WriteAt fails with disk.ErrReadOnly.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	return 0, d.refuse("write", off, int64(len(p)))
}

// WriteVAt fails with disk.ErrReadOnly.
func (d *Disk) WriteVAt(bufs [][]byte, off int64) (int, error) {
	var n int64
	for _, p := range bufs {
		n += int64(len(p))
	}
	return 0, d.refuse("write", off, n)
}

// Discard fails with disk.ErrReadOnly.
func (d *Disk) Discard(off, n int64) error { return d.refuse("discard", off, n) }

// WriteZeroes fails with disk.ErrReadOnly.
func (d *Disk) WriteZeroes(off, n int64, _ bool) error { return d.refuse("write zeroes", off, n) }

// Flush makes what has come durable in the cache, as far as it takes it.
func (d *Disk) Flush() error {
	if !d.enter() {
		return d.wrap("flush", 0, 0, os.ErrClosed)
	}
	defer d.work.Done()
	// Nothing is lost if the cache cannot: it is fetched again.
	if c := d.cfg.Cache; c != nil {
		if err := c.Flush(); errors.Is(err, os.ErrClosed) {
			return d.wrap("flush", 0, 0, err)
		}
	}
	return nil
}

// Extent implements [disk.Mapper]. What no chunk holds is zero.
func (d *Disk) Extent(off int64) (disk.Extent, error) {
	if !d.enter() {
		return disk.Extent{}, d.wrap("map", off, 1, os.ErrClosed)
	}
	defer d.work.Done()
	if off < 0 || off >= d.Size() {
		return disk.Extent{}, d.wrap("map", off, 1, fmt.Errorf("%w: size is %d", disk.ErrRange, d.Size()))
	}
	c, ok, err := d.find(off)
	if err != nil {
		return disk.Extent{}, d.wrap("map", off, 1, err)
	}
	if ok {
		return disk.Extent{Off: off, Len: c.End() - off, Allocated: true}, nil
	}
	return disk.Extent{Off: off, Len: c.Off - off, Zero: true}, nil
}

// Layout says which chunk of an image holds the byte at an offset.
func Layout(ctx context.Context, img *image.Image) profile.Layout {
	return func(off int64) ([32]byte, int64, bool, error) {
		n, err := img.Find(ctx, off)
		if err != nil || n == img.Chunks() {
			return [32]byte{}, img.Size(), true, err
		}
		c, err := img.Chunk(ctx, n)
		if err != nil || c.Off > off {
			return [32]byte{}, c.Off, true, err
		}
		return c.Hash, c.End(), false, nil
	}
}
