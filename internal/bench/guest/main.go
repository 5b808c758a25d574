// Command guest is the guest's init process of the disk and memory benchmarks:
// it loads the modules that it finds, waits for the disk, measures it and writes
// the results to the serial port.
//
// What it measures comes as its arguments, which is what the kernel command line
// has after "--": the seconds for each measurement, or 0 to read the disk's first block
// only.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/bench/turns"
)

const (
	diskPath = "/dev/vda"
	patience = time.Minute
)

func main() {
	if err := setUp(); err != nil {
		fail(err)
	}
	seconds := 0.0
	if len(os.Args) > 1 {
		var err error
		if seconds, err = strconv.ParseFloat(os.Args[len(os.Args)-1], 64); err != nil {
			fail(err)
		}
	}
	if err := measure(time.Duration(seconds * float64(time.Second))); err != nil {
		fail(err)
	}
	fmt.Println("result done 1")
	for {
		unix.Pause()
	}
}

func fail(err error) {
	fmt.Printf("%v\nresult failed 1\n", err)
	for {
		unix.Pause()
	}
}

// setUp mounts what is needed, directs output to the serial port and loads the
// modules that /modules lists.
func setUp() error {
	for _, m := range []string{"proc", "sysfs", "devtmpfs"} {
		dir := map[string]string{"proc": "/proc", "sysfs": "/sys", "devtmpfs": "/dev"}[m]
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m, dir, m, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	tty, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	os.Stdout = tty
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open(filepath.Join("/", name))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// measure takes each measurement in turn, over and over.
func measure(d time.Duration) error {
	fd, size, err := openDisk()
	if err != nil {
		return err
	}
	if size < 64<<20 {
		return fmt.Errorf("%s has only %d bytes", diskPath, size)
	}
	if d == 0 {
		buf, free, err := buffers(1, 4096)
		if err != nil {
			return err
		}
		defer free()
		_, err = unix.Pread(fd, buf[0], 0)
		return err
	}
	fmt.Println("result ready 1")
	for i := 0; ; i++ {
		time.Sleep(turns.Rest)
		if err := measureNext(i, fd, size, d); err != nil {
			return err
		}
	}
}

// measureNext takes the i-th measurement.
func measureNext(i, fd int, size int64, d time.Duration) error {
	workloads := []workload{
		{name: "rand-1", block: 4096, depth: 1, random: true},
		{name: "rand-32", block: 4096, depth: 32, random: true},
		{name: "read-1m", block: 1 << 20, depth: 1},
		{name: "write-1m", block: 1 << 20, depth: 1, write: true},
	}
	w := workloads[i%len(workloads)]
	w.fd, w.size = fd, size
	rate, err := w.run(d)
	if err != nil {
		return fmt.Errorf("%s: %w", w.name, err)
	}
	if !w.random {
		rate *= float64(w.block) / (1 << 20)
	}
	fmt.Printf("result %s %.2f\n", w.name, rate)
	return nil
}

// openDisk waits for the disk.
func openDisk() (fd int, size int64, err error) {
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		fd, err = unix.Open(diskPath, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENXIO) || time.Now().After(end) {
			return 0, 0, fmt.Errorf("%s: %w", diskPath, err)
		}
	}
	size, err = unix.Seek(fd, 0, unix.SEEK_END)
	return fd, size, err
}

// buffers are n buffers for O_DIRECT, in huge pages if they are that large.
func buffers(n, size int) (bufs [][]byte, free func(), err error) {
	const huge = 2 << 20
	all, err := unix.Mmap(-1, 0, n*size+huge, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, err
	}
	_ = unix.Madvise(all, unix.MADV_HUGEPAGE)
	b := all[alignment(all, huge):]
	for i := range b {
		if i%4096 == 0 {
			b[i] = byte(i >> 12) // touch it
		}
	}
	bufs = make([][]byte, n)
	for i := range bufs {
		bufs[i] = b[i*size : (i+1)*size : (i+1)*size]
	}
	return bufs, func() { _ = unix.Munmap(all) }, nil
}
