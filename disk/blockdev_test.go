package disk_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/disktest"
)

// loopDevice attaches a loop device to a new file of size bytes.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("a block device cannot be made here: %v", err)
	}
	defer ctl.Close()
	backing, err := os.Create(filepath.Join(t.TempDir(), "backing"))
	require.NoError(t, err)
	defer backing.Close()
	require.NoError(t, backing.Truncate(size))
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		require.NoError(t, err)
		path := fmt.Sprintf("/dev/loop%d", n)
		dev, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Skipf("a block device cannot be made here: %v", err)
		}
		err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_FD, int(backing.Fd()))
		if err == unix.EBUSY { // someone was faster
			dev.Close()
			continue
		}
		require.NoError(t, err)
		t.Cleanup(func() {
			if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
				t.Error(err)
			}
			dev.Close()
		})
		return path
	}
}

func TestBlockDeviceConforms(t *testing.T) {
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct=%v", direct), func(t *testing.T) {
			cfg := disk.FileConfig{Direct: direct}
			m := fileMaker("", cfg)
			m.New = func(t *testing.T, size int64) disk.Backend {
				f, err := disk.Open(loopDevice(t, size), cfg)
				require.NoError(t, err)
				return noResize{f, f, f, f}
			}
			disktest.Run(t, m)
		})
	}
}

// noResize hides Resize, which a block device has only to look at its size again.
type noResize struct {
	disk.Backend
	disk.Vectored
	disk.Immediate
	disk.Mapper
}

func TestBlockDeviceClaim(t *testing.T) {
	path := loopDevice(t, 1<<20)
	f, err := disk.Open(path, disk.FileConfig{})
	require.NoError(t, err)
	_, err = disk.Open(path, disk.FileConfig{})
	require.ErrorIs(t, err, disk.ErrLocked)
	require.NoError(t, f.Resize(1<<19))
	require.EqualValues(t, 1<<19, f.Size())
	require.NoError(t, f.Resize(1<<20))
	require.ErrorIs(t, f.Resize(1<<21), disk.ErrRange)
	require.NoError(t, f.Close())
}
