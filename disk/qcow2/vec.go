package qcow2

import (
	"sync"

	"github.com/vmkit-go/vmkit/internal/buffers"
)

// vec is a list of buffers that a request is cut into. Lists are reused, so
// that requests allocate nothing.
type vec struct{ b [][]byte }

var vecs = sync.Pool{New: func() any { return new(vec) }}

func getVec() *vec { return vecs.Get().(*vec) }

func (v *vec) put() {
	clear(v.b)
	v.b = v.b[:0]
	vecs.Put(v)
}

// add appends n bytes of bufs from skip on.
func (v *vec) add(bufs [][]byte, skip, n int64) {
	v.b = buffers.AppendPart(v.b, bufs, skip, n)
}

// clearFrom zeroes bufs from byte skip on.
func clearFrom(bufs [][]byte, skip int64) {
	for _, p := range bufs {
		k := min(skip, int64(len(p)))
		clear(p[k:])
		skip -= k
	}
}

// scatter copies p into bufs.
func scatter(bufs [][]byte, p []byte) {
	for _, b := range bufs {
		p = p[copy(b, p):]
	}
}

// isZero reports whether p is all zeroes.
func isZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroes))
		if string(p[:n]) != string(zeroes[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// zeroes is only ever read.
var zeroes [64 << 10]byte

// addZeroes appends n zero bytes.
func (v *vec) addZeroes(n int64) {
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		v.b = append(v.b, zeroes[:k])
		n -= k
	}
}
