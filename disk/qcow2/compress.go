package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"

	"github.com/vmkit-go/vmkit/disk"
)

const (
	// zlibWindow is QEMU's: its reader refuses matches from further back.
	zlibWindow = 4096
	// maxZstdWindow bounds the memory of a zstd reader.
	maxZstdWindow = 8 << 20
	// inflatedKept is how many clusters a reader keeps inflated, so that small
	// sequential reads inflate each once.
	inflatedKept = 8
)

// inflater reads compressed clusters, the last few from memory.
type inflater struct {
	l      *layout
	method Compression
	flates sync.Pool // of io.ReadCloser with flate.Resetter
	zstds  sync.Pool // of *zstd.Decoder

	mu   sync.Mutex
	gen  uint64 // changes when an entry is dropped
	kept [inflatedKept]inflated
	next int
}

// inflated is one cluster's content. It is not changed.
type inflated struct {
	entry uint64
	data  []byte
}

func (f *inflater) init(l *layout, method Compression) { f.l, f.method = l, method }

// find returns a cluster's content if it is kept, and the generation.
func (f *inflater) find(e uint64) ([]byte, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.kept {
		if k.entry == e {
			return k.data, f.gen
		}
	}
	return nil, f.gen
}

// keep keeps a cluster's content that was read since generation gen.
func (f *inflater) keep(e uint64, data []byte, gen uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gen == gen {
		f.kept[f.next] = inflated{e, data}
		f.next = (f.next + 1) % inflatedKept
	}
}

// forget is called when no table has entry e any more: its place in the
// container may get other data.
func (f *inflater) forget(e uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gen++
	for i := range f.kept {
		if f.kept[i].entry == e {
			f.kept[i] = inflated{}
		}
	}
}

// inflate writes the cluster that src holds to dst. It reads and writes no
// more than these, whatever src says.
func (f *inflater) inflate(dst, src []byte) error {
	in := bytes.NewReader(src)
	if f.method == Zstd {
		d, _ := f.zstds.Get().(*zstd.Decoder)
		if d == nil {
			var err error
			// One thread, which makes it synchronous, without goroutines.
			d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
				zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderMaxMemory(maxZstdWindow))
			if err != nil {
				return err
			}
		}
		defer f.zstds.Put(d)
		if err := d.Reset(in); err != nil {
			return err
		}
		_, err := io.ReadFull(d, dst)
		return err
	}
	r, _ := f.flates.Get().(io.ReadCloser)
	if r == nil {
		r = flate.NewReader(in)
	} else if err := r.(flate.Resetter).Reset(in, nil); err != nil {
		return err
	}
	defer f.flates.Put(r)
	_, err := io.ReadFull(r, dst)
	return err
}

// readCompressed fills bufs with n bytes from in on of the cluster with L2
// entry e.
func (im *Image) readCompressed(bufs [][]byte, e uint64, in, n int64) error {
	data, gen := im.inflater.find(e)
	if data == nil {
		off, size := im.compressed(e)
		src := make([]byte, size)
		k, err := im.file.ReadAt(src, off)
		if err != nil && err != io.EOF {
			return err
		}
		data = make([]byte, im.cluster)
		if err := im.inflater.inflate(data, src[:k]); err != nil {
			return corrupt(off, "compressed cluster: %v", err)
		}
		im.inflater.keep(e, data, gen)
	}
	scatter(bufs, data[in:in+n])
	return nil
}

// compressedSpace is where the next compressed cluster goes: the rest of the
// container's cluster that the last one ends in.
type compressedSpace struct {
	off int64 // 0: nowhere
}

// WriteCompressedAt writes p, a whole cluster of the disk or the end of the
// last one, in compressed form, or plainly if that is not smaller. Unlike other
// writes it must not run beside one that overlaps.
func (im *Image) WriteCompressedAt(p []byte, off int64) error {
	err := func() error {
		id := im.enter()
		defer im.requests.leave(id)
		if err := im.check(off, int64(len(p))); err != nil {
			return err
		}
		if off&(im.cluster-1) != 0 || int64(len(p)) != min(im.cluster, im.size.Load()-off) {
			return fmt.Errorf("%w: not a cluster of %d bytes", disk.ErrRange, im.cluster)
		}
		return im.writeCompressed(p, off)
	}()
	if err == nil {
		err = im.relieve()
	}
	if err != nil {
		return im.fail("write", off, int64(len(p)), err)
	}
	return nil
}

