package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/kvmtest"
)

// Bad input gets one clear line and a status of vmm's own. (command checks
// that no files stay behind.)
func TestBadInput(t *testing.T) {
	kvmtest.Open(t)
	k, err := debian.FetchKernel(t.Context(), os.Stderr)
	require.NoError(t, err)
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return path
	}
	kernel, err := os.ReadFile(k.Image)
	require.NoError(t, err)
	half := file("half", kernel[:len(kernel)/2])
	broken := bytes.Clone(kernel)
	copy(broken[len(broken)/2:], make([]byte, 4096))
	damaged := file("damaged", broken)
	garbage := file("garbage", bytes.Repeat([]byte("This is no kernel. "), 100000))
	empty := file("empty", nil)
	locked := file("locked", make([]byte, 1<<20))
	held, err := disk.Open(locked, disk.FileConfig{})
	require.NoError(t, err)
	defer held.Close()
	socket := filepath.Join(dir, "socket")

	for _, tt := range []struct {
		name   string
		args   string
		status int
		want   string
	}{
		{"half a kernel", "run -kernel " + half, statusFailed, "truncated"},
		{"a damaged kernel", "run -kernel " + damaged, statusFailed, "bad kernel image"},
		{"no kernel at all", "run -kernel " + garbage, statusFailed, "bad kernel image"},
		{"an empty kernel", "run -kernel " + empty, statusFailed, "bad kernel image"},
		{"a directory for a kernel", "run -kernel " + dir, statusFailed, "is a directory"},
		{"a missing kernel", "run -kernel /no/such/file", statusFailed, "kernel: open /no/such/file: no such file"},
		{"a missing initrd", "run -initrd /no/such/file", statusFailed, "initrd: open /no/such/file: no such file"},
		{"a missing disk", "run -disk /no/such/file", statusFailed, "disk /no/such/file: open: no such file"},
		{"a locked disk", "run -disk " + locked, statusFailed, "locked"},
		{"a directory for a disk", "run -disk " + dir, statusFailed, dir},
		{"no disk's name", "run -disk ,ro", statusUsage, "-disk"},
		{"an NBD server that is not there", "run -disk nbd+unix:///x?socket=/no/such/socket", statusFailed, "disk nbd+unix:///x?socket=/no/such/socket: open: dial"},
		{"a wrong NBD URI", "run -disk nbd://", statusFailed, "no host"},
		{"too little memory", "run -memory 16M", statusFailed, "memory is too small"},
		{"next to no memory", "run -memory 64K", statusUsage, "memory"},
		{"odd memory", "run -memory 100000001", statusUsage, "memory"},
		{"more memory than there are addresses", "run -memory 8388607T", statusFailed, "memory"},
		{"no number for memory", "run -memory much", statusUsage, "-memory"},
		{"too many CPUs", "run -cpus 255", statusUsage, "255 CPUs"},
		{"no CPUs", "run -cpus 0", statusUsage, "0 CPUs"},
		{"fewer CPUs", "run -cpus -3", statusUsage, "-3 CPUs"},
		{"an unknown model", "run -cpu 8086", statusUsage, "8086"},
		{"an unknown transport", "run -transport isa", statusUsage, "isa"},
		{"an unknown protocol", "run -protocol dos", statusUsage, "dos"},
		{"an unknown engine", "run -engine steam", statusUsage, "want auto or kvm or soft"},
		{"an unknown engine to load on", "load -engine steam " + dir, statusUsage, "want auto or kvm or soft"},
		{"a nested host for soft", "run -engine soft -nested always", statusUsage, "-engine soft needs no nested host"},
		{"half a nested host", "run -nested sometimes", statusUsage, "want always or never"},
		{"an unknown flag", "run -turbo", statusUsage, "-turbo"},
		{"a missing tap", "run -net tap=no-such-tap0123456789", statusFailed, "no-such-tap"},
		{"a tap without a name", "run -net guest=10.0.0.1/24", statusUsage, "tap"},
		{"a long command line", "run -append " + strings.Repeat("x", 5000), statusFailed, "command line"},
		{"a command for one's own initrd", "run -initrd " + garbage + " true", statusUsage, "-initrd"},
		{"a control socket in no directory", "run -control /no/such/socket", statusFailed, "control socket"},
		{"nothing to load", "load", statusUsage, "DIR"},
		{"a missing saved guest", "load /no/such/dir", statusFailed, "/no/such/dir"},
		{"nothing to save", "save -control " + socket + " " + dir + "/saved", statusFailed, socket},
		{"nowhere to save", "save", statusUsage, "usage"},
		{"an unknown command", "fly", statusUsage, "fly"},
		{"arguments for probe", "probe it", statusUsage, "arguments"},
	} {
		args := strings.Fields(tt.args)
		if args[0] == "run" || args[0] == "load" {
			args = append([]string{args[0], "-engine", "kvm"}, args[1:]...)
		}
		r := run(t, args...)
		oneLine(t, tt.name, r, tt.want)
		if r.status != tt.status {
			t.Errorf("%s: status %d, want %d", tt.name, r.status, tt.status)
		}
	}
}

// Without permission to use /dev/kvm, that is what vmm says.
func TestNoPermission(t *testing.T) {
	kvmtest.Open(t)
	if os.Getuid() != 0 {
		t.Skip("only root can become a user without permission")
	}
	info, err := os.Stat("/dev/kvm")
	require.NoError(t, err)
	if info.Mode()&0o006 != 0 {
		t.Skip("everybody may use this host's /dev/kvm")
	}
	for _, args := range [][]string{{"run", "-engine", "kvm"}, {"run", "-engine", "kvm", "--", "true"}} {
		cmd := command(t, args...)
		nobody(t, cmd.Path)
		for _, kv := range cmd.Env {
			if tmp, ok := strings.CutPrefix(kv, "TMPDIR="); ok {
				nobody(t, tmp)
				require.NoError(t, os.Chown(tmp, 65534, 65534))
			}
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		oneLine(t, strings.Join(args, " "), finish(t, cmd), "open (/dev/kvm): permission denied")
	}
}

// nobody lets everybody reach path.
func nobody(t *testing.T, path string) {
	t.Helper()
	for dir := path; dir != "/"; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(dir, info.Mode()|0o055))
	}
}

func TestProbe(t *testing.T) {
	sys := kvmtest.Open(t)
	r := run(t, "probe")
	require.Equal(t, 0, r.status, "%s", r.stderr)
	require.Empty(t, r.stderr)
	want := []string{"kvm", "no: KVM cannot run a kernel here: ", "on soft"}
	if kvmtest.Native(t, sys) {
		want = []string{"kvm", "yes: KVM runs kernel code natively", "on kvm"}
	}
	want = append(want, "kvm x86-64-v1", "soft x86-64-v2     yes", "soft x86-64-v3     no: ")
	for _, text := range want {
		require.Contains(t, r.stdout, text)
	}
}
