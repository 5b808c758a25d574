package qcow2

import (
	"errors"
	"fmt"

	"github.com/vmkit-go/vmkit/disk"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrCorrupt is wrapped by the error for an image whose tables
	// contradict the format or each other.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrBacking is wrapped by the error for an image with a backing file
	// that the caller neither gave nor allowed.
	ErrBacking = errors.New("backing file not given")
)

// FormatError says what is wrong in an image, and where. It wraps ErrCorrupt.
type FormatError struct {
	// Off is the offset in bytes in the container.
	Off int64
	// What is wrong there.
	What string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("%v: %s at offset %d of the file", ErrCorrupt, e.What, e.Off)
}

// Unwrap returns ErrCorrupt.
func (e *FormatError) Unwrap() error { return ErrCorrupt }

func corrupt(off int64, format string, args ...any) error {
	return &FormatError{off, fmt.Sprintf(format, args...)}
}

func openError(file disk.Backend, err error) error {
	return &disk.Error{Op: "open", Name: file.Info().Name, Err: err}
}
