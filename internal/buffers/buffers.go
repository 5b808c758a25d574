// Package buffers measures and cuts lists of buffers, such as those of a
// vectored request.
package buffers

// Len is the number of bytes in bufs.
func Len(bufs [][]byte) (n int64) {
	for _, p := range bufs {
		n += int64(len(p))
	}
	return n
}

// AppendPart appends to dst what bufs hold in n bytes from off on. It copies no
// bytes, and keeps no empty buffer.
func AppendPart(dst, bufs [][]byte, off, n int64) [][]byte {
	for _, p := range bufs {
		if n <= 0 {
			break
		}
		if off >= int64(len(p)) {
			off -= int64(len(p))
			continue
		}
		p = p[off:]
		off = 0
		p = p[:min(int64(len(p)), n)]
		dst, n = append(dst, p), n-int64(len(p))
	}
	return dst
}
