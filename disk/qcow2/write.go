package qcow2

import (
	"bytes"
	"sync"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/buffers"
)

// maxNew is how many bytes of new clusters one step allocates at most.
const maxNew = 4 << 20

// WriteAt implements io.WriterAt.
func (im *Image) WriteAt(p []byte, off int64) (int, error) {
	if n, ok := im.writeInPlace(p, off); ok {
		return n, nil
	}
	v := getVec()
	defer v.put()
	v.b = append(v.b, p)
	return im.WriteVAt(v.b, off)
}

// writeInPlace is WriteAt where one write to the container does it.
func (im *Image) writeInPlace(p []byte, off int64) (int, bool) {
	e := im.enter()
	defer im.requests.leave(e)
	if im.check(off, int64(len(p))) != nil || len(p) == 0 {
		return 0, false
	}
	m, err := im.lookup(off, int64(len(p)), true)
	if err != nil || m.kind != kindData || m.n < int64(len(p)) {
		return 0, false
	}
	n, err := im.file.WriteAt(p, m.host)
	return n, err == nil
}

// WriteVAt implements [disk.Vectored]. It overwrites clusters in place where
// it can; others are written whole to new ones first, and then referred to.
func (im *Image) WriteVAt(bufs [][]byte, off int64) (int, error) {
	n, grew, err := im.write(bufs, off, false)
	if err == nil && grew {
		if err = im.relieve(); err != nil {
			err = im.fail("write", off, int64(n), err)
		}
	}
	return n, err
}

// TryWriteVAt implements [disk.Immediate], as far as the container does: it
// writes what can be overwritten in place.
func (im *Image) TryWriteVAt(bufs [][]byte, off int64) (int, error) {
	n, _, err := im.write(bufs, off, true)
	return n, err
}

// write also reports whether tables were changed.
func (im *Image) write(bufs [][]byte, off int64, try bool) (int, bool, error) {
	e := im.enter()
	defer im.requests.leave(e)
	want := buffers.Len(bufs)
	n, grew, err := int64(0), false, im.check(off, want)
	if err == nil {
		n, grew, err = im.writeRuns(bufs, off, want, try)
	}
	if err != nil && err != disk.ErrWouldBlock {
		err = im.fail("write", off, want, err)
	}
	return int(n), grew, err
}

// writeRuns writes run by run, with bare errors. The caller is a request.
func (im *Image) writeRuns(bufs [][]byte, off, want int64, try bool) (done int64, grew bool, err error) {
	for done < want {
		m, err := im.lookup(off+done, want-done, try)
		var n int64
		switch {
		case err == errNotCached:
			return done, grew, disk.ErrWouldBlock
		case err != nil:
			return done, grew, err
		case m.kind == kindData && m.n == want:
			n, err = im.writeHost(bufs, m.host, try)
		case m.kind == kindData:
			v := getVec()
			v.add(bufs, done, m.n)
			n, err = im.writeHost(v.b, m.host, try)
			v.put()
		case try:
			return done, grew, disk.ErrWouldBlock
		default:
			grew = true
			n, err = im.writeNew(bufs, done, off+done, min(want-done, maxNew))
		}
		done += n
		if err != nil {
			return done, grew, err
		}
	}
	return done, grew, nil
}

func (im *Image) writeHost(bufs [][]byte, off int64, try bool) (int64, error) {
	if !try {
		if im.vectored != nil {
			n, err := im.vectored.WriteVAt(bufs, off)
			return int64(n), err
		}
		n, err := disk.WriteV(im.file, bufs, off)
		return int64(n), err
	}
	if im.immediate == nil {
		return 0, disk.ErrWouldBlock
	}
	n, err := im.immediate.TryWriteVAt(bufs, off)
	return int64(n), err
}

// fresh is a run of new clusters on their way into an L2 table.
type fresh struct {
	*allocation
	table *l2Table
	at    int64 // of the first entry in table
	host  int64 // offset of the first cluster in the container
	n     int64 // clusters
	blank bool  // they read as zeroes
	kept  bool  // they were the zero clusters' own before
	old   []uint64
}

// writeNew writes n bytes at off, of bufs from skip on, as far as they lie in
// clusters that need a new place. It returns how many bytes that are; 0 if the
// first cluster changed meanwhile, so that it must be looked up again.
func (im *Image) writeNew(bufs [][]byte, skip, off, n int64) (int64, error) {
	f, err := im.allocate(off, n)
	if f == nil || err != nil {
		return 0, err
	}
	start := off &^ (im.cluster - 1)
	end := start + f.n<<im.bits
	n = min(n, end-off)
	err = im.fill(f, bufs, skip, off, n)
	im.mu.Lock()
	defer im.mu.Unlock()
	defer im.end(f.allocation)
	f.table.pins--
	if err != nil {
		if !f.kept {
			im.alloc.giveBack(f.host>>im.bits, f.n)
		}
		return 0, err
	}
	for k := range f.n {
		im.setEntry(f.table, f.at+k, uint64(f.host+k<<im.bits)|flagCopied)
		if e := f.old[k]; !f.kept && e&^uint64(flagZero|flagCopied) != 0 {
			im.drop(e)
		}
	}
	return n, nil
}

