package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	m := map[string]string{}
	for _, e := range list {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
		i, err := e.Info()
		require.NoError(t, err)
		m[e.Name()] = fmt.Sprintf("%s %s", i.Mode().Perm(), b)
	}
	return m
}

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	require.NoError(t, WriteFile(name, 0o600, []byte("one")))
	require.Equal(t, map[string]string{"f": "-rw------- one"}, content(t, dir))
	require.NoError(t, WriteFile(name, 0o644, []byte("two")))
	require.Equal(t, map[string]string{"f": "-rw-r--r-- two"}, content(t, dir))

	failed := errors.New("failed")
	err := Replace(name, 0o600, func(w io.Writer) error {
		_, err := io.WriteString(w, "three")
		require.NoError(t, err)
		require.Equal(t, "-rw-r--r-- two", content(t, dir)["f"], "the old file until the new one is whole")
		return failed
	})
	require.ErrorIs(t, err, failed)
	require.Equal(t, map[string]string{"f": "-rw-r--r-- two"}, content(t, dir))
}

func TestReplaceFails(t *testing.T) {
	dir := t.TempDir()
	require.ErrorIs(t, WriteFile(filepath.Join(dir, "no", "f"), 0o600, nil), fs.ErrNotExist)
	// A folder is not replaced by a file.
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "d", "sub"), 0o755))
	require.Error(t, WriteFile(filepath.Join(dir, "d"), 0o600, []byte("x")))
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, list, 1, "the temporary file is gone")
}

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	f, err := os.CreateTemp(dir, Pattern)
	require.NoError(t, err)
	_, err = f.WriteString("x")
	require.NoError(t, err)
	require.NoError(t, Publish(f, filepath.Join(dir, "p"), 0o644))
	require.Equal(t, map[string]string{"p": "-rw-r--r-- x"}, content(t, dir))
	require.ErrorIs(t, f.Close(), os.ErrClosed)
	require.ErrorIs(t, SyncDir(filepath.Join(dir, "none")), fs.ErrNotExist)
}
