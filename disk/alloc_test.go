package disk_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/vm/virtio"
	"github.com/vmkit-go/vmkit/vm/virtio/virtiotest"
)

// loop is a driver for measurements: it sends the same chains again and again,
// and allocates nothing.
type loop struct {
	g     *rig
	chain [][]virtiotest.Buf
}

// newLoop makes depth requests of n bytes in buffers of at most seg bytes.
func newLoop(g *rig, typ uint32, depth, n, seg int, sector func(i int) uint64) *loop {
	l := &loop{g: g}
	for i := range depth {
		at := g.header(i, typ, sector(i))
		c := []virtiotest.Buf{{Addr: at, Len: 16}}
		for off := 0; off < n; off += seg {
			c = append(c, virtiotest.Buf{Addr: dataBase + uint64(i*n+off), Len: uint32(min(seg, n-off)), Write: typ == typeIn})
		}
		l.chain = append(l.chain, append(c, virtiotest.Buf{Addr: at + 16, Len: 1, Write: true}))
	}
	return l
}

// round sends them all and waits.
func (l *loop) round() {
	for _, c := range l.chain {
		if _, err := l.g.rings[0].Add(c...); err != nil {
			l.g.t.Fatal(err)
		}
	}
	l.g.dev.Notify(0)
	for range l.chain {
		l.g.wait(0)
	}
}

func (l *loop) check() {
	l.g.t.Helper()
	for i := range l.chain {
		if st := l.g.status(i); st != statusOK {
			l.g.t.Fatalf("request %d: status %d", i, st)
		}
	}
}

func TestRequestAllocatesNothing(t *testing.T) {
	backends(t, func(t *testing.T, b disk.Backend, in *inbox) {
		for _, features := range []uint64{0, virtio.FeatureEventIdx | virtio.FeatureIndirectDesc} {
			for _, c := range []struct {
				name          string
				typ           uint32
				depth, n, seg int
			}{
				{"read", typeIn, 1, 4096, 4096},
				{"read 32", typeIn, 32, 4096, 4096},
				{"read 1M", typeIn, 1, 1 << 20, 8192},
				{"write", typeOut, 1, 4096, 4096},
				{"write 32", typeOut, 32, 4096, 4096},
				{"write 1M", typeOut, 1, 1 << 20, 8192},
				{"get id", typeGetID, 1, 20, 20},
				{"bad", 99, 1, 0, 1},
			} {
				t.Run(c.name, func(t *testing.T) {
					g := newRig(t, b, disk.Config{}, in)
					g.features = g.dev.Features() | features
					l := newLoop(g.start(), c.typ, c.depth, c.n, c.seg, func(i int) uint64 { return uint64(i) * 8 })
					// Requests, workers and the page cache warm up; on a busy
					// host, workers are first needed at any time.
					allocs := 1.0
					for try := 0; try < 10 && allocs != 0; try++ {
						for range 10 {
							l.round()
						}
						allocs = testing.AllocsPerRun(40, l.round)
					}
					require.Zero(t, allocs)
					if c.name != "bad" {
						l.check()
					}
				})
			}
		}
	})
}
