// Package meter counts what goes through a disk: requests, bytes, errors, and
// how long requests took, for each kind of request.
//
//	m := meter.Wrap(img)
//	dev, err := disk.NewDevice(m, disk.Config{})
//	...
//	s := m.Snapshot()
//	fmt.Println(s[meter.Read].Requests, s[meter.Read].Percentile(0.99))
//
// Counting takes no lock and allocates nothing.
package meter

import (
	"errors"
	"io"
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/disk"
)

// Kind is a kind of request.
type Kind int

// The kinds of requests.
const (
	Read Kind = iota
	Write
	Flush
	Discard
	Zeroes
	Kinds // the number of kinds
)

func (k Kind) String() string {
	return [...]string{"read", "write", "flush", "discard", "write zeroes"}[k]
}

// A histogram's buckets: eight for each power of two of nanoseconds, so that
// one is at most an eighth wide.
const (
	subBits = 3
	buckets = (64 - subBits + 1) << subBits
)

func bucket(ns uint64) int {
	if ns < 1<<subBits {
		return int(ns)
	}
	e := bits.Len64(ns) - subBits - 1
	return (e+1)<<subBits + int(ns>>e)&(1<<subBits-1)
}

// upper is the largest value that belongs to bucket i.
func upper(i int) uint64 {
	if i < 1<<subBits {
		return uint64(i)
	}
	e := i>>subBits - 1
	return (uint64(1<<subBits+i&(1<<subBits-1))+1)<<e - 1
}

type counters struct {
	requests, bytes, errors, nanos, longest atomic.Uint64
	hist                                    [buckets]atomic.Uint64
}

// Counts is what was counted of one kind of request.
type Counts struct {
	// Requests that ended, and how many of them with an error; reading to
	// the end of the disk is none.
	Requests, Errors uint64
	// Bytes that were moved; for Discard and Zeroes, that were asked for.
	Bytes uint64
	// Time is the sum of how long requests took, Longest the most that one
	// took since the disk was wrapped.
	Time, Longest time.Duration

	hist [buckets]uint64
}

// Percentile is the time that the given part of the requests, such as 0.99,
// took at most, up to an eighth too high; 0 if there were none.
func (c *Counts) Percentile(part float64) time.Duration {
	var sum uint64
	for _, n := range c.hist {
		sum += n
	}
	if sum == 0 {
		return 0
	}
	want := min(max(part, 0), 1) * float64(sum)
	var seen uint64
	for i, n := range c.hist {
		if seen += n; n > 0 && float64(seen) >= want {
			return min(time.Duration(upper(i)), c.Longest)
		}
	}
	return c.Longest
}

// Mean is the time that a request took on average.
func (c *Counts) Mean() time.Duration {
	if c.Requests == 0 {
		return 0
	}
	return c.Time / time.Duration(c.Requests)
}

// Snapshot holds the counts by [Kind].
type Snapshot [Kinds]Counts

// Since returns what was counted after an older snapshot was taken. Longest
// is kept.
func (s *Snapshot) Since(old *Snapshot) *Snapshot {
	d := *s
	for k := range d {
		c, o := &d[k], &old[k]
		c.Requests -= o.Requests
		c.Errors -= o.Errors
		c.Bytes -= o.Bytes
		c.Time -= o.Time
		for i := range c.hist {
			c.hist[i] -= o.hist[i]
		}
	}
	return &d
}

// Disk is a backend whose requests are counted. It implements [disk.Backend],
// [disk.Vectored], [disk.Immediate], [disk.Resizer] and [disk.Mapper]; where the
// backend lacks one of the last two, Resize fails with errors.ErrUnsupported, and
// Extent says that all is data.
type Disk struct {
	disk.Backend
	imm  disk.Immediate // nil if the backend is none
	name string
	c    [Kinds]counters
}

// Wrap returns b, counted. Closing it closes b.
func Wrap(b disk.Backend) *Disk {
	d := &Disk{Backend: b, name: b.Info().Name}
	d.imm, _ = b.(disk.Immediate)
	return d
}

// Snapshot returns what was counted so far. Requests that end meanwhile may be
// counted in part.
func (d *Disk) Snapshot() *Snapshot {
	s := new(Snapshot)
	for k := range s {
		c, o := &s[k], &d.c[k]
		c.Requests, c.Errors, c.Bytes = o.requests.Load(), o.errors.Load(), o.bytes.Load()
		c.Time, c.Longest = time.Duration(o.nanos.Load()), time.Duration(o.longest.Load())
		for i := range c.hist {
			c.hist[i] = o.hist[i].Load()
		}
	}
	return s
}

