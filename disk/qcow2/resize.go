package qcow2

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/disk"
)

// Resize implements [disk.Resizer]. The size is a multiple of 512. An image
// with snapshots cannot shrink. Requests wait until it is done.
func (im *Image) Resize(size int64) error {
	im.lock()
	defer im.unlock()
	if err := im.resize(size); err != nil {
		return im.fail("resize", 0, size, err)
	}
	return nil
}

func (im *Image) resize(size int64) error {
	if err := im.check(0, 0); err != nil {
		return err
	}
	old := im.size.Load()
	switch {
	case size < 0 || size%sectorSize != 0:
		return fmt.Errorf("%w: want a multiple of %d", disk.ErrRange, sectorSize)
	case im.l1Len(size)*entrySize > maxL1Bytes:
		return fmt.Errorf("%w: needs larger clusters than %d bytes", disk.ErrRange, im.cluster)
	case size == old:
		return nil
	case size < old && im.hdr.snapshots > 0:
		return fmt.Errorf("shrink an image with snapshots: %w", errors.ErrUnsupported)
	case size > old:
		if err := im.growTo(old, size); err != nil {
			return err
		}
	}
	im.mu.Lock()
	im.hdr.size = size
	err := im.hdr.write(im.file)
	if err != nil {
		im.hdr.size = old
	}
	im.mu.Unlock()
	if err != nil {
		return err
	}
	im.size.Store(size)
	if size < old {
		// The new size is durable before any of these.
		return im.change(im.clusters(size), im.clusters(old)-1, false, func(uint64) uint64 { return 0 })
	}
	return nil
}

// growTo makes the L1 table fit for size bytes and the bytes from old on read
// as zeroes, durably.
func (im *Image) growTo(old, size int64) error {
	if need := im.l1Len(size); need > int64(len(im.l1)) {
		if err := im.growL1(need); err != nil {
			return err
		}
	}
	// Something may be left there by a former, larger size, and the backing
	// disk may be larger than this one was.
	if err := im.plainZeroes(old, min(size, im.up(old))-old, true); err != nil {
		return err
	}
	first, last := im.clusters(old), im.clusters(size)-1
	zero := func(e uint64) uint64 { return im.zeroed(e, true) }
	if im.backing != nil {
		below := im.clusters(im.backing.Size()) - 1
		if !im.v2 {
			if err := im.change(first, min(last, below), true, zero); err != nil {
				return err
			}
		} else if n := min(size, (below+1)<<im.bits) - first<<im.bits; n > 0 {
			if err := im.plainZeroes(first<<im.bits, n, true); err != nil {
				return err
			}
		}
		first = max(first, below+1)
	}
	if err := im.change(first, last, false, zero); err != nil {
		return err
	}
	return im.flushTables(false)
}

// growL1 moves the L1 table to where it has room for n entries. The caller
// holds the image's lock.
func (im *Image) growL1(n int64) error {
	// Only durable entries may be in the new table.
	if err := im.flushTables(false); err != nil {
		return err
	}
	n = min(max(n, int64(len(im.l1))*3/2), maxL1Bytes/entrySize)
	clusters := im.clusters(n * entrySize)
	l1 := make([]atomic.Uint64, n)
	tables := make([]atomic.Pointer[l2Table], n)
	for i := range im.l1 {
		l1[i].Store(im.l1[i].Load())
		tables[i].Store(im.tables[i].Load())
	}
	im.mu.Lock()
	first, err := im.alloc.takeRow(clusters)
	im.mu.Unlock()
	if err != nil {
		return err
	}
	off := first << im.bits
	whole := make([]byte, clusters<<im.bits)
	copy(whole, im.encodeEntries(l1, 0, n*entrySize))
	if _, err = im.file.WriteAt(whole, off); err == nil {
		err = im.flushTables(true) // with the refcounts
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if err != nil {
		im.alloc.giveBack(first, clusters)
		return err
	}
	oldOff, oldLen := im.hdr.l1Off, im.hdr.l1Len
	im.hdr.l1Off, im.hdr.l1Len = off, n
	if err := im.hdr.write(im.file); err != nil {
		// Which table the header names is not known: the new one is leaked.
		im.hdr.l1Off, im.hdr.l1Len = oldOff, oldLen
		return err
	}
	im.l1, im.tables = l1, tables
	im.meta.set(first, clusters, true)
	// The next flush makes the header durable before these are free.
	for c := range im.clusters(oldLen * entrySize) {
		im.freed = append(im.freed, uint64(oldOff+c<<im.bits))
	}
	return nil
}

// commitPiece is how much Commit and Rebase copy or compare at once.
const commitPiece = 1 << 20

// Commit writes what the image holds into its backing disk, flushes that, and
// empties the image. Both read as before; other images above the same backing
// disk do not. Requests wait until it is done. If it fails, nothing is lost,
// and it may be repeated.
func (im *Image) Commit() error {
	im.lock()
	defer im.unlock()
	if err := im.commit(); err != nil {
		return im.fail("commit", 0, 0, err)
	}
	return nil
}

func (im *Image) commit() error {
	if err := im.check(0, 0); err != nil {
		return err
	}
	if im.backing == nil {
		return errors.New("the image has no backing file")
	}
	size := im.size.Load()
	if im.backing.Size() < size {
		g, ok := im.backing.(disk.Resizer)
		if !ok {
			return fmt.Errorf("%w: the backing disk has only %d bytes", disk.ErrRange, im.backing.Size())
		}
		if err := g.Resize(size); err != nil {
			return err
		}
	}
	buf := make([]byte, commitPiece)
	for off := int64(0); off < size; {
		m, err := im.lookup(off, size-off, false)
		if err != nil {
			return err
		}
		switch m.kind {
		case kindHole:
		case kindZero:
			err = im.backing.WriteZeroes(off, m.n, true)
		default:
			m.n = min(m.n, int64(len(buf)))
			if _, err = im.readRuns([][]byte{buf[:m.n]}, off, m.n, false); err == nil {
				_, err = im.backing.WriteAt(buf[:m.n], off)
			}
		}
		if err != nil {
			return err
		}
		off += m.n
	}
	if err := im.backing.Flush(); err != nil {
		return err
	}
	if err := im.empty(); err != nil {
		return err
	}
	return im.flushTables(false)
}

// empty drops all L2 tables and what they refer to. The caller holds the
// image's lock.
func (im *Image) empty() error {
	if err := im.flushTables(false); err != nil {
		return err
	}
	for i := range im.l1 {
		t, err := im.table(int64(i))
		if err != nil {
			return err
		}
		if t == nil {
			continue
		}
		im.mu.Lock()
		for j := range t.e {
			if e := t.e[j].Load(); e&^uint64(flagZero|flagCopied) != 0 && t.bad[int64(j)] == nil {
				im.drop(e)
			}
		}
		im.freed = append(im.freed, uint64(t.off))
		im.l1[i].Store(0)
		im.l1Dirty[int64(i)*entrySize/sectorSize] = true
		im.changed = true
		im.tables[i].Store(nil)
		for k, c := range im.cached {
			if c == t {
				im.cached = append(im.cached[:k], im.cached[k+1:]...)
				break
			}
		}
		im.mu.Unlock()
	}
	return nil
}
