package vm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

const consoleInit = `#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r m; do insmod "/vmkit/$m"; done </vmkit/modules
until [ -c /dev/hvc0 ]; do usleep 1000; done
port() { # the device of a named port
	while :; do
		for d in /sys/class/virtio-ports/*; do
			[ "$(cat $d/name 2>/dev/null)" = "$1" ] && [ -c /dev/${d##*/} ] && echo /dev/${d##*/} && return
		done
		usleep 1000
	done
}
in=$(port in) out=$(port out)
echo "input $(sha256sum <$in)"
cat /vmkit/data >$out
echo "entropy $(dd if=/dev/hwrng bs=512 count=4 2>/dev/null | wc -c)"
exec 3<>/dev/hvc0 # hvc forgets its size when nobody has it open
echo "open"
until [ "$(stty size <&3 2>&1)" = "33 101" ]; do usleep 10000; done
echo "resized"
read -r line <&3
echo "line $line"
echo "said on hvc0" >/dev/hvc0
poweroff -f
`

// TestConsole drives a console with two further ports, and an entropy device,
// with Linux's drivers.
func TestConsole(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	k, err := debian.FetchKernel(t.Context(), os.Stderr)
	require.NoError(t, err)
	data := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(data)
	initrd, err := guest.Initramfs(t.Context(), guest.Config{
		Kernel:  k,
		Modules: []string{"virtio_pci", "virtio_mmio", "virtio_console", "virtio_rng"},
		Files: map[string]guest.File{
			"init":       {Mode: 0o755, Data: []byte(consoleInit)},
			"vmkit/data": {Mode: 0o644, Data: data},
		},
	})
	require.NoError(t, err)
	for _, transport := range []vm.Transport{vm.PCI, vm.MMIO} {
		t.Run(transport.String(), func(t *testing.T) {
			image, err := os.Open(k.Image)
			require.NoError(t, err)
			defer image.Close()
			typed, keyboard := io.Pipe()
			serial, screen, out := new(console), new(console), new(console)
			con, err := virtio.NewConsole(virtio.ConsoleConfig{
				In: typed, Out: screen, Cols: 80, Rows: 25,
				Ports: []virtio.ConsolePort{
					{Name: "in", In: bytes.NewReader(data), CloseAtEOF: true},
					{Name: "out", Out: out},
				},
			})
			require.NoError(t, err)
			rng, err := virtio.NewRNG(virtio.RNGConfig{})
			require.NoError(t, err)
			m, err := vm.New(vm.Config{
				CPUs: 2, Memory: 512 << 20, Transport: transport,
				Boot:    boot.Linux{Kernel: image, Initrd: bytes.NewReader(initrd), Cmdline: "console=ttyS0 panic=-1 quiet"},
				Serial:  vm.Serial{Out: serial},
				Devices: []virtio.Device{con, rng},
			})
			require.NoError(t, err)
			defer func() {
				if t.Failed() {
					t.Logf("the guest said:\n%s", serial)
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			go func() {
				wait := func(text string) {
					for !serial.has(text) && ctx.Err() == nil {
						time.Sleep(10 * time.Millisecond)
					}
				}
				wait("open")
				con.Resize(101, 33)
				wait("resized")
				fmt.Fprintln(keyboard, "hello guest")
				keyboard.Close()
			}()
			require.NoError(t, m.Run(ctx))
			require.NoError(t, m.Close())
			text := serial.String()
			require.Contains(t, text, fmt.Sprintf("input %x", sha256.Sum256(data)))
			require.Contains(t, text, "entropy 2048")
			require.Contains(t, text, "line hello guest")
			require.Contains(t, screen.String(), "said on hvc0")
			require.Equal(t, sha256.Sum256(data), sha256.Sum256([]byte(out.text.String())))
			require.Equal(t, 1, strings.Count(text, "resized"))
		})
	}
}
