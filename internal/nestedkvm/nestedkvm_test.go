package nestedkvm_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/nestedkvm"
	"github.com/vmkit-go/vmkit/internal/nestedkvm/agent"
)

func TestMain(m *testing.M) {
	agent.Main() // this binary is the init process, too
	os.Exit(m.Run())
}

// boot starts a nested host for one test.
func boot(t *testing.T, cfg nestedkvm.Config) *nestedkvm.Host {
	t.Helper()
	if _, err := debian.LookProgram("qemu-system-x86_64", "qemu-system-x86"); err != nil {
		t.Skip(err)
	}
	cfg.Log = os.Stderr
	h, err := nestedkvm.Start(t.Context(), cfg)
	if errors.Is(err, debian.ErrUnavailable) {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, h.Close())
		require.NoError(t, h.Close(), "a second Close")
	})
	return h
}

// sh runs a shell script.
func sh(t *testing.T, h *nestedkvm.Host, script string) (stdout, stderr string, err error) {
	t.Helper()
	var out, msg bytes.Buffer
	err = h.Run(t.Context(), nestedkvm.Cmd{Path: "sh", Args: []string{"-c", script}, Stdout: &out, Stderr: &msg})
	return out.String(), msg.String(), err
}

// TestHost shares one boot between everything that leaves the host alive.
func TestHost(t *testing.T) {
	h := boot(t, nestedkvm.Config{})

	t.Run("machine", func(t *testing.T) {
		out, msg, err := sh(t, h, `set -e
			test -c /dev/kvm; test -c /dev/net/tun; grep -q '^kvm_amd ' /proc/modules
			grep -q svm /proc/cpuinfo; nproc; uname -r
			test "$VMKIT_NESTED$VMKIT_REQUIRE_KVM" = 11; ls -d $VMKIT_CACHE/debian/linux-image-*
			ping -c 1 127.0.0.1 >&2; echo x >/tmp/x; e2fsck -V 2>&1; ip -V`)
		require.NoError(t, err, msg)
		require.Regexp(t, `(?s)^2\n.*-cloud-amd64\n/.*linux-image.*e2fsck 1\..*iproute2`, out)
	})
	t.Run("status", func(t *testing.T) {
		out, msg, err := sh(t, h, "echo out; echo err >&2; exit 7")
		var exit *nestedkvm.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, nestedkvm.ExitError{Code: 7}, *exit)
		require.Equal(t, "out\n", out)
		require.Equal(t, "err\n", msg)

		_, _, err = sh(t, h, "kill -SEGV $$")
		require.ErrorAs(t, err, &exit)
		require.Equal(t, nestedkvm.ExitError{Signal: int(syscall.SIGSEGV)}, *exit)
	})
	t.Run("missing program", func(t *testing.T) {
		for _, path := range []string{"no-such-program", "/no/such/program", "/etc/passwd", "/etc"} {
			err := h.Run(t.Context(), nestedkvm.Cmd{Path: path})
			require.ErrorContains(t, err, path)
			var exit *nestedkvm.ExitError
			require.False(t, errors.As(err, &exit), "%v", err)
		}
	})
	t.Run("files", func(t *testing.T) { testFiles(t, h) })
	t.Run("stdin", func(t *testing.T) {
		data := bytes.Repeat([]byte("0123456789abcde\n"), 100_000)
		var out bytes.Buffer
		err := h.Run(t.Context(), nestedkvm.Cmd{Path: "cat", Stdin: bytes.NewReader(data), Stdout: &out})
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, out.Bytes()), "%d of %d bytes", out.Len(), len(data))

		// A program that does not read must not hold up its own end.
		err = h.Run(t.Context(), nestedkvm.Cmd{Path: "true", Stdin: bytes.NewReader(data)})
		require.NoError(t, err)
	})
	t.Run("streaming", func(t *testing.T) {
		r, w := io.Pipe()
		pr, pw := io.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- h.Run(t.Context(), nestedkvm.Cmd{Path: "cat", Stdin: r, Stdout: pw})
		}()
		buf := make([]byte, 16)
		for i := range 3 {
			line := fmt.Sprintf("line %d\n", i)
			_, err := io.WriteString(w, line)
			require.NoError(t, err)
			n, err := io.ReadFull(pr, buf[:len(line)])
			require.NoError(t, err)
			require.Equal(t, line, string(buf[:n]))
		}
		w.Close()
		require.NoError(t, <-done)
	})
	t.Run("signal", func(t *testing.T) {
		sigs := make(chan syscall.Signal, 1)
		r, w := io.Pipe()
		go func() {
			_, _ = io.ReadFull(r, make([]byte, 6))
			sigs <- syscall.SIGTERM
			_, _ = io.Copy(io.Discard, r)
		}()
		err := h.Run(t.Context(), nestedkvm.Cmd{
			Path: "sh", Args: []string{"-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"},
			Stdout: w, Signals: sigs,
		})
		require.EqualError(t, err, "exit status 9")
	})
	t.Run("cancel", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		err := h.Run(ctx, nestedkvm.Cmd{Path: "sh", Args: []string{"-c", "trap '' TERM INT; sleep 1234 & setsid sleep 1234 & sleep 1234"}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		out, _, err := sh(t, h, "ps | grep -v grep | grep -c 'sleep 1234'")
		require.Equal(t, "0\n", out, "processes stay behind")
		require.Error(t, err)
	})
	t.Run("background", func(t *testing.T) {
		// It holds the output open, and would for ever.
		_, _, err := sh(t, h, "sleep 4321 &")
		require.NoError(t, err)
	})
	t.Run("concurrent", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				out, _, err := sh(t, h, fmt.Sprintf("sleep 0.5; echo %d", i))
				if err != nil || out != fmt.Sprintf("%d\n", i) {
					t.Errorf("%q, %v", out, err)
				}
			})
		}
		wg.Wait()
	})
	t.Run("busy", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		started, w := io.Pipe()
		for range 8 {
			wg.Go(func() {
				_ = h.Run(ctx, nestedkvm.Cmd{Path: "sh", Args: []string{"-c", "echo; sleep 60"}, Stdout: w})
			})
		}
		_, err := io.ReadFull(started, make([]byte, 8))
		require.NoError(t, err)
		require.ErrorIs(t, h.Run(t.Context(), nestedkvm.Cmd{Path: "true"}), nestedkvm.ErrBusy)
		cancel()
		wg.Wait()
		_, _, err = sh(t, h, "true")
		require.NoError(t, err)
	})
	t.Run("terminal", func(t *testing.T) {
		var out bytes.Buffer
		err := h.Run(t.Context(), nestedkvm.Cmd{
			Path: "sh", Args: []string{"-c", "stty size; tty; read x; echo got $x; exit 3"},
			Terminal: &nestedkvm.Size{Rows: 31, Columns: 99}, Stdin: strings.NewReader("word\n"), Stdout: &out,
		})
		require.EqualError(t, err, "exit status 3")
		text := strings.ReplaceAll(out.String(), "\r", "")
		require.Contains(t, text, "31 99\n/dev/pts/")
		require.Contains(t, text, "got word\n")
	})
	t.Run("serve", func(t *testing.T) { testServe(t, h) })
}