// drop notes that no table refers to what entry e does any more. The caller
// holds mu.
func (im *Image) drop(e uint64) {
	im.freed = append(im.freed, e)
	if e&flagCompressed != 0 {
		im.inflater.forget(e)
	}
}

// allocate takes clusters for the first of n bytes at off, up to one that
// needs none or the end of the L2 table. It returns nil if the first needs
// none, after waiting for whoever is writing it.
func (im *Image) allocate(off, n int64) (*fresh, error) {
	first, last := off>>im.bits, (off+max(n, 1)-1)>>im.bits
	at := first & (im.l2Len - 1)
	last = min(last, first-at+im.l2Len-1)
	t, err := im.writableTable(off >> im.l1Shift)
	if err != nil {
		return nil, err
	}
	for a := im.overlapping(first, last); a != nil; a = im.overlapping(first, last) {
		if a.first <= first {
			im.wait(a)
			return nil, nil
		}
		last = a.first - 1
	}
	defer im.mu.Unlock()
	f := &fresh{table: t, at: at}
	for k := at; k <= at+last-first; k++ {
		if t.bad != nil && t.bad[k] != nil {
			if k == at {
				return nil, t.bad[k]
			}
			break
		}
		e := t.e[k].Load()
		if kindOf(e) == kindData {
			break
		}
		// A zero cluster that kept its place gets it back.
		kept := kindOf(e) == kindZero && e&flagCopied != 0 && e&offsetMask != 0
		if k == at {
			f.kept, f.host = kept, int64(e&offsetMask)
		} else if kept != f.kept || kept && int64(e&offsetMask) != f.host+f.n<<im.bits {
			break
		}
		f.old = append(f.old, e)
		f.n++
	}
	if f.n == 0 {
		return nil, nil
	}
	if !f.kept {
		c, got, blank, err := im.alloc.take(f.n)
		if err != nil {
			return nil, err
		}
		f.host, f.n, f.blank = c<<im.bits, got, blank
	}
	f.allocation = im.begin(first, first+f.n-1)
	t.pins++
	return f, nil
}

// fill writes new clusters: n bytes at off of the disk, of bufs from skip on,
// and around them what was there before.
func (im *Image) fill(f *fresh, bufs [][]byte, skip, off, n int64) error {
	start := off &^ (im.cluster - 1)
	end := start + f.n<<im.bits
	head, tail := off-start, end-(off+n)
	v := getVec()
	defer v.put()
	var before, after []byte
	if head > 0 && !(f.blank && im.readsZero(f.old[0])) {
		b := im.clusterBuf()
		defer im.putBuf(b)
		before = (*b)[:head]
		if err := im.readOld(f.old[0], before, start); err != nil {
			return err
		}
		if !f.blank || !isZero(before) {
			v.b = append(v.b, before)
			head = 0
		}
	}
	v.add(bufs, skip, n)
	if tail > 0 && !(f.blank && im.readsZero(f.old[f.n-1])) {
		b := im.clusterBuf()
		defer im.putBuf(b)
		after = (*b)[:tail]
		if err := im.readOld(f.old[f.n-1], after, off+n); err != nil {
			return err
		}
		if !f.blank || !isZero(after) {
			v.b = append(v.b, after)
		}
	}
	if f.kept && im.vectored == nil {
		// What is durable may still show these clusters: no sector may be seen
		// with one part new and the other not yet zeroed.
		p := bytes.Join(v.b, nil)
		clear(v.b)
		v.b = append(v.b[:0], p)
	}
	_, err := disk.WriteV(im.file, v.b, f.host+head)
	return err
}

// readsZero reports whether a cluster with L2 entry e is known to read as
// zeroes.
func (im *Image) readsZero(e uint64) bool {
	k := kindOf(e)
	return k == kindZero || k == kindHole && im.backing == nil
}

// clusterBufs are buffers of a cluster, by its size.
var clusterBufs [maxClusterLg + 1]sync.Pool

func (im *Image) clusterBuf() *[]byte {
	if b, ok := clusterBufs[im.bits].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, im.cluster)
	return &b
}

func (im *Image) putBuf(b *[]byte) { clusterBufs[im.bits].Put(b) }
