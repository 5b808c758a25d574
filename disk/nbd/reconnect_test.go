package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

// soakRounds is how often a server is killed: few, unless VMKIT_SOAK says more.
func soakRounds(t testing.TB, few int) int {
	t.Helper()
	s := os.Getenv("VMKIT_SOAK")
	switch {
	case s == "" && testing.Short():
		return 2
	case s == "":
		return few
	}
	n, err := strconv.Atoi(s)
	require.NoError(t, err, "VMKIT_SOAK")
	return n
}

// load has workers change stripes of a disk that are their own, and check what
// they read.
type load struct {
	b      disk.Backend
	model  []byte
	stripe int
	stop   chan struct{}
	wg     sync.WaitGroup
	errs   chan error
	done   atomic.Int64
}

const loadWorkers = 4

func startLoad(b disk.Backend, model []byte, seed uint64) *load {
	l := &load{b: b, model: model, stripe: len(model) / loadWorkers, stop: make(chan struct{}), errs: make(chan error, loadWorkers)}
	for w := range loadWorkers {
		l.wg.Go(func() {
			if err := l.work(w, rand.New(rand.NewPCG(seed, uint64(w)))); err != nil {
				l.errs <- fmt.Errorf("worker %d: %w", w, err)
			}
		})
	}
	return l
}

func (l *load) work(w int, r *rand.Rand) error {
	base := w * l.stripe
	for {
		select {
		case <-l.stop:
			return nil
		default:
		}
		off := r.IntN(l.stripe)
		n := 1 + r.IntN(min(l.stripe-off, 1<<(9+r.IntN(9))))
		own := l.model[base+off:][:n]
		at := int64(base + off)
		var err error
		switch r.IntN(12) {
		case 0:
			err = l.b.Flush()
		case 1:
			clear(own)
			err = l.b.WriteZeroes(at, int64(n), r.IntN(2) == 0)
		case 2, 3, 4:
			got := make([]byte, n)
			if _, err = l.b.ReadAt(got, at); err == nil && !bytes.Equal(got, own) {
				err = fmt.Errorf("wrong data in %d bytes at %d", n, at)
			}
		default:
			disktest.Fill(r, own)
			_, err = l.b.WriteAt(own, at)
		}
		if err != nil {
			return err
		}
		l.done.Add(1)
	}
}

// end ends the load, which must not have met an error.
func (l *load) end(t testing.TB) {
	t.Helper()
	close(l.stop)
	l.wg.Wait()
	close(l.errs)
	for err := range l.errs {
		t.Error(err)
	}
}

func requireContent(t testing.TB, want []byte, b disk.Backend) {
	t.Helper()
	got := make([]byte, len(want))
	_, err := b.ReadAt(got, 0)
	require.NoError(t, err)
	requireSame(t, want, got)
}

func requireSame(t testing.TB, want, got []byte) {
	t.Helper()
	require.Equal(t, len(want), len(got))
	for i := range want {
		if want[i] != got[i] {
			t.Fatalf("content differs first at %d", i)
		}
	}
}

// relisten listens again where a server was.
func relisten(t testing.TB, cfg ClientConfig) net.Listener {
	t.Helper()
	if cfg.Network == "unix" {
		// The old listener may have removed it.
		_ = os.Remove(cfg.Address)
	}
	l, err := net.Listen(cfg.Network, cfg.Address)
	require.NoError(t, err)
	return l
}

