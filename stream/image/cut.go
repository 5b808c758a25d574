package image

import (
	"bytes"
	"hash/crc32"
)

// The cut algorithm, part of the format's version. The disk is looked at in
// blocks of 4 KiB, the last one filled up with zeroes. A run of four or more
// zero blocks belongs to no chunk, and so do zero blocks before a chunk and
// after it. A chunk ends after a block
//
//   - that makes it 64 blocks long, or
//   - that makes it at least 4 blocks long and whose mark is below cutBelow.
//
// The mark is the CRC-32C of the block times cutFactor, modulo 2^32. It depends
// on one block alone, so that after a change chunks are the same again from the
// first cut on. Zero blocks inside a chunk end it by its length only.
const (
	minBlocks  = MinChunk / BlockSize
	maxBlocks  = MaxChunk / BlockSize
	holeBlocks = 4

	cutFactor = 0x9e3779b1
	// One block in 12 cuts: 4 blocks and then 12 in the mean make 64 KiB.
	cutBelow = 1 << 32 / 12
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	zeroBlock  [BlockSize]byte
)

// isZero reports whether p, at most a block, is all zeroes.
func isZero(p []byte) bool { return bytes.Equal(p, zeroBlock[:len(p)]) }

// cuts reports whether a block of content ends a chunk that is long enough.
func cuts(block []byte) bool {
	return crc32.Checksum(block, castagnoli)*cutFactor < cutBelow
}

// cutter cuts a disk that is shown to it block by block.
type cutter struct {
	// emit gets the chunks in order. The buffer belongs to the callee, and
	// the return value is the next one, empty, with a capacity of MaxChunk.
	emit func(off int64, content []byte) ([]byte, error)

	buf   []byte // the chunk so far
	off   int64  // where it starts
	zeros int    // zero blocks seen since, not in buf
}

// block takes the block at off, which follows the one before. It may be short
// if it is the last of the disk.
func (c *cutter) block(off int64, p []byte) error {
	if isZero(p) {
		return c.zero(1)
	}
	if len(c.buf) > 0 && len(c.buf)+c.zeros*BlockSize >= MaxChunk {
		// The zeroes would fill the chunk: they lie outside instead.
		if err := c.flush(); err != nil {
			return err
		}
	}
	if len(c.buf) == 0 {
		c.off = off
	} else {
		n := len(c.buf)
		c.buf = c.buf[:n+c.zeros*BlockSize]
		clear(c.buf[n:])
	}
	c.zeros = 0
	c.buf = append(c.buf, p...)
	if len(c.buf) >= MaxChunk || len(c.buf) >= MinChunk && len(p) == BlockSize && cuts(p) {
		return c.flush()
	}
	return nil
}

// zero takes n zero blocks.
func (c *cutter) zero(n int64) error {
	if len(c.buf) == 0 {
		return nil
	}
	if int64(c.zeros)+n < holeBlocks {
		c.zeros += int(n)
		return nil
	}
	return c.flush()
}

// flush ends the chunk, without the zero blocks after it.
func (c *cutter) flush() error {
	c.zeros = 0
	if len(c.buf) == 0 {
		return nil
	}
	next, err := c.emit(c.off, c.buf)
	c.buf = next
	return err
}
