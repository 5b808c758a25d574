package vm_test

import (
	"crypto/sha256"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The files of TestARM64, in a directory that the environment names to the run on
// arm64.
const (
	arm64Env    = "VMKIT_ARM64_RUN"
	arm64Kernel = "kernel"
	arm64Initrd = "initrd"
	arm64Image  = "image"
	arm64Trail  = "trail"
)

// TestARM64: a run of a Linux guest on arm64, in QEMU's emulator of processes, is
// the one on this host, bit for bit. It is the beginning of the run; with
// VMKIT_FULL=1 it is all of it, up to power-off.
func TestARM64(t *testing.T) {
	if dir := os.Getenv(arm64Env); dir != "" {
		runOnARM64(t, dir)
		return
	}
	needSoft(t)
	if os.Getenv("VMKIT_NESTED") == "1" {
		t.Skip("there is no Go here to build for arm64 with: the host around this one does")
	}
	emulator, err := exec.LookPath("qemu-aarch64")
	if err != nil {
		t.Skipf("Debian's qemu-user runs the test for arm64: %v", err)
	}
	r := newRepeater(t)
	dir := t.TempDir()
	for name, data := range map[string][]byte{arm64Kernel: r.kernel, arm64Initrd: r.initrd, arm64Image: r.image} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
	}
	program := filepath.Join(dir, "vm.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	first := r.runForARM64(t)
	run := exec.CommandContext(t.Context(), emulator, program, "-test.run=^TestARM64$", "-test.timeout=15m")
	// See the step arm64 of internal/build/testall for why there are no signals.
	run.Env = append(os.Environ(), arm64Env+"="+dir, "GODEBUG=asyncpreemptoff=1")
	out, err = run.CombinedOutput()
	require.NoError(t, err, "%s", out)
	text, err := os.ReadFile(filepath.Join(dir, arm64Trail))
	require.NoError(t, err)
	var second trail
	require.NoError(t, json.Unmarshal(text, &second))
	requireSame(t, first, second)
	t.Logf("%d instructions, %d looks", first.Counts[len(first.Counts)-1], len(first.Hashes))
}

// runForARM64 is the run that is made on both.
func (r *repeater) runForARM64(t *testing.T) trail {
	t.Helper()
	r.hash = sha256.New // the same in all processes
	if os.Getenv("VMKIT_FULL") == "1" {
		return r.run(t, 2, 250_000_000, nil)
	}
	r.until = 60_000_000
	return r.run(t, 2, 20_000_000, nil)
}

// runOnARM64 makes it from the files in dir, and leaves its trail there.
func runOnARM64(t *testing.T, dir string) {
	r := &repeater{}
	for name, data := range map[string]*[]byte{arm64Kernel: &r.kernel, arm64Initrd: &r.initrd, arm64Image: &r.image} {
		var err error
		*data, err = os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
	}
	text, err := json.Marshal(r.runForARM64(t))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, arm64Trail), text, 0o600))
}
