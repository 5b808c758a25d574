package qcow2

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/disk"
)

// Rebase puts the image above another backing disk, or none if backing is
// nil, and keeps what it reads as: what differs below is copied into the image
// first. Requests go on meanwhile. name and format are written to the image, as
// in [CreateConfig]. If it fails, the old backing disk stays.
func (im *Image) Rebase(backing disk.Backend, name, format string) error {
	if err := im.rebase(backing, name, format); err != nil {
		return im.fail("rebase", 0, 0, err)
	}
	return nil
}

func (im *Image) rebase(backing disk.Backend, name, format string) error {
	if (backing == nil) != (name == "") || (name == "") != (format == "") || len(name) > maxBackingName {
		return fmt.Errorf("backing file %.40q with format %q: want a disk, a name and a format, or none of them", name, format)
	}
	if b, ok := backing.(*Image); ok && (b == im || depth(b) >= maxChain) {
		return errors.New("the chain of images would be too long")
	}
	old, now := make([]byte, commitPiece), make([]byte, commitPiece)
	for off := int64(0); ; {
		n, err := im.copyUp(backing, off, old, now)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		off += n
	}
	im.lock()
	defer im.unlock()
	if err := im.check(0, 0); err != nil {
		return err
	}
	if err := im.flushTables(false); err != nil {
		return err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	next := *im.hdr
	next.raw = bytes.Clone(im.hdr.raw)
	b, err := next.encode(name, format)
	if err != nil {
		return err
	}
	if len(b) > sectorSize {
		if _, err := im.file.WriteAt(b[sectorSize:], sectorSize); err != nil {
			return err
		}
		if err := im.file.Flush(); err != nil {
			return err
		}
	}
	if _, err := im.file.WriteAt(b[:min(len(b), sectorSize)], 0); err != nil {
		return err
	}
	if err := im.file.Flush(); err != nil {
		return err
	}
	*im.hdr, im.backing = next, backing
	return nil
}

// copyUp makes a piece of the image at off, whose length it returns, read the
// same above backing.
func (im *Image) copyUp(backing disk.Backend, off int64, old, now []byte) (int64, error) {
	id := im.enter()
	defer im.requests.leave(id)
	if err := im.check(0, 0); err != nil {
		return 0, err
	}
	left := im.size.Load() - off
	if left <= 0 {
		return 0, nil
	}
	m, err := im.lookup(off, min(left, int64(len(old))), false)
	if err != nil || m.kind != kindHole {
		return m.n, err
	}
	old, now = old[:m.n], now[:m.n]
	for p, b := range map[*[]byte]disk.Backend{&old: im.backing, &now: backing} {
		clear(*p)
		if b != nil {
			if _, err := readPadded(b, [][]byte{*p}, off, m.n, false); err != nil {
				return 0, err
			}
		}
	}
	for at := int64(0); at < m.n; at += im.cluster {
		end := min(m.n, at+im.cluster)
		if bytes.Equal(old[at:end], now[at:end]) {
			continue
		}
		c := (off + at) >> im.bits
		if !im.v2 && isZero(old[at:end]) {
			err = im.change(c, c, true, func(e uint64) uint64 {
				if e == 0 {
					return flagZero
				}
				return e
			})
		} else {
			err = im.allocateOld(c)
		}
		if err != nil {
			return 0, err
		}
	}
	return m.n, nil
}

// allocateOld gives cluster c of the disk a place of its own, with the content
// that it has, unless it has one.
func (im *Image) allocateOld(c int64) error {
	for {
		m, err := im.lookup(c<<im.bits, 1, false)
		if err != nil || m.kind != kindHole {
			return err
		}
		// A write of nothing copies all of the cluster.
		if _, err := im.writeNew(nil, 0, c<<im.bits, 0); err != nil {
			return err
		}
	}
}