// The server's host loses its power again and again, and with it what was not
// flushed. Clients notice nothing, and what they flushed is on the medium.
func TestPowerCuts(t *testing.T) {
	const size = 1 << 20
	for _, v := range []struct {
		name  string
		tweak func(*ClientConfig)
	}{
		{"one connection", func(*ClientConfig) {}},
		{"connections", func(c *ClientConfig) { c.Connections = 3 }},
		{"small log", func(c *ClientConfig) { c.Unflushed = 200 << 10 }},
	} {
		t.Run(v.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 8))
			medium := disktest.NewVolatile("volatile", size)
			l := listen(t, "unix")
			cfg := ClientConfig{Network: "unix", Address: l.Addr().String()}
			v.tweak(&cfg)
			start := func(l net.Listener) (*Server, chan error) {
				s := &Server{Exports: []Export{{Backend: medium}}, Log: testLog(t)}
				ended := make(chan error, 1)
				go func() { ended <- s.Serve(l) }()
				return s, ended
			}
			s, ended := start(l)
			c := dial(t, cfg)
			model := make([]byte, size)
			work := startLoad(c, model, 9)
			for range soakRounds(t, 8) {
				before := work.done.Load()
				time.Sleep(time.Duration(r.IntN(30)) * time.Millisecond)
				for work.done.Load() < before+20 && len(work.errs) == 0 {
					time.Sleep(time.Millisecond)
				}
				require.NoError(t, s.Close())
				require.ErrorIs(t, <-ended, ErrServerClosed)
				medium = medium.Reboot(r)
				s, ended = start(relisten(t, cfg))
			}
			work.end(t)
			requireContent(t, model, c)
			require.NoError(t, c.Flush())
			require.NoError(t, s.Close())
			<-ended
			requireContent(t, model, medium.Reboot(r))
		})
	}
}

const serverEnv = "VMKIT_NBD_TEST_SERVER"

// serverMain is the test binary's other life: a server of a file.
func serverMain(address string) error {
	f, err := disk.Open(os.Args[1], disk.FileConfig{})
	if err != nil {
		return err
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		return err
	}
	return (&Server{Exports: []Export{{Backend: f}}}).Serve(l)
}

// Servers are killed and started again while clients write.
func TestServerKilled(t *testing.T) {
	const size = 4 << 20
	for _, v := range []struct {
		name  string
		start func(t *testing.T, cfg ClientConfig, path string) *peer
		qcow2 bool
	}{
		{name: "vmkit", start: func(t *testing.T, cfg ClientConfig, path string) *peer {
			t.Setenv(serverEnv, cfg.Address)
			self, err := os.Executable()
			require.NoError(t, err)
			return startPeer(t, cfg, self, path)
		}},
		{name: "qemu-nbd", start: func(t *testing.T, cfg ClientConfig, path string) *peer {
			return startPeer(t, cfg, program(t, "qemu-nbd", "qemu-utils"), "-t", "-e", "8", "-k", cfg.Address, "-f", "raw", path)
		}},
		// Its tables are in the process's memory until a flush.
		{name: "qemu-nbd qcow2", qcow2: true, start: func(t *testing.T, cfg ClientConfig, path string) *peer {
			return startPeer(t, cfg, program(t, "qemu-nbd", "qemu-utils"), "-t", "-e", "8", "-k", cfg.Address, "-f", "qcow2", "--discard=unmap", path)
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(1, 2))
			cfg := unixConfig(t)
			cfg.Connections = 2
			path := emptyFile(t, size)
			if v.qcow2 {
				run(t, program(t, "qemu-img", "qemu-utils"), "create", "-q", "-f", "qcow2", path, fmt.Sprint(size))
			}
			p := v.start(t, cfg, path)
			c := dial(t, cfg)
			model := make([]byte, size)
			work := startLoad(c, model, 10)
			for range soakRounds(t, 5) {
				before := work.done.Load()
				time.Sleep(time.Duration(r.IntN(40)) * time.Millisecond)
				for work.done.Load() < before+20 && len(work.errs) == 0 {
					time.Sleep(time.Millisecond)
				}
				p.kill()
				_ = os.Remove(cfg.Address)
				p = v.start(t, cfg, path)
			}
			work.end(t)
			requireContent(t, model, c)
			require.NoError(t, c.Flush())
			require.NoError(t, c.Close())
			p.kill()
			if v.qcow2 {
				raw := filepath.Join(t.TempDir(), "raw")
				qemuImg := program(t, "qemu-img", "qemu-utils")
				out, err := exec.Command(qemuImg, "check", "-q", path).CombinedOutput()
				if ee, ok := errors.AsType[*exec.ExitError](err); err != nil && !(ok && ee.ExitCode() == 3) {
					t.Fatalf("qemu-img check: %v: %s", err, out) // 3: only leaks
				}
				run(t, qemuImg, "convert", "-f", "qcow2", "-O", "raw", path, raw)
				path = raw
			}
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			requireSame(t, model, got)
		})
	}
}

