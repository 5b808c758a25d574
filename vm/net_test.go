package vm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/netdev"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// netInit is the init of a guest that has a network and talks over its serial
// port.
const netInit = `#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r m; do insmod "/vmkit/$m"; done </vmkit/modules
until [ -e /sys/class/net/eth0 ]; do usleep 1000; done
ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up
. /vmkit/test
echo "test: exit $?"
poweroff -f
`

// threads runs functions in a network namespace of its own.
type threads struct {
	t  *testing.T
	fd int
}

func newNetwork(t *testing.T) *threads {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and taps need root")
	}
	n := &threads{t: t, fd: -1}
	n.do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(n.fd) })
	return n
}

// do runs f in the namespace, on a thread that ends with it.
func (n *threads) do(f func() error) {
	n.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if n.fd >= 0 {
			if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
				done <- fmt.Errorf("setns: %w", err)
				return
			}
		}
		done <- f()
	}()
	require.NoError(n.t, <-done)
}

// tap makes a tap with the address 10.0.0.1/24.
func (n *threads) tap(cfg netdev.TapConfig) *netdev.Tap {
	n.t.Helper()
	var tap *netdev.Tap
	n.do(func() (err error) {
		if tap, err = netdev.OpenTap(cfg); err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		ifr, err := unix.NewIfreq(tap.Name())
		if err != nil {
			return err
		}
		for _, a := range []struct {
			req  uint
			addr []byte
		}{{unix.SIOCSIFADDR, []byte{10, 0, 0, 1}}, {unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0}}} {
			if err := errors.Join(ifr.SetInet4Addr(a.addr), unix.IoctlIfreq(s, a.req, ifr)); err != nil {
				return err
			}
		}
		ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
	})
	return tap
}

// serve accepts connections on port for as long as the test runs.
func (n *threads) serve(port int, f func(c net.Conn) error) {
	n.t.Helper()
	var l net.Listener
	n.do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", port))
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(5 * time.Minute))
			if err := errors.Join(f(c), c.Close()); err != nil {
				n.t.Errorf("port %d: %v", port, err)
			}
		}
	})
	n.t.Cleanup(func() { l.Close(); wg.Wait() })
}

// console collects the guest's serial output.
type console struct {
	mu   sync.Mutex
	text strings.Builder
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.Write(p)
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.ReplaceAll(c.text.String(), "\r", "")
}

// has reports whether the guest has printed text.
func (c *console) has(text string) bool { return strings.Contains(c.String(), text) }

func netGuest(t *testing.T, dev virtio.Device, cfg vm.Config, script string) (*vm.Machine, *console) {
	t.Helper()
	kvmtest.NeedNative(t, kvmtest.Open(t))
	k, err := debian.FetchKernel(t.Context(), os.Stderr)
	require.NoError(t, err)
	image, err := os.Open(k.Image)
	require.NoError(t, err)
	defer image.Close()
	initrd, err := guest.Initramfs(t.Context(), guest.Config{
		Kernel:  k,
		Modules: []string{"virtio_pci", "virtio_mmio", "virtio_net"},
		Files: map[string]guest.File{
			"init":       {Mode: 0o755, Data: []byte(netInit)},
			"vmkit/test": {Mode: 0o644, Data: []byte(script)},
		},
	})
	require.NoError(t, err)
	out := new(console)
	cfg.Memory = 512 << 20
	cfg.Boot = boot.Linux{Kernel: image, Initrd: bytes.NewReader(initrd), Cmdline: "console=ttyS0 panic=-1 quiet"}
	cfg.Serial = vm.Serial{Out: out}
	cfg.Devices = []virtio.Device{dev}
	m, err := vm.New(cfg)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, m.Close())
		if t.Failed() {
			t.Logf("the guest said:\n%s", out)
		}
	})
	return m, out
}

