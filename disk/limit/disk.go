package limit

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/buffers"
)

// Disk is a backend behind a [Limiter]. Reads and writes cost a request and
// their bytes; WriteZeroes and Discard a request; Flush, Resize and Extent are
// free. It implements [disk.Backend], [disk.Vectored], [disk.Immediate],
// [disk.Resizer] and [disk.Mapper]; where the backend lacks one of the last two,
// Resize fails with errors.ErrUnsupported, and Extent says that all is data.
//
// Closing it closes the backend, and ends the requests that wait for their turn.
type Disk struct {
	disk.Backend
	imm   disk.Immediate // nil if the backend is none
	l     *Limiter
	info  disk.Info
	once  sync.Once
	ended chan struct{}
}

// Wrap returns b behind l, to which b belongs from now on. Several disks may
// share l.
func Wrap(b disk.Backend, l *Limiter) *Disk {
	d := &Disk{Backend: b, l: l, info: b.Info(), ended: make(chan struct{})}
	d.imm, _ = b.(disk.Immediate)
	return d
}

// turn waits for a request's turn.
func (d *Disk) turn(op string, off, cost, n int64) error {
	// More than there is is not moved, and what fails anyway costs nothing.
	if off < 0 || d.l.wait(min(cost, d.Size()), d.ended) {
		return nil // the backend says if it is closed
	}
	return &disk.Error{Op: op, Name: d.info.Name, Off: off, Len: n, Err: os.ErrClosed}
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.turn("read", off, int64(len(p)), int64(len(p))); err != nil {
		return 0, err
	}
	return d.Backend.ReadAt(p, off)
}

// WriteAt implements io.WriterAt.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.turn("write", off, int64(len(p)), int64(len(p))); err != nil {
		return 0, err
	}
	return d.Backend.WriteAt(p, off)
}

// ReadVAt implements [disk.Vectored].
func (d *Disk) ReadVAt(bufs [][]byte, off int64) (int, error) {
	n := buffers.Len(bufs)
	if err := d.turn("read", off, n, n); err != nil {
		return 0, err
	}
	return disk.ReadV(d.Backend, bufs, off)
}

// WriteVAt implements [disk.Vectored].
func (d *Disk) WriteVAt(bufs [][]byte, off int64) (int, error) {
	n := buffers.Len(bufs)
	if err := d.turn("write", off, n, n); err != nil {
		return 0, err
	}
	return disk.WriteV(d.Backend, bufs, off)
}

// TryReadVAt implements [disk.Immediate]: only what is under the limit and
// answered at once. A try in vain gives its share back.
func (d *Disk) TryReadVAt(bufs [][]byte, off int64) (int, error) {
	if d.imm == nil || !d.l.try(buffers.Len(bufs)) {
		return 0, disk.ErrWouldBlock
	}
	n, err := d.imm.TryReadVAt(bufs, off)
	if err == disk.ErrWouldBlock {
		d.l.refund(buffers.Len(bufs) - int64(n))
	}
	return n, err
}

// TryWriteVAt is as TryReadVAt, for writes.
func (d *Disk) TryWriteVAt(bufs [][]byte, off int64) (int, error) {
	if d.imm == nil || !d.l.try(buffers.Len(bufs)) {
		return 0, disk.ErrWouldBlock
	}
	n, err := d.imm.TryWriteVAt(bufs, off)
	if err == disk.ErrWouldBlock {
		d.l.refund(buffers.Len(bufs) - int64(n))
	}
	return n, err
}

// Discard implements [disk.Backend].
func (d *Disk) Discard(off, n int64) error {
	if err := d.turn("discard", off, 0, n); err != nil {
		return err
	}
	return d.Backend.Discard(off, n)
}

// WriteZeroes implements [disk.Backend].
func (d *Disk) WriteZeroes(off, n int64, mayUnmap bool) error {
	if err := d.turn("write zeroes", off, 0, n); err != nil {
		return err
	}
	return d.Backend.WriteZeroes(off, n, mayUnmap)
}

// Resize implements [disk.Resizer].
func (d *Disk) Resize(size int64) error {
	if r, ok := d.Backend.(disk.Resizer); ok {
		return r.Resize(size)
	}
	return &disk.Error{Op: "resize", Name: d.info.Name, Len: size, Err: errors.ErrUnsupported}
}

// Extent implements [disk.Mapper].
func (d *Disk) Extent(off int64) (disk.Extent, error) {
	if m, ok := d.Backend.(disk.Mapper); ok {
		return m.Extent(off)
	}
	size := d.Size()
	var err error
	select {
	case <-d.ended:
		err = os.ErrClosed
	default:
		if off < 0 || off >= size {
			err = fmt.Errorf("%w: size is %d", disk.ErrRange, size)
		}
	}
	if err != nil {
		return disk.Extent{}, &disk.Error{Op: "map", Name: d.info.Name, Off: off, Len: 1, Err: err}
	}
	return disk.Extent{Off: off, Len: size - off, Allocated: true}, nil
}

// Close closes the backend.
func (d *Disk) Close() (err error) {
	d.once.Do(func() {
		close(d.ended)
		err = d.Backend.Close()
	})
	return err
}