func testFiles(t *testing.T, h *nestedkvm.Host) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	require.NoError(t, os.MkdirAll(filepath.Join(tree, "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(tree, "sub/prog"), []byte("#!/bin/sh\necho prog $1\n"), 0o755))
	require.NoError(t, os.Symlink("sub/prog", filepath.Join(tree, "link")))
	var out bytes.Buffer
	got := map[string]string{}
	err := h.Run(t.Context(), nestedkvm.Cmd{
		Path: "sh", Args: []string{"-c", "./link one && mkdir -p out/d && echo 1 >out/d/1 && echo 2 >two && exit 5"},
		Dir:    "/data",
		Files:  []nestedkvm.File{{Path: tree, Name: "/data"}},
		Stdout: &out,
		// What fails leaves files, too; what is missing is left out.
		Collect: []string{"/data/out", "/data/tw?", "/data/missing"},
		Collected: func(tr *tar.Reader) error {
			for {
				hd, err := tr.Next()
				if err == io.EOF {
					return nil
				}
				if err != nil {
					return err
				}
				data, err := io.ReadAll(tr)
				if err != nil {
					return err
				}
				got[hd.Name] = string(data)
			}
		},
	})
	require.EqualError(t, err, "exit status 5")
	require.Equal(t, "prog one\n", out.String())
	require.Equal(t, map[string]string{"data/out/": "", "data/out/d/": "", "data/out/d/1": "1\n", "data/two": "2\n"}, got)

	// A tree that is carried in again takes the place of the old one.
	empty := t.TempDir()
	err = h.Run(t.Context(), nestedkvm.Cmd{
		Path: "test", Args: []string{"!", "-e", "/data/link"},
		Files: []nestedkvm.File{{Path: empty, Name: "/data", Replace: true}},
	})
	require.NoError(t, err)

	// Programs that are linked to libraries get them.
	out.Reset()
	err = h.Run(t.Context(), nestedkvm.Cmd{
		Path: "/carried/dash", Args: []string{"-c", "echo yes"}, Stdout: &out,
		Files: []nestedkvm.File{{Path: "/bin/dash", Name: "/carried/dash", Libraries: true}},
	})
	require.NoError(t, err)
	require.Equal(t, "yes\n", out.String())

	for _, f := range []nestedkvm.File{{Path: filepath.Join(dir, "missing")}, {Path: tree, Name: "relative"}} {
		err := h.Run(t.Context(), nestedkvm.Cmd{Path: "true", Files: []nestedkvm.File{f}})
		require.ErrorContains(t, err, "carry files in")
		require.ErrorContains(t, err, f.Path)
	}
	_, _, err = sh(t, h, "true")
	require.NoError(t, err, "the port is out of step")
}

func testServe(t *testing.T, h *nestedkvm.Host) {
	sock := filepath.Join(t.TempDir(), "sock")
	l, err := net.Listen("unix", sock)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, l) }()
	r := nestedkvm.NewRemote(sock)
	var out bytes.Buffer
	err = r.Run(t.Context(), nestedkvm.Cmd{
		Path: "sh", Args: []string{"-c", "cat; exit 6"}, Stdin: strings.NewReader("in"), Stdout: &out,
		Files: []nestedkvm.File{{Path: "/etc/hostname"}},
	})
	require.EqualError(t, err, "exit status 6")
	require.Equal(t, "in", out.String())

	// A client that goes away takes its program with it, and leaves the port.
	for range 10 {
		c, err := net.Dial("unix", sock)
		require.NoError(t, err)
		_, err = c.Write([]byte("R\x29\x00\x00\x00{\"path\":\"sleep\",\"args\":[\"987\"],\"dir\":\"/\"}"))
		require.NoError(t, err)
		_, err = c.Write([]byte("T\xff\x00\x00\x00 half a frame"))
		require.NoError(t, err)
		time.Sleep(20 * time.Millisecond)
		c.Close()
	}
	require.Eventually(t, func() bool {
		out.Reset()
		err := r.Run(t.Context(), nestedkvm.Cmd{Path: "sh", Args: []string{"-c", "ps | grep -v grep | grep 'sleep 987'"}, Stdout: &out})
		return err != nil && out.Len() == 0
	}, time.Minute, 50*time.Millisecond)

	tctx, tcancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer tcancel()
	err = r.Run(tctx, nestedkvm.Cmd{Path: "sleep", Args: []string{"60"}})
	require.ErrorIs(t, err, context.DeadlineExceeded)

	cancel()
	require.ErrorIs(t, <-served, context.Canceled)
	require.Error(t, r.Run(t.Context(), nestedkvm.Cmd{Path: "true"}))
}

