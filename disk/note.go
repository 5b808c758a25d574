package disk

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// maxNote bounds a note, in bytes.
const maxNote = 256

// notePrefix and the key are the name of an extended attribute.
const notePrefix = "user.vmkit."

// Note implements [Noter] with an extended attribute of the image file.
func (f *File) Note(key string) ([]byte, error) {
	f.gate.RLock()
	defer f.gate.RUnlock()
	if f.closed {
		return nil, &Error{"read note", f.name, 0, 0, os.ErrClosed}
	}
	var p [maxNote]byte
	n := 0
	err := retry(func() (err error) {
		n, err = unix.Fgetxattr(f.fd, notePrefix+key, p[:])
		return err
	})
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM):
		return nil, nil // nor could SetNote have stored one
	case err != nil:
		return nil, &Error{"read note", f.name, 0, 0, err}
	}
	return p[:n], nil
}

// SetNote implements [Noter] with an extended attribute of the image file.
// Device nodes and some file systems have none.
func (f *File) SetNote(key string, p []byte) error {
	f.gate.RLock()
	defer f.gate.RUnlock()
	fail := func(err error) error { return &Error{"write note", f.name, 0, 0, err} }
	switch {
	case f.closed:
		return fail(os.ErrClosed)
	case f.info.ReadOnly:
		return fail(ErrReadOnly)
	case len(p) > maxNote:
		return fail(fmt.Errorf("%d bytes: want at most %d", len(p), maxNote))
	}
	err := retry(func() error { return unix.Fsetxattr(f.fd, notePrefix+key, p, 0) })
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	if err == nil {
		err = retry(func() error { return unix.Fsync(f.fd) }) // fdatasync leaves attributes out
	}
	if err != nil {
		return fail(err)
	}
	return nil
}
