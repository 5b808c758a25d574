package appliance

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
)

// TestSameImage writes the same tree, made in another order at another time,
// and then looks at it with debugfs.
func TestSameImage(t *testing.T) {
	names := []string{"a/b/c", "a/with space", "a/quote\"d", "z", "bin/tool", "a/b/d"}
	make := func(order []int, mtime time.Time) string {
		tree, path := t.TempDir(), filepath.Join(t.TempDir(), "disk")
		for _, i := range order {
			p := filepath.Join(tree, names[i])
			require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o755))
			require.NoError(t, os.WriteFile(p, bytes.Repeat([]byte(names[i]), 10_000), 0o644))
			require.NoError(t, os.Chtimes(p, mtime, mtime))
		}
		require.NoError(t, os.Chmod(filepath.Join(tree, "bin/tool"), 0o755|os.ModeSetuid))
		require.NoError(t, os.Mkdir(filepath.Join(tree, "tmp"), 0o755))
		require.NoError(t, os.Chmod(filepath.Join(tree, "tmp"), 0o777|os.ModeSticky))
		require.NoError(t, os.Symlink("../z", filepath.Join(tree, "a/link")))
		require.NoError(t, writeFS(t.Context(), path, tree))
		return path
	}
	one := make([]int{0, 1, 2, 3, 4, 5}, time.Unix(1, 0))
	two := make([]int{5, 4, 2, 3, 1, 0}, time.Unix(2e9, 0))
	require.NoError(t, exec.Command("cmp", one, two).Run(), "the images differ")

	debugfs, err := debian.LookProgram("debugfs", "e2fsprogs")
	require.NoError(t, err)
	ask := func(cmd string) string {
		out, err := exec.Command(debugfs, "-R", cmd, one).Output()
		require.NoError(t, err)
		return string(out)
	}
	for _, n := range names {
		require.Equal(t, string(bytes.Repeat([]byte(n), 10_000)), ask("cat "+quoted("/"+n)), n)
	}
	require.Contains(t, ask("stat /bin/tool"), "Mode:  04755")
	require.Contains(t, ask("stat /tmp"), "Mode:  01777")
	require.Contains(t, ask("stat /a/link"), `Fast link dest: "../z"`)
}

func TestPackages(t *testing.T) {
	image := func(name string, lines int) string {
		tree, path := t.TempDir(), filepath.Join(t.TempDir(), "disk")
		require.NoError(t, os.Mkdir(filepath.Join(tree, "srv"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(tree, name), bytes.Repeat([]byte("name=1:2.3-4\n"), lines), 0o644))
		require.NoError(t, writeFS(t.Context(), path, tree))
		return path
	}
	list, err := Packages(t.Context(), image(packageList, 30))
	require.NoError(t, err)
	require.Len(t, list, 30)
	require.Equal(t, "name=1:2.3-4", list[29])
	_, err = Packages(t.Context(), image("srv/other", 30))
	require.ErrorContains(t, err, "0 packages")
}

func TestRefused(t *testing.T) {
	tree := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(tree, "a\nrm b"), nil, 0o644))
	require.ErrorContains(t, writeFS(t.Context(), filepath.Join(t.TempDir(), "disk"), tree), "file name")
	_, err := Disk(t.Context(), 3, nil)
	require.ErrorContains(t, err, "version 3")
}
