package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// WriteVmlinux writes the ELF kernel that is packed in a bzImage by gzip, zstd
// or LZ4 to w: a file that [Linux] boots by either protocol, and that a
// debugger takes. Booting the bzImage itself does not need it. Errors wrap
// [ErrKernel] or are w's own; what was written before one is of no use.
func WriteVmlinux(w io.Writer, bzImage io.ReaderAt) error {
	file, err := open(bzImage)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrKernel, err)
	}
	prefix := make([]byte, min(elfPrefix, file.size))
	if err := file.readAt(prefix, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrKernel, err)
	}
	if !isBzImage(prefix) {
		return fmt.Errorf("%w: not a bzImage", ErrKernel)
	}
	b, err := parseBzImage(prefix, file)
	if err != nil {
		return err
	}
	p := b.payload
	if p.size < 8 {
		return fmt.Errorf("%w: bzImage: payload of %d bytes", ErrKernel, p.size)
	}
	// The size at the end of a payload is that of an ELF file below 4 GiB.
	size, err := unpackedSize(p, 1<<32)
	if err == nil {
		err = p.writeUnpacked(w, size)
	}
	var failed writeError
	if err == nil || errors.As(err, &failed) {
		return err
	}
	return fmt.Errorf("%w: payload at offset %#x: %w", ErrKernel, p.off, err)
}

// writeError tells an error of the writer from those of the kernel.
type writeError struct{ error }

func (e writeError) Unwrap() error { return e.error }

// zstdWindow is the longest window that Linux unpacks itself with.
const zstdWindow = 128 << 20

// sizedWriter passes on at most n bytes.
type sizedWriter struct {
	w io.Writer
	n uint64
}

func (s *sizedWriter) Write(p []byte) (int, error) {
	if uint64(len(p)) > s.n {
		return 0, errors.New("unpacks to more than the size that it ends with")
	}
	n, err := s.w.Write(p)
	s.n -= uint64(n)
	if err != nil {
		err = writeError{err}
	}
	return n, err
}

// writeUnpacked unpacks the payload p, which holds size bytes.
func (p section) writeUnpacked(w io.Writer, size uint64) error {
	var magic [4]byte
	if err := p.readAt(magic[:], 0); err != nil {
		return err
	}
	out := &sizedWriter{w, size}
	packed := io.NewSectionReader(p.r, p.off, p.size-4)
	var err error
	switch {
	case le.Uint32(magic[:]) == lz4Magic:
		err = p.writeLZ4(out, size)
	case bytes.HasPrefix(magic[:], []byte{0x1f, 0x8b}):
		// The size is at once the end of gzip's own trailer.
		packed = io.NewSectionReader(p.r, p.off, p.size)
		var r *gzip.Reader
		if r, err = gzip.NewReader(packed); err == nil {
			r.Multistream(false)
			_, err = io.Copy(out, r)
		}
	case le.Uint32(magic[:]) == 0xfd2fb528:
		var r *zstd.Decoder
		r, err = zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(zstdWindow))
		if err == nil {
			_, err = io.Copy(out, r)
			r.Close()
		}
	default:
		return errForeign
	}
	if err == nil && out.n > 0 {
		err = fmt.Errorf("unpacks to %d bytes: want %d", size-out.n, size)
	}
	return err
}

func (p section) writeLZ4(w io.Writer, size uint64) error {
	frame, err := readLZ4Frame(p, size)
	if err != nil {
		return err
	}
	window, buf := make([]byte, lz4Window), make([]byte, lz4InBuffer)
	for _, b := range frame.blocks {
		in, err := p.section(b.off, int64(b.len))
		if err != nil {
			return err
		}
		z := lz4Decoder{in: in, buf: buf, emit: func(content []byte) error {
			_, err := w.Write(content)
			return err
		}}
		n, err := z.decode(window)
		if err != nil {
			return fmt.Errorf("LZ4 block at offset %#x: %w", in.off, err)
		}
		if n != b.size {
			return fmt.Errorf("LZ4 block at offset %#x unpacks to %d bytes: want %d", in.off, n, b.size)
		}
	}
	return nil
}
