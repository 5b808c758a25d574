package vm_test

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
)

func TestBootLinux(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	k, err := debian.FetchKernel(ctx, os.Stderr)
	require.NoError(t, err)
	image, err := os.Open(k.Image)
	require.NoError(t, err)
	defer image.Close()
	initrd, err := guest.Initramfs(ctx, guest.Config{Kernel: k})
	require.NoError(t, err)
	m, err := vm.New(vm.Config{
		Memory:    512 << 20,
		Transport: vm.MMIO,
		Boot:      boot.Linux{Kernel: image, Initrd: bytes.NewReader(initrd), Cmdline: "console=ttyS0 panic=-1"},
		Serial:    vm.Serial{Out: os.Stderr},
	})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Run(ctx))
}
