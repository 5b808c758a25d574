package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

// program finds one of Debian's.
func program(t testing.TB, name, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed (Debian package %s)", name, pkg)
	}
	return path
}

// peer is another server, running.
type peer struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

// startPeer starts a server that listens at cfg, and waits until it does.
func startPeer(t testing.TB, cfg ClientConfig, path string, args ...string) *peer {
	t.Helper()
	p := &peer{cmd: exec.Command(path, args...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { p.kill() })
	for range 6000 {
		nc, err := net.Dial(cfg.Network, cfg.Address)
		if err == nil {
			nc.Close()
			return p
		}
		time.Sleep(10 * time.Millisecond)
	}
	p.kill()
	t.Fatalf("%s does not listen at %s: %s", path, cfg.Address, &p.out)
	return nil
}

func (p *peer) kill() {
	if p.cmd.ProcessState == nil {
		// It may have ended by itself.
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

func unixConfig(t testing.TB) ClientConfig {
	return ClientConfig{Network: "unix", Address: socketPath(t)}
}

// tcpConfig picks a port that was free a moment ago.
func tcpConfig(t testing.TB) (cfg ClientConfig, port string) {
	l := listen(t, "tcp")
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return ClientConfig{Network: "tcp", Address: l.Addr().String()}, port
}

func run(t testing.TB, path string, args ...string) string {
	t.Helper()
	var stderr strings.Builder
	cmd := exec.Command(path, args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s %v: %s%s", path, args, out, &stderr)
	return string(out)
}

func emptyFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	return path
}

// The client is a good disk over other servers.
func TestClientOverPeers(t *testing.T) {
	qemuNBD, qemuImg := program(t, "qemu-nbd", "qemu-utils"), program(t, "qemu-img", "qemu-utils")
	nbdkit := program(t, "nbdkit", "nbdkit")
	raw := func(more ...string) func(t *testing.T, size int64) ClientConfig {
		return func(t *testing.T, size int64) ClientConfig {
			cfg := unixConfig(t)
			startPeer(t, cfg, qemuNBD, append([]string{"-t", "-e", "8", "-k", cfg.Address, "-f", "raw", emptyFile(t, size)}, more...)...)
			return cfg
		}
	}
	kit := func(args ...string) func(t *testing.T, size int64) ClientConfig {
		return func(t *testing.T, size int64) ClientConfig {
			cfg := unixConfig(t)
			all := append([]string{"-f", "-U", cfg.Address}, args...)
			for i := range all {
				all[i] = strings.ReplaceAll(all[i], "SIZE", fmt.Sprint(size))
			}
			startPeer(t, cfg, nbdkit, all...)
			return cfg
		}
	}
	for _, v := range []struct {
		name  string
		start func(t *testing.T, size int64) ClientConfig
		short bool // run with -short too
		plain bool // no structured replies
	}{
		{name: "qemu-nbd", start: raw("--discard=unmap"), short: true},
		{name: "qemu-nbd writethrough", start: raw("--cache=writethrough")},
		{name: "qemu-nbd qcow2", start: func(t *testing.T, size int64) ClientConfig {
			cfg := unixConfig(t)
			path := filepath.Join(t.TempDir(), "image")
			run(t, qemuImg, "create", "-q", "-f", "qcow2", path, fmt.Sprint(size))
			startPeer(t, cfg, qemuNBD, "-t", "-e", "8", "-k", cfg.Address, "-f", "qcow2", "--discard=unmap", path)
			return cfg
		}},
		{name: "nbdkit", start: kit("memory", "SIZE"), short: true},
		{name: "nbdkit connections", start: func(t *testing.T, size int64) ClientConfig {
			cfg := kit("memory", "SIZE")(t, size)
			cfg.Connections = 4
			return cfg
		}},
		{name: "nbdkit simple replies", start: kit("--no-sr", "memory", "SIZE"), plain: true},
		{name: "nbdkit blocks", start: kit("--filter=blocksize-policy", "memory", "SIZE", "blocksize-minimum=512",
			"blocksize-preferred=4096", "blocksize-maximum=64K", "blocksize-error-policy=error"), short: true},
		{name: "nbdkit without zero", start: kit("--filter=nozero", "memory", "SIZE", "zeromode=none")},
		{name: "nbdkit delay", start: kit("--filter=delay", "memory", "SIZE", "rdelay=1ms", "wdelay=1ms")},
	} {
		t.Run(v.name, func(t *testing.T) {
			if testing.Short() && !v.short {
				t.Skip("-short")
			}
			t.Parallel()
			disktest.Run(t, disktest.Maker{New: func(t *testing.T, size int64) disk.Backend {
				c := dial(t, v.start(t, size))
				require.Equal(t, !v.plain, c.Export().Structured)
				require.Equal(t, !v.plain, c.Export().BlockStatus)
				return c
			}})
		})
	}
}

// QEMU's server takes a second to make its TLS parameters, so that it is
// started only once.
func TestClientOverTLSPeer(t *testing.T) {
	const size = 4 << 20
	qemuNBD := program(t, "qemu-nbd", "qemu-utils")
	certs := testCertificates(t)
	cfg, port := tcpConfig(t)
	startPeer(t, cfg, qemuNBD, "-t", "-e", "8", "-b", "127.0.0.1", "-p", port, "-f", "raw",
		"--object", "tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir="+certs.dir, "--tls-creds", "tls",
		emptyFile(t, size))
	_, err := Dial(context.Background(), cfg)
	require.ErrorContains(t, err, "TLS is required")
	cfg.TLS = certs.client
	c := dial(t, cfg)
	model := make([]byte, size)
	work := startLoad(c, model, 11)
	for work.done.Load() < 1000 && len(work.errs) == 0 {
		time.Sleep(time.Millisecond)
	}
	work.end(t)
	requireContent(t, model, c)
}

// A server whose blocks are larger than the requests.
func TestLargeBlocks(t *testing.T) {
	nbdkit := program(t, "nbdkit", "nbdkit")
	const size = 8 << 20
	cfg := unixConfig(t)
	startPeer(t, cfg, nbdkit, "-f", "-U", cfg.Address, "--filter=blocksize-policy", "memory", fmt.Sprint(size),
		"blocksize-minimum=64K", "blocksize-preferred=64K", "blocksize-maximum=128K", "blocksize-error-policy=error")
	c := dial(t, cfg)
	require.Equal(t, 64<<10, c.Info().BlockSize)
	r := rand.New(rand.NewPCG(1, 2))
	model := make([]byte, size)
	for range 300 {
		off := r.Int64N(size)
		n := min(1+r.Int64N(300<<10), size-off)
		switch r.IntN(4) {
		case 0:
			require.NoError(t, c.WriteZeroes(off, n, true))
			clear(model[off:][:n])
		case 1:
			got := make([]byte, n)
			_, err := c.ReadAt(got, off)
			require.NoError(t, err)
			require.True(t, bytes.Equal(got, model[off:][:n]))
		default:
			disktest.Fill(r, model[off:][:n])
			_, err := c.WriteAt(model[off:][:n], off)
			require.NoError(t, err)
		}
	}
	for off := int64(0); off < size; {
		e, err := c.Extent(off)
		require.NoError(t, err)
		off += e.Len
	}

	// Not a whole number of blocks.
	cfg = unixConfig(t)
	startPeer(t, cfg, nbdkit, "-f", "-U", cfg.Address, "--filter=blocksize-policy", "memory", "10000",
		"blocksize-minimum=4096", "blocksize-error-policy=error")
	_, err := Dial(context.Background(), cfg)
	require.ErrorIs(t, err, ErrProtocol)
	require.ErrorContains(t, err, "no multiple of the minimum block size 4096")
}

func TestPeerErrors(t *testing.T) {
	nbdkit := program(t, "nbdkit", "nbdkit")
	t.Run("errors", func(t *testing.T) {
		cfg := unixConfig(t)
		startPeer(t, cfg, nbdkit, "-f", "-U", cfg.Address, "--filter=error", "memory", "1M",
			"error-pread=EIO", "error-pread-rate=100%", "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
		c := dial(t, cfg)
		_, err := c.ReadAt(make([]byte, 512), 0)
		se, ok := errors.AsType[*ServerError](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, EIO, se.Errno)
		_, err = c.WriteAt(make([]byte, 512), 1024)
		require.ErrorIs(t, err, disk.ErrNoSpace)
		de, ok := errors.AsType[*disk.Error](err)
		require.True(t, ok)
		require.EqualValues(t, 1024, de.Off)
		require.NoError(t, c.Flush())
	})
	t.Run("flush", func(t *testing.T) {
		cfg := unixConfig(t)
		flag := filepath.Join(t.TempDir(), "fail")
		require.NoError(t, os.WriteFile(flag, nil, 0o600))
		// nbdkit has no filter that makes flushes alone fail.
		startPeer(t, cfg, nbdkit, "-f", "-U", cfg.Address, "eval",
			"get_size=echo 1M", "pread=dd if=/dev/zero count=$3 iflag=count_bytes status=none",
			"can_write=exit 0", "pwrite=cat >/dev/null", "can_flush=exit 0",
			"flush=if [ -e "+flag+" ]; then echo EIO no luck >&2; exit 1; fi")
		c := dial(t, cfg)
		_, err := c.WriteAt([]byte{1}, 0)
		require.NoError(t, err)
		err = c.Flush()
		_, ok := errors.AsType[*ServerError](err)
		require.True(t, ok, "%v", err)
		require.NoError(t, os.Remove(flag))
		require.Error(t, c.Flush(), "a failed flush must fail for good")
		_, err = c.WriteAt([]byte{1}, 0)
		require.NoError(t, err)
	})
	t.Run("no flush", func(t *testing.T) {
		cfg := unixConfig(t)
		startPeer(t, cfg, nbdkit, "-f", "-U", cfg.Address, "eval", "get_size=echo 1M",
			"pread=dd if=/dev/zero count=$3 iflag=count_bytes status=none", "can_write=exit 0", "pwrite=cat >/dev/null")
		_, err := Dial(context.Background(), cfg)
		require.ErrorContains(t, err, "cannot flush")
		cfg.NoFlush = true
		require.NoError(t, dial(t, cfg).Flush())
		cfg.NoFlush, cfg.ReadOnly = false, true
		require.NoError(t, dial(t, cfg).Flush())
	})
	t.Run("old style", func(t *testing.T) {
		cfg := unixConfig(t)
		startPeer(t, cfg, nbdkit, "-f", "-o", "-U", cfg.Address, "memory", "1M")
		_, err := Dial(context.Background(), cfg)
		require.ErrorIs(t, err, ErrProtocol)
		require.ErrorContains(t, err, "old style")
	})
	t.Run("no TLS", func(t *testing.T) {
		cfg := unixConfig(t)
		startPeer(t, cfg, nbdkit, "-f", "-U", cfg.Address, "memory", "1M")
		cfg.TLS = testCertificates(t).client
		_, err := Dial(context.Background(), cfg)
		oe, ok := errors.AsType[*OptionError](err)
		require.True(t, ok, "%v", err)
		require.Equal(t, "STARTTLS", oe.Option)
	})
}

// patterned is a file with data and holes, and what it holds.
func patterned(t *testing.T, size int) (*disk.File, []byte) {
	t.Helper()
	f, err := disk.Create(filepath.Join(t.TempDir(), "image"), int64(size), disk.FileConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	r := rand.New(rand.NewPCG(3, 4))
	want := make([]byte, size)
	for range 20 {
		off := r.IntN(size/65536) * 65536
		n := min(size-off, 4096+r.IntN(300<<10))
		disktest.Fill(r, want[off:][:n])
		_, err := f.WriteAt(want[off:][:n], int64(off))
		require.NoError(t, err)
	}
	return f, want
}

// QEMU's and libnbd's programs are content with the server.
func TestServerForPeers(t *testing.T) {
	qemuImg, nbdinfo, nbdcopy := program(t, "qemu-img", "qemu-utils"), program(t, "nbdinfo", "libnbd-bin"), program(t, "nbdcopy", "libnbd-bin")
	const size = 16 << 20
	f, want := patterned(t, size)
	target, err := disk.Create(filepath.Join(t.TempDir(), "target"), size, disk.FileConfig{})
	require.NoError(t, err)
	t.Cleanup(func() { target.Close() })
	certs := testCertificates(t)
	plain := &Server{Log: testLog(t), Exports: []Export{
		{Name: "source", Description: "holes and data", Backend: f, ReadOnly: true},
		{Name: "target", Backend: target, FastZero: true},
	}}
	secure := &Server{Log: testLog(t), TLS: certs.server, Exports: plain.Exports}
	pcfg, scfg := serve(t, "unix", plain), serve(t, "tcp", secure)
	uri := func(export string) string { c := pcfg; c.Export = export; return c.uri() }
	_, port, err := net.SplitHostPort(scfg.Address)
	require.NoError(t, err)
	secureURI := func(export string) string {
		return "nbds://localhost:" + port + "/" + export + "?tls-certificates=" + certs.dir
	}
	content := func(t *testing.T, b disk.Backend) {
		t.Helper()
		got := make([]byte, size)
		_, err := b.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "content differs")
	}
	blank := func(t *testing.T) {
		t.Helper()
		_, err := target.WriteAt(bytes.Repeat([]byte{0xaa}, size), 0)
		require.NoError(t, err)
	}

	t.Run("nbdinfo", func(t *testing.T) {
		var info struct {
			Protocol   string `json:"protocol"`
			TLS        bool   `json:"TLS"`
			Structured bool   `json:"structured"`
			Exports    []struct {
				Name        string   `json:"export-name"`
				Description string   `json:"description"`
				Size        int64    `json:"export-size"`
				Contexts    []string `json:"contexts"`
				ReadOnly    bool     `json:"is_read_only"`
				CanDF       bool     `json:"can_df"`
				CanFUA      bool     `json:"can_fua"`
				CanFlush    bool     `json:"can_flush"`
				CanTrim     bool     `json:"can_trim"`
				CanZero     bool     `json:"can_zero"`
				CanFast     bool     `json:"can_fast_zero"`
				CanCache    bool     `json:"can_cache"`
				MultiConn   bool     `json:"can_multi_conn"`
				Min         int      `json:"block_size_minimum"`
				Preferred   int      `json:"block_size_preferred"`
				Max         int      `json:"block_size_maximum"`
			} `json:"exports"`
		}
		for _, u := range []string{uri(""), secureURI("")} {
			require.NoError(t, json.Unmarshal([]byte(run(t, nbdinfo, "--list", "--json", u)), &info))
			require.Equal(t, "newstyle-fixed", info.Protocol)
			require.Equal(t, strings.HasPrefix(u, "nbds"), info.TLS)
			require.True(t, info.Structured)
			require.Len(t, info.Exports, 2)
			s, d := info.Exports[0], info.Exports[1]
			require.Equal(t, "source", s.Name)
			require.Equal(t, "holes and data", s.Description)
			require.EqualValues(t, size, s.Size)
			require.Equal(t, []string{contextAllocation}, s.Contexts)
			require.True(t, s.ReadOnly && s.CanDF && s.CanCache && s.MultiConn && !s.CanTrim && !s.CanZero)
			require.True(t, !d.ReadOnly && d.CanFUA && d.CanFlush && d.CanTrim && d.CanZero && d.CanFast && d.MultiConn)
			require.Equal(t, []int{1, 4096, defaultMaxPayload}, []int{d.Min, d.Preferred, d.Max})
		}
	})
	t.Run("map", func(t *testing.T) {
		var nbd []struct {
			Offset, Length int64
			Type           uint32
		}
		require.NoError(t, json.Unmarshal([]byte(run(t, nbdinfo, "--map", "--json", uri("source"))), &nbd))
		var img []struct {
			Start, Length int64
			Zero, Data    bool
		}
		require.NoError(t, json.Unmarshal([]byte(run(t, qemuImg, "map", "-f", "raw", "--output=json", uri("source"))), &img))
		require.Equal(t, len(nbd), len(img))
		require.Greater(t, len(nbd), 5)
		off := int64(0)
		for i, n := range nbd {
			e, err := f.Extent(off)
			require.NoError(t, err)
			require.Equal(t, []int64{e.Off, e.Len}, []int64{n.Offset, n.Length})
			require.Equal(t, e.Zero, n.Type&stateZero != 0)
			require.Equal(t, e.Allocated, n.Type&stateHole == 0)
			require.Equal(t, []int64{e.Off, e.Len}, []int64{img[i].Start, img[i].Length})
			require.Equal(t, e.Zero, img[i].Zero)
			off += e.Len
		}
		require.EqualValues(t, size, off)
	})
	t.Run("info", func(t *testing.T) {
		var info struct {
			Size int64 `json:"virtual-size"`
		}
		require.NoError(t, json.Unmarshal([]byte(run(t, qemuImg, "info", "-f", "raw", "--output=json", uri("source"))), &info))
		require.EqualValues(t, size, info.Size)
	})
	for name, u := range map[string]func(string) string{"unix": uri, "tls": secureURI} {
		t.Run("nbdcopy "+name, func(t *testing.T) {
			blank(t)
			run(t, nbdcopy, "--flush", u("source"), u("target"))
			content(t, target)
			blank(t)
			path := filepath.Join(t.TempDir(), "copy")
			run(t, nbdcopy, u("source"), path)
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
			run(t, nbdcopy, "--synchronous", path, u("target"))
			content(t, target)
		})
	}
	t.Run("convert", func(t *testing.T) {
		blank(t)
		qcow := filepath.Join(t.TempDir(), "copy.qcow2")
		run(t, qemuImg, "convert", "-f", "raw", "-O", "qcow2", uri("source"), qcow)
		run(t, qemuImg, "convert", "-n", "-W", "-f", "qcow2", "-O", "raw", qcow, uri("target"))
		content(t, target)
		run(t, qemuImg, "compare", "-f", "raw", "-F", "raw", uri("source"), uri("target"))
		run(t, qemuImg, "compare", "-f", "raw", "-F", "qcow2", uri("source"), qcow)
	})
	t.Run("tls", func(t *testing.T) {
		blank(t)
		run(t, qemuImg, "convert", "-n", "--image-opts", "--target-image-opts",
			"--object", "tls-creds-x509,id=tls,endpoint=client,dir="+certs.dir,
			"driver=nbd,server.type=inet,server.host=localhost,server.port="+port+",export=source,tls-creds=tls",
			"driver=nbd,server.type=inet,server.host=localhost,server.port="+port+",export=target,tls-creds=tls")
		content(t, target)
		out, err := exec.Command(nbdinfo, "nbd://localhost:"+port+"/source").CombinedOutput()
		require.Error(t, err, "the server lets a client without TLS in: %s", out)
	})
	t.Run("read-only", func(t *testing.T) {
		out, err := exec.Command(nbdcopy, os.DevNull, uri("source")).CombinedOutput()
		require.Error(t, err, "%s", out)
		content(t, f)
	})
}

// qemu-io checks every kind of request, with and without FUA.
func TestServerForQEMUIO(t *testing.T) {
	qemuIO := program(t, "qemu-io", "qemu-utils")
	m := memory(t, 4<<20)
	cfg := serve(t, "unix", &Server{Log: testLog(t), Exports: []Export{{Backend: m, FastZero: true}}})
	out := run(t, qemuIO, "-f", "raw", "-c", "write -P 1 0 1M", "-c", "write -f -P 2 512k 4k", "-c", "write -z 1000 3000",
		"-c", "write -zu 64k 64k", "-c", "write -zn 128k 64k", "-c", "discard 256k 64k", "-c", "flush",
		"-c", "aio_write -P 5 2M 64k", "-c", "aio_read -v 0 512", "-c", "aio_flush",
		"-c", "read -P 1 0 1000", "-c", "read -P 0 1000 3000", "-c", "read -P 2 512k 4k", "-c", "read -P 0 64k 64k",
		"-c", "read -P 0 128k 64k", "-c", "read -P 5 2M 64k", "-c", "read -P 1 4001 61535", cfg.uri())
	require.NotContains(t, out, "verification failed")
	require.NotContains(t, strings.ToLower(out), "error")
}

// Clients beside each other see one disk.
func TestServerManyClients(t *testing.T) {
	m := memory(t, 1<<20)
	cfg := serve(t, "tcp", &Server{Exports: []Export{{Backend: m}}, MaxConnections: 3})
	a, b := dial(t, cfg), dial(t, cfg)
	_, err := a.WriteAt([]byte("one disk"), 0)
	require.NoError(t, err)
	got := make([]byte, 8)
	_, err = b.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, "one disk", string(got))
	c := dial(t, cfg)
	_, err = Dial(context.Background(), cfg)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "a fourth connection")
	require.NoError(t, c.Close())
}
