// Command blkbench measures a block device from inside a guest: it keeps a
// number of direct requests in flight with Linux native AIO, as fio does with
// its libaio engine, and prints one line for each figure:
//
//	blkbench randread-4k-qd32 21034.5 iops
//
// It has no dependencies, so that a guest's initramfs needs nothing else.
package main

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// load is one pattern of requests.
type load struct {
	name   string
	write  bool
	random bool
	size   int
	depth  int
}

var loads = []load{
	{"randread-4k-qd1", false, true, 4 << 10, 1},
	{"randread-4k-qd32", false, true, 4 << 10, 32},
	{"randwrite-4k-qd1", true, true, 4 << 10, 1},
	{"randwrite-4k-qd32", true, true, 4 << 10, 32},
	{"seqread-1m", false, false, 1 << 20, 1},
	{"seqwrite-1m", true, false, 1 << 20, 1},
	{"seqread-1m-qd4", false, false, 1 << 20, 4},
	{"seqwrite-1m-qd4", true, false, 1 << 20, 4},
}

func main() {
	dev := flag.String("dev", "/dev/vda", "block `device` or file; its content is lost when writes are measured")
	span := flag.Int64("span", 256<<20, "`bytes` of the device to use")
	for_ := flag.Duration("time", 2*time.Second, "how long each load runs")
	only := flag.String("only", "", "`names` of loads, with commas or slashes between them; all if empty")
	rounds := flag.Int("rounds", 1, "how often to run all loads")
	flag.Parse()
	if err := run(*dev, *span, *for_, *only, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "blkbench:", err)
		os.Exit(1)
	}
}

func run(dev string, span int64, d time.Duration, only string, rounds int) error {
	fd, err := unix.Open(dev, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dev, err)
	}
	defer unix.Close(fd)
	for range rounds {
		for _, l := range loads {
			if only != "" && !strings.Contains(","+strings.ReplaceAll(only, "/", ",")+",", ","+l.name+",") {
				continue
			}
			n, took, err := measure(fd, span, d, l)
			if err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			if l.random {
				fmt.Printf("blkbench %s %.1f iops\n", l.name, float64(n)/took.Seconds())
			} else {
				fmt.Printf("blkbench %s %.1f MiB/s\n", l.name, float64(n)*float64(l.size)/(1<<20)/took.Seconds())
			}
		}
	}
	return nil
}

// measure runs one load and returns the number of requests completed.
func measure(fd int, span int64, d time.Duration, l load) (n int, took time.Duration, err error) {
	buf, err := unix.Mmap(-1, 0, l.depth*l.size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Munmap(buf)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	q, err := newAIO(l.depth)
	if err != nil {
		return 0, 0, err
	}
	defer q.close()
	r := rand.New(rand.NewPCG(1, 2))
	blocks := span / int64(l.size)
	next := int64(0)
	prepare := func(slot int) {
		at := next % blocks
		if l.random {
			at = r.Int64N(blocks)
		}
		next++
		q.prepare(slot, fd, l.write, buf[slot*l.size:][:l.size], at*int64(l.size))
	}
	for i := range l.depth {
		prepare(i)
	}
	if err := q.submit(); err != nil {
		return 0, 0, err
	}
	start := time.Now()
	warm := start.Add(d / 8) // not counted
	counting := false
	for inFlight := l.depth; inFlight > 0; {
		slots, err := q.wait(l.size)
		if err != nil {
			return 0, 0, err
		}
		now := time.Now()
		if !counting && now.After(warm) {
			counting, start, n = true, now, 0
		} else if took == 0 {
			n += len(slots)
			if counting && now.Sub(start) >= d {
				took = now.Sub(start)
			}
		}
		inFlight -= len(slots)
		if took == 0 {
			for _, s := range slots {
				prepare(s)
			}
			inFlight += len(slots)
			if err := q.submit(); err != nil {
				return 0, 0, err
			}
		}
	}
	return n, took, nil
}
