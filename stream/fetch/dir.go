package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Dir is a source for a directory of files on this machine. It has no state:
// every request opens the file.
type Dir string

// Fetch reads len(p) bytes at off of the file name. check is called once.
func (d Dir) Fetch(ctx context.Context, name string, off int64, p []byte, check func([]byte) error) error {
	err := d.read(ctx, name, func(f *os.File) error {
		n, err := f.ReadAt(p, off)
		if n < len(p) && errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: %d of %d bytes", ErrShort, n, len(p))
		}
		if n < len(p) {
			return err
		}
		return verify(check, p)
	})
	if err != nil && ctx.Err() == nil {
		return &Error{URL: d.path(name), Off: off, Len: int64(len(p)), Err: err}
	}
	return err
}

// Load reads the whole file name, of at most limit bytes. check is called once.
func (d Dir) Load(ctx context.Context, name string, limit int64, check func([]byte) error) ([]byte, error) {
	var p []byte
	err := d.read(ctx, name, func(f *os.File) (err error) {
		p, err = io.ReadAll(io.LimitReader(f, limit+1))
		if err == nil && int64(len(p)) > limit {
			err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
		}
		if err != nil {
			return err
		}
		return verify(check, p)
	})
	if err != nil {
		if ctx.Err() == nil {
			err = &Error{URL: d.path(name), Len: -1, Err: err}
		}
		return nil, err
	}
	return p, nil
}

func (d Dir) path(name string) string { return filepath.Join(string(d), name) }

func (d Dir) read(ctx context.Context, name string, fn func(*os.File) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if !filepath.IsLocal(name) {
		return fmt.Errorf("%w: %q leaves the directory", ErrNotFound, name)
	}
	f, err := os.Open(d.path(name))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%w: %w", ErrNotFound, errors.Unwrap(err))
		}
		return err
	}
	defer f.Close()
	return fn(f)
}

func verify(check func([]byte) error, p []byte) error {
	if check == nil {
		return nil
	}
	if err := check(p); err != nil {
		return fmt.Errorf("%w: %w", ErrContent, err)
	}
	return nil
}
