package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
)

// Where this host's KVM cannot boot a guest, one in the nested host does the
// same: streams, a signal, the exit status and the disk pass through.
func TestNested(t *testing.T) {
	if os.Getenv("VMKIT_NESTED") == "1" {
		t.Skip("a test of the machine around this nested host")
	}
	if _, err := debian.LookProgram("qemu-system-x86_64", "qemu-system-x86"); err != nil {
		t.Skip(err)
	}
	// It is the init process of the nested host, too, so it has to be vmm
	// itself and not this test.
	program := filepath.Join(t.TempDir(), "vmm")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)

	image := rootDisk(t)
	cmd := command(t, "run", "-nested", "always", "-disk", image, "--", "sh", "-c",
		`read -r line; echo "$line"; uname -r; trap 'echo kept >/root/note; exit 7' TERM; echo started; while :; do sleep 1; done`)
	cmd.Path = program
	cmd.Stdin = strings.NewReader("typed\n")
	var stdout, stderr transcript
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Start())
	stdout.await(t, "started\n")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	err = cmd.Wait()
	var exit *exec.ExitError
	require.True(t, err == nil || errors.As(err, &exit), "%v", err)
	require.Equal(t, 7, cmd.ProcessState.ExitCode(), "%s", &stderr)
	require.Equal(t, "typed\n"+release(t)+"\nstarted\n", stdout.String())
	clean(t, image)
	note, err := tool(t, "debugfs", "-R", "cat /root/note", image)
	require.NoError(t, err)
	require.Contains(t, note, "kept\n")
}
