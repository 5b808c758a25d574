package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"github.com/vmkit-go/vmkit/disk"
)

const (
	magic = 0x514649fb // "QFI\xfb"

	headerLenV2  = 72
	headerLenV3  = 104 // the least; newer fields follow
	headerLenNow = 112

	extEnd      = 0
	extBacking  = 0xe2792aca // format of the backing file
	extFeatures = 0x6803f857 // names of feature bits
	extBitmaps  = 0x23852875
)

// Offsets of header fields (specification, "Header").
const (
	hdrVersion      = 4
	hdrBackingOff   = 8
	hdrBackingLen   = 16
	hdrClusterBits  = 20
	hdrSize         = 24
	hdrCrypt        = 32
	hdrL1Len        = 36
	hdrL1Off        = 40
	hdrRefTable     = 48
	hdrRefTableLen  = 56
	hdrSnapshots    = 60
	hdrSnapshotsOff = 64
	hdrIncompatible = 72
	hdrCompatible   = 80
	hdrAutoclear    = 88
	hdrRefOrder     = 96
	hdrLength       = 100
	hdrCompression  = 104
)

// Feature bits.
const (
	incompatDirty       = 1 << 0
	incompatCorrupt     = 1 << 1
	incompatDataFile    = 1 << 2
	incompatCompression = 1 << 3
	incompatExtendedL2  = 1 << 4

	compatLazy = 1 << 0

	autoclearBitmaps = 1 << 0
)

const knownIncompat = incompatDirty | incompatCorrupt | incompatCompression

// featureNames go into the headers of new images: type of bit, bit, name.
var featureNames = []struct {
	typ, bit byte
	name     string
}{
	{0, 0, "dirty bit"},
	{0, 1, "corrupt bit"},
	{0, 2, "external data file"},
	{0, 3, "compression type"},
	{0, 4, "extended L2 entries"},
	{1, 0, "lazy refcounts"},
	{2, 0, "bitmaps"},
}

const featureNameLen = 48

// Compression is how compressed clusters are encoded.
type Compression uint8

// The compression types of the format.
const (
	Zlib Compression = 0 // raw deflate with a 4 KiB window
	Zstd Compression = 1 // version 3 only
)

