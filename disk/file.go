package disk

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/buffers"
	"github.com/vmkit-go/vmkit/internal/durable"
)

// FileConfig says how to open an image file or block device. The zero value
// is for a guest's own disk: read and write, through the host's page cache,
// locked.
type FileConfig struct {
	// ReadOnly opens the file for reading; any number of readers share it.
	ReadOnly bool
	// Direct passes by the host's page cache (O_DIRECT). Requests that do
	// not meet the file's alignment go through the cache all the same.
	Direct bool
	// NoLock leaves out the lock that keeps others from the image. Two
	// writers, or a writer beside a reader, see and cause corruption.
	NoLock bool
}

// File is a raw image file or block device: byte n of the file is byte n of
// the disk. It implements [Backend], [Vectored], [Immediate], [Resizer] and
// [Mapper].
type File struct {
	name     string
	file     *os.File
	fd       int
	direct   *os.File // nil unless FileConfig.Direct
	block    bool     // a block device
	directFD int
	info     Info

	dioMem, dioOff uint64 // alignments for direct, powers of two

	size atomic.Int64
	// gate is held for reading by every request, so that Close does not
	// pull the descriptor away and Resize does not move the end under one.
	gate   sync.RWMutex
	closed bool

	flushMu  sync.Mutex
	flushErr error // first failed flush; sticky

	// What the file system turned out not to have.
	noPunch, noZero, noNowaitRead, noNowaitWrite atomic.Bool

	readPace, writePace pace
}

// Open opens the raw image file or block device at path. It fails with an
// error wrapping ErrLocked if another process, or another Open in this one,
// uses it in a way that excludes this; QEMU's locks count.
func Open(path string, cfg FileConfig) (*File, error) {
	return openFile(path, cfg, 0, 0)
}

// Create makes a raw image file of size bytes, all of them zero and taking no
// space, and opens it. A file that exists is an error wrapping fs.ErrExist.
func Create(path string, size int64, cfg FileConfig) (*File, error) {
	if cfg.ReadOnly {
		return nil, &Error{Op: "create", Name: path, Err: ErrReadOnly}
	}
	if size < 0 {
		return nil, &Error{"create", path, 0, size, ErrRange}
	}
	f, err := openFile(path, cfg, os.O_CREATE|os.O_EXCL, size)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		os.Remove(path)
	}
	return f, err
}

func openFile(path string, cfg FileConfig, flags int, size int64) (_ *File, err error) {
	fail := func(err error) (*File, error) {
		// os reports the path once more; one is enough.
		if pe, ok := errors.AsType[*fs.PathError](err); ok {
			err = pe.Err
		}
		return nil, &Error{Op: "open", Name: path, Err: err}
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && flags&os.O_CREATE != 0:
	case err != nil:
		return fail(err)
	case flags&os.O_EXCL != 0:
		return fail(fs.ErrExist)
	}
	block := st != nil && st.Mode()&fs.ModeDevice != 0 && st.Mode()&fs.ModeCharDevice == 0
	// Anything else, such as a FIFO, could block the open itself.
	if st != nil && !block && !st.Mode().IsRegular() {
		return fail(fmt.Errorf("neither a regular file nor a block device, but %v", st.Mode().Type()))
	}
	mode := os.O_RDWR
	if cfg.ReadOnly {
		mode = os.O_RDONLY
	} else if block && !cfg.NoLock {
		// The kernel then refuses a device that is mounted, and mounts.
		flags |= os.O_EXCL
	}
	file, err := os.OpenFile(path, mode|flags, 0o644)
	if err != nil {
		if block && errors.Is(err, unix.EBUSY) {
			err = fmt.Errorf("%w: mounted, or claimed by the kernel", ErrLocked)
		}
		return fail(err)
	}
	f := &File{name: path, file: file, fd: int(file.Fd()), block: block}
	defer func() {
		if err != nil {
			f.closeFiles()
		}
	}()
	if !cfg.NoLock {
		if err = lockImage(f.fd, cfg.ReadOnly); err != nil {
			return fail(err)
		}
	}
	if flags&os.O_CREATE != 0 {
		if err = file.Truncate(size); err != nil {
			return fail(err)
		}
		// Flush makes content durable, but not the file's name.
		if err = durable.SyncDir(filepath.Dir(path)); err != nil {
			return fail(err)
		}
	}
	n, err := f.currentSize()
	if err != nil {
		return fail(err)
	}
	f.size.Store(n)
	if err = f.describe(cfg); err != nil {
		return fail(err)
	}
	if cfg.Direct {
		f.direct, err = os.OpenFile(path, mode|unix.O_DIRECT, 0)
		if errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("direct I/O: %w", errors.ErrUnsupported)
		}
		if err != nil {
			return fail(err)
		}
		f.directFD = int(f.direct.Fd())
	}
	return f, nil
}

