package disk

import (
	"errors"
	"fmt"
	"io"

	"github.com/vmkit-go/vmkit/internal/buffers"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrRange is wrapped by the error for a request that lies outside the
	// disk, starts at a negative offset or has a negative length.
	ErrRange = errors.New("out of range")
	// ErrReadOnly is wrapped by the error for a change to a read-only disk.
	ErrReadOnly = errors.New("disk is read-only")
	// ErrLocked is wrapped by the error for an image that another opener
	// uses in a way that excludes this one.
	ErrLocked = errors.New("image is locked")
	// ErrWouldBlock is returned by the methods of [Immediate] for a request
	// that would have to wait. Nothing is wrong with the disk.
	ErrWouldBlock = errors.New("request would block")
	// ErrNoSpace is wrapped by the error for a change for which the store
	// behind the disk has no room. It may succeed once there is some; nothing
	// that was written before is affected.
	ErrNoSpace = errors.New("no space left in the disk's store")
	// ErrUnavailable is wrapped by the error for a request that what holds
	// the disk's content, a server say, could not serve for now. It may
	// succeed later.
	ErrUnavailable = errors.New("disk is unavailable")
)

// Backend is a disk: a fixed number of bytes at offsets from 0. Guests, image
// formats, caches, mirrors and servers meet at this interface; a backend knows
// nothing of guests.
//
// Concurrency. All methods may be called at any time from any goroutine, and
// requests really run side by side: a slow request delays only those that
// overlap it. A request that starts after another has returned sees its
// effect. Overlapping requests in flight at once are not ordered: what is
// written and read may be any mixture of them, as on a real disk.
//
// Offsets and lengths are bytes of any alignment; [Info] says which alignment
// is cheap. A request past Size never changes Size.
//
// Reads. ReadAt is that of io.ReaderAt, with one addition: a read that ends
// exactly at Size returns a nil error. A read that crosses Size returns what
// lies before it and io.EOF. Bytes never written read as zeroes. A backend
// never returns bytes of which it is unsure: a damaged or missing part is an
// error. After an error the content of the buffer past n is undefined.
//
// Errors. A failed write, WriteZeroes or Discard leaves its own range in any
// mixture of old and new content, and no other byte is touched; it may be
// retried. A write that crosses Size fails with ErrRange and writes nothing.
// Errors are an [*Error], which names the disk, the operation and the offset.
//
// Flush. A completed write to a plain disk survives the end of the process; one
// that a format has to note in its tables, or that waits in a network client,
// may not. Only Flush makes a write survive whatever comes, a crash of the host
// included. When Flush returns nil, every change that
// had returned before Flush was called is durable, Resize included. A failed
// Flush means that changes since the last good one may be lost although reads
// still show them; because the kernel forgets such losses once reported, every
// later Flush must fail too. Writers that need to know call Flush before they
// rely on anything; nothing is flushed on a timer, and Close does not flush.
//
// Cancellation. There is no context parameter: a guest cannot cancel a
// request that it has issued, and a backend over a network has time limits of
// its own. The one way to end requests early is Close, which makes requests
// in flight that wait for something remote return soon, with an error wrapping
// os.ErrClosed; local file I/O runs to its end. After Close every method but
// Size, Info and Close returns such an error, and a second Close returns nil.
//
// Buffers belong to the backend until the call returns, and not after.
type Backend interface {
	io.ReaderAt
	io.WriterAt
	io.Closer

	// Size is the number of bytes. It changes only through [Resizer].
	Size() int64

	// Flush makes completed changes durable.
	Flush() error

	// Discard says that n bytes at off are no longer needed. It is a hint:
	// each byte reads afterwards as it was or as zero, and stays so.
	Discard(off, n int64) error

	// WriteZeroes makes n bytes at off read as zeroes. The space may be
	// given back if mayUnmap is set; otherwise later writes there should not
	// fail for lack of space.
	WriteZeroes(off, n int64, mayUnmap bool) error

	// Info describes the disk. It does not change while it is open.
	Info() Info
}

// Info describes a [Backend].
type Info struct {
	// Name says which disk this is, in errors and logs: a path or a URL.
	Name string
	// ReadOnly means that every change fails with ErrReadOnly.
	ReadOnly bool
	// BlockSize is the unit, in bytes, in which the disk works best: a power
	// of two of at least 512. Other requests work, but cost more.
	BlockSize int
	// OptimalIO is a request size in bytes that reaches full throughput, a
	// multiple of BlockSize, or 0 if not known.
	OptimalIO int
	// DiscardUnit is the size and alignment, in bytes, below which Discard
	// has no effect, or 0 if Discard never has one.
	DiscardUnit int
}

