package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
	"github.com/vmkit-go/vmkit/netdev"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// serialTail is how much of the guest's serial output is kept to be shown
// when it ends badly.
const serialTail = 4 << 10

// defaultDiskSize is the size of the root disk made when none is named.
const defaultDiskSize = 256 << 20

// session is one guest and all that vmm opened for it.
type session struct {
	o       *options
	machine *vm.Machine
	result  guest.Result
	serial  *tail
	term    *terminal // nil: standard input is none, or is a command's
	input   io.Reader // what the user types at an interactive console
	console *virtio.Console
	ctx     context.Context // of the run
	backing []io.Closer     // images and taps, to be closed after the machine
	streams streams
	outputs []*output
	signals *io.PipeWriter // names of signals for the command
	left    bool           // Ctrl-A x was typed
	saveMu  sync.Mutex     // held by save
	saved   string         // the directory that vmm save has filled
	tempDir string         // holds the root disk made for this run
	cancel  context.CancelFunc
}

// close releases everything. All that the guest has written is then passed
// on, however long that takes, or until ctx is done.
func (s *session) close(ctx context.Context) (err error) {
	for _, o := range s.outputs {
		o.end()
	}
	if s.machine != nil {
		err = s.machine.Close()
	}
	for _, c := range s.backing {
		err = errors.Join(err, c.Close())
	}
	err = errors.Join(err, s.streams.Close())
	if s.signals != nil {
		s.signals.Close()
	}
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
	}
	for _, o := range s.outputs {
		o.drain(ctx)
	}
	if s.tempDir != "" {
		err = errors.Join(err, os.RemoveAll(s.tempDir))
	}
	return err
}

// progress is where messages go that a user wants to see while waiting, and
// not mixed up with the output of a command that is quick to run.
func (o *options) progress() io.Writer { return os.Stderr }

// prepare resolves the defaults: a kernel, and a root disk in a temporary
// directory.
func (s *session) prepare(ctx context.Context) (*debian.Kernel, error) {
	kernel, err := debian.FetchKernel(ctx, s.o.progress())
	if err != nil {
		return nil, err
	}
	if s.o.kernel == "" {
		s.o.kernel = kernel.Image
	}
	if s.o.noDisk() {
		s.o.disks = nil
	} else if len(s.o.disks) == 0 && s.o.initrd == "" {
		if s.tempDir, err = os.MkdirTemp("", "vmm-"); err != nil {
			return nil, err
		}
		root := filepath.Join(s.tempDir, "root.img")
		if err := guest.RootDisk(ctx, root, defaultDiskSize, s.o.progress()); err != nil {
			return nil, fmt.Errorf("make a root disk: %w", err)
		}
		s.o.disks = []diskOption{{path: root}}
	}
	return kernel, nil
}

// devices opens everything that the guest is attached to. After an error all
// of it is closed again.
func (s *session) devices() (_ []virtio.Device, err error) {
	var devices []virtio.Device
	defer func() {
		if err != nil {
			for _, d := range devices {
				err = errors.Join(err, d.Close())
			}
		}
	}()
	for _, d := range s.o.disks {
		if d.stream != nil {
			dev, err := s.streamedDevice(d)
			if err != nil {
				return devices, err
			}
			devices = append(devices, dev)
			continue
		}
		image, err := openDisk(s.ctx, d)
		if err != nil {
			return devices, err // it names the disk
		}
		s.backing = append(s.backing, image)
		dev, err := disk.NewDevice(image, disk.Config{ReadOnly: d.readOnly, Queues: min(s.o.cpus, 4)})
		if err != nil {
			return devices, fmt.Errorf("disk %s: %w", d.path, err)
		}
		devices = append(devices, dev)
	}
	for _, n := range s.o.nets {
		tap, err := netdev.OpenTap(netdev.TapConfig{Name: n.tap, Queues: n.queues})
		if err != nil {
			return devices, fmt.Errorf("net: %w", err)
		}
		s.backing = append(s.backing, tap)
		dev, err := netdev.NewDevice(tap, netdev.Config{MAC: n.mac})
		if err != nil {
			return devices, fmt.Errorf("net %s: %w", n.tap, err)
		}
		devices = append(devices, dev)
	}
	if err := s.streams.report(s.o.status, s.o.progressMap); err != nil {
		return devices, err
	}
	if s.console, err = virtio.NewConsole(s.consoleConfig()); err != nil {
		return devices, err
	}
	devices = append(devices, s.console)
	rng, err := virtio.NewRNG(virtio.RNGConfig{})
	if err != nil {
		return devices, err
	}
	return append(devices, rng), nil
}

// streamedDevice attaches a disk that is streamed. What cannot be had for now
// the device holds, so that the guest waits and can still be paused.
func (s *session) streamedDevice(d diskOption) (virtio.Device, error) {
	image, err := s.streams.open(s.ctx, d, false)
	if err != nil {
		return nil, err
	}
	cfg := disk.Config{ReadOnly: d.readOnly, Queues: min(s.o.cpus, 4)}
	if d.stream.fail == 0 {
		cfg.Hold = image.held
	}
	dev, err := disk.NewDevice(image.backend(), cfg)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.path, err)
	}
	image.device.Store(dev)
	return dev, nil
}