func TestHostDies(t *testing.T) {
	h := boot(t, nestedkvm.Config{CPUs: 1, Memory: 512 << 20})
	_, _, err := sh(t, h, "echo c >/proc/sysrq-trigger; sleep 60")
	require.ErrorIs(t, err, nestedkvm.ErrHostDied)
	require.ErrorContains(t, err, "Kernel panic - not syncing: sysrq triggered crash")
	<-h.Done()
	_, _, err = sh(t, h, "true")
	require.ErrorIs(t, err, nestedkvm.ErrHostDied)
}

func TestCloseUnderWay(t *testing.T) {
	h := boot(t, nestedkvm.Config{Memory: 512 << 20})
	done := make(chan error, 1)
	started, w := io.Pipe()
	go func() {
		done <- h.Run(t.Context(), nestedkvm.Cmd{Path: "sh", Args: []string{"-c", "echo on; sleep 60"}, Stdout: w})
	}()
	_, err := io.ReadFull(started, make([]byte, 3))
	require.NoError(t, err)
	require.NoError(t, h.Close())
	require.ErrorIs(t, <-done, nestedkvm.ErrClosed)
	require.ErrorIs(t, h.Run(t.Context(), nestedkvm.Cmd{Path: "true"}), nestedkvm.ErrClosed)
}

func TestConfigErrors(t *testing.T) {
	for want, cfg := range map[string]nestedkvm.Config{
		"CPUs":         {CPUs: 99},
		"-1 CPUs":      {CPUs: -1},
		"memory":       {Memory: 1},
		"scratch":      {Scratch: 1},
		"boot timeout": {BootTimeout: -1},
		"no-program":   {Programs: []string{"no-program"}},
		"no_module":    {Modules: []string{"no_module"}},
		"/no/init":     {Init: "/no/init"},
	} {
		h, err := nestedkvm.Start(t.Context(), cfg)
		if errors.Is(err, debian.ErrUnavailable) && !strings.Contains(err.Error(), want) {
			t.Skip(err)
		}
		require.ErrorContains(t, err, want)
		require.Nil(t, h)
	}
}

// TestBootFails boots an init that is no agent: it ends at once, which panics
// the kernel.
func TestBootFails(t *testing.T) {
	if _, err := debian.LookProgram("qemu-system-x86_64", "qemu-system-x86"); err != nil {
		t.Skip(err)
	}
	_, err := nestedkvm.Start(t.Context(), nestedkvm.Config{Init: "/bin/true", Memory: 512 << 20})
	if errors.Is(err, debian.ErrUnavailable) {
		t.Skip(err)
	}
	require.ErrorIs(t, err, nestedkvm.ErrHostDied)
	require.ErrorContains(t, err, "Attempted to kill init")

	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = nestedkvm.Start(ctx, nestedkvm.Config{Memory: 512 << 20})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}
