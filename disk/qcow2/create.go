package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"github.com/vmkit-go/vmkit/disk"
)

// CreateConfig says what image to make. Only Size has no default.
type CreateConfig struct {
	// Size of the disk in bytes, a multiple of 512.
	Size int64
	// ClusterSize in bytes: a power of two from 512 to 2 MiB; 64 KiB if 0.
	ClusterSize int64
	// Version of the format: 2 or 3; 3 if 0.
	Version int
	// BackingName makes the image a linked clone: what it does not hold is
	// read from the disk of that name, which [Open] is given. QEMU takes it
	// as a path relative to the image.
	BackingName string
	// BackingFormat is what QEMU takes that disk for, such as "raw" or
	// "qcow2". It is needed with BackingName: formats are not guessed.
	BackingFormat string
	// RefcountBits is the width of a refcount: a power of two from 1 to 64;
	// 16 if 0, and always in version 2.
	RefcountBits int
	// LazyRefcounts lets refcounts wait for Close; after a crash they are
	// computed anew. Version 3 only.
	LazyRefcounts bool
	// Compression is how compressed clusters will be written.
	Compression Compression
}

// header checks the config and returns the header that it describes.
func (c CreateConfig) header() (*header, error) {
	if c.ClusterSize == 0 {
		c.ClusterSize = 64 << 10
	}
	if c.Version == 0 {
		c.Version = 3
	}
	if c.RefcountBits == 0 {
		c.RefcountBits = 16
	}
	h := &header{
		version: uint32(c.Version), clusterBits: uint(bits.Len64(uint64(c.ClusterSize)) - 1), size: c.Size,
		refOrder: uint(bits.Len(uint(c.RefcountBits)) - 1), length: headerLenNow, compression: c.Compression,
	}
	switch v3 := c.Version == 3; {
	case c.Version != 2 && !v3:
		return nil, fmt.Errorf("version %d: want 2 or 3", c.Version)
	case c.ClusterSize&(c.ClusterSize-1) != 0 || h.clusterBits < minClusterLg || h.clusterBits > maxClusterLg:
		return nil, fmt.Errorf("cluster size of %d bytes: want a power of two from 512 to 2 MiB", c.ClusterSize)
	case c.Size < 0 || c.Size%sectorSize != 0:
		return nil, fmt.Errorf("%w: size of %d bytes: want a multiple of %d", disk.ErrRange, c.Size, sectorSize)
	case c.RefcountBits < 1 || c.RefcountBits > 64 || c.RefcountBits&(c.RefcountBits-1) != 0:
		return nil, fmt.Errorf("refcounts of %d bits: want a power of two up to 64", c.RefcountBits)
	case !v3 && (c.RefcountBits != 16 || c.LazyRefcounts || c.Compression != Zlib):
		return nil, fmt.Errorf("version 2 has 16-bit refcounts, which are not lazy, and zlib")
	case c.Compression != Zlib && c.Compression != Zstd:
		return nil, fmt.Errorf("unknown %v", c.Compression)
	case len(c.BackingName) > maxBackingName || strings.ContainsRune(c.BackingName, 0):
		return nil, fmt.Errorf("backing file name %.40q: want at most %d bytes, none of them NUL", c.BackingName, maxBackingName)
	case (c.BackingName == "") != (c.BackingFormat == ""):
		return nil, fmt.Errorf("backing file %q with format %q: want both or none", c.BackingName, c.BackingFormat)
	}
	if c.Version == 2 {
		h.length = headerLenV2
	}
	if c.LazyRefcounts {
		h.compat |= compatLazy
	}
	h.raw = make([]byte, h.length)
	h.put32(0, magic)
	h.put32(hdrVersion, h.version)
	h.put32(hdrClusterBits, uint32(h.clusterBits))
	if c.Version == 3 {
		if c.Compression != Zlib {
			h.incompat |= incompatCompression
			h.raw[hdrCompression] = byte(c.Compression)
		}
		h.put32(hdrRefOrder, uint32(h.refOrder))
		h.put32(hdrLength, uint32(h.length))
		h.extensions = append(h.extensions, extension{typ: extFeatures, data: featureTable()})
	}
	return h, nil
}

// featureTable is the content of the extension that names features.
func featureTable() (p []byte) {
	for _, f := range featureNames {
		e := [featureNameLen]byte{f.typ, f.bit}
		copy(e[2:], f.name)
		p = append(p, e[:]...)
	}
	return p
}

// Create writes an empty image into file, whose content is lost. The file
// stays the caller's; its Flush makes the image durable. It grows if it is a
// [disk.Resizer], and must have room for the tables otherwise. A new image
// takes four clusters, and more for very large disks.
func Create(file disk.Backend, cfg CreateConfig) error {
	if err := create(file, cfg); err != nil {
		return &disk.Error{Op: "create", Name: file.Info().Name, Err: err}
	}
	return nil
}

func create(file disk.Backend, cfg CreateConfig) error {
	h, err := cfg.header()
	if err != nil {
		return err
	}
	l := newLayout(h.clusterBits, h.version)
	r := refcounts{order: h.refOrder, per: l.cluster * 8 >> h.refOrder}
	h.l1Len = max(1, l.l1Len(cfg.Size))
	if h.l1Len*entrySize > maxL1Bytes {
		return fmt.Errorf("%w: a disk of %d bytes needs larger clusters than %d bytes", disk.ErrRange, cfg.Size, l.cluster)
	}
	// Header, refcount table, refcount blocks, L1 table.
	l1 := l.clusters(h.l1Len * entrySize)
	blocks, used := int64(1), int64(0)
	for {
		h.refTableLen = l.clusters(blocks * entrySize)
		if used = 1 + h.refTableLen + blocks + l1; used <= blocks*r.per {
			break
		}
		blocks++
	}
	h.refTable = l.cluster
	firstBlock := h.refTable + h.refTableLen<<l.bits
	h.l1Off = firstBlock + blocks<<l.bits
	head, err := h.encode(cfg.BackingName, cfg.BackingFormat)
	if err != nil {
		return err
	}
	if g, ok := file.(disk.Resizer); ok {
		err = g.Resize(0)
		if err == nil {
			err = g.Resize(used << l.bits)
		}
	} else {
		err = file.WriteZeroes(0, used<<l.bits, true)
	}
	if err != nil {
		return err
	}
	table := make([]byte, blocks*entrySize)
	for i := range blocks {
		binary.BigEndian.PutUint64(table[i*entrySize:], uint64(firstBlock+i<<l.bits))
		n := min(r.per, used-i*r.per)
		if n <= 0 {
			break
		}
		data := make([]byte, (n<<r.order+7)/8)
		for k := range n {
			r.put(data, k, 1)
		}
		if _, err := file.WriteAt(data, firstBlock+i<<l.bits); err != nil {
			return err
		}
	}
	if _, err := file.WriteAt(table, h.refTable); err != nil {
		return err
	}
	_, err = file.WriteAt(head, 0)
	return err
}
