package netdev

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// namespace is a fresh network namespace.
type namespace struct {
	t  testing.TB
	fd int
}

// newNamespace makes a network namespace, or skips the test where that or a tap
// cannot be had.
func newNamespace(t testing.TB) *namespace {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and taps need root")
	}
	if _, err := os.Stat(tunPath); err != nil {
		t.Skipf("no tap interfaces here: %v", err)
	}
	ns := &namespace{t: t}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		ns.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(ns.fd) })
	return ns
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- f()
	}()
	return <-done
}

// do runs f inside of the namespace.
func (ns *namespace) do(f func() error) {
	ns.t.Helper()
	require.NoError(ns.t, onThread(func() error {
		if err := unix.Setns(ns.fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	}))
}

// tap opens a tap in the namespace and gives it an address of 10.0.0.0/24.
func (ns *namespace) tap(cfg TapConfig, host byte) *Tap {
	ns.t.Helper()
	var tap *Tap
	ns.do(func() (err error) {
		if tap, err = OpenTap(cfg); err != nil {
			return err
		}
		return ifup(tap.Name(), host)
	})
	ns.t.Cleanup(func() { require.NoError(ns.t, tap.Close()) })
	return tap
}

// ifup sets an interface's address and brings it up.
func ifup(name string, host byte) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	for _, a := range []struct {
		req  uint
		addr []byte
	}{{unix.SIOCSIFADDR, []byte{10, 0, 0, host}}, {unix.SIOCSIFNETMASK, []byte{255, 255, 255, 0}}} {
		if err := ifr.SetInet4Addr(a.addr); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(s, a.req, ifr); err != nil {
			return err
		}
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr)
}

func (ns *namespace) listen(host byte) net.Listener {
	ns.t.Helper()
	var l net.Listener
	ns.do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf("10.0.0.%d:0", host))
		return err
	})
	ns.t.Cleanup(func() { l.Close() })
	return l
}

func (ns *namespace) dial(network, addr string) net.Conn {
	ns.t.Helper()
	var c net.Conn
	ns.do(func() (err error) {
		c, err = net.Dial(network, addr)
		return err
	})
	ns.t.Cleanup(func() { c.Close() })
	return c
}
