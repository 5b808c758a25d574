package vm_test

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
)

// diskGuest returns the kernel of a Linux guest with a disk, open until the test ends,
// and an initramfs with the script init.
func diskGuest(t *testing.T, init string) (kernel *os.File, initrd []byte) {
	t.Helper()
	k, err := debian.FetchKernel(t.Context(), os.Stderr)
	require.NoError(t, err)
	kernel, err = os.Open(k.Image)
	require.NoError(t, err)
	t.Cleanup(func() { kernel.Close() })
	initrd, err = guest.Initramfs(t.Context(), guest.Config{
		Kernel:  k,
		Modules: []string{"virtio_pci", "virtio_mmio", "virtio_blk"},
		Files:   map[string]guest.File{"init": {Mode: 0o755, Data: []byte(init)}},
	})
	require.NoError(t, err)
	return kernel, initrd
}

// makeExt4 makes a raw image with an empty ext4 file system.
func makeExt4(t *testing.T, path string, size int64) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Truncate(path, size))
	e2fsprogs(t, "mke2fs", "-q", "-F", "-t", "ext4", path)
}

// e2fsprogs runs a program of e2fsprogs, which must succeed.
func e2fsprogs(t *testing.T, name string, args ...string) {
	t.Helper()
	path, err := debian.LookProgram(name, "e2fsprogs")
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	require.NoError(t, err, "%s %s: %s", name, args, out)
}
