package image

import (
	"encoding/hex"
	"errors"
	"fmt"
)

// Sizes that are part of the format, in bytes.
const (
	// BlockSize is the unit of chunks: each starts at a multiple of it, and
	// each but one that ends at the end of the disk is a multiple long.
	BlockSize = 4 << 10
	// MinChunk is the length below which a chunk is only cut by zeroes or
	// the end of the disk.
	MinChunk = 16 << 10
	// AvgChunk is about the mean length of chunks of random content.
	AvgChunk = 64 << 10
	// MaxChunk is the greatest length of a chunk.
	MaxChunk = 256 << 10
	// MaxFrame is the greatest length of a compressed chunk. Content that
	// does not compress grows by a few bytes.
	MaxFrame = MaxChunk + 1<<10
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrDamaged is wrapped by the error for bytes that are not those that
	// the image was published with. Another mirror may have the right ones.
	ErrDamaged = errors.New("damaged")
	// ErrInvalid is wrapped by the error for content that carries the right
	// hash, or needs none, and breaks the rules of the format. Another
	// mirror has the same.
	ErrInvalid = errors.New("invalid image")
	// ErrVersion is wrapped by the error for an image in a format that this
	// package does not know.
	ErrVersion = errors.New("unknown image format")
	// ErrSignature is wrapped by the error for a manifest that no accepted
	// key has signed.
	ErrSignature = errors.New("no accepted signature")
)

// Error is an error about the content of one file of an image.
type Error struct {
	// Name is the file, as in the manifest.
	Name string
	// Off is the offset, in bytes, of the part that is wrong.
	Off int64
	// Err is the cause.
	Err error
}

func (e *Error) Error() string {
	return fmt.Sprintf("image file %s: offset %d: %v", e.Name, e.Off, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hash is the SHA-256 of the content of a chunk, which is its name.
type Hash [32]byte

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText writes the hash in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText reads 64 lower-case hexadecimal digits.
func (h *Hash) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("hash of %d characters: want %d", len(text), hex.EncodedLen(len(h)))
	}
	for _, c := range text {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("character %q in a hash", c)
		}
	}
	_, err := hex.Decode(h[:], text)
	return err
}

// ParseHash reads what [Hash.String] returns.
func ParseHash(s string) (Hash, error) {
	var h Hash
	err := h.UnmarshalText([]byte(s))
	return h, err
}

// Chunk is an entry of the index: a run of the disk and where its content is.
// Several chunks may have the same content.
type Chunk struct {
	// N is the chunk's number. Chunks are numbered from 0 in the order of
	// the disk.
	N int
	// Off and Len are the place on the disk, in bytes. Off is a multiple of
	// BlockSize, and Len at most MaxChunk.
	Off int64
	Len int
	// Hash is the SHA-256 of the Len bytes.
	Hash Hash
	// Pack is the number of the pack that has the compressed chunk, of
	// PackLen bytes, at most MaxFrame, at PackOff.
	Pack    int
	PackOff int64
	PackLen int
}

// End is the offset on the disk of the first byte after the chunk.
func (c Chunk) End() int64 { return c.Off + int64(c.Len) }

// File is a file of an image.
type File struct {
	// Name is relative to the place of the manifest.
	Name string `json:"name"`
	// Size is in bytes.
	Size int64 `json:"size"`
}
