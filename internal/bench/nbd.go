package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vmkit-go/vmkit/disk/nbd"
	"github.com/vmkit-go/vmkit/internal/debian"
)

const nbdSize = 256 << 20

// nbdServers measures vmkit's NBD server, as examples/nbd runs it, and QEMU's,
// both in processes of their own over the same raw file in the page cache. The
// load is vmkit's client on both, and libnbd's nbdcopy.
func nbdServers(ctx context.Context, o options) (err error) {
	qemuNBD, err := debian.LookProgram("qemu-nbd", "qemu-utils")
	if err != nil {
		return err
	}
	nbdcopy, err := debian.LookProgram("nbdcopy", "libnbd-bin")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-nbd")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	program, file := filepath.Join(dir, "nbd"), filepath.Join(dir, "image")
	if msg, err := exec.CommandContext(ctx, "go", "build", "-o", program, "github.com/vmkit-go/vmkit/examples/nbd").CombinedOutput(); err != nil {
		return fmt.Errorf("build examples/nbd: %w: %s", err, msg)
	}
	if err := writeRandom(file, nbdSize); err != nil {
		return err
	}
	servers := []string{"vmkit", "qemu"}
	sockets := map[string]string{}
	for _, name := range servers {
		socket := filepath.Join(dir, name)
		cmd := exec.CommandContext(ctx, program, "serve", "-ro", "-socket", socket, file)
		if name == "qemu" {
			cmd = exec.CommandContext(ctx, qemuNBD, "-r", "-t", "-e", "16", "-f", "raw", "-k", socket, file)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		defer func() {
			// It has nothing to lose.
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
		if err := waitSocket(ctx, socket); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		sockets[name] = socket
	}
	loads := []struct {
		name, unit string
		run        func(ctx context.Context, socket string, seconds float64) (float64, error)
	}{
		{"read-4k-depth1", "requests/s", nbdLoad(4<<10, 1, true)},
		{"read-4k-depth16", "requests/s", nbdLoad(4<<10, 16, true)},
		{"read-1m-depth1", "requests/s", nbdLoad(1<<20, 1, false)},
		{"read-1m-depth4", "requests/s", nbdLoad(1<<20, 4, false)},
		{"nbdcopy", "MB/s", func(ctx context.Context, socket string, _ float64) (float64, error) {
			start := time.Now()
			msg, err := exec.CommandContext(ctx, nbdcopy, "nbd+unix:///?socket="+socket, "null:").CombinedOutput()
			if err != nil {
				return 0, fmt.Errorf("nbdcopy: %w: %s", err, msg)
			}
			return nbdSize / 1e6 / time.Since(start).Seconds(), nil
		}},
	}
	t := newTable("nbd", "requests or MB per second")
	for range o.roundsOr(7) {
		for _, l := range loads {
			for _, name := range servers {
				v, err := l.run(ctx, sockets[name], o.seconds)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", name, l.name, err)
				}
				t.add(l.name, name, v)
			}
		}
	}
	t.print()
	for _, l := range loads {
		figure("nbd-"+l.name+"-vmkit", t.median(l.name, "vmkit"), l.unit)
		ratio("nbd-"+l.name+"-ratio", t.median(l.name, "vmkit"), t.median(l.name, "qemu"))
	}
	return nil
}

// nbdLoad reads from all of the disk with depth requests in flight.
func nbdLoad(size int64, depth int, random bool) func(context.Context, string, float64) (float64, error) {
	return func(ctx context.Context, socket string, seconds float64) (float64, error) {
		c, err := nbd.Dial(ctx, nbd.ClientConfig{Network: "unix", Address: socket})
		if err != nil {
			return 0, err
		}
		var done, next atomic.Int64
		errs := make([]error, depth)
		var wg sync.WaitGroup
		start := time.Now()
		for i := range depth {
			wg.Go(func() {
				p := make([]byte, size)
				r := rand.New(rand.NewPCG(1, uint64(i)))
				for ctx.Err() == nil && time.Since(start).Seconds() < seconds {
					off := next.Add(1) - 1
					if random {
						off = r.Int64()
					}
					if _, errs[i] = c.ReadAt(p, off%(nbdSize/size)*size); errs[i] != nil {
						return
					}
					done.Add(1)
				}
			})
		}
		wg.Wait()
		took := time.Since(start).Seconds()
		return float64(done.Load()) / took, errors.Join(append(errs, c.Close(), ctx.Err())...)
	}
}

// writeRandom makes a file without holes.
func writeRandom(path string, size int) error {
	p := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(p)
	return os.WriteFile(path, p, 0o600)
}

// waitSocket waits until somebody listens.
func waitSocket(ctx context.Context, path string) error {
	for range 1000 {
		c, err := net.Dial("unix", path)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	return errors.New("the server does not listen")
}
