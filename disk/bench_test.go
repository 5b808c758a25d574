package disk_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/vmkit-go/vmkit/disk"
)

// BenchmarkDevice is the path of a request from the ring through the device to
// a file in the page cache and back, without a guest.
func BenchmarkDevice(b *testing.B) {
	const size = 256 << 20
	f := newFile(b, size)
	if _, err := f.WriteAt(make([]byte, size), 0); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name          string
		typ           uint32
		depth, n, seg int
		random        bool
	}{
		{"randread-4k", typeIn, 1, 4096, 4096, true},
		{"randread-4k", typeIn, 32, 4096, 4096, true},
		{"randwrite-4k", typeOut, 1, 4096, 4096, true},
		{"randwrite-4k", typeOut, 32, 4096, 4096, true},
		{"seqread-1m", typeIn, 1, 1 << 20, 16384, false},
		{"seqwrite-1m", typeOut, 1, 1 << 20, 16384, false},
	} {
		for _, slowly := range []bool{false, true} {
			var be disk.Backend = f
			how := "inline"
			if slowly {
				be, how = struct {
					disk.Backend
					disk.Vectored
				}{f, f}, "workers"
			}
			b.Run(fmt.Sprintf("%s/depth=%d/%s", c.name, c.depth, how), func(b *testing.B) {
				g := newRig(b, be, disk.Config{}, &inbox{direct: true}).start()
				r := rand.New(rand.NewPCG(1, 1))
				l := newLoop(g, c.typ, c.depth, c.n, c.seg, func(i int) uint64 {
					if c.random {
						return uint64(r.IntN(size/4096)) * 8
					}
					return uint64(i) * uint64(c.n/512)
				})
				b.SetBytes(int64(c.depth * c.n))
				b.ReportAllocs()
				for b.Loop() {
					l.round()
				}
				b.ReportMetric(float64(c.depth)*float64(b.N)/b.Elapsed().Seconds(), "req/s")
			})
		}
	}
}
