package thin

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/buffers"
)

// DiskConfig says how a disk of a pool is opened.
type DiskConfig struct {
	// ReadOnly refuses every change.
	ReadOnly bool
	// Wait makes requests that find the pool full wait until there is space,
	// or the disk is closed, instead of failing with [disk.ErrNoSpace]. It
	// is for users without a guest, whose device can hold requests itself.
	Wait bool
}

// Disk is an open disk of a [Pool]. It implements [disk.Backend],
// [disk.Vectored], [disk.Immediate], [disk.Resizer] and [disk.Mapper].
//
// A write to extents that the disk has goes straight to the store, without a
// lock. A write elsewhere takes extents first, and adds one small write of
// metadata. Discarding, or zeroing with mayUnmap, gives whole extents back.
//
// Closing a disk does not end its requests that wait for the store.
type Disk struct {
	p       *Pool
	v       *volume
	cfg     DiskConfig
	info    disk.Info
	size    atomic.Int64
	closing chan struct{}
	closed  atomic.Bool
}

// OpenDisk opens a disk of the pool, which only one opener may have at a time:
// otherwise the error wraps [disk.ErrLocked]. A name that the pool does not
// know gives one wrapping fs.ErrNotExist.
func (p *Pool) OpenDisk(name string, cfg DiskConfig) (*Disk, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.volumes[name]
	var err error
	switch {
	case p.closed:
		err = errClosed
	case v == nil:
		err = fs.ErrNotExist
	case v.open:
		err = fmt.Errorf("%w: the disk is open", disk.ErrLocked)
	}
	if err != nil {
		return nil, p.fail(fmt.Sprintf("open %q", name), err)
	}
	v.open = true
	cfg.ReadOnly = cfg.ReadOnly || p.readOnly
	d := &Disk{p: p, v: v, cfg: cfg, closing: make(chan struct{}), info: disk.Info{
		Name: p.name + ":" + name, ReadOnly: cfg.ReadOnly, BlockSize: p.info.BlockSize,
		OptimalIO: max(p.info.OptimalIO, int(p.lay.extent)),
	}}
	if !cfg.ReadOnly {
		d.info.DiscardUnit = int(p.lay.extent)
	}
	d.size.Store(p.slots[v.slot].size)
	return d, nil
}

// Size is the number of bytes that the disk promises.
func (d *Disk) Size() int64 { return d.size.Load() }

// Info describes the disk. Its name is the store's, a colon and its own.
func (d *Disk) Info() disk.Info { return d.info }

func (d *Disk) fail(op string, off, n int64, err error) error {
	// The store's own error says where in the store; that may help.
	return &disk.Error{Op: op, Name: d.info.Name, Off: off, Len: n, Err: err}
}

// usable returns an error if the disk is closed. The caller holds the gate.
func (d *Disk) usable() error {
	if d.closed.Load() || d.v.shut {
		return os.ErrClosed
	}
	return nil
}

// change checks a change of n bytes at off. The caller holds the gate.
func (d *Disk) change(off, n int64) error {
	if err := d.usable(); err != nil {
		return err
	}
	if d.cfg.ReadOnly {
		return disk.ErrReadOnly
	}
	if size := d.size.Load(); off < 0 || n < 0 || n > size || off > size-n {
		return fmt.Errorf("%w: size is %d", disk.ErrRange, size)
	}
	return nil
}

// run looks up the extents from off on, as far as n bytes reach: how many
// bytes lie together, and where in the store; or how many have no extent.
func (d *Disk) run(off, n int64) (at, length int64, mapped bool) {
	e := d.p.lay.extent
	l := off / e
	x, mapped := d.v.extents.get(uint32(l))
	first := x
	length = e - off%e
	for length < n {
		l++
		y, ok := d.v.extents.get(uint32(l))
		if ok != mapped || mapped && (y != x+1 || !d.p.lay.joined(y)) {
			break
		}
		x, length = y, length+e
	}
	if mapped {
		at = d.p.lay.data(first) + off%e
	}
	return at, min(length, n), mapped
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	bufs := [1][]byte{p}
	return d.ReadVAt(bufs[:], off)
}

// WriteAt implements io.WriterAt.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	bufs := [1][]byte{p}
	return d.WriteVAt(bufs[:], off)
}

// ReadVAt implements [disk.Vectored].
func (d *Disk) ReadVAt(bufs [][]byte, off int64) (int, error) {
	d.v.gate.RLock()
	defer d.v.gate.RUnlock()
	want := buffers.Len(bufs)
	if err := d.usable(); err != nil {
		return 0, d.fail("read", off, want, err)
	}
	if off < 0 {
		return 0, d.fail("read", off, want, disk.ErrRange)
	}
	n := min(want, max(0, d.size.Load()-off))
	var c cutter
	c.start(bufs)
	defer c.end()
	for done := int64(0); done < n; {
		turn := d.v.readers.enter()
		at, length, mapped := d.run(off+done, n-done)
		part := c.next(length, want)
		var k int
		var err error
		if mapped {
			k, err = disk.ReadV(d.p.store, part, at)
		} else {
			k = int(length)
			for _, b := range part {
				clear(b)
			}
		}
		d.v.readers.leave(turn)
		done += int64(k)
		if int64(k) < length {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return int(done), d.fail("read", off, want, err)
		}
	}
	if n < want {
		return int(n), io.EOF
	}
	return int(n), nil
}

