package qcow2

import "encoding/binary"

// Offsets in the bitmaps extension and in an entry of its directory
// (specification, "Bitmaps extension" and "Bitmap directory").
const (
	bitmapsCount   = 0
	bitmapsDirSize = 8
	bitmapsDirOff  = 16
	bitmapsLen     = 24

	bitmapTable    = 0
	bitmapTableLen = 8
	bitmapNameLen  = 18
	bitmapExtraLen = 20
	bitmapFixed    = 24

	maxBitmaps      = 65535
	maxBitmapDir    = 64 << 20
	maxBitmapTables = 64 << 20 // bytes, of all bitmaps together
)

// countBitmaps counts what dirty bitmaps use. They are QEMU's business, and
// valid only while nobody else writes to the image.
func (c *checker) countBitmaps() error {
	im := c.im
	if im.hdr.autoclear&autoclearBitmaps == 0 {
		return nil
	}
	be := binary.BigEndian
	for _, x := range im.hdr.extensions {
		if x.typ != extBitmaps {
			continue
		}
		if len(x.data) < bitmapsLen {
			c.corruption(corrupt(x.off, "bitmaps extension of %d bytes", len(x.data)))
			continue
		}
		n, size, off := be.Uint32(x.data[bitmapsCount:]), be.Uint64(x.data[bitmapsDirSize:]), be.Uint64(x.data[bitmapsDirOff:])
		if n > maxBitmaps || size > maxBitmapDir || !c.fits(off, size) {
			c.corruption(corrupt(x.off, "%d bitmaps with a directory of %d bytes at %d", n, size, off))
			continue
		}
		if err := c.use(int64(off), int64(size)); err != nil {
			return err
		}
		dir := make([]byte, size)
		if err := readFull(im.file, dir, int64(off)); err != nil {
			return err
		}
		if err := c.countDirectory(dir, int64(off), int(n)); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) countDirectory(dir []byte, pos int64, n int) error {
	be := binary.BigEndian
	total := uint64(0)
	for i := range n {
		if len(dir) < bitmapFixed {
			c.corruption(corrupt(pos, "directory ends before bitmap %d", i))
			return nil
		}
		table, size := be.Uint64(dir[bitmapTable:]), uint64(be.Uint32(dir[bitmapTableLen:]))*entrySize
		length := bitmapFixed + int64(be.Uint16(dir[bitmapNameLen:])) + int64(be.Uint32(dir[bitmapExtraLen:]))
		length = (length + 7) &^ 7
		total += size
		if length > int64(len(dir)) || total > maxBitmapTables || !c.fits(table, size) {
			c.corruption(corrupt(pos, "bitmap %d has an entry of %d bytes and a table of %d bytes at %d", i, length, size, table))
			return nil
		}
		if err := c.use(int64(table), int64(size)); err != nil {
			return err
		}
		raw := make([]byte, size)
		if err := readFull(c.im.file, raw, int64(table)); err != nil {
			return err
		}
		for k := uint64(0); k < size; k += entrySize {
			off := be.Uint64(raw[k:]) & offsetMask
			if off == 0 {
				continue
			}
			if !c.fits(off, uint64(c.im.cluster)) {
				c.corruption(corrupt(int64(table+k), "bitmap %d points to %d", i, off))
				continue
			}
			if err := c.use(int64(off), c.im.cluster); err != nil {
				return err
			}
		}
		dir, pos = dir[length:], pos+length
	}
	return nil
}

// fits reports whether n bytes at off are whole clusters' content in the file.
func (c *checker) fits(off, n uint64) bool {
	size := uint64(c.im.file.Size())
	return off != 0 && off%uint64(c.im.cluster) == 0 && n <= size && off <= size-n
}
