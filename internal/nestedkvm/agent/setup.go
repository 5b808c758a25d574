package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where the agent mounts the cgroup tree; each program runs in a
// group of its own, so that all of its processes can be killed.
const cgroupRoot = "/sys/fs/cgroup"

func setup(cfg *Config) error {
	for _, m := range []Mount{
		{Source: "proc", Target: "/proc", Type: "proc"},
		{Source: "sysfs", Target: "/sys", Type: "sysfs"},
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs"},
		{Source: "devpts", Target: "/dev/pts", Type: "devpts", Options: "ptmxmode=0666"},
		{Source: "tmpfs", Target: "/dev/shm", Type: "tmpfs"},
		{Source: "tmpfs", Target: "/run", Type: "tmpfs"},
		{Source: "hugetlbfs", Target: "/dev/hugepages", Type: "hugetlbfs"},
		{Source: "cgroup2", Target: cgroupRoot, Type: "cgroup2"},
		{Source: "debugfs", Target: "/sys/kernel/debug", Type: "debugfs"},
	} {
		if err := mount(m); err != nil {
			return err
		}
	}
	for old, name := range map[string]string{
		"/proc/self/fd": "/dev/fd", "/proc/self/fd/0": "/dev/stdin",
		"/proc/self/fd/1": "/dev/stdout", "/proc/self/fd/2": "/dev/stderr",
	} {
		if err := os.Symlink(old, name); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	for _, line := range cfg.Modules {
		path, optional := strings.CutSuffix(line, " ?")
		if err := loadModule(path); err != nil {
			if !optional {
				return fmt.Errorf("load %s: %w", path, err)
			}
			fmt.Fprintf(os.Stderr, "vmkit agent: load %s: %v\n", path, err)
		}
	}
	for _, m := range cfg.Mounts {
		if err := mountDisk(m); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte("nested")); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := os.MkdirAll("/tmp", 0o755); err != nil {
		return err
	}
	if err := os.Chmod("/tmp", os.ModeSticky|0o777); err != nil {
		return err
	}
	return loopbackUp()
}

func mount(m Mount) error {
	if err := os.MkdirAll(m.Target, 0o755); err != nil {
		return err
	}
	var flags uintptr
	if m.ReadOnly {
		flags = unix.MS_RDONLY
	}
	if err := unix.Mount(m.Source, m.Target, m.Type, flags, m.Options); err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", m.Source, m.Type, m.Target, err)
	}
	return nil
}

// mountDisk mounts a block device, which it waits for: a driver finds its
// devices a moment after it is loaded. A source serial=NAME is the virtio disk
// with that serial number.
func mountDisk(m Mount) error {
	deadline := time.Now().Add(30 * time.Second)
	serial, bySerial := strings.CutPrefix(m.Source, "serial=")
	for {
		if bySerial {
			if dev := diskBySerial(serial); dev != "" {
				m.Source = dev
			}
		}
		if _, err := os.Stat(m.Source); err == nil {
			return mount(m)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("disk %s did not appear", m.Source)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func diskBySerial(serial string) string {
	files, _ := filepath.Glob("/sys/block/*/serial")
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.TrimRight(string(data), "\x00\n") == serial {
			return "/dev/" + filepath.Base(filepath.Dir(f))
		}
	}
	return ""
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// loopbackUp sets IFF_UP on lo, which gives it its addresses.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	if _, err := net.InterfaceByName("lo"); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