func (im *Image) writeCompressed(p []byte, off int64) error {
	padded := append(make([]byte, 0, im.cluster), p...)[:im.cluster]
	z, err := deflate(im.inflater.method, padded)
	if err != nil {
		return err
	}
	if int64(len(z)) >= im.cluster {
		_, _, err := im.writeRuns([][]byte{p}, off, int64(len(p)), false)
		return err
	}
	c := off >> im.bits
	var t *l2Table
	for t == nil {
		if t, err = im.writableTable(off >> im.l1Shift); err != nil {
			return err
		}
		if a := im.overlapping(c, c); a != nil {
			im.wait(a)
			t = nil
		}
	}
	j := c & (im.l2Len - 1)
	if t.bad != nil && t.bad[j] != nil {
		im.mu.Unlock()
		return t.bad[j]
	}
	old := t.e[j].Load()
	at, err := im.takeBytes(int64(len(z)))
	if err != nil {
		im.mu.Unlock()
		return err
	}
	a := im.begin(c, c)
	t.pins++
	im.mu.Unlock()
	_, err = im.file.WriteAt(z, at)
	im.mu.Lock()
	defer im.mu.Unlock()
	defer im.end(a)
	t.pins--
	e := im.compressedEntry(at, int64(len(z)))
	if err != nil {
		im.blob.off = 0
		im.freed = append(im.freed, e)
		return err
	}
	im.setEntry(t, j, e)
	if old&^uint64(flagZero|flagCopied) != 0 {
		im.drop(old)
	}
	return nil
}

// takeBytes finds n bytes for compressed data, less than a cluster, and
// counts the references. The caller holds mu.
func (im *Image) takeBytes(n int64) (int64, error) {
	r, b := &im.refs, &im.blob
	if rest := -b.off & (im.cluster - 1); b.off != 0 && rest > 0 {
		c := b.off >> im.bits
		v, err := r.get(c)
		if err != nil {
			return 0, err
		}
		if v > 0 && v < r.max {
			next := int64(0)
			if n > rest {
				// Into the next cluster, if that is free.
				if next, _, _, err = im.alloc.take(1); err != nil {
					return 0, err
				}
			}
			if n <= rest || next == c+1 {
				at := b.off
				b.off += n
				return at, r.set(c, v+1)
			}
			b.off = next<<im.bits + n
			return next << im.bits, nil
		}
	}
	c, _, _, err := im.alloc.take(1)
	if err != nil {
		return 0, err
	}
	b.off = c<<im.bits + n
	return c << im.bits, nil
}

var (
	flateWriters sync.Pool
	zstdWriters  sync.Pool
)

// deflate compresses one cluster.
func deflate(method Compression, p []byte) ([]byte, error) {
	if method == Zstd {
		w, _ := zstdWriters.Get().(*zstd.Encoder)
		if w == nil {
			var err error
			w, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false),
				zstd.WithWindowSize(1<<maxClusterLg))
			if err != nil {
				return nil, err
			}
		}
		defer zstdWriters.Put(w)
		return w.EncodeAll(p, nil), nil
	}
	var out bytes.Buffer
	w, _ := flateWriters.Get().(*flate.Writer)
	if w == nil {
		var err error
		if w, err = flate.NewWriterWindow(&out, zlibWindow); err != nil {
			return nil, err
		}
	} else {
		w.Reset(&out)
	}
	defer flateWriters.Put(w)
	_, err := w.Write(p)
	err = errors.Join(err, w.Close())
	return out.Bytes(), err
}

// CopyFrom writes all of src that is not zero to the image, which must be
// empty and at least as large. With compress set, clusters are compressed.
func (im *Image) CopyFrom(src disk.Backend, compress bool) error {
	size := src.Size()
	if size > im.Size() {
		return im.fail("write", 0, size, fmt.Errorf("%w: size is %d", disk.ErrRange, im.Size()))
	}
	buf := make([]byte, im.cluster)
	m, _ := src.(disk.Mapper)
	for off := int64(0); off < size; {
		if m != nil {
			e, err := m.Extent(off)
			if err != nil {
				return err
			}
			if e.Zero && e.Len >= im.cluster {
				off += e.Len &^ (im.cluster - 1)
				continue
			}
		}
		clear(buf)
		p := buf[:min(im.cluster, size-off)]
		if _, err := src.ReadAt(p, off); err != nil && err != io.EOF {
			return err
		}
		if !isZero(p) {
			var err error
			if compress {
				err = im.WriteCompressedAt(buf[:min(im.cluster, im.Size()-off)], off)
			} else {
				_, err = im.WriteAt(p, off)
			}
			if err != nil {
				return err
			}
		}
		off += int64(len(p))
	}
	return nil
}
