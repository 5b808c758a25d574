package disk

import (
	"sync"

	"golang.org/x/sys/unix"
)

// zeroes is what zeroing writes where the file system has nothing better. The
// kernel ends a write early where the source is not in memory, and a process
// that is killed then leaves it at that: so whole pages, all of them there, or a
// sector could be torn.
var zeroes = sync.OnceValue(func() []byte {
	const n = 256 << 10
	p, err := unix.Mmap(-1, 0, n, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		p = make([]byte, n)
	}
	return p
})

// Discard implements [Backend] by punching a hole, or BLKDISCARD on a block
// device. Where neither exists it does nothing.
func (f *File) Discard(off, n int64) error {
	f.gate.RLock()
	defer f.gate.RUnlock()
	err := f.check(off, n)
	if err == nil && n > 0 && !f.noPunch.Load() {
		if f.block {
			err = f.discardBlock(off, n)
		} else {
			err = f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		}
		if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
			f.noPunch.Store(true)
			err = nil
		}
	}
	if err != nil {
		return &Error{"discard", f.name, off, n, err}
	}
	return nil
}

// WriteZeroes implements [Backend] with fallocate, or by writing where the
// file system has no such thing.
func (f *File) WriteZeroes(off, n int64, mayUnmap bool) error {
	f.gate.RLock()
	defer f.gate.RUnlock()
	err := f.check(off, n)
	if err == nil && n > 0 {
		err = f.writeZeroes(off, n, mayUnmap)
	}
	if err != nil {
		return &Error{"write zeroes", f.name, off, n, noSpace(err)}
	}
	return nil
}

func (f *File) writeZeroes(off, n int64, mayUnmap bool) error {
	if f.block {
		// A block device takes whole sectors only; the edges are written.
		unit := int64(f.dioOff)
		head := min(n, -off&(unit-1))
		tail := int64(0)
		if n > head {
			tail = (off + n) & (unit - 1)
		}
		if err := f.plainZeroes(off, head); err != nil {
			return err
		}
		if err := f.plainZeroes(off+n-tail, tail); err != nil {
			return err
		}
		off, n = off+head, n-head-tail
		if n == 0 {
			return nil
		}
	}
	if mayUnmap && !f.noPunch.Load() {
		err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != unix.EOPNOTSUPP && err != unix.ENOSYS {
			return err
		}
		if !f.block { // a block device may still discard
			f.noPunch.Store(true)
		}
	}
	if !f.noZero.Load() {
		err := f.fallocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err != unix.EOPNOTSUPP && err != unix.ENOSYS {
			return err
		}
		f.noZero.Store(true)
	}
	return f.plainZeroes(off, n)
}

// plainZeroes writes n zeroes.
func (f *File) plainZeroes(off, n int64) error {
	var bufs [4][]byte
	zeroes := zeroes()
	for n > 0 {
		k := n
		for i := range bufs {
			bufs[i] = zeroes[:min(k, int64(len(zeroes)))]
			k -= int64(len(bufs[i]))
		}
		done, err := f.transfer(unix.SYS_PWRITEV2, bufs[:], off, n-k, 0)
		if err != nil {
			return err
		}
		off, n = off+int64(done), n-int64(done)
	}
	return nil
}

func (f *File) fallocate(mode uint32, off, n int64) error {
	return retry(func() error { return unix.Fallocate(f.fd, mode, off, n) })
}
