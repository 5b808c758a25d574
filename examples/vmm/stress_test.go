package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
)

// A guest in software computes what the host's processor computes: programs in
// C, as they come and vectorized, one in Go, tests of Go's own, Go's compiler and
// linker, whose every byte of output must be the same, and busybox's packers,
// hashes, text tools and floating point, several at a time. A quick run does it
// with 2 CPUs, make proofs with more and fewer.
func TestSoftStress(t *testing.T) {
	needSoft(t)
	bin := stressPrograms(t)
	want := stressHost(t, bin)
	require.Contains(t, want, "\nmath: status 0\n")
	require.NotContains(t, want, "FAIL")
	require.Equal(t, 6, strings.Count(want, ": status 0\n"), "%s", want)
	image := stressDisk(t, bin)
	for _, cpus := range []int{1, 2, 4} {
		if !full() && cpus != 2 {
			continue
		}
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) {
			r := run(t, "run", "-engine", "soft", "-cpus", fmt.Sprint(cpus), "-disk", image, "--",
				"sh", "-c", `nproc; work=/root/work$(nproc); mkdir $work; exec sh /root/script.sh /root $work`)
			require.Empty(t, r.stderr)
			require.Equal(t, 0, r.status)
			// By lines, so that a difference is seen.
			require.Equal(t, strings.Split(fmt.Sprintf("%d\n%s", cpus, want), "\n"), strings.Split(r.stdout, "\n"))
			clean(t, image)
		})
	}
}

// stressPrograms builds the programs that script.sh runs, and returns their
// directory. All are static.
func stressPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := func(name string, args ...string) string {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1")
		var errs bytes.Buffer
		cmd.Stderr = &errs
		out, err := cmd.Output()
		require.NoError(t, err, "%s %s: %s", name, strings.Join(args, " "), &errs)
		return strings.TrimSpace(string(out))
	}
	gcc, err := debian.LookProgram("gcc", "gcc libc6-dev")
	require.NoError(t, err)
	const source = "testdata/stress/"
	build(gcc, "-static", "-O2", "-pthread", "-o", filepath.Join(dir, "plain"), source+"prog.c", "-lm")
	build(gcc, "-static", "-O3", "-march=x86-64-v2", "-pthread", "-o", filepath.Join(dir, "vector"), source+"prog.c", "-lm")
	build("go", "build", "-trimpath", "-o", filepath.Join(dir, "goprog"), "./"+source+"goprog")
	for _, pkg := range []string{"strconv", "math"} {
		build("go", "test", "-c", "-trimpath", "-o", filepath.Join(dir, pkg+".test"), pkg)
	}
	put := func(name, path string) {
		path, err := filepath.Abs(path)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(path, filepath.Join(dir, name)))
	}
	put("script.sh", source+"script.sh")
	// What it takes to build a program without the go command: the compiler, the
	// linker, and the packages that it imports, compiled.
	put("built.go", source+"built/main.go")
	for _, name := range []string{"compile", "link"} {
		put(name, build("go", "tool", "-n", name))
	}
	var importcfg strings.Builder
	packages := build("go", "list", "-export", "-deps", "-trimpath",
		"-f", `{{if and .Export (ne .Name "main")}}{{.ImportPath}} {{.Export}}{{end}}`, "./"+source+"built")
	for i, line := range strings.Split(packages, "\n") {
		name, path, _ := strings.Cut(line, " ")
		archive := fmt.Sprintf("%d.a", i)
		put(archive, path)
		fmt.Fprintf(&importcfg, "packagefile %s=programs/%s\n", name, archive)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "importcfg"), []byte(importcfg.String()), 0o600))
	return dir
}

// stressHost is what the script prints on this host, with the busybox of the
// guest's root disk under all its names and no other program.
func stressHost(t *testing.T, bin string) string {
	t.Helper()
	busybox, err := debian.Busybox(t.Context(), os.Stderr)
	require.NoError(t, err)
	applets, err := debian.Applets(t.Context(), busybox)
	require.NoError(t, err)
	path, work := t.TempDir(), t.TempDir()
	for _, a := range applets {
		require.NoError(t, os.Symlink(busybox, filepath.Join(path, a)))
	}
	cmd := exec.CommandContext(t.Context(), busybox, "sh", filepath.Join(bin, "script.sh"), bin, work)
	cmd.Env = []string{"PATH=" + path, "HOME=" + work, "TMPDIR=" + work}
	r := finish(t, cmd)
	require.Empty(t, r.stderr)
	require.Equal(t, 0, r.status, "%s", r.stdout)
	return r.stdout
}

// stressDisk is a root disk with the programs in /root.
func stressDisk(t *testing.T, bin string) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "root.img")
	require.NoError(t, guest.RootDisk(t.Context(), image, 256<<20, os.Stderr))
	files, err := os.ReadDir(bin)
	require.NoError(t, err)
	commands := "cd /root\n"
	for _, f := range files {
		commands += fmt.Sprintf("write %s %s\n", filepath.Join(bin, f.Name()), f.Name())
	}
	list := filepath.Join(t.TempDir(), "commands")
	require.NoError(t, os.WriteFile(list, []byte(commands), 0o600))
	out, err := tool(t, "debugfs", "-w", "-f", list, image)
	require.NoError(t, err, "%s", out)
	clean(t, image)
	return image
}