// TestNetworkTCP passes TCP between a guest and the host's own stack in a
// network namespace, both ways, and pulls the guest's cable.
func TestNetworkTCP(t *testing.T) {
	for _, tt := range []struct {
		name      string
		transport vm.Transport
		queues    int
		cfg       netdev.Config
	}{
		{"pci, two queue pairs", vm.PCI, 2, netdev.Config{MTU: 1400}},
		{"mmio, no offload", vm.MMIO, 1, netdev.Config{NoOffload: netdev.OffloadAll}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kvmtest.NeedNative(t, kvmtest.Open(t))
			n := newNetwork(t)
			tap := n.tap(netdev.TapConfig{Queues: tt.queues})
			t.Cleanup(func() { require.NoError(t, tap.Close()) })
			dev, err := netdev.NewDevice(tap, tt.cfg)
			require.NoError(t, err)
			data := make([]byte, 2<<20)
			_, _ = rand.NewChaCha8([32]byte{7}).Read(data)
			sum := fmt.Sprintf("%x", sha256.Sum256(data))
			var back string
			n.serve(5000, func(c net.Conn) error {
				_, err := c.Write(data)
				return err
			})
			n.serve(5001, func(c net.Conn) error {
				h := sha256.New()
				_, err := io.Copy(h, c)
				back = fmt.Sprintf("%x", h.Sum(nil))
				return err
			})
			m, out := netGuest(t, dev, vm.Config{CPUs: tt.queues, Transport: tt.transport}, `
ping -c 3 10.0.0.1 || exit 1
nc 10.0.0.1 5000 >/data </dev/null
sha256sum </data
nc 10.0.0.1 5001 </data
echo "mtu $(cat /sys/class/net/eth0/mtu) queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)"
echo "mac $(cat /sys/class/net/eth0/address)"
echo ready
until [ "$(cat /sys/class/net/eth0/carrier)" = 0 ]; do usleep 10000; done
echo "link down"
until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do usleep 10000; done
echo "link up"
ping -c 1 10.0.0.1
`)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			go func() {
				for _, step := range []struct {
					text string
					up   bool
				}{{"ready\n", false}, {"link down\n", true}} {
					for !out.has(step.text) && ctx.Err() == nil {
						time.Sleep(10 * time.Millisecond)
					}
					dev.SetLink(step.up)
				}
			}()
			require.NoError(t, m.Run(ctx))
			text := out.String()
			require.Contains(t, text, sum, "received by the guest")
			require.Equal(t, sum, back, "sent by the guest")
			mtu := tt.cfg.MTU
			if mtu == 0 {
				mtu = 1500
			}
			require.Contains(t, text, fmt.Sprintf("mtu %d queues %d\n", mtu, tt.queues))
			require.Contains(t, text, "mac "+dev.MAC().String())
			require.Contains(t, text, "link up\n")
			require.Contains(t, text, "test: exit 0\n")
		})
	}
}

// TestNetworkSaveLoad saves a guest in the middle of a TCP connection and loads
// it on a new tap: the connection goes on, without a line lost.
func TestNetworkSaveLoad(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	n := newNetwork(t)
	const lines = 60
	n.serve(5002, func(c net.Conn) error {
		for i := range lines {
			if _, err := fmt.Fprintf(c, "line %d\n", i); err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond)
		}
		return nil
	})
	tap := n.tap(netdev.TapConfig{})
	t.Cleanup(func() { require.NoError(t, tap.Close()) })
	newDevice := func() *netdev.Device {
		dev, err := netdev.NewDevice(tap, netdev.Config{})
		require.NoError(t, err)
		return dev
	}
	dev := newDevice()
	m, out := netGuest(t, dev, vm.Config{}, "nc 10.0.0.1 5002 </dev/null")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	first, stop := context.WithCancel(ctx)
	go func() {
		for !out.has("line 10\n") && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		stop()
	}()
	require.ErrorIs(t, m.Run(first), context.Canceled)
	require.NoError(t, ctx.Err())
	var saved bytes.Buffer
	require.NoError(t, m.Save(&saved))
	mac := dev.MAC()
	require.NoError(t, m.Close())
	require.False(t, out.has("test: exit"), "saved too late")

	dev = newDevice()
	m, err := vm.Load(vm.Config{Memory: 512 << 20, Devices: []virtio.Device{dev}, Serial: vm.Serial{Out: out}}, &saved)
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Run(ctx))
	require.Equal(t, mac, dev.MAC())
	text := out.String()
	for i := range lines {
		require.Contains(t, text, fmt.Sprintf("line %d\n", i))
	}
	require.Contains(t, text, "test: exit 0\n")
}
