// Package vm assembles a machine: CPUs of an engine, guest memory, the
// platform's chips, virtio devices on PCI or MMIO, and the inbox between them
// and the outside. It boots, pauses, saves and loads it.
//
//	m, err := vm.New(vm.Config{
//		CPUs:    2,
//		Memory:  512 << 20,
//		Boot:    boot.Linux{Kernel: kernel, Initrd: initrd, Cmdline: "console=ttyS0"},
//		Serial:  vm.Serial{Out: os.Stdout},
//		Devices: []virtio.Device{disk},
//	})
//	if err != nil {
//		return err
//	}
//	defer m.Close()
//	err = m.Run(ctx) // nil when the guest powered itself off
package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/vmkit-go/vmkit/internal/inbox"
	"github.com/vmkit-go/vmkit/internal/pci"
	"github.com/vmkit-go/vmkit/internal/serial"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// MaxCPUs is the most CPUs a machine can have.
const MaxCPUs = 254

// MinMemory is the least guest memory, in bytes, that a machine can have. A
// stock Linux kernel needs about a hundred times as much.
const MinMemory = 1 << 20

// Transport is how a machine's virtio devices are attached.
type Transport uint8

// The transports. PCI with MSI-X is the default.
const (
	PCI Transport = iota
	MMIO
)

// String returns the transport's name.
func (t Transport) String() string {
	if t == MMIO {
		return "mmio"
	}
	return "pci"
}

// Serial connects the machine's serial port (COM1, ttyS0) to the outside.
// Either side may be nil: no input, or output thrown away.
type Serial struct {
	In  io.Reader
	Out io.Writer
}

// Config describes a machine. New validates it once; fields it leaves zero
// have the defaults stated.
type Config struct {
	// CPUs is the number of virtual CPUs, 1 to MaxCPUs. Default 1.
	CPUs int
	// Memory is the guest's memory in bytes, a multiple of 4096. Default 256 MiB.
	Memory uint64
	// HugePages backs guest memory with the host's reserved 2 MiB pages.
	HugePages bool
	// Model is the CPU model the guest sees. Default: the host's.
	Model vcpu.Model
	// Engine names the engine that runs the CPUs: EngineKVM, EngineSoft, or
	// EngineAuto, which is the default.
	Engine string
	// Portable hides from the guest what not every engine can give, such as
	// KVM's own clock, so that it may go on, after Save and Load, on another
	// engine than it booted on. The default Model is then x86-64-v2. A machine
	// that begins in software finds the CPUID and TSC frequency of this host's
	// KVM then, if that runs kernel code, and so is not the same on every host.
	Portable bool
	// UserChips has the interrupt chips and timers in user space on KVM, as they
	// are on the soft engine, and not in the kernel. It is slower: an access to
	// them is an exit, and so is HLT.
	UserChips bool
	// StartTime is the time of day that the guest finds when the machine is
	// made, or loaded, for runs that are to repeat themselves. Default: the
	// host's.
	StartTime time.Time
	// RealTime makes the soft engine keep pace with the host's clock, as a
	// guest wants whose user is a person. Otherwise a guest that waits for a
	// timer has its time go on at once. On KVM time is real always.
	RealTime bool
	// Boot puts the first program into memory. New needs it, Load ignores it.
	Boot boot.Loader
	// Devices are attached in order. The machine owns and closes them, also
	// when New or Load fails.
	Devices []virtio.Device
	// Transport attaches the devices.
	Transport Transport
	Serial    Serial
	// Log receives what an operator should know. Default: nothing.
	Log *slog.Logger

	// engine, if not nil, makes the engine: for tests of this package.
	engine func(*memory.Memory, Config, vcpu.CPUID) (vcpu.Engine, error)
}