// describe fills info and the alignments.
func (f *File) describe(cfg FileConfig) error {
	f.info = Info{Name: f.name, ReadOnly: cfg.ReadOnly, BlockSize: 4096, OptimalIO: 1 << 20}
	f.dioMem, f.dioOff = 4096, 4096
	if f.block {
		// BLKSSZGET gives the unit that the device insists on.
		n, err := unix.IoctlGetInt(f.fd, unix.BLKPBSZGET)
		if err != nil {
			return fmt.Errorf("BLKPBSZGET: %w", err)
		}
		f.info.BlockSize = n
		if n, err = unix.IoctlGetInt(f.fd, unix.BLKSSZGET); err != nil {
			return fmt.Errorf("BLKSSZGET: %w", err)
		}
		f.dioMem, f.dioOff = uint64(n), uint64(n)
		f.info.DiscardUnit = n
	} else {
		var st unix.Stat_t
		if err := unix.Fstat(f.fd, &st); err != nil {
			return err
		}
		if b := int(st.Blksize); b >= 512 && b <= 1<<16 && b&(b-1) == 0 {
			f.info.BlockSize = b
		}
		f.info.DiscardUnit = f.info.BlockSize
	}
	var sx unix.Statx_t
	if unix.Statx(f.fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &sx) == nil &&
		sx.Mask&unix.STATX_DIOALIGN != 0 && sx.Dio_offset_align != 0 && sx.Dio_mem_align != 0 {
		f.dioMem, f.dioOff = uint64(sx.Dio_mem_align), uint64(sx.Dio_offset_align)
	}
	if cfg.ReadOnly {
		f.info.DiscardUnit = 0
	}
	return nil
}

func (f *File) currentSize() (int64, error) {
	// Seeking to the end works for files and block devices alike.
	return f.file.Seek(0, io.SeekEnd)
}

// Size is the number of bytes, as of Open or the last Resize.
func (f *File) Size() int64 { return f.size.Load() }

// Info describes the disk.
func (f *File) Info() Info { return f.info }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	bufs := [1][]byte{p}
	return f.ReadVAt(bufs[:], off)
}

// WriteAt implements io.WriterAt.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	bufs := [1][]byte{p}
	return f.WriteVAt(bufs[:], off)
}

// ReadVAt implements [Vectored].
func (f *File) ReadVAt(bufs [][]byte, off int64) (int, error) {
	f.gate.RLock()
	defer f.gate.RUnlock()
	n, err := f.readv(bufs, off, 0)
	return n, f.wrap("read", bufs, off, err)
}

// WriteVAt implements [Vectored].
func (f *File) WriteVAt(bufs [][]byte, off int64) (int, error) {
	f.gate.RLock()
	defer f.gate.RUnlock()
	n, err := f.writev(bufs, off, 0)
	return n, f.wrap("write", bufs, off, err)
}

// TryReadVAt implements [Immediate]: it reads what is in the page cache. Where
// the file system cannot say whether it would wait, reads are tried as long as
// they have lately been quick.
func (f *File) TryReadVAt(bufs [][]byte, off int64) (int, error) {
	if f.direct != nil {
		return 0, ErrWouldBlock
	}
	f.gate.RLock()
	defer f.gate.RUnlock()
	if !f.noNowaitRead.Load() {
		n, err := f.readv(bufs, off, unix.RWF_NOWAIT)
		if err != errEOPNOTSUPP && err != unix.ENOSYS {
			if err == errEAGAIN {
				err = ErrWouldBlock
			}
			return n, f.wrap("read", bufs, off, err)
		}
		f.noNowaitRead.Store(true)
	}
	if !f.readPace.quick(buffers.Len(bufs)) {
		return 0, ErrWouldBlock
	}
	start := f.readPace.start()
	n, err := f.readv(bufs, off, 0)
	f.readPace.stop(start)
	return n, f.wrap("read", bufs, off, err)
}

// TryWriteVAt implements [Immediate]: it writes to the page cache, under the
// same conditions as TryReadVAt reads.
func (f *File) TryWriteVAt(bufs [][]byte, off int64) (int, error) {
	if f.direct != nil {
		return 0, ErrWouldBlock
	}
	f.gate.RLock()
	defer f.gate.RUnlock()
	if !f.noNowaitWrite.Load() {
		n, err := f.writev(bufs, off, unix.RWF_NOWAIT)
		if err != errEOPNOTSUPP && err != unix.ENOSYS {
			if err == errEAGAIN {
				err = ErrWouldBlock
			}
			return n, f.wrap("write", bufs, off, err)
		}
		f.noNowaitWrite.Store(true)
	}
	if !f.writePace.quick(buffers.Len(bufs)) {
		return 0, ErrWouldBlock
	}
	start := f.writePace.start()
	n, err := f.writev(bufs, off, 0)
	f.writePace.stop(start)
	return n, f.wrap("write", bufs, off, err)
}

