// Package agent is the init process of a nested host: it sets the machine up
// (file systems, modules, network), then serves sessions of the wire protocol,
// one on each virtio-serial port.
//
// A program that starts nested hosts carries itself in as their init, so it
// begins with
//
//	func main() {
//		agent.Main() // does not return inside a nested host
//		...
//	}
package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/nestedkvm/wire"
)

// EnvMarker is the variable, set on the nested host's kernel command line,
// that tells an init process that it is to be the agent.
const EnvMarker = "VMKIT_NESTED_AGENT"

// ConfigPath is where the initramfs holds the agent's Config, as JSON.
const ConfigPath = "/etc/vmkit-agent.json"

// PortPrefix begins the names of the agent's virtio-serial ports.
const PortPrefix = "vmkit."

// Config says how to set the machine up.
type Config struct {
	// Modules are paths of kernel modules in load order. A line that ends in
	// " ?" may fail.
	Modules []string `json:"modules"`
	// Ports is the number of virtio-serial ports to serve.
	Ports int `json:"ports"`
	// Mounts are made after the modules are loaded.
	Mounts []Mount `json:"mounts"`
	// Env is the environment of every program.
	Env []string `json:"env"`
}

// Mount is one file system.
type Mount struct {
	Source string `json:"source"`
	Target string `json:"target"`
	Type   string `json:"type"`
	// ReadOnly mounts it so.
	ReadOnly bool `json:"readOnly,omitempty"`
	// Options are the file system's own.
	Options string `json:"options,omitempty"`
}

// Main returns at once unless the process is the init of a nested host; then it
// is the agent until the machine ends, and never returns.
func Main() {
	if os.Getpid() != 1 || os.Getenv(EnvMarker) == "" {
		return
	}
	err := serve()
	fmt.Fprintln(os.Stderr, "vmkit agent:", err)
	unix.Sync()
	// Without -reboot, a restart ends QEMU; the host sees the line above.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	select {}
}

func serve() error {
	var cfg Config
	data, err := os.ReadFile(ConfigPath)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &cfg); err != nil {
		return fmt.Errorf("%s: %w", ConfigPath, err)
	}
	if err := setup(&cfg); err != nil {
		return err
	}
	held, err := holdKVM()
	if err != nil {
		return fmt.Errorf("hold KVM: %w", err)
	}
	defer runtime.KeepAlive(held)
	ports, err := openPorts(cfg.Ports)
	if err != nil {
		return err
	}
	failed := make(chan error, len(ports))
	for i, f := range ports {
		s := &session{id: i, conn: wire.NewConn(f), env: cfg.Env}
		go func() { failed <- fmt.Errorf("port %d: %w", s.id, s.serve()) }()
	}
	// A port that fails is a mistake in the protocol: better no machine than
	// one that does not answer.
	return <-failed
}

// openPorts waits for the virtio-serial ports and opens them in order.
func openPorts(n int) ([]*os.File, error) {
	deadline := time.Now().Add(30 * time.Second)
	files := make([]*os.File, n)
	for missing := n; missing > 0; {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				continue
			}
			var i int
			num, ok := strings.CutPrefix(strings.TrimSpace(string(data)), PortPrefix)
			if _, err := fmt.Sscanf(num, "%d", &i); !ok || err != nil || i < 0 || i >= n || files[i] != nil {
				continue
			}
			// A blocking descriptor: a port knows few of the tricks of the poller.
			dev := "/dev/" + filepath.Base(filepath.Dir(name))
			fd, err := unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				continue // devtmpfs may be later than sysfs
			}
			files[i] = os.NewFile(uintptr(fd), dev)
			missing--
		}
		if missing > 0 {
			if time.Now().After(deadline) {
				return nil, fmt.Errorf("%d of %d virtio-serial ports did not appear", missing, n)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return files, nil
}
