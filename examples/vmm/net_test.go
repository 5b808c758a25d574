package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// inNetwork runs f on a thread in a network namespace of its own, which ends with it.
func inNetwork(t *testing.T, f func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces and taps need root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		done <- f()
	}()
	require.NoError(t, <-done)
}

// makeTap makes a tap that stays, up and with an address of the network 10.0.0.0/24.
func makeTap(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
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
}

// A guest with -net gets its address and reaches the host through the tap.
func TestRunNet(t *testing.T) {
	needNative(t)
	requests := make(chan string, 1)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		requests <- from + " " + r.URL.Path
		fmt.Fprintln(w, "from the host")
	})}
	var out []byte
	inNetwork(t, func() error {
		if err := makeTap("vmm0"); err != nil {
			return fmt.Errorf("tap: %w", err)
		}
		l, err := net.Listen("tcp4", "10.0.0.1:8080")
		if err != nil {
			return err
		}
		go server.Serve(l)
		defer server.Close()
		cmd := command(t, "run", "-net", "tap=vmm0,mac=52:54:00:00:00:07,guest=10.0.0.2/24", "--", "sh", "-c",
			"cat /sys/class/net/eth0/address && wget -qO- http://10.0.0.1:8080/from-the-guest && exit 7")
		cmd.Stderr = os.Stderr
		out, err = cmd.Output() // the process is in this thread's namespace
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 {
			return fmt.Errorf("vmm: %v", err)
		}
		return nil
	})
	require.Equal(t, "52:54:00:00:00:07\nfrom the host\n", string(out))
	require.Equal(t, "10.0.0.2 /from-the-guest", <-requests)
}
