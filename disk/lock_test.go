package disk_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk"
)

const holderEnv = "VMKIT_TEST_HOLD"

// TestMain lets the test binary play a second process, which holds an image
// open until its input ends.
func TestMain(m *testing.M) {
	if spec := os.Getenv(holderEnv); spec != "" {
		mode, path, _ := strings.Cut(spec, ":")
		f, err := disk.Open(path, disk.FileConfig{ReadOnly: mode == "ro"})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("open")
		io.Copy(io.Discard, os.Stdin)
		f.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// holder is another process with an image open.
type holder struct {
	cmd *exec.Cmd
	in  io.Closer
}

// hold opens path in another process; line is what that said.
func hold(t *testing.T, mode, path string) (h holder, line string) {
	t.Helper()
	h.cmd = exec.Command(os.Args[0])
	h.cmd.Env = append(os.Environ(), holderEnv+"="+mode+":"+path)
	in, err := h.cmd.StdinPipe()
	require.NoError(t, err)
	h.in = in
	out, err := h.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, h.cmd.Start())
	t.Cleanup(func() { h.cmd.Process.Kill(); h.cmd.Wait() })
	line, err = bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	return h, strings.TrimSpace(line)
}

func TestLocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := disk.Create(path, 1<<20, disk.FileConfig{})
	require.NoError(t, err)

	// A writer keeps everyone out, in this process and in others.
	_, err = disk.Open(path, disk.FileConfig{})
	require.ErrorIs(t, err, disk.ErrLocked)
	require.ErrorContains(t, err, "locked by this process")
	_, err = disk.Open(path, disk.FileConfig{ReadOnly: true})
	require.ErrorIs(t, err, disk.ErrLocked)
	for _, mode := range []string{"rw", "ro"} {
		_, line := hold(t, mode, path)
		require.Equal(t, fmt.Sprintf("disk %s: open: image is locked by process %d (%s)", path, os.Getpid(), comm(t)), line)
	}
	nolock, err := disk.Open(path, disk.FileConfig{NoLock: true})
	require.NoError(t, err)
	require.NoError(t, nolock.Close())
	require.NoError(t, f.Close())

	// Readers share.
	a, err := disk.Open(path, disk.FileConfig{ReadOnly: true})
	require.NoError(t, err)
	h, line := hold(t, "ro", path)
	require.Equal(t, "open", line)
	_, line = hold(t, "rw", path)
	require.Contains(t, line, "image is locked by process")
	require.NoError(t, a.Close())
	_, err = disk.Open(path, disk.FileConfig{})
	require.ErrorIs(t, err, disk.ErrLocked)
	require.ErrorContains(t, err, fmt.Sprintf("process %d (", h.cmd.Process.Pid))
	require.NoError(t, h.in.Close())
	require.NoError(t, h.cmd.Wait())

	// A lock goes with its process, however that ends.
	h, line = hold(t, "rw", path)
	require.Equal(t, "open", line)
	_, err = disk.Open(path, disk.FileConfig{ReadOnly: true})
	require.ErrorIs(t, err, disk.ErrLocked)
	require.NoError(t, h.cmd.Process.Kill())
	h.cmd.Wait()
	f, err = disk.Open(path, disk.FileConfig{})
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// A file that is closed is not locked any more, even while a process that is
// just being started has a copy of its descriptor.
func TestUnlockedWhenClosed(t *testing.T) {
	for _, readOnly := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "disk.img")
		require.NoError(t, os.WriteFile(path, make([]byte, 4096), 0o600))
		f, err := disk.Open(path, disk.FileConfig{ReadOnly: readOnly})
		require.NoError(t, err)
		dup := dupOf(t, path)
		_, err = disk.Open(path, disk.FileConfig{})
		require.ErrorIs(t, err, disk.ErrLocked)
		require.NoError(t, f.Close())
		f, err = disk.Open(path, disk.FileConfig{})
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, unix.Close(dup))
	}
}

// dupOf copies the descriptor with which path is open.
func dupOf(t *testing.T, path string) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	for _, e := range fds {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err != nil || to != path {
			continue
		}
		fd, err := strconv.Atoi(e.Name())
		require.NoError(t, err)
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		require.NoError(t, err)
		return dup
	}
	t.Fatalf("%s is not open", path)
	return -1
}

func comm(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/comm")
	require.NoError(t, err)
	return strings.TrimSpace(string(b))
}

// QEMU and this package keep each other out.
func TestLocksWithQEMU(t *testing.T) {
	qemuIO, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skipf("qemu-io (Debian package qemu-utils) is needed: %v", err)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := disk.Create(path, 1<<20, disk.FileConfig{})
	require.NoError(t, err)
	qemu := func(args ...string) error {
		out, err := exec.Command(qemuIO, append(append([]string{"-f", "raw"}, args...), path)...).CombinedOutput()
		if err == nil && strings.Contains(string(out), "lock") {
			err = errors.New(string(out))
		}
		return err
	}
	require.Error(t, qemu("-c", "read 0 512"), "QEMU writes beside a writer")
	require.Error(t, qemu("-r", "-c", "read 0 512"), "QEMU reads beside a writer")
	require.NoError(t, f.Close())
	f, err = disk.Open(path, disk.FileConfig{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, qemu("-r", "-c", "read 0 512"), "QEMU reads beside a reader")
	require.Error(t, qemu("-c", "read 0 512"), "QEMU writes beside a reader")
	require.NoError(t, f.Close())

	for _, readOnly := range []bool{false, true} {
		args := []string{"-f", "raw", path}
		if readOnly {
			args = append([]string{"-r"}, args...)
		}
		cmd := exec.Command(qemuIO, args...)
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = out.Read(make([]byte, 16)) // the prompt: it has the image
		require.NoError(t, err)
		_, err = disk.Open(path, disk.FileConfig{})
		require.ErrorIs(t, err, disk.ErrLocked)
		require.ErrorContains(t, err, fmt.Sprintf("process %d (qemu-io)", cmd.Process.Pid))
		f, err := disk.Open(path, disk.FileConfig{ReadOnly: true})
		if readOnly {
			require.NoError(t, err)
			require.NoError(t, f.Close())
		} else {
			require.ErrorIs(t, err, disk.ErrLocked)
		}
		in.Close()
		cmd.Wait()
	}
}