// Requests wait for a server that is away, for a while.
func TestServerAway(t *testing.T) {
	m := memory(t, 1<<20)
	l := listen(t, "unix")
	s := &Server{Exports: []Export{{Backend: m}}}
	go s.Serve(l)
	c := dial(t, ClientConfig{Network: "unix", Address: l.Addr().String(), Timeout: 100 * time.Millisecond})
	insist(t, func() error { _, err := c.WriteAt([]byte("kept"), 0); return err })
	require.NoError(t, s.Close())
	p := make([]byte, 4)
	_, err := c.ReadAt(p, 0)
	require.ErrorIs(t, err, disk.ErrUnavailable)
	require.ErrorContains(t, err, "for 100ms")
	require.ErrorIs(t, c.Flush(), disk.ErrUnavailable)

	// The disk comes back smaller, and is not taken for the same.
	other := memory(t, 1<<19)
	cfg := ClientConfig{Network: "unix", Address: l.Addr().String()}
	wrong := &Server{Exports: []Export{{Backend: other}}}
	go wrong.Serve(relisten(t, cfg))
	for !errors.Is(err, disk.ErrUnavailable) || !bytes.Contains([]byte(err.Error()), []byte("now has 524288 bytes; it had 1048576")) {
		_, err = c.ReadAt(p, 0)
		require.Error(t, err)
	}
	require.NoError(t, wrong.Close())

	// It comes back as it was, but for what was not flushed.
	serveOn(t, relisten(t, cfg), &Server{Exports: []Export{{Backend: memory(t, 1<<20)}}})
	insist(t, func() error { _, err := c.ReadAt(p, 0); return err })
	require.Equal(t, "kept", string(p))
	insist(t, c.Flush) // none has failed that lost anything
}

// A server that is there but does not answer is away too.
func TestServerStalls(t *testing.T) {
	cfg := fakeServer(t, func(nc net.Conn) {
		if fakeHandshake(nc, fakeSize, true) {
			for ok := true; ok; {
				_, _, _, _, ok = readRequest(nc)
			}
		}
	})
	cfg.Timeout = 100 * time.Millisecond
	c := dial(t, cfg)
	_, err := c.ReadAt(make([]byte, 512), 0)
	require.ErrorIs(t, err, disk.ErrUnavailable)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	// Nor one that does not read.
	cfg = fakeServer(t, func(nc net.Conn) {
		if fakeHandshake(nc, fakeSize, true) {
			time.Sleep(400 * time.Millisecond)
		}
	})
	cfg.Timeout = 100 * time.Millisecond
	c = dial(t, cfg)
	_, err = c.WriteAt(make([]byte, 1<<20), 0)
	require.ErrorIs(t, err, disk.ErrUnavailable)
}

// Close ends requests that wait, wherever they do.
func TestCloseWhileWaiting(t *testing.T) {
	cfg := fakeServer(t, func(nc net.Conn) {
		if fakeHandshake(nc, fakeSize, true) {
			for ok := true; ok; {
				_, _, _, _, ok = readRequest(nc)
			}
		}
	})
	for _, timeout := range []time.Duration{time.Hour, -1} {
		cfg.Timeout = timeout
		c := dial(t, cfg)
		errs := make(chan error, 200)
		for range cap(errs) { // more than are in flight at once
			go func() {
				_, err := c.ReadAt(make([]byte, 512), 0)
				errs <- err
			}()
		}
		time.Sleep(10 * time.Millisecond)
		require.NoError(t, c.Close())
		for range cap(errs) {
			require.ErrorIs(t, <-errs, os.ErrClosed)
		}
	}

	// The server is gone for good.
	m := memory(t, 1<<20)
	l := listen(t, "unix")
	s := &Server{Exports: []Export{{Backend: m}}}
	go s.Serve(l)
	c := dial(t, ClientConfig{Network: "unix", Address: l.Addr().String(), Timeout: -1})
	require.NoError(t, s.Close())
	errs := make(chan error, 1)
	go func() { errs <- c.Flush() }()
	time.Sleep(10 * time.Millisecond)
	require.NoError(t, c.Close())
	require.ErrorIs(t, <-errs, os.ErrClosed)
}

