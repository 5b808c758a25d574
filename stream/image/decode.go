package image

import (
	"crypto/sha256"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// decoder is used for all chunks. It starts no goroutines.
var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),
		zstd.WithDecoderLowmem(true),
		// The content size of a frame is checked against these before
		// anything is allocated.
		zstd.WithDecoderMaxMemory(MaxChunk),
		zstd.WithDecoderMaxWindow(MaxChunk),
		zstd.WithDecodeAllCapLimit(true),
	)
	if err != nil {
		panic("image: " + err.Error()) // the options are constants
	}
	return d
})

// Decode decompresses frame, which was published as chunk c, into dst, which
// must be c.Len bytes long. If it returns nil, dst holds the content with the
// hash c.Hash. Otherwise the error wraps ErrDamaged and dst holds nothing to be
// used. Memory is bounded by MaxChunk whatever frame holds. Decode may be called
// concurrently.
func Decode(dst []byte, c Chunk, frame []byte) error {
	damaged := func(format string, args ...any) error {
		return fmt.Errorf("%w: chunk %d (%d bytes at %d of the disk): %s", ErrDamaged, c.N, c.Len, c.Off, fmt.Sprintf(format, args...))
	}
	if len(dst) != c.Len || c.Len > MaxChunk {
		return fmt.Errorf("image: buffer of %d bytes for chunk %d of %d", len(dst), c.N, c.Len)
	}
	if len(frame) != c.PackLen {
		return damaged("%d compressed bytes, not %d", len(frame), c.PackLen)
	}
	var h zstd.Header
	if err := h.Decode(frame); err != nil {
		return damaged("%v", err)
	}
	if h.Skippable || !h.HasFCS || h.FrameContentSize != uint64(c.Len) || h.DictionaryID != 0 {
		return damaged("not a frame of %d bytes", c.Len)
	}
	out, err := decoder().DecodeAll(frame, dst[:0:len(dst)])
	if err != nil {
		return damaged("%v", err)
	}
	if len(out) != len(dst) || len(out) > 0 && &out[0] != &dst[0] {
		return damaged("%d bytes of content", len(out))
	}
	if Hash(sha256.Sum256(dst)) != c.Hash {
		return damaged("SHA-256 is not %v", c.Hash)
	}
	return nil
}
