package vm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/mirror"
	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// mirrorInit is the init of a guest that writes files until it gets a line on
// its serial port.
const mirrorInit = `#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r m; do insmod "/vmkit/$m"; done </vmkit/modules
until [ -b /dev/vda ]; do usleep 1000; done
mkdir /mnt; mount -t ext4 -o discard /dev/vda /mnt || exit
cd /mnt
(read -r line </dev/ttyS0; : >/stop) &
n=0
until [ -e /stop ]; do
	n=$((n + 1))
	dd if=/dev/urandom of=f$n bs=7000 count=$((n % 40 + 1)) conv=fsync 2>/dev/null || exit
	sha256sum f$n >>sums
	sync
	[ $((n % 5)) != 0 ] || { rm f$((n - 2)); sed -i "/ f$((n - 2))\$/d" sums; fstrim /mnt; }
	[ "$n" -le 100 ] || { rm -f f$((n - 100)); sed -i "/ f$((n - 100))\$/d" sums; } # however long the moves take
	echo "wrote $n"
done
sha256sum -c sums >/dev/null && echo "sums hold"
cd /; umount /mnt && echo "unmounted"
poweroff -f
`

// A Linux guest writes files, removes some and discards their blocks while its
// disk moves twice. It notices nothing, and on the last image the file system is
// clean and every file has the content that the guest gave it.
func TestMirror(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	kernel, initrd := diskGuest(t, mirrorInit)

	const size = 64 << 20
	dir := t.TempDir()
	image := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%d.img", i)) }
	makeExt4(t, image(0), size)

	source, err := disk.Open(image(0), disk.FileConfig{})
	require.NoError(t, err)
	small, err := disk.Create(filepath.Join(dir, "journal"), mirror.JournalSize, disk.FileConfig{})
	require.NoError(t, err)
	defer small.Close()
	journal, err := mirror.OpenJournal(small)
	require.NoError(t, err)
	d, err := mirror.New(source, journal)
	require.NoError(t, err)
	defer d.Close()
	dev, err := disk.NewDevice(d, disk.Config{})
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
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	wrote := func() int { return strings.Count(out.String(), "wrote ") }
	moves := make(chan error, 1)
	go func() {
		defer fmt.Fprintln(keyboard, "stop")
		moves <- func() error {
			for i := range 2 {
				// Some before, some while it copies and some in step.
				more := func() {
					for n := wrote() + 4; wrote() < n && ctx.Err() == nil; {
						time.Sleep(10 * time.Millisecond)
					}
				}
				more()
				old := d.Current()
				target, err := disk.Create(image(i+1), size, disk.FileConfig{})
				if err != nil {
					return err
				}
				v, err := d.Start(ctx, target, mirror.Config{Hold: true, Rate: 4 << 20, Checkpoint: 100 * time.Millisecond})
				if err != nil {
					return err
				}
				more()
				for v.Progress().Phase != mirror.InStep && ctx.Err() == nil {
					time.Sleep(10 * time.Millisecond)
				}
				more()
				v.Finish()
				if err := v.Wait(ctx); err != nil {
					return err
				}
				t.Logf("move %d: %+v", i, v.Progress())
				// Nothing uses the old image, and nothing in it counts.
				if err := old.Close(); err != nil {
					return err
				}
				if err := os.Remove(image(i)); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	require.NoError(t, m.Run(ctx))
	cancel() // if the guest has ended too early
	require.NoError(t, <-moves)
	require.NoError(t, m.Close())
	require.NoError(t, d.Close())
	require.Contains(t, out.String(), "sums hold\n")
	require.Contains(t, out.String(), "unmounted\n")
	require.NotContains(t, out.String(), "error")

	e2fsprogs(t, "e2fsck", "-f", "-n", image(2))
	tree := filepath.Join(dir, "tree")
	require.NoError(t, os.Mkdir(tree, 0o700))
	e2fsprogs(t, "debugfs", "-R", "rdump / "+tree, image(2))
	sums, err := os.ReadFile(filepath.Join(tree, "sums"))
	require.NoError(t, err)
	files := 0
	for line := range strings.Lines(string(sums)) {
		sum, name, ok := strings.Cut(strings.TrimSpace(line), "  ")
		require.True(t, ok, line)
		data, err := os.ReadFile(filepath.Join(tree, name))
		require.NoError(t, err)
		require.Equal(t, sum, fmt.Sprintf("%x", sha256.Sum256(data)), name)
		files++
	}
	require.Greater(t, files, 10)
}