// WriteVAt implements [disk.Vectored].
func (d *Disk) WriteVAt(bufs [][]byte, off int64) (int, error) {
	want := buffers.Len(bufs)
	var c cutter
	c.start(bufs)
	defer c.end()
	done := int64(0)
	err := d.spacious(func() error {
		if err := d.change(off, want); err != nil {
			return err
		}
		for done < want {
			turn := d.v.readers.enter()
			at, length, mapped := d.run(off+done, want-done)
			if mapped {
				part := c.next(length, want)
				k, err := disk.WriteV(d.p.store, part, at)
				d.v.readers.leave(turn)
				done += int64(k)
				if err != nil {
					return err
				}
				continue
			}
			d.v.readers.leave(turn)
			k, err := d.fill(off+done, length, func(at, n int64) error {
				_, err := disk.WriteV(d.p.store, c.next(n, want), at)
				return err
			})
			done += k
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return int(done), d.fail("write", off, want, err)
	}
	return int(done), nil
}

// spacious runs fn, which changes the disk, with the gate held, once more each
// time that the pool was full and there is space again, if that is wanted.
func (d *Disk) spacious(fn func() error) error {
	for {
		var space chan struct{}
		if d.cfg.Wait {
			space = d.p.await()
		}
		d.v.gate.RLock()
		err := fn()
		d.v.gate.RUnlock()
		if space == nil || !errors.Is(err, errFull) {
			return err
		}
		select {
		case <-space:
		case <-d.closing:
			return os.ErrClosed
		}
	}
}

// await returns a channel that is closed when there is more space than now.
func (p *Pool) await() chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.space == nil {
		p.space = make(chan struct{})
	}
	return p.space
}

// fill takes extents for up to n bytes at off, where none were, has write fill
// them, at an offset of the store and for some number of bytes, and maps them.
// It returns how many bytes that were; 0 if somebody else was quicker.
func (d *Disk) fill(off, n int64, write func(at, n int64) error) (int64, error) {
	e, p, v := d.p.lay.extent, d.p, d.v
	first := off / e
	c := v.claim(first, (off+n-1)/e+1)
	defer v.unclaim(c)
	free := int64(0)
	for first+free < c.end {
		if _, ok := v.extents.get(uint32(first + free)); ok {
			break
		}
		free++
	}
	if free == 0 {
		return 0, nil
	}
	hint := uint32(math.MaxUint32)
	if first > 0 {
		if x, ok := v.extents.get(uint32(first - 1)); ok && p.lay.joined(x+1) {
			hint = x + 1
		}
	}
	x, got, err := p.take(hint, int(free))
	if err != nil {
		return 0, err
	}
	n = min(n, int64(got)*e-off%e)
	if write != nil {
		err = write(p.lay.data(x)+off%e, n)
	}
	if err == nil {
		p.mu.Lock()
		for i := range uint32(got) {
			p.setEntry(x+i, owned(v.id, uint32(first)+i))
		}
		v.used += int64(got)
		p.mu.Unlock()
		if err = p.commit(); err == nil {
			for i := range uint32(got) {
				v.extents.set(uint32(first)+i, x+i)
			}
			return n, nil
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range uint32(got) {
		if p.entry(x+i) != entryUnclean {
			p.setEntry(x+i, entryUnclean)
			v.used--
		}
		p.give(v, x+i)
	}
	return 0, err
}

// unmap gives back the whole extents in [first, end).
func (d *Disk) unmap(first, end int64) error {
	const step = 1 << 12 // extents at once
	p, v := d.p, d.v
	for first < end {
		if first = v.extents.next(first, end); first == end {
			break
		}
		c := v.claim(first, min(end, first+step))
		p.mu.Lock()
		any := false
		for l := c.first; l < c.end; l++ {
			if x, ok := v.extents.get(uint32(l)); ok {
				v.extents.drop(uint32(l))
				p.setEntry(x, entryUnclean)
				v.used--
				p.give(v, x)
				any = true
			}
		}
		p.mu.Unlock()
		var err error
		if any {
			err = p.commit()
		}
		v.unclaim(c)
		if err != nil {
			return err
		}
		first = c.end
	}
	return nil
}

// Flush implements [disk.Backend]. It flushes the store, and with it all disks
// of the pool.
func (d *Disk) Flush() error {
	d.v.gate.RLock()
	defer d.v.gate.RUnlock()
	err := d.usable()
	if err == nil && !d.cfg.ReadOnly {
		err = d.p.flush()
	}
	if err != nil {
		return d.fail("flush", 0, 0, err)
	}
	return nil
}

// Discard gives the extents that lie wholly in the range back to the pool, and
// leaves the rest of it.
func (d *Disk) Discard(off, n int64) error {
	d.v.gate.RLock()
	defer d.v.gate.RUnlock()
	err := d.change(off, n)
	if err == nil {
		err = d.unmap(d.whole(off, n))
	}
	if err != nil {
		return d.fail("discard", off, n, err)
	}
	return nil
}

// whole returns the extents that lie wholly in a range. The disk's last one
// counts as whole where the disk ends.
func (d *Disk) whole(off, n int64) (first, end int64) {
	e := d.p.lay.extent
	first, end = (off+e-1)/e, (off+n)/e
	if off+n == d.size.Load() {
		end = (off + n + e - 1) / e
	}
	return first, max(first, end)
}

// WriteZeroes implements [disk.Backend]. With mayUnmap whole extents are given
// back to the pool; without it all extents of the range are taken.
func (d *Disk) WriteZeroes(off, n int64, mayUnmap bool) error {
	done := int64(0)
	err := d.spacious(func() error {
		if err := d.change(off, n); err != nil {
			return err
		}
		if mayUnmap {
			first, end := d.whole(off, n)
			if err := d.unmap(first, end); err != nil {
				return err
			}
		}
		for done < n {
			turn := d.v.readers.enter()
			at, length, mapped := d.run(off+done, n-done)
			if mapped {
				err := d.p.store.WriteZeroes(at, length, mayUnmap)
				d.v.readers.leave(turn)
				if err != nil {
					return err
				}
				done += length
				continue
			}
			d.v.readers.leave(turn)
			if mayUnmap {
				done += length
				continue
			}
			k, err := d.fill(off+done, length, nil)
			if err != nil {
				return err
			}
			done += k
		}
		return nil
	})
	if err != nil {
		return d.fail("write zeroes", off, n, err)
	}
	return nil
}

// Resize implements [disk.Resizer]. A larger disk takes no space until it is
// written. Extents beyond the end of a smaller one go back to the pool, and
// that they are gone is durable when Resize returns.
func (d *Disk) Resize(size int64) error {
	d.v.gate.Lock()
	defer d.v.gate.Unlock()
	if err := d.resize(size); err != nil {
		return d.fail("resize", 0, size, err)
	}
	return nil
}

func (d *Disk) resize(size int64) error {
	p, v, old := d.p, d.v, d.size.Load()
	switch {
	case d.usable() != nil:
		return d.usable()
	case d.cfg.ReadOnly:
		return disk.ErrReadOnly
	case size == old:
		return nil
	}
	if err := p.lay.checkSize(size); err != nil {
		return err
	}
	e := p.lay.extent
	if x, ok := v.extents.get(uint32(old / e)); ok && old%e != 0 && size > old {
		// What a larger disk left behind its end when it was cut.
		if err := p.store.WriteZeroes(p.lay.data(x)+old%e, e-old%e, false); err != nil {
			return err
		}
		if err := p.flush(); err != nil {
			return err
		}
	}
	set := func(n int64) {
		p.mu.Lock()
		p.slots[v.slot].size = n
		p.dirtySlot(v.slot)
		p.mu.Unlock()
	}
	set(size)
	err := p.commit()
	if err == nil && size < old {
		err = p.flush()
	}
	if err != nil {
		set(old)
		return err
	}
	d.size.Store(size)
	if size < old {
		p.release(v, p.extentsOf(size))
		return p.commit()
	}
	return nil
}

// Extent implements [disk.Mapper].
func (d *Disk) Extent(off int64) (disk.Extent, error) {
	d.v.gate.RLock()
	defer d.v.gate.RUnlock()
	err := d.usable()
	size := d.size.Load()
	if err == nil && (off < 0 || off >= size) {
		err = fmt.Errorf("%w: size is %d", disk.ErrRange, size)
	}
	if err != nil {
		return disk.Extent{}, d.fail("map", off, 1, err)
	}
	e := d.p.lay.extent
	l, end := off/e, d.p.extentsOf(size)
	next := d.v.extents.next(l, end)
	x := disk.Extent{Off: off, Allocated: next == l, Zero: next != l}
	if next == l {
		const most = 1 << 16 // extents; the rest comes with the next call
		for next < min(end, l+most) {
			if _, ok := d.v.extents.get(uint32(next)); !ok {
				break
			}
			next++
		}
	}
	x.Len = min(next*e, size) - off
	return x, nil
}

// Close makes the disk free for another opener. Requests in flight end first;
// those that wait for space end with an error.
func (d *Disk) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	close(d.closing)
	d.v.gate.Lock()
	defer d.v.gate.Unlock()
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	d.v.open = false
	return nil
}
