package vm

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// A saved machine is a stream: the magic, then records. A record is a type
// and a payload length (two little-endian 32-bit words), the payload, and the
// CRC-32C of all that. The first record is the header, the last one the end
// with the number of records before it, so that a stream cut at a record
// border is noticed too.
const (
	streamMagic   = "vmkit machine 1\n"
	recHeader     = 1 // JSON of savedHeader
	recSection    = 2 // JSON of savedSection
	recPages      = 3 // 64-bit guest-physical address, then page contents
	recEnd        = 4 // 64-bit record count
	maxJSONRecord = 64 << 20
	maxPageRecord = 8 + 1<<20
)

// ErrBadState is wrapped by every error of Load that is the stream's fault:
// truncated, damaged, of another version, or made by a different machine.
var ErrBadState = errors.New("bad saved state")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type recordWriter struct {
	w     *bufio.Writer
	count uint64
	head  [8]byte
	sum   [4]byte
}

func newRecordWriter(w io.Writer) (*recordWriter, error) {
	bw := bufio.NewWriterSize(w, 256<<10)
	_, err := bw.WriteString(streamMagic)
	return &recordWriter{w: bw}, err
}

// write writes one record whose payload is the concatenation of parts.
func (r *recordWriter) write(typ uint32, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	binary.LittleEndian.PutUint32(r.head[0:], typ)
	binary.LittleEndian.PutUint32(r.head[4:], uint32(n))
	sum := crc32.Checksum(r.head[:], castagnoli)
	if _, err := r.w.Write(r.head[:]); err != nil {
		return err
	}
	for _, p := range parts {
		sum = crc32.Update(sum, castagnoli, p)
		if _, err := r.w.Write(p); err != nil {
			return err
		}
	}
	binary.LittleEndian.PutUint32(r.sum[:], sum)
	r.count++
	_, err := r.w.Write(r.sum[:])
	return err
}

func (r *recordWriter) json(typ uint32, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(data) > maxJSONRecord {
		return fmt.Errorf("record of %d bytes is over the limit of %d", len(data), maxJSONRecord)
	}
	return r.write(typ, data)
}

func (r *recordWriter) end() error {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], r.count)
	if err := r.write(recEnd, n[:]); err != nil {
		return err
	}
	return r.w.Flush()
}

type recordReader struct {
	r     *bufio.Reader
	count uint64
	buf   []byte
}

func newRecordReader(r io.Reader) (*recordReader, error) {
	br := bufio.NewReaderSize(r, 256<<10)
	magic := make([]byte, len(streamMagic))
	if _, err := io.ReadFull(br, magic); err != nil || string(magic) != streamMagic {
		return nil, fmt.Errorf("%w: it does not start with %q", ErrBadState, streamMagic)
	}
	return &recordReader{r: br}, nil
}

// next returns the next record's type and payload, which is valid until the
// following call. Nothing is allocated on the word of a length field alone
// beyond the limit of its type.
func (r *recordReader) next() (uint32, []byte, error) {
	bad := func(format string, args ...any) (uint32, []byte, error) {
		return 0, nil, fmt.Errorf("%w: record %d: %s", ErrBadState, r.count, fmt.Sprintf(format, args...))
	}
	var head [8]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return bad("truncated: %v", err)
	}
	typ, n := binary.LittleEndian.Uint32(head[0:]), int(binary.LittleEndian.Uint32(head[4:]))
	limit := 0
	switch typ {
	case recHeader, recSection:
		limit = maxJSONRecord
	case recPages:
		limit = maxPageRecord
	case recEnd:
		limit = 8
	default:
		return bad("unknown type %d", typ)
	}
	if n > limit {
		return bad("length %d is over %d, the limit of type %d", n, limit, typ)
	}
	// Grow in steps, so that a lying length in a short stream costs little.
	r.buf = r.buf[:0]
	for len(r.buf) < n {
		step := min(n-len(r.buf), max(len(r.buf), maxPageRecord))
		old := len(r.buf)
		if cap(r.buf) < old+step {
			r.buf = append(make([]byte, 0, old+step), r.buf...)
		}
		r.buf = r.buf[:old+step]
		if _, err := io.ReadFull(r.r, r.buf[old:]); err != nil {
			return bad("truncated: %v", err)
		}
	}
	var sum [4]byte
	if _, err := io.ReadFull(r.r, sum[:]); err != nil {
		return bad("truncated: %v", err)
	}
	if crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, r.buf) != binary.LittleEndian.Uint32(sum[:]) {
		return bad("checksum mismatch")
	}
	if typ == recEnd {
		if n != 8 || binary.LittleEndian.Uint64(r.buf) != r.count {
			return bad("the end record counts %d bytes of %x, want %d records", n, r.buf, r.count)
		}
	}
	r.count++
	return typ, r.buf, nil
}

// decodeStrict is json.Unmarshal that refuses unknown fields.
func decodeStrict(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrBadState, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return fmt.Errorf("%w: data after the end of the JSON", ErrBadState)
	}
	return nil
}
