package cache

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The journal is a header and records, all little-endian:
//
//	header  magic [8]byte, version uint32, zero uint32, id [16]byte, crc uint32, zero [28]byte
//	record  hash [32]byte, offset uint64, length uint32, crc uint32
//
// A record's CRC-32C covers the journal's id and the record's number before
// the record itself, so that no bytes from elsewhere can pass for one.
const (
	headerSize = 64
	recordSize = 48
	version    = 1
	// maxRecords bounds the memory that a journal can take.
	maxRecords = 1 << 22
)

var (
	magic      = [8]byte{'v', 'm', 'k', 'c', 'a', 'c', 'h', 'e'}
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// record says where a chunk lies.
type record struct {
	hash [32]byte
	off  int64
	n    int
}

// journal is the append-only list of chunks that are durable.
type journal struct {
	file file
	id   [16]byte
	n    int64 // records
}

func (j *journal) crc(n int64, body []byte) uint32 {
	var num [8]byte
	binary.LittleEndian.PutUint64(num[:], uint64(n))
	c := crc32.Update(0, castagnoli, j.id[:])
	c = crc32.Update(c, castagnoli, num[:])
	return crc32.Update(c, castagnoli, body)
}

// load reads the journal, or begins one, and calls fn for each record that is
// whole. A later record for a chunk counts more than an earlier one.
func (j *journal) load(fn func(record)) error {
	size, err := j.file.Size()
	if err != nil {
		return err
	}
	var h [headerSize]byte
	if _, err := j.file.ReadAt(h[:min(size, headerSize)], 0); err != nil && err != io.EOF {
		return err
	}
	if err := j.checkHeader(h[:]); err != nil {
		if size > headerSize || errors.Is(err, errVersion) {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		// There are no records before the header is durable.
		return j.create()
	}
	r := io.NewSectionReader(j.file, headerSize, min(size-headerSize, maxRecords*recordSize))
	buf := make([]byte, 1<<10*recordSize)
	for n := int64(0); ; {
		k, err := io.ReadFull(r, buf)
		for b := buf[:k]; len(b) >= recordSize; b = b[recordSize:] {
			if rec, ok := j.parse(n, b[:recordSize]); ok {
				fn(rec)
				// What follows the last good record is overwritten.
				j.n = n + 1
			}
			n++
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("journal: offset %d: %w", headerSize+n*recordSize, err)
		}
	}
}

var errVersion = errors.New("version")

func (j *journal) checkHeader(h []byte) error {
	le := binary.LittleEndian
	switch {
	case [8]byte(h) != magic:
		return errors.New("journal: offset 0: not a cache's journal")
	case le.Uint32(h[32:]) != crc32.Checksum(h[:32], castagnoli):
		return errors.New("journal: offset 32: the header's checksum does not match")
	case le.Uint32(h[8:]) != version:
		return fmt.Errorf("journal: offset 8: %w is %d, want %d", errVersion, le.Uint32(h[8:]), version)
	}
	j.id = [16]byte(h[16:])
	return nil
}

func (j *journal) create() error {
	rand.Read(j.id[:])
	h := make([]byte, headerSize)
	copy(h, magic[:])
	binary.LittleEndian.PutUint32(h[8:], version)
	copy(h[16:], j.id[:])
	binary.LittleEndian.PutUint32(h[32:], crc32.Checksum(h[:32], castagnoli))
	if _, err := j.file.WriteAt(h, 0); err != nil {
		return err
	}
	return j.file.Sync()
}

func (j *journal) parse(n int64, b []byte) (r record, ok bool) {
	le := binary.LittleEndian
	if le.Uint32(b[44:]) != j.crc(n, b[:44]) {
		return r, false
	}
	off, size := le.Uint64(b[32:]), le.Uint32(b[40:])
	if off > 1<<62 || off%align != 0 || size == 0 || size > MaxChunk {
		return r, false
	}
	return record{[32]byte(b), int64(off), int(size)}, true
}

// add appends records and makes them durable. After an error none of them
// counts, and a later add takes their place.
func (j *journal) add(batch []*slot) error {
	if j.n+int64(len(batch)) > maxRecords {
		return fmt.Errorf("journal: more than %d records", maxRecords)
	}
	var b bytes.Buffer
	b.Grow(len(batch) * recordSize)
	for i, s := range batch {
		var r [recordSize]byte
		copy(r[:], s.hash[:])
		binary.LittleEndian.PutUint64(r[32:], uint64(s.off))
		binary.LittleEndian.PutUint32(r[40:], uint32(s.n))
		binary.LittleEndian.PutUint32(r[44:], j.crc(j.n+int64(i), r[:44]))
		b.Write(r[:])
	}
	off := headerSize + j.n*recordSize
	if _, err := j.file.WriteAt(b.Bytes(), off); err != nil {
		// Records that made it stand for chunks that are durable: harmless,
		// and gone if the file can be cut.
		j.file.Truncate(off)
		return err
	}
	if err := j.file.Sync(); err != nil {
		return err
	}
	j.n += int64(len(batch))
	return nil
}
