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
	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// hopInit is the init of a guest that writes files, waits for timers and keeps
// a process on each CPU, until it gets a line on its serial port.
const hopInit = `#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc; echo 1 >/proc/sys/kernel/printk; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r m; do insmod "/vmkit/$m"; done </vmkit/modules
until [ -b /dev/vda ]; do usleep 1000; done
mkdir /mnt; mount -t ext4 /dev/vda /mnt || exit
cd /mnt
(read -r line </dev/ttyS0; : >/stop) &
for i in $(seq $(nproc)); do
	(until [ -e /stop ]; do echo $((6 * 7)) | awk '$1 != 42 || $1 / 4 != 10.5 { print "error: wrong sum" }'; usleep 20000; done) &
done
n=0
until [ -e /stop ]; do
	n=$((n + 1))
	dd if=/dev/urandom of=f$n bs=7000 count=$((n % 10 + 1)) conv=fsync 2>/dev/null || exit
	sha256sum f$n >>sums
	usleep 10000
	rm -f f$((n - 20)); sed -i "/ f$((n - 20))\$/d" sums
	echo "wrote $n"
done
wait
sha256sum -c sums >/dev/null && echo "sums hold"
dmesg | grep -i -e 'clocksource.*unstable' -e 'soft lockup' -e 'rcu.*stall' -e 'BUG:' -e 'MP-BIOS'
cd /; umount /mnt && echo "unmounted"
poweroff -f
`

// TestHop: a machine that booted on KVM goes on in software, and back on KVM to
// its end. Linux in it goes on with its processes, timers, console and disk.
func TestHop(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	needSoft(t)
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) { hop(t, cpus, "", vm.EngineKVM, vm.EngineSoft, vm.EngineKVM) })
	}
}

// TestHopUp: a machine that began in software goes on on KVM, in software again,
// and on KVM to its end. It leaves the first when the kernel has measured its
// clocks, set up its timers and started all CPUs; to wait for its init takes
// minutes in a nested host.
func TestHopUp(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	needSoft(t)
	eachCPUs(t, 1, func(t *testing.T, cpus int) { // goes by its TSC, also in a nested host
		hop(t, cpus, "smp: Brought up", vm.EngineSoft, vm.EngineKVM, vm.EngineSoft, vm.EngineKVM)
	})
}

// eachCPUs runs a test with that many CPUs or, where time does not matter, with 1 and 2.
func eachCPUs(t *testing.T, usual int, test func(t *testing.T, cpus int)) {
	counts := []int{usual}
	if os.Getenv("VMKIT_FULL") == "1" {
		counts = []int{1, 2}
	}
	for _, cpus := range counts {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) { test(t, cpus) })
	}
}

// TestUserChips boots on KVM with the interrupt chips in user space, goes on with
// those of the kernel, and ends where it began.
func TestUserChips(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	eachCPUs(t, 2, func(t *testing.T, cpus int) { hop(t, cpus, "", kvmUserChips, vm.EngineKVM, kvmUserChips) })
}

// kvmUserChips is hop's name for KVM with UserChips.
const kvmUserChips = "user chips"

// TestHopSoft is the same without KVM: in software, saved, and in software.
func TestHopSoft(t *testing.T) {
	needSoft(t)
	for _, cpus := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d CPUs", cpus), func(t *testing.T) { hop(t, cpus, "", vm.EngineSoft, vm.EngineSoft, vm.EngineSoft) })
	}
}

// needSoft skips a test that boots Linux in software where that takes too long.
func needSoft(t *testing.T) {
	t.Helper()
	if os.Getenv("VMKIT_EMULATED") == "1" {
		t.Skip("QEMU's emulator makes the engine in software too slow; it is tested without")
	}
	if raceEnabled {
		t.Skip("the race detector makes the engine in software too slow; it is tested without")
	}
}

// hop runs a guest on one engine after the other. It leaves the first when the
// kernel has said the words, if there are any, and each other when three more
// files are written.
func hop(t *testing.T, cpus int, words string, engines ...string) {
	kernel, initrd := diskGuest(t, hopInit)
	path := filepath.Join(t.TempDir(), "image")
	makeExt4(t, path, 32<<20)
	image, err := disk.Open(path, disk.FileConfig{})
	require.NoError(t, err)
	defer image.Close()

	out := new(console)
	defer func() {
		if t.Failed() {
			t.Logf("the guest said:\n%s", out)
		}
	}()
	wrote := func() int { return strings.Count(out.String(), "wrote ") }
	cmdline := "console=ttyS0 panic=-1 quiet"
	if words != "" {
		cmdline = "console=ttyS0 panic=-1 earlyprintk=serial,ttyS0"
	}
	var saved bytes.Buffer
	for i, engine := range engines {
		dev, err := disk.NewDevice(image, disk.Config{Queues: cpus})
		require.NoError(t, err)
		keys, keyboard := io.Pipe()
		cfg := vm.Config{
			CPUs: cpus, Memory: 128 << 20, Engine: engine, Portable: true,
			Serial: vm.Serial{In: keys, Out: out}, Devices: []virtio.Device{dev},
		}
		if engine == kvmUserChips {
			cfg.Engine, cfg.UserChips = vm.EngineKVM, true
		}
		var m *vm.Machine
		if i == 0 {
			cfg.Boot = boot.Linux{Kernel: kernel, Initrd: bytes.NewReader(initrd), Cmdline: cmdline}
			m, err = vm.New(cfg)
		} else {
			m, err = vm.Load(cfg, &saved)
		}
		require.NoError(t, err)
		require.Equal(t, cfg.Engine, m.Engine())
		last := i == len(engines)-1
		before, start := wrote(), time.Now()
		enough := func() bool { return wrote() >= before+3 }
		if i == 0 && words != "" {
			enough = func() bool { return out.has(words) }
		}
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		go func() {
			for !enough() && ctx.Err() == nil {
				time.Sleep(10 * time.Millisecond)
			}
			if last {
				fmt.Fprintln(keyboard, "stop")
			} else {
				cancel()
			}
		}()
		err = m.Run(ctx)
		if last {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, context.Canceled, "on %s, machine %d", engine, i)
			saved.Reset()
			require.NoError(t, m.Save(&saved))
		}
		cancel()
		keyboard.Close()
		require.NoError(t, m.Close())
		t.Logf("%s: it wrote %d files in %v", engine, wrote()-before, time.Since(start).Round(time.Millisecond))
	}
	require.Contains(t, out.String(), "sums hold\n")
	require.Contains(t, out.String(), "unmounted\n")
	require.NotContains(t, out.String(), "error")
	for _, trouble := range []string{"soft lockup", "stall", "BUG:", "MP-BIOS"} {
		require.NotContains(t, out.String(), trouble)
	}
	for n := range wrote() {
		// The terminal's echo of what is typed may come between number and line end.
		require.Regexp(t, fmt.Sprintf(`wrote %d\D`, n+1), out.String())
	}
	require.NoError(t, image.Close())
	e2fsprogs(t, "e2fsck", "-f", "-n", path)
}
