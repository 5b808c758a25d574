package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/vm/boot"
)

// inspect prints how the guest was booted: the number of CPUs online, the boot
// loader's type that the kernel was told (0xb0 comes from the PVH entry), and
// what its virtio devices are attached to. The command itself comes and goes
// over one of those.
const inspect = `
nproc
cat /proc/sys/kernel/bootloader_type
for d in /sys/bus/virtio/devices/*; do
	basename "$(readlink -f "$d/../driver")"
done | sort -u`

// full reports whether to prove everything, as make proofs does, and not what
// fits into a quick test run.
func full() bool { return os.Getenv("VMKIT_FULL") == "1" }

// Debian's kernel as it comes, unpacking itself, and the ELF file in it by
// both of its entries boot over PCI and over MMIO with any number of CPUs. A
// quick run boots each kernel over each transport, and each number twice.
func TestBootMatrix(t *testing.T) {
	needNative(t)
	k, err := debian.FetchKernel(t.Context(), os.Stderr)
	require.NoError(t, err)
	vmlinux := extract(t, k.Image)
	kernels := []struct {
		name   string
		flags  []string
		loader int
	}{
		{"bzImage", []string{"-kernel", k.Image, "-unpack", "guest"}, 0xff},
		{"vmlinux", []string{"-kernel", vmlinux}, 0xff},
		{"pvh", []string{"-kernel", vmlinux, "-protocol", "pvh"}, 0xb0},
	}
	for i, kernel := range kernels {
		for j, transport := range []string{"pci", "mmio"} {
			for n, cpus := range []int{1, 2, 8} {
				if !full() && n != (i+j)%3 {
					continue
				}
				t.Run(fmt.Sprintf("%s-%s-%d", kernel.name, transport, cpus), func(t *testing.T) {
					t.Parallel()
					args := append([]string{"run", "-disk", "none", "-memory", "256M", "-cpus", fmt.Sprint(cpus), "-transport", transport}, kernel.flags...)
					r := run(t, append(args, "--", "sh", "-c", inspect)...)
					require.Equal(t, result{fmt.Sprintf("%d\n%d\nvirtio-%s\n", cpus, kernel.loader, transport), "", 0}, r)
				})
			}
		}
	}
}

// extract unpacks the ELF kernel of a bzImage.
func extract(t *testing.T, image string) string {
	t.Helper()
	in, err := os.Open(image)
	require.NoError(t, err)
	defer in.Close()
	var elf bytes.Buffer
	require.NoError(t, boot.WriteVmlinux(&elf, in))
	path := filepath.Join(t.TempDir(), "vmlinux")
	require.NoError(t, os.WriteFile(path, elf.Bytes(), 0o600))
	return path
}
