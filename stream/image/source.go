package image

import "context"

// Source gets the files of an image from where they are published. Package
// fetch has sources for directories and for web servers. Its methods may be
// called concurrently.
type Source interface {
	// Fetch reads len(p) bytes at offset off of the file name into p. If
	// check is not nil, it is called with p, perhaps more than once; an
	// error from it means that these are not the right bytes, so that the
	// source may try elsewhere. Fetch returns nil only if check accepted.
	Fetch(ctx context.Context, name string, off int64, p []byte, check func([]byte) error) error

	// Load reads the whole file name, which is an error if it is longer
	// than limit bytes. check is as for Fetch.
	Load(ctx context.Context, name string, limit int64, check func([]byte) error) ([]byte, error)
}
