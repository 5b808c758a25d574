package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// LZ4 as kernel images use it: the legacy frame (LZ4 Frame Format
// Description, "Legacy Frame") around blocks (LZ4 Block Format Description).
const (
	lz4Magic     = 0x184c2102
	lz4BlockSize = 8 << 20 // every block but the last unpacks to this
	// lz4MaxPacked is the most that a block of incompressible data takes.
	lz4MaxPacked = lz4BlockSize + lz4BlockSize/255 + 16
)

var (
	errLZ4Short  = errors.New("LZ4 block ends within a sequence")
	errLZ4Offset = errors.New("LZ4 match reaches back before its block")
	errLZ4Long   = errors.New("LZ4 block unpacks to more than its room")
)

// pageSize is the unit in which host memory is taken when it is written.
const pageSize = 4096

// lz4Decoder decodes one block. Its fields are set for one call of decode.
type lz4Decoder struct {
	in  section // the packed block
	buf []byte  // takes pieces of in; at least 2*lz4Margin bytes

	// emit, if set, takes the content piece by piece: the target is then a
	// window of at least 2*lz4History bytes.
	emit func(content []byte) error
	// sparse leaves out whole pages of long runs of zeros, for a target
	// that reads as zero already: they take no host memory then.
	sparse bool
	// prefix stops without an error when the target is full.
	prefix bool

	at      int64 // how much of in has been read
	emitted int   // bytes at the start of the window that emit has had
	total   int   // bytes that emit has had
}

const (
	// lz4Margin bounds what one short sequence takes of the input, and what
	// reading it in larger units than needed does.
	lz4Margin  = 64
	lz4History = 64 << 10 // the farthest that a match reaches back
)

// fill returns the input from src[s:] on, with more of it behind.
func (z *lz4Decoder) fill(src []byte, s int) ([]byte, error) {
	n := copy(z.buf, src[s:])
	more := int(min(int64(len(z.buf)-n), z.in.size-z.at))
	err := z.in.readAt(z.buf[n:n+more], z.at)
	z.at += int64(more)
	return z.buf[:n+more], err
}

// flush empties the window dst[:d], except for what matches may refer to, and
// returns the new d.
func (z *lz4Decoder) flush(dst []byte, d int) (int, error) {
	if z.emit == nil {
		return d, errLZ4Long
	}
	z.total += d - z.emitted
	if err := z.emit(dst[z.emitted:d]); err != nil {
		return d, err
	}
	if d > lz4History {
		d = copy(dst, dst[d-lz4History:d])
	}
	z.emitted = d
	return d, nil
}

// decode unpacks the block into dst and returns how many bytes it made.
// Whatever the block holds, nothing but dst is written.
func (z *lz4Decoder) decode(dst []byte) (int, error) {
	src, err := z.fill(nil, 0)
	if err != nil {
		return 0, err
	}
	var d, s int
	for {
		if len(src)-s < lz4Margin && z.at < z.in.size {
			if src, err = z.fill(src, s); err != nil {
				return 0, err
			}
			s = 0
		}
		if s >= len(src) {
			return 0, errLZ4Short
		}
		token := src[s]
		s++

		// Literals. Most are few, and copying 16 bytes costs less than
		// copying exactly as many as there are.
		lit := int(token >> 4)
		if lit < 15 && s+18 <= len(src) && d+32 <= len(dst) {
			copy(dst[d:d+16], src[s:s+16])
			s += lit
			d += lit
		} else {
			if lit == 15 {
				if lit, src, s, err = z.length(lit, src, s); err != nil {
					return 0, err
				}
			}
			for lit > 0 {
				if s == len(src) {
					if src, err = z.fill(nil, 0); err != nil {
						return 0, err
					}
					if s = 0; len(src) == 0 {
						return 0, errLZ4Short
					}
				}
				if d == len(dst) {
					if z.prefix {
						return d, nil
					}
					if d, err = z.flush(dst, d); err != nil {
						return 0, err
					}
				}
				n := min(lit, len(src)-s)
				n = copy(dst[d:], src[s:s+n])
				d += n
				s += n
				lit -= n
			}
			if len(src)-s < 2 {
				if src, err = z.fill(src, s); err != nil {
					return 0, err
				}
				s = 0
			}
			if len(src) == s { // the last sequence has no match
				if z.emit == nil {
					return d, nil
				}
				_, err = z.flush(dst, d)
				return z.total, err
			}
			if len(src)-s < 2 {
				return 0, errLZ4Short
			}
		}

		// The match.
		offset := int(binary.LittleEndian.Uint16(src[s:]))
		s += 2
		from := d - offset
		if from < 0 || offset == 0 {
			return 0, errLZ4Offset
		}
		n := int(token & 15)
		if n < 15 && d+32 <= len(dst) {
			n += 4
			if offset >= 16 {
				copy(dst[d:d+16], dst[from:from+16])
				copy(dst[d+16:d+18], dst[from+16:from+18])
				d += n
				continue
			}
			if offset >= 8 {
				copy(dst[d:d+8], dst[from:from+8])
				copy(dst[d+8:d+16], dst[from+8:from+16])
				copy(dst[d+16:d+18], dst[from+16:from+18])
				d += n
				continue
			}
		} else {
			if n == 15 {
				if n, src, s, err = z.length(n, src, s); err != nil {
					return 0, err
				}
			}
			n += 4
		}
		for n > len(dst)-d {
			if z.prefix {
				n = len(dst) - d
				break
			}
			n -= len(dst) - d
			repeat(dst, d, len(dst), offset)
			if d, err = z.flush(dst, len(dst)); err != nil {
				return 0, err
			}
		}
		if z.sparse && n >= 4*pageSize && offset <= 8 && allZero(dst[from:d]) {
			zeroSparse(dst, d, d+n)
		} else {
			repeat(dst, d, d+n, offset)
		}
		d += n
		if z.prefix && d == len(dst) {
			return d, nil
		}
	}
}