// validate fills in defaults and refuses what no machine can be.
func (c *Config) validate() error {
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Memory == 0 {
		c.Memory = 256 << 20
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	switch {
	case c.CPUs < 0 || c.CPUs > MaxCPUs:
		return fmt.Errorf("%d CPUs: a machine has 1 to %d", c.CPUs, MaxCPUs)
	case c.Memory < MinMemory:
		return fmt.Errorf("%d bytes of memory: a machine needs at least %d", c.Memory, MinMemory)
	case c.Memory%memory.PageSize != 0:
		return fmt.Errorf("%d bytes of memory: not a multiple of %d", c.Memory, memory.PageSize)
	case c.Transport > MMIO:
		return fmt.Errorf("unknown transport %d", c.Transport)
	}
	for i, d := range c.Devices {
		if d == nil {
			return fmt.Errorf("device %d is nil", i)
		}
	}
	return nil
}

// Machine is a virtual machine. Its methods may be called from any goroutine;
// Run may be called by one at a time.
type Machine struct {
	cfg     Config
	log     *slog.Logger
	mem     *memory.Memory
	engine  vcpu.Engine
	inbox   device.Inbox
	clock   device.Clock
	start   time.Time // the time of day when clock was zero, or zero: the host's
	ports   device.Bus
	mmio    device.Bus
	pci     *pci.Bus
	parts   []part // everything that is saved, in order
	slots   []slot // the virtio devices
	cpus    []vcpu.CPU
	loops   []*vcpu.Loop // one for each CPU, or one for runner
	closers []io.Closer
	serial  *serial.UART
	power   func() // presses the power button

	engineName string
	// Where the engine's CPUs take turns: what runs them all, and the inbox.
	runner vcpu.CPU
	turns  *inbox.Turns

	// mu orders Run, Pause, Resume, Save and Close.
	mu      sync.Mutex
	state   runState
	running bool // Run is waiting
	closed  bool

	life    context.Context // ends with Close
	kill    context.CancelFunc
	started bool // the loops' goroutines run
	serving sync.WaitGroup

	// end is how the guest ended; done is closed once it is set.
	endOnce sync.Once
	end     error
	done    chan struct{}
}

// part is one named thing with state.
type part struct {
	name string
	dev  device.Stateful
}

// New makes a machine and loads its first program. The guest runs once Run is
// called.
func New(cfg Config) (*Machine, error) {
	if cfg.Boot == nil {
		return nil, errors.Join(errors.New("vm: nothing to boot: Config.Boot is nil"), closeDevices(cfg.Devices))
	}
	m, err := build(cfg, nil, cfg.Boot)
	if err != nil {
		return nil, fmt.Errorf("vm: %w", err)
	}
	return m, nil
}

// build makes a machine with what boot loads in its memory, or with nothing if
// that is nil. The devices belong to it from here on: after an error they are
// closed.
func build(cfg Config, cpuid vcpu.CPUID, boot boot.Loader) (_ *Machine, err error) {
	m := &Machine{done: make(chan struct{})}
	m.life, m.kill = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close(), closeDevices(cfg.Devices[len(m.slots):]))
		}
	}()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m.cfg, m.log = cfg, cfg.Log
	// Anonymous, since only that gets transparent huge pages by default.
	m.mem, err = memory.New(memory.Config{Size: cfg.Memory, HugePages: cfg.HugePages, Anonymous: true})
	if err != nil {
		return nil, err
	}
	if boot != nil {
		// Unpacking a kernel takes CPUs, and setting up KVM waits for the
		// host's kernel: do both at once.
		enter := m.load(boot)
		defer func() {
			if e := enter(err == nil); err == nil {
				err = e
			}
		}()
	}
	if err := m.addEngine(cpuid); err != nil {
		return nil, err
	}
	if err := m.addPlatform(); err != nil {
		return nil, err
	}
	if err := m.addBus(); err != nil {
		return nil, err
	}
	for _, d := range cfg.Devices {
		if err := m.attach(d); err != nil {
			return nil, err
		}
	}
	if err := m.addCPUs(); err != nil {
		return nil, err
	}
	// A machine that has not run is as good as paused: it can be saved.
	for _, p := range m.parts {
		if c, ok := p.dev.(pauser); ok {
			c.Pause()
		}
	}
	return m, nil
}

func closeDevices(devices []virtio.Device) (err error) {
	for _, d := range devices {
		if d != nil {
			err = errors.Join(err, d.Close())
		}
	}
	return err
}

// Close ends the guest, if it runs, and releases everything the machine owns,
// devices included. A second Close does nothing.
func (m *Machine) Close() (err error) {
	m.finish(ErrClosed)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	// CPUs first: after that no one calls into a device but its own goroutines.
	m.kill()
	m.yield()
	for _, l := range m.loops {
		l.Stop()
	}
	m.serving.Wait()
	if m.turns != nil {
		m.turns.Pause() // the engine delivers no more
	}
	for _, s := range m.slots {
		err = errors.Join(err, s.transport.Close())
	}
	for _, c := range m.closers {
		err = errors.Join(err, c.Close())
	}
	for _, c := range m.cpus {
		err = errors.Join(err, c.Close())
	}
	if m.engine != nil {
		err = errors.Join(err, m.engine.Close())
	}
	if m.mem != nil {
		err = errors.Join(err, m.mem.Close())
	}
	return err
}

// Memory is the guest's memory, valid until Close. While the guest runs on EngineSoft,
// nobody but its devices may write where it may have code: pause the machine for that.
func (m *Machine) Memory() *memory.Memory { return m.mem }
