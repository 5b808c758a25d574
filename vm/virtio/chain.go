package virtio

// Chain is one request: a descriptor chain, taken from a queue with
// [Queue.Pop] and answered with [Queue.Push]. Its buffers are guest memory:
// the guest may change them at any time, so a device copies a header once and
// then trusts only its copy.
//
// A Chain is reused: Pop refills the slices of the one that it is given. The
// zero value is ready for use.
type Chain struct {
	// Head identifies the chain: the index of its first descriptor.
	Head uint16
	// Readable and Writable are the chain's buffers in guest memory, for
	// the device to read and to write, in order. They stay valid until
	// Push. A descriptor that spans two memory regions gives two buffers;
	// one of length zero gives none.
	Readable, Writable [][]byte
	// ReadLen and WriteLen are the sums of their lengths in bytes. Their
	// own sum fits 32 bits as well.
	ReadLen, WriteLen uint32

	pos    int32      // index in the available ring, for Unpop; negative after Retake
	writes []guestRun // guest addresses of Writable, for the dirty log
}

// guestRun is a range of guest-physical memory.
type guestRun struct {
	addr uint64
	len  uint32
}

func (c *Chain) reset() {
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	c.ReadLen, c.WriteLen = 0, 0
	c.writes = c.writes[:0]
}

// CopyIn copies from the readable buffers, starting off bytes into them, to
// dst. It returns the number of bytes copied, less than len(dst) only where
// the buffers end.
func (c *Chain) CopyIn(dst []byte, off int) int {
	n := 0
	for _, b := range c.Readable {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		n += copy(dst[n:], b[off:])
		if n == len(dst) {
			break
		}
		off = 0
	}
	return n
}

// CopyOut copies src to the writable buffers, starting off bytes into them.
// It returns the number of bytes copied, less than len(src) only where the
// buffers end.
func (c *Chain) CopyOut(src []byte, off int) int {
	n := 0
	for _, b := range c.Writable {
		if off >= len(b) {
			off -= len(b)
			continue
		}
		n += copy(b[off:], src[n:])
		if n == len(src) {
			break
		}
		off = 0
	}
	return n
}
