package boot

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// section is a part of a file that is read at random.
type section struct {
	r    io.ReaderAt
	off  int64
	size int64
}

// readAt fills p from offset off of the section. Reading past its end is an
// error that wraps io.ErrUnexpectedEOF.
func (s section) readAt(p []byte, off int64) error {
	if off < 0 || off > s.size || int64(len(p)) > s.size-off {
		return fmt.Errorf("%w: %d bytes at offset %#x of %#x", io.ErrUnexpectedEOF, len(p), s.off+off, s.off+s.size)
	}
	n, err := s.r.ReadAt(p, s.off+off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w at offset %#x", err, s.off+off+int64(n))
}

// section returns n bytes at off as a section of their own.
func (s section) section(off, n int64) (section, error) {
	if off < 0 || n < 0 || off > s.size || n > s.size-off {
		return section{}, fmt.Errorf("%w: %d bytes at offset %#x of %#x", io.ErrUnexpectedEOF, n, s.off+off, s.off+s.size)
	}
	return section{s.r, s.off + off, n}, nil
}

// open finds out the size of r: from its Size or Stat method, or else by
// looking for its end.
func open(r io.ReaderAt) (section, error) {
	switch r := r.(type) {
	case interface{ Size() int64 }:
		if r.Size() < 0 {
			return section{}, fmt.Errorf("has a size of %d bytes", r.Size())
		}
		return section{r: r.(io.ReaderAt), size: r.Size()}, nil
	case interface{ Stat() (fs.FileInfo, error) }:
		info, err := r.Stat()
		if err != nil {
			return section{}, err
		}
		if info.Mode().IsRegular() {
			return section{r: r.(io.ReaderAt), size: info.Size()}, nil
		}
		if info.IsDir() {
			return section{}, errors.New("is a directory")
		}
	}
	// has reports whether there is a byte at off.
	has := func(off int64) (bool, error) {
		var b [1]byte
		n, err := r.ReadAt(b[:], off)
		if n == 1 {
			return true, nil
		}
		if err == nil || errors.Is(err, io.EOF) {
			return false, nil
		}
		return false, err
	}
	const limit = 1 << 40
	var lo, hi int64 = 0, 1 // no end before lo, an end at or before hi
	for {
		ok, err := has(hi - 1)
		if err != nil {
			return section{}, err
		}
		if !ok {
			break
		}
		if lo = hi; lo >= limit {
			return section{}, errors.New("has no end")
		}
		hi *= 2
	}
	for lo < hi-1 {
		mid := lo + (hi-lo)/2
		ok, err := has(mid - 1)
		if err != nil {
			return section{}, err
		}
		if ok {
			lo = mid
		} else {
			hi = mid
		}
	}
	return section{r: r, size: lo}, nil
}
