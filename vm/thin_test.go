package vm_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/thin"
	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// A Linux guest writes to a thin disk until its pool is full, twice. It waits
// without an error until the pool has grown, and in the end the file system is
// clean and every file has the content that the guest gave it.
func TestThinPool(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	kernel, initrd := diskGuest(t, mirrorInit) // it discards, too

	const size = 64 << 20
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	makeExt4(t, image, size)

	store, err := disk.Create(filepath.Join(dir, "pool"), 0, disk.FileConfig{})
	require.NoError(t, err)
	defer store.Close()
	const extent = 16 << 10
	require.NoError(t, thin.Format(store, thin.Layout{ExtentSize: extent, Capacity: size}))
	levels := make(chan thin.Event, 64)
	pool, err := thin.Open(store, thin.Config{Notify: func(e thin.Event) {
		select {
		case levels <- e:
		default:
		}
	}})
	require.NoError(t, err)
	require.NoError(t, pool.Create("guest", size))
	// What takes all of the pool but little.
	require.NoError(t, pool.Create("other", size))
	d, err := pool.OpenDisk("guest", thin.DiskConfig{})
	require.NoError(t, err)
	fill(t, d, image)
	other, err := pool.OpenDisk("other", thin.DiskConfig{})
	require.NoError(t, err)
	const room = 3 << 20
	u := pool.Usage()
	taken := (u.Capacity - u.Allocated - room) / extent * extent
	p := bytes.Repeat([]byte{1}, 1<<20)
	for off := int64(0); off < taken; off += int64(len(p)) {
		_, err := other.WriteAt(p[:min(int64(len(p)), taken-off)], off)
		require.NoError(t, err)
	}

	held := make(chan error, 16)
	dev, err := disk.NewDevice(d, disk.Config{Hold: func(e disk.HoldEvent) {
		if e.Held {
			select {
			case held <- e.Err:
			default:
			}
		}
	}})
	require.NoError(t, err)
	out := new(console)
	keys, keyboard := io.Pipe()
	defer keyboard.Close()
	m, err := vm.New(vm.Config{
		Memory:  512 << 20,
		Boot:    boot.Linux{Kernel: kernel, Initrd: bytes.NewReader(initrd), Cmdline: "console=ttyS0 panic=-1 quiet"},
		Serial:  vm.Serial{In: keys, Out: out},
		Devices: []virtio.Device{dev},
	})
	require.NoError(t, err)
	defer m.Close()
	defer func() {
		if t.Failed() {
			t.Logf("the guest said:\n%s", out)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	wrote := func() int { return strings.Count(out.String(), "wrote ") }
	done := make(chan error, 1)
	go func() {
		defer fmt.Fprintln(keyboard, "stop")
		done <- func() error {
			for i := range 2 {
				select {
				case err := <-held:
					t.Logf("full for the %d. time after %d files: %v", i+1, wrote(), err)
				case <-ctx.Done():
					return fmt.Errorf("the pool was never full: %+v", pool.Usage())
				}
				time.Sleep(500 * time.Millisecond)
				before := wrote()
				time.Sleep(time.Second)
				if n := wrote(); n != before {
					return fmt.Errorf("the guest wrote %d files in a full pool", n-before)
				}
				// Either somebody else gives space back, or there is more.
				var err error
				if i == 0 {
					err = other.Discard(0, room)
				} else {
					err = pool.Grow(2 * size)
				}
				if err != nil {
					return err
				}
				for len(held) > 0 {
					<-held
				}
				dev.Retry()
				for wrote() < before+2 && ctx.Err() == nil {
					time.Sleep(10 * time.Millisecond)
				}
			}
			return nil
		}()
	}()
	require.NoError(t, m.Run(ctx))
	cancel() // if the guest has ended too early
	require.NoError(t, <-done)
	require.NoError(t, m.Close())
	require.Contains(t, out.String(), "sums hold\n")
	require.Contains(t, out.String(), "unmounted\n")
	require.NotContains(t, out.String(), "error")
	full := false
	for len(levels) > 0 {
		full = (<-levels).To == thin.Full || full
	}
	require.True(t, full, "nobody was told that the pool was full")

	p = make([]byte, size)
	_, err = d.ReadAt(p, 0)
	require.NoError(t, err)
	require.NoError(t, d.Close())
	require.NoError(t, other.Close())
	require.NoError(t, pool.Close())
	require.NoError(t, os.WriteFile(image, p, 0o600))
	e2fsprogs(t, "e2fsck", "-f", "-n", image)
}

// fill writes what is not zero in a file to a disk.
func fill(t *testing.T, d disk.Backend, path string) {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	zero := make([]byte, 4096)
	for off := 0; off < len(data); off += len(zero) {
		if p := data[off:][:len(zero)]; !bytes.Equal(p, zero) {
			_, err := d.WriteAt(p, int64(off))
			require.NoError(t, err)
		}
	}
	require.NoError(t, d.Flush())
}
