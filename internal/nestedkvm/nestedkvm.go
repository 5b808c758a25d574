// Package nestedkvm runs programs on a real, mainline KVM where the host has
// none that boots a kernel: it boots Debian's cloud kernel under QEMU's TCG,
// which emulates AMD SVM with nested paging, and loads kvm-amd there.
//
//	func main() {
//		agent.Main() // the same program is the init process inside
//		h, err := nestedkvm.Start(ctx, nestedkvm.Config{Log: os.Stderr})
//		if err != nil {
//			log.Fatal(err)
//		}
//		defer h.Close()
//		err = h.Run(ctx, nestedkvm.Cmd{Path: "ls", Args: []string{"-l", "/dev/kvm"}, Stdout: os.Stdout})
//	}
//
// Programs run as root. Inside there are: busybox's applets, mke2fs, e2fsck,
// debugfs and ip in PATH; /tmp on a scratch disk (ext4); the loopback interface,
// TUN, NBD and vhost-net; and at $VMKIT_CACHE the kernel with its modules and
// busybox, where package debian finds them without a network.
package nestedkvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/vmkit-go/vmkit/internal/nestedkvm/wire"
)

// Errors of a nested host; they are wrapped with the tail of its console where
// that helps.
var (
	// ErrHostDied means that QEMU ended, or that its kernel crashed.
	ErrHostDied = errors.New("nested host died")
	// ErrHostStuck means that the nested host does not answer any more.
	ErrHostStuck = errors.New("nested host does not answer")
	// ErrClosed means that Close was called.
	ErrClosed = errors.New("nested host is closed")
	// ErrBusy means that every one of the host's ports runs a program.
	ErrBusy = errors.New("nested host runs as many programs as it can")
)

// ExitError is the error of a program that ran and failed.
type ExitError struct {
	// Code is the exit status, 0 to 255, if Signal is 0.
	Code int
	// Signal is the number of the signal that ended the program, or 0.
	Signal int
}

// Error says how the program ended.
func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("killed by signal %d", e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// Config describes a nested host. The zero value is usable.
type Config struct {
	// CPUs is the number of processors, 1 to 16; 0 means 2.
	CPUs int
	// Memory is the size of RAM in bytes; 0 means 2 GiB, 512 MiB is the least.
	Memory uint64
	// Scratch is the size in bytes of the sparse disk at /tmp; 0 means 16 GiB.
	Scratch uint64
	// Modules are loaded beside those that are always there.
	Modules []string
	// Programs are programs of the outer machine to have in the inner PATH,
	// with their shared libraries: paths, or names looked for in PATH.
	Programs []string
	// Disks are raw images, or block devices, of the outer machine that the
	// nested host has as block devices: see DiskPath.
	Disks []Disk
	// QEMU carries in qemu-system-x86_64 with what it needs for -accel kvm.
	QEMU bool
	// Init is the program to be the init process; it must call agent.Main
	// first. Empty means the running program.
	Init string
	// Append is added to the kernel's command line.
	Append string
	// BootTimeout bounds the time from the start to a working agent; 0 means 2
	// minutes, which allows for a busy machine.
	BootTimeout time.Duration
	// Log gets progress, Console what the nested kernel prints; nil drops it.
	Log, Console io.Writer
}

// Disk is a raw disk image of the outer machine.
type Disk struct {
	Path     string
	ReadOnly bool
}

// DiskPath is where the nested host has the disk i of Config.Disks. The two
// before them are its own.
func DiskPath(i int) string { return "/dev/vd" + string(rune('c'+i)) }

// Limits of Config.
const (
	maxCPUs    = 16
	maxDisks   = 20
	minMemory  = 512 << 20
	minScratch = 64 << 20
	numPorts   = 8
)

func (c *Config) setDefaults() error {
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if c.Memory == 0 {
		c.Memory = 2 << 30
	}
	if c.Scratch == 0 {
		c.Scratch = 16 << 30
	}
	if c.BootTimeout == 0 {
		c.BootTimeout = 2 * time.Minute
	}
	if c.Log == nil {
		c.Log = io.Discard
	}
	if c.Console == nil {
		c.Console = io.Discard
	}
	switch {
	case len(c.Disks) > maxDisks:
		return fmt.Errorf("nested host: %d disks: at most %d", len(c.Disks), maxDisks)
	case c.CPUs < 1 || c.CPUs > maxCPUs:
		return fmt.Errorf("nested host: %d CPUs: want 1 to %d", c.CPUs, maxCPUs)
	case c.Memory < minMemory:
		return fmt.Errorf("nested host: %d bytes of memory: want at least %d", c.Memory, minMemory)
	case c.Scratch < minScratch:
		return fmt.Errorf("nested host: scratch disk of %d bytes: want at least %d", c.Scratch, minScratch)
	case c.BootTimeout < 0:
		return fmt.Errorf("nested host: boot timeout %v is negative", c.BootTimeout)
	}
	if c.Init == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("nested host: %w", err)
		}
		c.Init = exe
	}
	return nil
}

