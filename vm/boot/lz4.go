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

// lz4Decoder decodes LZ4 blocks.
type lz4Decoder struct {
	// sparse leaves out whole pages of long runs of zeros, for a target
	// that reads as zero already: they take no host memory then.
	sparse bool
	// prefix stops without an error when the target is full.
	prefix bool
}

// decode unpacks block src into dst and returns how many bytes it made.
// Whatever src is, it writes only to dst and reads at most len(src) bytes of
// input for each call.
func (o lz4Decoder) decode(dst, src []byte) (int, error) {
	var d, s int
	for {
		if s >= len(src) {
			return d, errLZ4Short
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
				var err error
				if lit, s, err = lz4Length(lit, src, s); err != nil {
					return d, err
				}
			}
			if lit > len(src)-s {
				return d, errLZ4Short
			}
			if lit > len(dst)-d {
				n := copy(dst[d:], src[s:])
				if o.prefix {
					return d + n, nil
				}
				return d, errLZ4Long
			}
			copy(dst[d:d+lit], src[s:s+lit])
			s += lit
			d += lit
			if s == len(src) {
				return d, nil // the last sequence has no match
			}
			if len(src)-s < 2 {
				return d, errLZ4Short
			}
		}

		// The match.
		offset := int(binary.LittleEndian.Uint16(src[s:]))
		s += 2
		from := d - offset
		if from < 0 || offset == 0 {
			return d, errLZ4Offset
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
				var err error
				if n, s, err = lz4Length(n, src, s); err != nil {
					return d, err
				}
			}
			n += 4
			if n > len(dst)-d {
				if !o.prefix {
					return d, errLZ4Long
				}
				n = len(dst) - d
			}
			if o.sparse && n >= 4*pageSize && offset <= 8 && allZero(dst[from:d]) {
				zeroSparse(dst, d, d+n)
				d += n
				continue
			}
		}
		if offset >= n {
			copy(dst[d:d+n], dst[from:from+n])
			d += n
		} else {
			// The match overlaps what it makes: a pattern that repeats.
			// Each round doubles what there is of it.
			for end := d + n; d < end; {
				d += copy(dst[d:end], dst[from:d])
			}
		}
		if o.prefix && d == len(dst) {
			return d, nil
		}
	}
}

// lz4Length adds the further bytes of a length to n.
func lz4Length(n int, src []byte, s int) (int, int, error) {
	for s < len(src) {
		b := src[s]
		s++
		n += int(b)
		if b != 255 {
			return n, s, nil
		}
	}
	return 0, s, errLZ4Short
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

// readLZ4Frame reads the directory of the legacy frame that p holds, which
// ends with the unpacked size (as the kernel's build appends it).
func readLZ4Frame(p section) (lz4Frame, error) {
	var f lz4Frame
	var word [4]byte
	end := p.size - 4
	if end < 8 {
		return f, fmt.Errorf("LZ4 frame of %d bytes is too short", p.size)
	}
	if err := p.readAt(word[:], end); err != nil {
		return f, err
	}
	f.size = uint64(binary.LittleEndian.Uint32(word[:]))
	want := int((f.size + lz4BlockSize - 1) / lz4BlockSize)
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