// done counts a request that began at start.
func (d *Disk) done(k Kind, start time.Time, bytes int64, err error) {
	c := &d.c[k]
	ns := uint64(max(0, time.Since(start)))
	c.requests.Add(1)
	c.bytes.Add(uint64(max(0, bytes)))
	c.nanos.Add(ns)
	c.hist[bucket(ns)].Add(1)
	for {
		old := c.longest.Load()
		if ns <= old || c.longest.CompareAndSwap(old, ns) {
			break
		}
	}
	if err != nil && err != io.EOF {
		c.errors.Add(1)
	}
}

// ReadAt implements io.ReaderAt.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	start := time.Now()
	n, err := d.Backend.ReadAt(p, off)
	d.done(Read, start, int64(n), err)
	return n, err
}

// WriteAt implements io.WriterAt.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	start := time.Now()
	n, err := d.Backend.WriteAt(p, off)
	d.done(Write, start, int64(n), err)
	return n, err
}

// ReadVAt implements [disk.Vectored].
func (d *Disk) ReadVAt(bufs [][]byte, off int64) (int, error) {
	start := time.Now()
	n, err := disk.ReadV(d.Backend, bufs, off)
	d.done(Read, start, int64(n), err)
	return n, err
}

// WriteVAt implements [disk.Vectored].
func (d *Disk) WriteVAt(bufs [][]byte, off int64) (int, error) {
	start := time.Now()
	n, err := disk.WriteV(d.Backend, bufs, off)
	d.done(Write, start, int64(n), err)
	return n, err
}

// TryReadVAt implements [disk.Immediate]. One that would block is counted when
// it is done by other means, except for the bytes that it moved.
func (d *Disk) TryReadVAt(bufs [][]byte, off int64) (int, error) {
	if d.imm == nil {
		return 0, disk.ErrWouldBlock
	}
	start := time.Now()
	n, err := d.imm.TryReadVAt(bufs, off)
	d.tried(Read, start, n, err)
	return n, err
}

// TryWriteVAt is as TryReadVAt, for writes.
func (d *Disk) TryWriteVAt(bufs [][]byte, off int64) (int, error) {
	if d.imm == nil {
		return 0, disk.ErrWouldBlock
	}
	start := time.Now()
	n, err := d.imm.TryWriteVAt(bufs, off)
	d.tried(Write, start, n, err)
	return n, err
}

func (d *Disk) tried(k Kind, start time.Time, n int, err error) {
	if err == disk.ErrWouldBlock {
		d.c[k].bytes.Add(uint64(n))
		return
	}
	d.done(k, start, int64(n), err)
}

// Flush implements [disk.Backend].
func (d *Disk) Flush() error {
	start := time.Now()
	err := d.Backend.Flush()
	d.done(Flush, start, 0, err)
	return err
}

// Discard implements [disk.Backend].
func (d *Disk) Discard(off, n int64) error {
	start := time.Now()
	err := d.Backend.Discard(off, n)
	d.done(Discard, start, n, err)
	return err
}

// WriteZeroes implements [disk.Backend].
func (d *Disk) WriteZeroes(off, n int64, mayUnmap bool) error {
	start := time.Now()
	err := d.Backend.WriteZeroes(off, n, mayUnmap)
	d.done(Zeroes, start, n, err)
	return err
}

// Resize implements [disk.Resizer].
func (d *Disk) Resize(size int64) error {
	if r, ok := d.Backend.(disk.Resizer); ok {
		return r.Resize(size)
	}
	return &disk.Error{Op: "resize", Name: d.name, Len: size, Err: errors.ErrUnsupported}
}

// Extent implements [disk.Mapper].
func (d *Disk) Extent(off int64) (disk.Extent, error) {
	if m, ok := d.Backend.(disk.Mapper); ok {
		return m.Extent(off)
	}
	// A read tells what is wrong with the offset, or the disk.
	var b [1]byte
	if _, err := d.Backend.ReadAt(b[:], off); err != nil {
		if err == io.EOF {
			err = disk.ErrRange
		}
		return disk.Extent{}, &disk.Error{Op: "map", Name: d.name, Off: off, Len: 1, Err: err}
	}
	return disk.Extent{Off: off, Len: d.Size() - off, Allocated: true}, nil
}