// Vectored is implemented by a [Backend] that reads into or writes from
// several buffers in one request. The methods are as ReadAt and WriteAt of all
// buffers joined. They do not change bufs. [ReadV] and [WriteV] use them
// where they exist.
type Vectored interface {
	ReadVAt(bufs [][]byte, off int64) (int, error)
	WriteVAt(bufs [][]byte, off int64) (int, error)
}

// Immediate is implemented by a [Backend] that can often answer at once, from
// memory. The methods are those of [Vectored], but when the answer would have
// to wait they return ErrWouldBlock itself, with the number of bytes done so
// far; the caller goes on from there, or starts again, with a method that
// waits.
type Immediate interface {
	TryReadVAt(bufs [][]byte, off int64) (int, error)
	TryWriteVAt(bufs [][]byte, off int64) (int, error)
}

// Resizer is implemented by a [Backend] whose size can change. Bytes gained
// read as zeroes; bytes lost are gone. Requests beside a Resize see the old
// size or the new.
type Resizer interface {
	Resize(size int64) error
}

// Noter is implemented by a [Backend] that can keep notes of up to 256 bytes
// about the disk beside its content. A copy of the content does not have them.
type Noter interface {
	// Note returns what SetNote has stored under key, or nil.
	Note(key string) ([]byte, error)
	// SetNote stores p durably under key, letters, digits and dots. The error
	// wraps errors.ErrUnsupported where no notes can be kept.
	SetNote(key string, p []byte) error
}

// Extent is a run of bytes of one kind.
type Extent struct {
	// Off and Len are in bytes; Len is positive.
	Off, Len int64
	// Allocated means that the bytes occupy space.
	Allocated bool
	// Zero means that the bytes are known to read as zeroes.
	Zero bool
}

// Mapper is implemented by a [Backend] that knows which parts hold data.
type Mapper interface {
	// Extent returns the extent that starts at off, in [0, Size). It may be
	// shorter than the run really is. Writes beside the call may make it
	// stale.
	Extent(off int64) (Extent, error)
}

// Error is the error of one request to a disk.
type Error struct {
	// Op is "read", "write", "flush", "discard", "write zeroes", "resize",
	// "map" or "open".
	Op string
	// Name is the disk's name, as in [Info].
	Name string
	// Off and Len are the range, in bytes. Both are 0 for requests that
	// have none.
	Off, Len int64
	// Err is the cause.
	Err error
}

func (e *Error) Error() string {
	if e.Off == 0 && e.Len == 0 {
		return fmt.Sprintf("disk %s: %s: %v", e.Name, e.Op, e.Err)
	}
	return fmt.Sprintf("disk %s: %s %d bytes at offset %d: %v", e.Name, e.Op, e.Len, e.Off, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReadV reads into bufs as [Vectored] does, buffer by buffer if b is not
// Vectored.
func ReadV(b Backend, bufs [][]byte, off int64) (int, error) {
	if v, ok := b.(Vectored); ok {
		return v.ReadVAt(bufs, off)
	}
	done := 0
	for _, p := range bufs {
		if len(p) == 0 {
			continue
		}
		n, err := b.ReadAt(p, off+int64(done))
		done += n
		if n < len(p) {
			return done, err
		}
	}
	return done, nil
}

// WriteV writes bufs as [Vectored] does, buffer by buffer if b is not
// Vectored.
func WriteV(b Backend, bufs [][]byte, off int64) (int, error) {
	if v, ok := b.(Vectored); ok {
		return v.WriteVAt(bufs, off)
	}
	// One check for all, so that a write past the end writes nothing.
	if n := buffers.Len(bufs); !inside(off, n, b.Size()) {
		return 0, &Error{Op: "write", Name: b.Info().Name, Off: off, Len: n, Err: ErrRange}
	}
	done := 0
	for _, p := range bufs {
		if len(p) == 0 {
			continue
		}
		n, err := b.WriteAt(p, off+int64(done))
		done += n
		if n < len(p) {
			return done, err
		}
	}
	return done, nil
}

// inside reports whether n bytes at off lie within size.
func inside(off, n, size int64) bool {
	return off >= 0 && n >= 0 && n <= size && off <= size-n
}