func (c Compression) String() string {
	switch c {
	case Zlib:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression type %d", uint8(c))
}

type extension struct {
	typ  uint32
	off  int64 // of the data, in the file
	data []byte
}

// header is the content of an image's first cluster. Numbers are checked, but
// for where the tables lie.
type header struct {
	version     uint32
	clusterBits uint
	size        int64
	backingOff  int64
	backing     string
	format      string // of the backing file; empty if the image does not say
	l1Len       int64
	l1Off       int64
	refTable    int64
	refTableLen int64 // clusters
	snapshots   int
	snapshotOff int64
	incompat    uint64
	compat      uint64
	autoclear   uint64
	refOrder    uint
	length      int64
	compression Compression
	extensions  []extension
	extEnd      int64 // where they end in the file

	raw []byte // the header itself, up to length, kept as it is but for what changes
}

// readHeader reads and checks an image's header.
func readHeader(file disk.Backend) (*header, error) {
	var b [headerLenNow]byte
	n, err := file.ReadAt(b[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if n < headerLenV2 || binary.BigEndian.Uint32(b[:]) != magic {
		return nil, corrupt(0, "no qcow2 header")
	}
	be := binary.BigEndian
	h := &header{
		version:     be.Uint32(b[hdrVersion:]),
		clusterBits: uint(be.Uint32(b[hdrClusterBits:])),
		l1Len:       int64(be.Uint32(b[hdrL1Len:])),
		refTableLen: int64(be.Uint32(b[hdrRefTableLen:])),
		refOrder:    4,
		length:      headerLenV2,
	}
	switch h.version {
	case 2:
	case 3:
		if n < headerLenV3 {
			return nil, corrupt(0, "header is cut short")
		}
		h.incompat, h.compat = be.Uint64(b[hdrIncompatible:]), be.Uint64(b[hdrCompatible:])
		h.autoclear = be.Uint64(b[hdrAutoclear:])
		h.refOrder = uint(be.Uint32(b[hdrRefOrder:]))
		h.length = int64(be.Uint32(b[hdrLength:]))
	default:
		return nil, fmt.Errorf("qcow2 version %d: %w", h.version, errors.ErrUnsupported)
	}
	if h.clusterBits < minClusterLg || h.clusterBits > maxClusterLg {
		return nil, corrupt(hdrClusterBits, "cluster size of 2^%d bytes", h.clusterBits)
	}
	if c := be.Uint32(b[hdrCrypt:]); c != 0 {
		return nil, fmt.Errorf("encryption method %d: %w", c, errors.ErrUnsupported)
	}
	cluster := int64(1) << h.clusterBits
	if h.version == 3 && (h.length < headerLenV3 || h.length%8 != 0 || h.length > cluster) {
		return nil, corrupt(hdrLength, "header length of %d bytes", h.length)
	}
	if h.refOrder > 6 {
		return nil, corrupt(hdrRefOrder, "refcounts of 2^%d bits", h.refOrder)
	}
	// Positions: those of tables are checked together with the tables.
	for _, f := range []struct {
		field int
		to    *int64
		what  string
		max   uint64
	}{
		{hdrSize, &h.size, "disk size", 1 << 62},
		{hdrL1Off, &h.l1Off, "L1 table", maxHost},
		{hdrRefTable, &h.refTable, "refcount table", maxHost},
		{hdrSnapshotsOff, &h.snapshotOff, "snapshot table", maxHost},
		{hdrBackingOff, &h.backingOff, "backing file name", uint64(cluster)},
	} {
		v := be.Uint64(b[f.field:])
		if v > f.max {
			return nil, corrupt(int64(f.field), "%s of or at %d", f.what, v)
		}
		*f.to = int64(v)
	}
	if n := be.Uint32(b[hdrSnapshots:]); n > maxSnapshots {
		return nil, corrupt(hdrSnapshots, "%d snapshots", n)
	} else if h.snapshots = int(n); n > 0 && h.snapshotOff == 0 {
		return nil, corrupt(hdrSnapshotsOff, "snapshots without a table")
	}
	h.raw = make([]byte, h.length)
	if err := readFull(file, h.raw, 0); err != nil {
		return nil, err
	}
	if err := h.readExtensions(file, int64(be.Uint32(b[hdrBackingLen:])), cluster); err != nil {
		return nil, err
	}
	return h, h.checkFeatures()
}

// readExtensions reads what follows the header in its cluster.
func (h *header) readExtensions(file disk.Backend, nameLen, cluster int64) error {
	end := min(cluster, file.Size())
	if h.backingOff != 0 {
		if nameLen > maxBackingName || h.backingOff < h.length || h.backingOff+nameLen > end {
			return corrupt(hdrBackingOff, "backing file name of %d bytes at %d", nameLen, h.backingOff)
		}
		name := make([]byte, nameLen)
		if err := readFull(file, name, h.backingOff); err != nil {
			return err
		}
		h.backing = string(name)
		if strings.ContainsRune(h.backing, 0) {
			return corrupt(h.backingOff, "backing file name with a NUL byte")
		}
		end = h.backingOff
	}
	// An image without the end mark ends where its cluster or the name does.
	for off := h.length; off+8 <= end; {
		var b [8]byte
		if err := readFull(file, b[:], off); err != nil {
			return err
		}
		e := extension{typ: binary.BigEndian.Uint32(b[:]), off: off + 8}
		n := int64(binary.BigEndian.Uint32(b[4:]))
		h.extEnd = e.off
		if e.typ == extEnd {
			break
		}
		if n > end-e.off {
			return corrupt(off, "header extension %#x of %d bytes", e.typ, n)
		}
		e.data = make([]byte, n)
		if err := readFull(file, e.data, e.off); err != nil {
			return err
		}
		h.extensions = append(h.extensions, e)
		if e.typ == extBacking {
			h.format = string(e.data)
		}
		off = e.off + (n+7)&^7
		h.extEnd = off
	}
	return nil
}

// checkFeatures refuses what an image needs and this package does not know.
func (h *header) checkFeatures() error {
	if h.incompat&incompatCompression != 0 {
		if h.length <= hdrCompression {
			return corrupt(hdrIncompatible, "compression type without a header field")
		}
		h.compression = Compression(h.raw[hdrCompression])
		if h.compression != Zlib && h.compression != Zstd {
			return fmt.Errorf("%v: %w", h.compression, errors.ErrUnsupported)
		}
	}
	unknown := h.incompat &^ knownIncompat
	if unknown == 0 {
		return nil
	}
	var names []string
	for left := unknown; left != 0; left &= left - 1 {
		names = append(names, h.featureName(bits.TrailingZeros64(left)))
	}
	return fmt.Errorf("the image needs %s: %w", strings.Join(names, ", "), errors.ErrUnsupported)
}

// featureName is the name of an incompatible feature.
func (h *header) featureName(bit int) string {
	for _, f := range featureNames {
		if f.typ == 0 && int(f.bit) == bit {
			return f.name
		}
	}
	for _, e := range h.extensions {
		for t := e.data; e.typ == extFeatures && len(t) >= featureNameLen; t = t[featureNameLen:] {
			if t[0] == 0 && int(t[1]) == bit {
				name, _, _ := strings.Cut(string(t[2:featureNameLen]), "\x00")
				return fmt.Sprintf("%q", name)
			}
		}
	}
	return fmt.Sprintf("incompatible feature %d", bit)
}

// put64 and put32 change a field of the header in memory.
func (h *header) put64(field int, v uint64) { binary.BigEndian.PutUint64(h.raw[field:], v) }
func (h *header) put32(field int, v uint32) { binary.BigEndian.PutUint32(h.raw[field:], v) }

// sync brings raw up to date.
func (h *header) sync() {
	h.put64(hdrSize, uint64(h.size))
	h.put32(hdrL1Len, uint32(h.l1Len))
	h.put64(hdrL1Off, uint64(h.l1Off))
	h.put64(hdrRefTable, uint64(h.refTable))
	h.put32(hdrRefTableLen, uint32(h.refTableLen))
	if h.version >= 3 {
		h.put64(hdrIncompatible, h.incompat)
		h.put64(hdrCompatible, h.compat)
		h.put64(hdrAutoclear, h.autoclear)
	}
}

// write writes the header's fields to file. All that change lie in the first
// sector, so that a power cut leaves the old ones or the new.
func (h *header) write(file disk.Backend) error {
	h.sync()
	_, err := file.WriteAt(h.raw[:min(len(h.raw), sectorSize)], 0)
	return err
}

// encode lays out the whole header area for a new backing file name. Where the
// cluster has room, the name lies clear of the first sector and of all that the
// old header uses, so that it can be written before what refers to it.
func (h *header) encode(backing, format string) ([]byte, error) {
	oldName := [2]int64{h.backingOff, h.backingOff + int64(len(h.backing))}
	h.backing, h.format, h.backingOff = backing, format, 0
	h.sync()
	b := h.encodeExtensions(true)
	if len(b) > sectorSize {
		b = h.encodeExtensions(false) // the names of features are no more than a help
	}
	cluster := int64(1) << h.clusterBits
	if n := int64(len(backing)); n > 0 {
		h.backingOff = int64(len(b))
		at := (max(h.backingOff, h.extEnd) + sectorSize - 1) &^ (sectorSize - 1)
		if at < oldName[1] && oldName[0] < at+n {
			at = (oldName[1] + sectorSize - 1) &^ (sectorSize - 1)
		}
		if at+n <= cluster {
			h.backingOff = at
		}
		h.extEnd = int64(len(b))
		b = append(b, make([]byte, h.backingOff-h.extEnd)...)
		b = append(b, backing...)
	} else {
		h.extEnd = int64(len(b))
	}
	if int64(len(b)) > cluster {
		return nil, fmt.Errorf("the header needs %d bytes, a cluster has %d", len(b), cluster)
	}
	binary.BigEndian.PutUint64(b[hdrBackingOff:], uint64(h.backingOff))
	binary.BigEndian.PutUint32(b[hdrBackingLen:], uint32(len(h.backing)))
	copy(h.raw, b)
	return b, nil
}

// encodeExtensions returns the header and its extensions.
func (h *header) encodeExtensions(names bool) []byte {
	b := append([]byte(nil), h.raw...)
	add := func(typ uint32, data []byte) {
		b = binary.BigEndian.AppendUint32(b, typ)
		b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
		b = append(b, data...)
		b = append(b, make([]byte, -len(b)&7)...)
	}
	if h.backing != "" && h.format != "" {
		add(extBacking, []byte(h.format))
	}
	for _, e := range h.extensions {
		if e.typ != extBacking && (names || e.typ != extFeatures) {
			add(e.typ, e.data)
		}
	}
	add(extEnd, nil)
	return b
}

// readFull reads all of p. What lies past the end of the file is an error.
func readFull(file disk.Backend, p []byte, off int64) error {
	n, err := file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = corrupt(off, "the file ends within %d bytes", len(p))
	}
	return err
}