// Host is a running nested host. Its methods may be called concurrently; up to
// eight programs run at a time.
type Host struct {
	qemu  *qemu
	ports chan *port // idle ports
}

// port is one virtio-serial port with its agent's session.
type port struct{ conn *wire.Conn }

// Start boots a nested host; the caller must Close it. ctx bounds the start
// alone. QEMU also ends when this process dies.
func Start(ctx context.Context, cfg Config) (*Host, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	begin := time.Now()
	q, err := startQEMU(ctx, &cfg)
	if err != nil {
		return nil, fmt.Errorf("nested host: %w", err)
	}
	h := &Host{qemu: q, ports: make(chan *port, numPorts)}
	if err := h.handshake(ctx, cfg.BootTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("nested host: %w", err)
	}
	q.removeFiles()
	fmt.Fprintf(cfg.Log, "nested host is up after %.1f s\n", time.Since(begin).Seconds())
	return h, nil
}

// handshake waits for the agent's greeting on each port.
func (h *Host) handshake(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout,
		fmt.Errorf("%w: no greeting within %v of the start", ErrHostStuck, timeout))
	defer cancel()
	got := make(chan error, 1)
	go func() {
		for i, f := range h.qemu.ports {
			p := &port{conn: wire.NewConn(f)}
			t, _, err := p.conn.Read()
			if err == nil && t != wire.Hello {
				err = fmt.Errorf("%w: greeting is a frame %q", wire.ErrProtocol, t)
			}
			if err != nil {
				got <- err
				return
			}
			if i == numPorts {
				go h.watch(p)
				break
			}
			h.ports <- p
		}
		got <- nil
	}()
	select {
	case err := <-got:
		if err != nil {
			return h.qemu.explain(err)
		}
		return nil
	case <-ctx.Done():
		return h.qemu.explain(context.Cause(ctx))
	case <-h.qemu.exited:
		return h.qemu.explain(ErrHostDied)
	}
}

// Close ends the nested host and everything in it at once, and waits for QEMU's
// end. Programs under way return ErrClosed. Calling it again does nothing.
func (h *Host) Close() error {
	h.qemu.stop()
	return nil
}

// Done is closed when the nested host has ended, by Close or by itself.
func (h *Host) Done() <-chan struct{} { return h.qemu.exited }

// How often the agent is asked whether it lives, and how long it may take to
// answer on a machine that has much else to do.
const (
	pingEvery = 5 * time.Second
	pingLimit = 2 * time.Minute
)

// watch kills a nested host whose agent does not answer any more.
func (h *Host) watch(p *port) {
	answers := make(chan struct{})
	go func() {
		defer close(answers)
		for {
			t, _, err := p.conn.Read()
			if err != nil || t != wire.Pong {
				return
			}
			answers <- struct{}{}
		}
	}()
	defer func() {
		for range answers { // the reader ends with the process
		}
	}()
	for {
		select {
		case <-h.qemu.exited:
			return
		case <-time.After(pingEvery):
		}
		go func() { _ = p.conn.Write(wire.Ping, nil) }()
		select {
		case _, ok := <-answers:
			if !ok {
				return
			}
		case <-time.After(pingLimit):
			h.qemu.kill(fmt.Errorf("%w for %v", ErrHostStuck, pingLimit))
			return
		}
	}
}
