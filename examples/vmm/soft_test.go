package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/vm"
)

// needSoft skips a test that boots Linux in software where that takes too long.
func needSoft(t *testing.T) {
	t.Helper()
	if os.Getenv("VMKIT_NESTED") == "1" {
		t.Skip("a guest in software needs no KVM: it is tested on the host around this one")
	}
	if raceEnabled {
		t.Skip("the race detector makes the engine in software too slow; it is tested without")
	}
}

// A command in a guest in software has its input, its output and its status,
// on several CPUs and a disk of its own, and computes what the host computes.
func TestSoft(t *testing.T) {
	needSoft(t)
	busybox, err := debian.Busybox(t.Context(), os.Stderr)
	require.NoError(t, err)
	image := rootDisk(t)
	cmd := command(t, "run", "-engine", "soft", "-cpus", "2", "-disk", image, "--", "sh", "-c",
		`cat; nproc; sha256sum </bin/busybox; echo kept >/root/note; echo err >&2; exit 7`)
	in := bytes.Repeat([]byte("0123456789abcde\n"), 20_000)
	cmd.Stdin = bytes.NewReader(in)
	r := finish(t, cmd)
	require.Equal(t, 7, r.status, "%s", r.stderr)
	require.Equal(t, "err\n", r.stderr)
	require.True(t, strings.HasPrefix(r.stdout, string(in)))
	require.Equal(t, fmt.Sprintf("2\n%s  -\n", hash(t, busybox)), r.stdout[len(in):])
	clean(t, image)
	note, err := tool(t, "debugfs", "-R", "cat /root/note", image)
	require.NoError(t, err)
	require.Contains(t, note, "kept\n")
}

// Where KVM cannot run a kernel, a guest runs in software, and one line says
// why.
func TestSoftByItself(t *testing.T) {
	needSoft(t)
	engine, why := vm.ChooseEngine()
	if engine != vm.EngineSoft {
		t.Skip("this host's KVM runs kernels")
	}
	r := run(t, "run", "-disk", "none", "--", "true")
	// The reason has a measured speed in it.
	speed := regexp.MustCompile(`[0-9.]+ million`)
	r.stderr = speed.ReplaceAllString(r.stderr, "N million")
	why = speed.ReplaceAllString(why, "N million")
	require.Equal(t, result{"", "vmm: " + why + "; running in software\n", 0}, r)
}

// A guest in software is saved, and goes on in another process.
func TestSoftSaveLoad(t *testing.T) {
	needSoft(t)
	image := rootDisk(t)
	dir := t.TempDir()
	socket, saved := filepath.Join(dir, "socket"), filepath.Join(dir, "saved")
	var out, errs transcript
	start := func(args ...string) *exec.Cmd {
		cmd := command(t, args...)
		cmd.Stdout, cmd.Stderr = &out, &errs
		require.NoError(t, cmd.Start())
		return cmd
	}
	const count = 2000
	first := start("run", "-engine", "soft", "-disk", image, "-control", socket, "--", "sh", "-c",
		fmt.Sprintf(`i=0; while [ $i -lt %d ]; do echo $i; [ $((i %% 100)) != 0 ] || { sync; usleep 1000; }; i=$((i+1)); awk 'BEGIN { exit }'; done; exit 9`, count))
	out.await(t, "\n10\n")
	r := run(t, "save", "-control", socket, saved)
	require.Equal(t, 0, r.status, "%s", r.stderr)
	require.NoError(t, first.Wait(), "%s", &errs)
	require.NotContains(t, out.String(), fmt.Sprintf("\n%d\n", count-1), "saved too late to show anything")
	second := start("load", "-engine", "soft", saved)
	_ = second.Wait()
	require.Equal(t, 9, second.ProcessState.ExitCode(), "%s", &errs)
	var want strings.Builder
	for i := range count {
		fmt.Fprintln(&want, i)
	}
	require.Equal(t, want.String(), out.String())
	clean(t, image)
}

// A user at the console of a guest in software lives in the host's time.
func TestSoftConsole(t *testing.T) {
	needSoft(t)
	p := newPty(t)
	cmd := p.start("run", "-engine", "soft")
	p.expect(prompt)
	p.write("echo $((40+2)) $(stty size)\r")
	p.expect("42 33 101\r\n")
	p.expect(prompt)
	p.write("a=$(cut -d. -f1 /proc/uptime); sleep 3; b=$(cut -d. -f1 /proc/uptime); echo slept $((b - a >= 3 && b - a < 60))\r")
	p.expect("slept 1\r\n")
	p.write("\x01x")
	p.ends(cmd, 0)
}
