package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
	"github.com/vmkit-go/vmkit/internal/kvmtest"
)

// mainEnv makes the test binary be vmm.
const mainEnv = "VMKIT_TEST_VMM"

func TestMain(m *testing.M) {
	if os.Getenv(mainEnv) == "1" {
		main()
	}
	os.Exit(m.Run())
}

// bootLimit is enough for a guest on a machine that is busy with other tests.
const bootLimit = 5 * time.Minute

// needNative skips a test that boots Linux where this host's KVM cannot.
func needNative(t *testing.T) {
	t.Helper()
	kvmtest.NeedNative(t, kvmtest.Open(t))
}

// command is a vmm of its own process. Its temporary files must be gone when
// the test ends.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self, args...)
	tmp := t.TempDir()
	cmd.Env = append(os.Environ(), mainEnv+"=1", "TMPDIR="+tmp, "TERM=vt100")
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		left, err := os.ReadDir(tmp)
		require.NoError(t, err)
		require.Empty(t, left, "vmm %s left files behind", strings.Join(args, " "))
	})
	return cmd
}

// result is what a process left.
type result struct {
	stdout, stderr string
	status         int
}

// finish runs cmd to its end.
func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// run runs vmm to its end.
func run(t *testing.T, args ...string) result {
	t.Helper()
	return finish(t, command(t, args...))
}

// rootDisk makes a root disk image.
func rootDisk(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.img")
	require.NoError(t, guest.RootDisk(t.Context(), path, 64<<20, os.Stderr))
	return path
}

// clean checks that a disk's file system is consistent and needs no recovery.
func clean(t *testing.T, image string) {
	t.Helper()
	out, err := tool(t, "e2fsck", "-fn", image)
	require.NoError(t, err, "%s", out)
	require.NotContains(t, out, "recover")
}

// tool runs a program of e2fsprogs.
func tool(t *testing.T, name string, args ...string) (string, error) {
	t.Helper()
	path, err := debian.LookProgram(name, "e2fsprogs")
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	return string(out), err
}

func release(t *testing.T) string {
	t.Helper()
	k, err := debian.FetchKernel(t.Context(), os.Stderr)
	require.NoError(t, err)
	return k.Release
}

func TestRun(t *testing.T) {
	needNative(t)
	require.Equal(t, result{release(t) + "\n", "", 7}, run(t, "run", "--", "sh", "-c", "uname -r; exit 7"))
}

// A root disk of the user's keeps what the guest writes.
func TestRunDisk(t *testing.T) {
	needNative(t)
	image := rootDisk(t)
	r := run(t, "run", "-cpus", "4", "-disk", image, "--", "sh", "-c",
		"uname -r; nproc; grep ' / ' /proc/mounts | cut -d' ' -f1-3; echo kept >/root/note; exit 7")
	require.Equal(t, result{release(t) + "\n4\n/dev/vda / ext4\n", "", 7}, r)
	clean(t, image)
	before := hash(t, image)

	r = run(t, "run", "-disk", image+",ro", "-transport", "mmio", "--", "sh", "-c", "cat /root/note; echo more >/root/note")
	require.Equal(t, "kept\n", r.stdout)
	require.Contains(t, r.stderr, "Read-only file system")
	require.Equal(t, 1, r.status)
	require.Equal(t, before, hash(t, image), "a read-only disk was written")
}

func hash(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// What goes in comes out again, whole and in its own stream.
func TestStreams(t *testing.T) {
	needNative(t)
	data := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	words := []string{"it's", `a "b"`, "two\nlines\n", "", "$HOME", "*", `\`, "-x", "\x01\xff"}
	cmd := command(t, append([]string{"run", "--", "sh", "-c", `cat; printf '<%s>' "$@" >&2; exit 5`, "name"}, words...)...)
	cmd.Stdin = bytes.NewReader(data)
	r := finish(t, cmd)
	require.Equal(t, "<"+strings.Join(words, "><")+">", r.stderr)
	require.Equal(t, 5, r.status)
	require.True(t, r.stdout == string(data), "%d bytes came back of %d that were sent", len(r.stdout), len(data))
}

func TestNoSuchCommand(t *testing.T) {
	needNative(t)
	r := run(t, "run", "-disk", "none", "--", "no-such-command")
	require.Equal(t, 127, r.status)
	require.Contains(t, r.stderr, "no-such-command")
	require.Empty(t, r.stdout)
}

// A reader that has had enough ends the command as it would without a guest
// between, and one that is slow gets everything.
func TestClosedOutput(t *testing.T) {
	needNative(t)
	image := rootDisk(t)
	pr, pw, err := os.Pipe()
	require.NoError(t, err)
	cmd := command(t, "run", "-disk", image, "--", "sh", "-c", "echo once; while :; do echo again; done")
	cmd.Stdout, cmd.Stderr = pw, os.Stderr
	require.NoError(t, cmd.Start())
	pw.Close()
	line := make([]byte, 5)
	_, err = io.ReadFull(pr, line)
	require.NoError(t, err)
	require.Equal(t, "once\n", string(line))
	pr.Close()
	_ = cmd.Wait()
	require.Equal(t, 128+13, cmd.ProcessState.ExitCode(), "the status of a command ended by SIGPIPE")
	clean(t, image)
}
