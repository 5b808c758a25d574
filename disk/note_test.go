package disk_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
)

func TestNote(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f, err := disk.Create(name, 4096, disk.FileConfig{})
	require.NoError(t, err)
	p, err := f.Note("a.b")
	require.NoError(t, err)
	require.Nil(t, p)
	require.Error(t, f.SetNote("a.b", make([]byte, 257)))
	require.NoError(t, f.SetNote("a.b", []byte("one")))
	require.NoError(t, f.SetNote("a.b", []byte("two")))
	require.NoError(t, f.Close())
	_, err = f.Note("a.b")
	require.ErrorIs(t, err, os.ErrClosed)
	require.ErrorIs(t, f.SetNote("a.b", nil), os.ErrClosed)
	f, err = disk.Open(name, disk.FileConfig{ReadOnly: true})
	require.NoError(t, err)
	p, err = f.Note("a.b")
	require.NoError(t, err)
	require.Equal(t, "two", string(p))
	require.ErrorIs(t, f.SetNote("a.b", nil), disk.ErrReadOnly)
	require.NoError(t, f.Close())
}
