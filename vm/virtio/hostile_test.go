package virtio_test

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

func TestHostileEcho(t *testing.T) {
	virtiotest.Hostile(t, virtiotest.HostileConfig{
		New: func() (virtio.Device, error) { return &echo{t: t}, nil },
	})
}

func TestHostileRNG(t *testing.T) {
	virtiotest.Hostile(t, virtiotest.HostileConfig{
		New: func() (virtio.Device, error) { return virtio.NewRNG(virtio.RNGConfig{}) },
	})
}

func TestHostileConsole(t *testing.T) {
	var in chan []byte
	virtiotest.Hostile(t, virtiotest.HostileConfig{
		New: func() (virtio.Device, error) {
			in = make(chan []byte, 16)
			return virtio.NewConsole(virtio.ConsoleConfig{
				In: &chanReader{c: in, end: make(chan struct{})}, Out: io.Discard, Cols: 80, Rows: 25,
				Ports: []virtio.ConsolePort{{Name: "one", Out: io.Discard, Opened: func(bool) {}}, {Name: "two"}},
			})
		},
		Request: func(r *rand.Rand, m *virtiotest.Machine, q int) []virtiotest.Buf {
			if q != 3 {
				return []virtiotest.Buf{{Addr: virtiotest.Scratch, Len: 4096, Write: q%2 == 0}}
			}
			var b [8]byte
			binary.LittleEndian.PutUint32(b[:], uint32(r.IntN(4)))
			b[4] = byte(r.IntN(9))
			b[6] = byte(r.IntN(2))
			at := virtiotest.Scratch + uint64(r.IntN(64)*8)
			if err := m.Mem.Write(at, b[:]); err != nil {
				t.Error(err)
			}
			return []virtiotest.Buf{{Addr: at, Len: 8}}
		},
		Outside: func(r *rand.Rand) {
			select {
			case in <- make([]byte, r.IntN(10000)):
			default:
			}
		},
	})
}

// chanReader reads what comes down a channel, until a deadline is set.
type chanReader struct {
	c    chan []byte
	end  chan struct{}
	rest []byte
}

func (c *chanReader) SetReadDeadline(time.Time) error {
	close(c.end)
	return nil
}

func (c *chanReader) Read(p []byte) (int, error) {
	for len(c.rest) == 0 {
		select {
		case c.rest = <-c.c:
		case <-c.end:
			return 0, os.ErrDeadlineExceeded
		}
	}
	n := copy(p, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}