// consoleConfig gives a command its streams as ports of their own, and a
// user without a command the console itself.
func (s *session) consoleConfig() virtio.ConsoleConfig {
	signals, w := io.Pipe()
	s.signals = w
	if len(s.o.command) == 0 {
		cols, rows := s.term.size()
		return virtio.ConsoleConfig{
			In: s.input, Out: s.output(os.Stdout), Cols: cols, Rows: rows,
			// Nobody uses this one; but Linux takes the size of the
			// terminal at the start only from a console with ports.
			Ports: []virtio.ConsolePort{{Name: guest.PortSignal, In: signals}},
		}
	}
	return virtio.ConsoleConfig{Ports: []virtio.ConsolePort{
		{Name: guest.PortSignal, In: signals},
		{Name: guest.PortStdin, In: os.Stdin, CloseAtEOF: true},
		{Name: guest.PortStdout, Out: s.output(os.Stdout)},
		{Name: guest.PortStderr, Out: s.output(os.Stderr)},
		{Name: guest.PortExit, Out: &s.result},
	}}
}

// output is the way to one of vmm's own streams. When nobody reads that any
// more the command in the guest hears of it, as it would without a guest
// between.
func (s *session) output(f *os.File) *output {
	o := newOutput(f, func() {
		if len(s.o.command) > 0 {
			go s.signal("PIPE")
		} else {
			s.cancel()
		}
	})
	s.outputs = append(s.outputs, o)
	return o
}

// stopGrace is how long a command may take to end after a signal. Then the
// guest is turned off.
const stopGrace = 10 * time.Second

// signal sends the command in the guest a signal, such as "TERM". If it has
// not ended after some time, the guest does.
func (s *session) signal(name string) {
	timer := time.AfterFunc(stopGrace, s.cancel)
	if _, err := io.WriteString(s.signals, name+"\n"); err != nil {
		timer.Stop() // the session has ended
	}
}

// config is the machine that the options describe, without what it boots.
func (s *session) config() (vm.Config, error) {
	devices, err := s.devices()
	if err != nil {
		return vm.Config{}, err
	}
	cfg := vm.Config{
		CPUs: s.o.cpus, Memory: s.o.memory, Model: s.o.model, Engine: s.o.engine,
		Portable: s.o.portable, UserChips: s.o.userChips, Devices: devices, Transport: s.o.transport, Serial: vm.Serial{Out: s.serial},
		// A command has its result as soon as there is one; a user, and whoever is
		// on the network, lives in the host's time.
		RealTime: len(s.o.command) == 0 || len(s.o.nets) > 0,
	}
	if s.o.verbose {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	return cfg, nil
}

// start makes a machine that boots.
func (s *session) start(ctx context.Context) error {
	kernel, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	image, err := os.Open(s.o.kernel)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	defer image.Close()
	var initrd io.ReaderAt
	if s.o.initrd != "" {
		f, err := os.Open(s.o.initrd)
		if err != nil {
			return fmt.Errorf("initrd: %w", err)
		}
		defer f.Close()
		initrd = f
	} else {
		data, err := guest.Initramfs(ctx, s.guestConfig(kernel))
		if err != nil {
			return fmt.Errorf("make an initramfs: %w", err)
		}
		initrd = bytes.NewReader(data)
	}
	cfg, err := s.config()
	if err != nil {
		return err
	}
	cfg.Boot = boot.Linux{
		Kernel: image, Initrd: initrd, Cmdline: s.cmdline(), Protocol: s.o.protocol, Unpack: s.o.unpack,
	}
	s.machine, err = vm.New(cfg)
	return err
}

func (s *session) guestConfig(kernel *debian.Kernel) guest.Config {
	g := guest.Config{Kernel: kernel, Command: s.o.command, Term: os.Getenv("TERM"), Log: s.o.progress()}
	if len(s.o.disks) > 0 {
		g.Root = "/dev/vda"
		if s.o.disks[0].readOnly {
			g.RootFlags = "ro"
		}
	}
	for _, n := range s.o.nets {
		if n.guest != "" {
			g.Net, g.Gateway = n.guest, n.gateway
			break
		}
	}
	return g
}

func (s *session) cmdline() string {
	line := "console=ttyS0 panic=-1"
	if !s.o.verbose {
		line += " quiet"
	}
	if s.o.append != "" {
		line += " " + s.o.append
	}
	return line
}

// tail keeps the end of what is written to it, and passes it all on to w if
// that is not nil.
type tail struct {
	mu  sync.Mutex
	buf []byte
	w   io.Writer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - serialTail; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.mu.Unlock()
	if t.w != nil {
		return t.w.Write(p)
	}
	return len(p), nil
}

func (t *tail) text() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.buf)
}