// readv is ReadVAt with bare errors. The caller holds gate.
func (f *File) readv(bufs [][]byte, off int64, flags int) (int, error) {
	if f.closed {
		return 0, os.ErrClosed
	}
	size := f.size.Load()
	if off < 0 {
		return 0, ErrRange
	}
	n, err := f.transfer(unix.SYS_PREADV2, bufs, off, max(0, size-off), flags)
	if err == io.ErrUnexpectedEOF {
		// The file is shorter than it was: someone has cut it.
		err = fmt.Errorf("file ends at %d, size was %d: %w", off+int64(n), size, io.ErrUnexpectedEOF)
	}
	if err == nil && int64(n) < buffers.Len(bufs) {
		err = io.EOF
	}
	return n, err
}

// writev is WriteVAt with bare errors. The caller holds gate.
func (f *File) writev(bufs [][]byte, off int64, flags int) (int, error) {
	if err := f.check(off, buffers.Len(bufs)); err != nil {
		return 0, err
	}
	return f.transfer(unix.SYS_PWRITEV2, bufs, off, f.size.Load()-off, flags)
}

// check is for changes, which must lie within the disk. The caller holds gate.
func (f *File) check(off, n int64) error {
	switch {
	case f.closed:
		return os.ErrClosed
	case f.info.ReadOnly:
		return ErrReadOnly
	case !inside(off, n, f.size.Load()):
		return fmt.Errorf("%w: size is %d", ErrRange, f.size.Load())
	}
	return nil
}

func (f *File) wrap(op string, bufs [][]byte, off int64, err error) error {
	if err == nil || err == io.EOF || err == ErrWouldBlock {
		return err
	}
	return &Error{op, f.name, off, buffers.Len(bufs), noSpace(err)}
}

// noSpace marks the error of a change for which the file system has no room.
// A flush is never marked: what it reports is lost.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

// Flush implements [Backend] with fdatasync. After a failure it fails for
// good, since the kernel reports each lost page only once.
func (f *File) Flush() error {
	f.gate.RLock()
	defer f.gate.RUnlock()
	if f.closed {
		return &Error{"flush", f.name, 0, 0, os.ErrClosed}
	}
	if f.info.ReadOnly {
		return nil
	}
	f.flushMu.Lock()
	err := f.flushErr
	f.flushMu.Unlock()
	if err == nil {
		// Not under flushMu: flushes beside each other share the work.
		err = retry(func() error { return unix.Fdatasync(f.fd) })
		if err != nil {
			f.flushMu.Lock()
			if f.flushErr == nil {
				f.flushErr = err
			}
			f.flushMu.Unlock()
		}
	}
	if err != nil {
		return &Error{"flush", f.name, 0, 0, err}
	}
	return nil
}

// Resize implements [Resizer]. A block device cannot be changed from here;
// for one, size must not exceed what the device has now.
func (f *File) Resize(size int64) error {
	f.gate.Lock()
	defer f.gate.Unlock()
	err := func() error {
		switch {
		case f.closed:
			return os.ErrClosed
		case f.info.ReadOnly:
			return ErrReadOnly
		case size < 0:
			return ErrRange
		case f.block:
			n, err := f.currentSize()
			if err != nil {
				return err
			}
			if size > n {
				return fmt.Errorf("%w: the device has %d bytes", ErrRange, n)
			}
			return nil
		}
		return retry(func() error { return unix.Ftruncate(f.fd, size) })
	}()
	if err != nil {
		return &Error{"resize", f.name, 0, size, err}
	}
	f.size.Store(size)
	return nil
}

// Extent implements [Mapper] with SEEK_HOLE and SEEK_DATA.
func (f *File) Extent(off int64) (Extent, error) {
	f.gate.RLock()
	defer f.gate.RUnlock()
	size := f.size.Load()
	e := Extent{Off: off, Len: size - off, Allocated: true}
	if f.closed {
		return Extent{}, &Error{"map", f.name, off, 1, os.ErrClosed}
	}
	if !inside(off, 1, size) {
		return Extent{}, &Error{"map", f.name, off, 1, fmt.Errorf("%w: size is %d", ErrRange, size)}
	}
	if f.block {
		return e, nil
	}
	data, err := unix.Seek(f.fd, off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO: // no data up to the end
		e.Allocated, e.Zero = false, true
		return e, nil
	case err == unix.EINVAL: // not known here: all of it is data
		return e, nil
	case err != nil:
		return Extent{}, &Error{"map", f.name, off, 1, err}
	case data > off:
		e.Len, e.Allocated, e.Zero = min(data, size)-off, false, true
		return e, nil
	}
	hole, err := unix.Seek(f.fd, off, unix.SEEK_HOLE)
	if err != nil {
		return Extent{}, &Error{"map", f.name, off, 1, err}
	}
	if hole > off {
		e.Len = min(hole, size) - off
	}
	return e, nil
}

// Close closes the file, and with it the lock. Requests in flight end first.
func (f *File) Close() error {
	f.gate.Lock()
	defer f.gate.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	return f.closeFiles()
}

func (f *File) closeFiles() error {
	unlockImage(f.fd)
	err := f.file.Close()
	if f.direct != nil {
		err = errors.Join(err, f.direct.Close())
	}
	return err
}

func retry(fn func() error) error {
	for {
		if err := fn(); err != unix.EINTR {
			return err
		}
	}
}
