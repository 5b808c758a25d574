package disk_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

func fileMaker(dir string, cfg disk.FileConfig) disktest.Maker {
	reopen := func(t *testing.T, b disk.Backend, cfg disk.FileConfig) disk.Backend {
		require.NoError(t, b.Close())
		f, err := disk.Open(b.Info().Name, cfg)
		require.NoError(t, err)
		return f
	}
	return disktest.Maker{
		New: func(t *testing.T, size int64) disk.Backend {
			d := dir
			if d == "" {
				d = t.TempDir()
			} else {
				d, _ = os.MkdirTemp(dir, "disktest")
				t.Cleanup(func() { os.RemoveAll(d) })
			}
			f, err := disk.Create(filepath.Join(d, "disk.img"), size, cfg)
			require.NoError(t, err)
			return f
		},
		Reopen: func(t *testing.T, b disk.Backend) disk.Backend { return reopen(t, b, cfg) },
		ReadOnly: func(t *testing.T, b disk.Backend) disk.Backend {
			ro := cfg
			ro.ReadOnly = true
			return reopen(t, b, ro)
		},
	}
}

func TestFileConforms(t *testing.T)   { disktest.Run(t, fileMaker("", disk.FileConfig{})) }
func TestDirectConforms(t *testing.T) { disktest.Run(t, fileMaker("", disk.FileConfig{Direct: true})) }

// On tmpfs other system calls are missing than on a disk's file system.
func TestTmpfsConforms(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err != nil {
		t.Skipf("no tmpfs to test on: %v", err)
	}
	disktest.Run(t, fileMaker("/dev/shm", disk.FileConfig{}))
}

func TestMemoryConforms(t *testing.T) {
	disktest.Run(t, disktest.Maker{New: func(t *testing.T, size int64) disk.Backend {
		m, err := disk.NewMemory("mem", size)
		require.NoError(t, err)
		return m
	}})
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	_, err := disk.Open(filepath.Join(dir, "none.img"), disk.FileConfig{})
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "none.img")
	_, err = disk.Open(dir, disk.FileConfig{ReadOnly: true})
	require.ErrorContains(t, err, "neither a regular file nor a block device")
	_, err = disk.Open("/dev/null", disk.FileConfig{})
	require.ErrorContains(t, err, "neither a regular file nor a block device")
	p := filepath.Join(dir, "a.img")
	f, err := disk.Create(p, 4096, disk.FileConfig{})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = disk.Create(p, 4096, disk.FileConfig{})
	require.ErrorIs(t, err, fs.ErrExist)
	_, err = disk.Create(filepath.Join(dir, "b"), -1, disk.FileConfig{})
	require.ErrorIs(t, err, disk.ErrRange)
	_, err = disk.NewMemory("m", -1)
	require.ErrorIs(t, err, disk.ErrRange)
}

// A full file system of the host is told apart, so that a guest can wait.
func TestNoSpace(t *testing.T) {
	for err, full := range map[error]bool{unix.ENOSPC: true, unix.EDQUOT: true, unix.EIO: false, unix.EFBIG: false} {
		got := disk.NoSpace(err)
		require.ErrorIs(t, got, err)
		require.Equal(t, full, errors.Is(got, disk.ErrNoSpace), "%v", err)
	}
}