// repeat fills dst[d:end] with what lies offset bytes before. If the match
// overlaps what it makes, that is a pattern: each round doubles what there is
// of it.
func repeat(dst []byte, d, end, offset int) {
	from := d - offset
	for d < end {
		d += copy(dst[d:end], dst[from:d])
	}
}

// length adds the further bytes of a length to n.
func (z *lz4Decoder) length(n int, src []byte, s int) (int, []byte, int, error) {
	for {
		if s == len(src) {
			var err error
			if src, err = z.fill(nil, 0); err != nil {
				return 0, src, 0, err
			}
			if s = 0; len(src) == 0 {
				return 0, src, 0, errLZ4Short
			}
		}
		b := src[s]
		s++
		n += int(b)
		if b != 255 {
			return n, src, s, nil
		}
	}
}

// zeroSparse makes dst[from:to] zero, where all from a little past from on is
// zero already unless it lies in the first page: short copies write up to 32
// bytes more than they keep.
func zeroSparse(dst []byte, from, to int) {
	clear(dst[from:min(to, (from+32+pageSize-1)&^(pageSize-1))])
}

func allZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// lz4Frame is the directory of a legacy frame.
type lz4Frame struct {
	blocks []lz4Block
	size   uint64 // of the unpacked content
}

type lz4Block struct {
	off  int64 // of the packed data in the payload
	len  int
	size int // unpacked
}

// readLZ4Frame reads the directory of the legacy frame that p holds. After
// it, the kernel's build has appended size, that of the content.
func readLZ4Frame(p section, size uint64) (lz4Frame, error) {
	f := lz4Frame{size: size}
	var word [4]byte
	end := p.size - int64(len(word))
	want := int((size + lz4BlockSize - 1) / lz4BlockSize)
	for off := int64(4); off < end; {
		if end-off < 4 {
			return f, fmt.Errorf("LZ4 frame: %d stray bytes at offset %#x", end-off, off)
		}
		if err := p.readAt(word[:], off); err != nil {
			return f, err
		}
		off += 4
		n := int64(binary.LittleEndian.Uint32(word[:]))
		if n == 0 || n > lz4MaxPacked || n > end-off {
			return f, fmt.Errorf("LZ4 frame: block %d at offset %#x claims %d bytes, %d are left", len(f.blocks), off-4, n, end-off)
		}
		if len(f.blocks) == want {
			return f, fmt.Errorf("LZ4 frame: more blocks than its size of %d bytes needs", f.size)
		}
		size := min(f.size-uint64(len(f.blocks))*lz4BlockSize, lz4BlockSize)
		f.blocks = append(f.blocks, lz4Block{off: off, len: int(n), size: int(size)})
		off += n
	}
	if len(f.blocks) != want || want == 0 {
		return f, fmt.Errorf("LZ4 frame: %d blocks for a size of %d bytes", len(f.blocks), f.size)
	}
	return f, nil
}
