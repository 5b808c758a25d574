package qcow2

import (
	"io"
	"os"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/buffers"
)

// ReadAt implements io.ReaderAt.
func (im *Image) ReadAt(p []byte, off int64) (int, error) {
	if n, ok := im.readInPlace(p, off); ok {
		return n, nil
	}
	v := getVec()
	defer v.put()
	v.b = append(v.b, p)
	return im.ReadVAt(v.b, off)
}

// readInPlace is ReadAt where one read of the container or of the backing disk
// does it.
func (im *Image) readInPlace(p []byte, off int64) (int, bool) {
	e := im.enter()
	defer im.requests.leave(e)
	n := int64(len(p))
	if size := im.size.Load(); im.closed.Load() || off < 0 || n == 0 || n > size || off > size-n {
		return 0, false
	}
	m, err := im.lookup(off, n, true)
	if err != nil || m.n < n {
		return 0, false
	}
	k := 0
	switch {
	case m.kind == kindData || m.kind == kindShared:
		k, err = im.file.ReadAt(p, m.host)
	case m.kind == kindHole && im.backing != nil:
		k, err = im.backing.ReadAt(p, off)
	default:
		return 0, false
	}
	return k, err == nil
}

// ReadVAt implements [disk.Vectored].
func (im *Image) ReadVAt(bufs [][]byte, off int64) (int, error) {
	return im.read(bufs, off, false)
}

// TryReadVAt implements [disk.Immediate], as far as the container and the
// backing disk do: it reads what needs no table from the container.
func (im *Image) TryReadVAt(bufs [][]byte, off int64) (int, error) {
	return im.read(bufs, off, true)
}

func (im *Image) read(bufs [][]byte, off int64, try bool) (int, error) {
	e := im.enter()
	defer im.requests.leave(e)
	want := buffers.Len(bufs)
	n, err := im.readRuns(bufs, off, want, try)
	if err != nil && err != io.EOF && err != disk.ErrWouldBlock {
		err = im.fail("read", off, want, err)
	}
	return int(n), err
}

// readRuns reads run by run, with bare errors.
func (im *Image) readRuns(bufs [][]byte, off, want int64, try bool) (int64, error) {
	if im.closed.Load() {
		return 0, os.ErrClosed
	}
	if off < 0 {
		return 0, disk.ErrRange
	}
	limit := min(want, max(0, im.size.Load()-off))
	done := int64(0)
	for done < limit {
		m, err := im.lookup(off+done, limit-done, try)
		if err == errNotCached {
			return done, disk.ErrWouldBlock
		}
		if err != nil {
			return done, err
		}
		var n int64
		if m.n == want {
			n, err = im.readRun(bufs, m, off, try)
		} else {
			v := getVec()
			v.add(bufs, done, m.n)
			n, err = im.readRun(v.b, m, off+done, try)
			v.put()
		}
		done += n
		if err != nil {
			return done, err
		}
	}
	if limit < want {
		return done, io.EOF
	}
	return done, nil
}

// readRun fills bufs from the run m, which starts at off of the disk.
func (im *Image) readRun(bufs [][]byte, m mapping, off int64, try bool) (int64, error) {
	switch m.kind {
	case kindHole:
		if im.backing != nil {
			return readPadded(im.backing, bufs, off, m.n, try)
		}
		clearFrom(bufs, 0)
		return m.n, nil
	case kindZero:
		clearFrom(bufs, 0)
		return m.n, nil
	case kindCompressed:
		if try {
			return 0, disk.ErrWouldBlock
		}
		return m.n, im.readCompressed(bufs, m.entry, off&(im.cluster-1), m.n)
	}
	if im.vectored != nil && !try {
		n, err := im.vectored.ReadVAt(bufs, m.host)
		return padded(bufs, n, m.n, err)
	}
	return readPadded(im.file, bufs, m.host, m.n, try)
}

// readPadded reads n bytes from b. What lies past its end is zeroes: a
// backing disk may be the smaller one, and a container's last cluster need not
// be complete.
func readPadded(b disk.Backend, bufs [][]byte, off, n int64, try bool) (int64, error) {
	var k int
	var err error
	switch {
	case !try:
		k, err = disk.ReadV(b, bufs, off)
	default:
		i, ok := b.(disk.Immediate)
		if !ok {
			return 0, disk.ErrWouldBlock
		}
		k, err = i.TryReadVAt(bufs, off)
	}
	return padded(bufs, k, n, err)
}

// padded completes a read of n bytes that found k.
func padded(bufs [][]byte, k int, n int64, err error) (int64, error) {
	if err == io.EOF {
		clearFrom(bufs, int64(k))
		return n, nil
	}
	return int64(k), err
}

// readOld fills p with what the disk holds at off, in the cluster with L2
// entry e.
func (im *Image) readOld(e uint64, p []byte, off int64) error {
	v := getVec()
	defer v.put()
	m := mapping{kind: kindOf(e), entry: e, n: min(int64(len(p)), max(0, im.size.Load()-off))}
	clear(p[m.n:])
	if m.n == 0 {
		return nil
	}
	if m.kind == kindData || m.kind == kindShared {
		m.host = int64(e&offsetMask) + off&(im.cluster-1)
	}
	v.b = append(v.b, p[:m.n])
	_, err := im.readRun(v.b, m, off, false)
	return err
}
