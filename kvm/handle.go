package kvm

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// handle owns a file descriptor and whatever is mapped from it. Users are
// counted, so that the descriptor is closed by the last of Close and the
// calls in progress: a call can then never reach a reused descriptor number.
type handle struct {
	name   string // "vCPU 3", for errors
	fd     int
	parent *handle      // the VM of a vCPU, the System of a VM
	state  atomic.Int64 // calls in progress, plus closedBit
	free   func() error // releases mappings, before the descriptor is closed
}

const closedBit = 1 << 62

// acquire reports whether the handle is open, and if so keeps it open until
// release.
func (h *handle) acquire() bool {
	for {
		n := h.state.Load()
		if n&closedBit != 0 {
			return false
		}
		if h.state.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (h *handle) release() {
	if h.state.Add(-1) == closedBit {
		// Close was called meanwhile and has returned; nobody is left
		// to hear of an error.
		_ = h.destroy()
	}
}

func (h *handle) closedError(op string) error {
	return &closedError{op: op, name: h.name}
}

type closedError struct{ op, name string }

func (e *closedError) Error() string { return "kvm: " + e.op + ": " + e.name + " is closed" }
func (e *closedError) Unwrap() error { return ErrClosed }

func (h *handle) close() error {
	for {
		n := h.state.Load()
		if n&closedBit != 0 {
			return h.closedError("Close")
		}
		if h.state.CompareAndSwap(n, n|closedBit) {
			if n == 0 {
				return h.destroy()
			}
			return nil
		}
	}
}

func (h *handle) destroy() error {
	var err error
	if h.free != nil {
		err = h.free()
	}
	if e := unix.Close(h.fd); e != nil && err == nil {
		err = &Error{Op: "close", Detail: h.name, Errno: e.(unix.Errno)}
	}
	return err
}

// An op is one ioctl: its name, its number and the capability that it
// depends on.
type op struct {
	name string
	req  uintptr
	cap  Cap // noCap when every KVM that is not ancient has it
}

// ioctl issues o with a plain argument, again after EINTR: outside KVM_RUN
// the kernel answers that only when nothing has been done yet.
func (h *handle) ioctl(o *op, arg uintptr) (int, error) {
	if !h.acquire() {
		return 0, h.closedError(o.name)
	}
	defer h.release()
	for {
		n, errno := ioctl(h.fd, o.req, arg)
		if errno == 0 {
			return n, nil
		}
		if errno != unix.EINTR {
			return 0, h.failed(o, errno)
		}
	}
}

// failed makes the error of o. The operation has been tried; the host is asked
// only now whether it lacks the capability, and says so if that is the
// likely cause.
func (h *handle) failed(o *op, errno unix.Errno) error {
	switch errno {
	case unix.ENOTTY, unix.EINVAL, unix.ENXIO, unix.ENOSYS, unix.EOPNOTSUPP, unix.ENODEV:
		if o.cap != noCap && h.lacks(o.cap) {
			return &UnsupportedError{Op: o.name, Cap: o.cap}
		}
	}
	return &Error{Op: o.name, Detail: h.name, Errno: errno}
}

// lacks asks the handle whether the host lacks c: the VM of a vCPU, since vCPUs
// do not answer.
func (h *handle) lacks(c Cap) bool {
	for ; h != nil; h = h.parent {
		if !h.acquire() {
			continue
		}
		n, errno := ioctl(h.fd, opCheckExtension.req, uintptr(c))
		h.release()
		if errno == 0 {
			return n == 0
		}
	}
	return false
}
