package nbd

import (
	"net"
)

// smallPart is the size up to which a part of a message is copied rather than
// written by itself.
const smallPart = 4096

// messageWriter writes messages that consist of many parts to a connection, in
// few calls. It is not safe for concurrent use.
type messageWriter struct {
	conn net.Conn
	// vectored means that the kernel gathers the parts.
	vectored bool
	parts    [][]byte
	left     net.Buffers // what WriteTo consumes
	scratch  []byte
}

func newMessageWriter(c net.Conn) *messageWriter {
	w := &messageWriter{conn: c}
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		w.vectored = true
	}
	return w
}

// add adds a part, which must stay as it is until flush returns.
func (w *messageWriter) add(p []byte) {
	if len(p) > 0 {
		w.parts = append(w.parts, p)
	}
}

// flush writes the parts added since the last flush.
func (w *messageWriter) flush() (err error) {
	defer func() {
		clear(w.parts)
		w.parts = w.parts[:0]
	}()
	switch {
	case len(w.parts) == 0:
		return nil
	case len(w.parts) == 1:
		_, err = w.conn.Write(w.parts[0])
		return err
	case w.vectored:
		w.left = w.parts
		_, err = w.left.WriteTo(w.conn)
		w.left = nil
		return err
	}
	// A TLS connection makes a record of every write.
	w.scratch = w.scratch[:0]
	for _, p := range w.parts {
		if len(p) <= smallPart {
			w.scratch = append(w.scratch, p...)
			if len(w.scratch) < 16*smallPart {
				continue
			}
			p = nil
		}
		if len(w.scratch) > 0 {
			if _, err := w.conn.Write(w.scratch); err != nil {
				return err
			}
			w.scratch = w.scratch[:0]
		}
		if len(p) > 0 {
			if _, err := w.conn.Write(p); err != nil {
				return err
			}
		}
	}
	if len(w.scratch) > 0 {
		_, err = w.conn.Write(w.scratch)
	}
	return err
}