// Without copies, a lost connection may mean lost writes, and Flush says so.
func TestNoLog(t *testing.T) {
	m := memory(t, 1<<20)
	l := listen(t, "unix")
	cfg := ClientConfig{Network: "unix", Address: l.Addr().String(), Unflushed: -1}
	s := &Server{Exports: []Export{{Backend: m}}}
	go s.Serve(l)
	c := dial(t, cfg)
	_, err := c.WriteAt([]byte{1}, 0)
	require.NoError(t, err)
	require.NoError(t, c.Flush())
	restart := func() {
		require.NoError(t, s.Close())
		s = &Server{Exports: []Export{{Backend: m}}}
		go s.Serve(relisten(t, cfg))
	}
	restart()
	_, err = c.ReadAt(make([]byte, 1), 0)
	require.NoError(t, err)
	require.NoError(t, c.Flush(), "all was flushed")
	_, err = c.WriteAt([]byte{2}, 0)
	require.NoError(t, err)
	restart()
	_, err = c.ReadAt(make([]byte, 1), 0)
	require.NoError(t, err)
	require.ErrorContains(t, c.Flush(), "lost with unflushed changes")
	require.Error(t, c.Flush())
	require.NoError(t, s.Close())
}

// counted counts flushes.
type counted struct {
	disk.Backend
	flushes atomic.Int64
}

func (c *counted) Flush() error {
	c.flushes.Add(1)
	return c.Backend.Flush()
}

// The copies' memory is bounded by flushes of the client's own.
func TestLogBound(t *testing.T) {
	b := &counted{Backend: memory(t, 8<<20)}
	cfg := serve(t, "unix", &Server{Exports: []Export{{Backend: b}}})
	cfg.Unflushed = 1 << 20
	c := dial(t, cfg)
	for i := range int64(2000) {
		_, err := c.WriteAt(make([]byte, 4096), i*4096)
		require.NoError(t, err)
		c.log.mu.Lock()
		require.LessOrEqual(t, c.log.used, cfg.Unflushed)
		c.log.mu.Unlock()
	}
	require.GreaterOrEqual(t, b.flushes.Load(), int64(8))
	// One that is larger than the bound goes alone.
	_, err := c.WriteAt(make([]byte, 4<<20), 0)
	require.NoError(t, err)
	require.NoError(t, c.Flush())
	require.Zero(t, c.log.used)
	require.Empty(t, c.log.entries)
}

// slow lets requests wait until it is opened.
type slow struct {
	disk.Backend
	gate    chan struct{}
	waiting chan struct{}
}

func (s *slow) WriteAt(p []byte, off int64) (int, error) {
	s.waiting <- struct{}{}
	<-s.gate
	return s.Backend.WriteAt(p, off)
}

// Shutdown answers what it has read, and flushes.
func TestShutdown(t *testing.T) {
	inner := &counted{Backend: memory(t, 1<<20)}
	b := &slow{Backend: inner, gate: make(chan struct{}), waiting: make(chan struct{}, 1)}
	l := listen(t, "unix")
	s := &Server{Exports: []Export{{Backend: b}}, Log: testLog(t)}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	c := dial(t, ClientConfig{Network: "unix", Address: l.Addr().String()})
	wrote := make(chan error, 1)
	go func() {
		_, err := c.WriteAt([]byte("last words"), 0)
		wrote <- err
	}()
	<-b.waiting
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(context.Background()) }()
	require.ErrorIs(t, <-ended, ErrServerClosed)
	select {
	case err := <-down:
		t.Fatalf("Shutdown did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	close(b.gate)
	require.NoError(t, <-down)
	require.NoError(t, <-wrote)
	require.EqualValues(t, 1, inner.flushes.Load())

	// With a context that ends, it does not wait.
	b.gate = make(chan struct{})
	s = &Server{Exports: []Export{{Backend: b}}}
	cfg := ClientConfig{Network: "unix", Address: l.Addr().String()}
	go s.Serve(relisten(t, cfg))
	c = dial(t, cfg)
	go c.WriteAt([]byte("never"), 0)
	<-b.waiting
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, s.Shutdown(ctx), context.DeadlineExceeded)
	require.NoError(t, c.Close())
	close(b.gate)
	require.ErrorIs(t, s.Serve(listen(t, "unix")), ErrServerClosed)
}
