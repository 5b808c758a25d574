package nbd

import (
	"math/bits"
	"sync"
)

// Buffers come in powers of two from 4 KiB to the longest payload.
const (
	leastClass = 12
	mostClass  = 25
)

var bufferPools [mostClass - leastClass + 1]sync.Pool

// buffer is memory for the payload of a request.
type buffer struct {
	mem   []byte
	class int
}

// getBuffer returns a buffer of at least n bytes, n being at most
// defaultMaxPayload.
func getBuffer(n int) *buffer {
	class := max(bits.Len(uint(max(n, 1)-1)), leastClass) - leastClass
	if b, ok := bufferPools[class].Get().(*buffer); ok {
		return b
	}
	return &buffer{mem: make([]byte, 1<<(class+leastClass)), class: class}
}

func (b *buffer) put() { bufferPools[b.class].Put(b) }
