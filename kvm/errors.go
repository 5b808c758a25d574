package kvm

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

var (
	// ErrUnsupported is wrapped by every error that says that this host's
	// KVM lacks a capability. It wraps [errors.ErrUnsupported].
	ErrUnsupported = fmt.Errorf("kvm: not supported by this host: %w", errors.ErrUnsupported)

	// ErrClosed is wrapped by the errors of a closed handle. It wraps
	// [fs.ErrClosed].
	ErrClosed = fmt.Errorf("kvm: handle is closed: %w", fs.ErrClosed)

	// ErrInvalid is wrapped by the errors of arguments that are wrong on
	// every host and were not handed to the kernel.
	ErrInvalid = errors.New("kvm: invalid argument")
)

// Error is a failed system call on a KVM handle.
type Error struct {
	Op     string     // the ioctl ("KVM_CREATE_VM") or call ("mmap")
	Detail string     // what it was applied to, or empty
	Errno  unix.Errno // as the kernel returned it
}

func (e *Error) Error() string {
	if e.Detail == "" {
		return fmt.Sprintf("kvm: %s: %v", e.Op, e.Errno)
	}
	return fmt.Sprintf("kvm: %s (%s): %v", e.Op, e.Detail, e.Errno)
}

// Unwrap returns the errno.
func (e *Error) Unwrap() error { return e.Errno }

// UnsupportedError says which capability the host lacks. It wraps
// [ErrUnsupported].
type UnsupportedError struct {
	Op  string // the ioctl that needed it
	Cap Cap    // the capability that is missing
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("kvm: %s needs %v, which this host's KVM lacks", e.Op, e.Cap)
}

// Unwrap returns ErrUnsupported.
func (e *UnsupportedError) Unwrap() error { return ErrUnsupported }

func invalid(op, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrInvalid, op, fmt.Sprintf(format, args...))
}
