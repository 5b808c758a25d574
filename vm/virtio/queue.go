package virtio

// Queue is one split virtqueue (virtio 1.2, section 2.7).
type Queue struct{}

// Chain is one request: a descriptor chain.
type Chain struct {
	// Head identifies the chain.
	Head uint16
	// Readable and Writable are the chain's buffers in guest memory, for
	// the device to read and to write, in order.
	Readable, Writable [][]byte
	// ReadLen and WriteLen are the sums of their lengths.
	ReadLen, WriteLen uint32
}
