package virtiotest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// Where a Machine puts things.
const (
	MMIOBase  = 0xd000_0000
	BARBase   = 0xc000_0000
	allocBase = 0x10_0000
)

// ErrTimeout is wrapped by errors for something that did not happen in time.
var ErrTimeout = errors.New("timed out")

// Config says how a Machine holds its device.
type Config struct {
	PCI       bool   // PCI transport; otherwise MMIO
	INTx      bool   // give a PCI function an interrupt line, too
	Doorbells bool   // the engine has doorbells
	Memory    uint64 // bytes; 0: 16 MiB
	QueueSize uint16 // of every queue at most; 0: the device's maximum
	Refuse    uint64 // features that the driver does not take
	Prompt    bool   // the inbox wants requests served where they are notified
	Hold      bool   // the inbox holds events back until Inbox.Deliver
	Log       *slog.Logger
}

// Transport is what both transports offer to a machine.
type Transport interface {
	device.Stateful
	Device() virtio.Device
	Pause()
	Resume()
	Reset()
	Close() error
}

// Machine is a device behind a transport, with memory and a driver. Its
// methods play the driver's part and are not safe for concurrent use.
type Machine struct {
	Mem        *memory.Memory
	Bus        device.Bus
	Inbox      Inbox
	Interrupts Interrupts
	Transport  Transport

	// Rings are the queues after Start; Features what was agreed on.
	Rings    []*Ring
	Features uint64

	cfg   Config
	bells doorbells
	regs  registers
	next  uint64
	buf   [8]byte

	borrowed bool // the memory is another machine's
}

// registers is the driver's way to one transport's registers.
type registers interface {
	status() byte
	setStatus(byte)
	features() uint64
	setFeatures(uint64)
	maxSize(q int) uint16
	setQueue(q int, r *Ring)
	enabled(q int) bool
	notify(q int)
	generation() uint32
	config() uint64 // address of the device configuration
	enable()        // make the transport answer, as firmware and bus driver do
}

// New puts dev, not yet attached, into a machine. The machine ends with the test.
func New(t testing.TB, dev virtio.Device, cfg Config) *Machine {
	t.Helper()
	m, err := NewMachine(dev, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// NewMachine puts dev, not yet attached, into a machine, which the caller closes.
func NewMachine(dev virtio.Device, cfg Config) (*Machine, error) {
	if cfg.Memory == 0 {
		cfg.Memory = 16 << 20
	}
	m := &Machine{cfg: cfg, next: allocBase}
	m.Inbox.Hold(cfg.Hold)
	var err error
	if m.Mem, err = memory.New(memory.Config{Size: cfg.Memory}); err != nil {
		return nil, err
	}
	if err := m.attach(dev); err != nil {
		m.Mem.Close()
		return nil, err
	}
	return m, nil
}

func (m *Machine) attach(dev virtio.Device) error {
	m.Inbox.Prompt = m.cfg.Prompt
	host := virtio.Host{Name: "test0", Memory: m.Mem, Inbox: &m.Inbox, Log: m.cfg.Log}
	var bells device.Doorbells
	if m.cfg.Doorbells {
		bells = &m.bells
		if m.cfg.PCI { // both kinds in every test of both transports
			bells = eventDoorbells{&m.bells}
		}
	}
	if m.cfg.PCI {
		cfg := virtio.PCIConfig{Host: host, Bus: &m.Bus, BAR: BARBase, MSI: &m.Interrupts, Doorbells: bells}
		if m.cfg.INTx {
			cfg.Line = &m.Interrupts
		}
		t, err := virtio.NewPCI(dev, cfg)
		if err != nil {
			return err
		}
		m.Transport = t
		m.regs = &pciRegs{m: m, cfg: t.Function()}
	} else {
		t, err := virtio.NewMMIO(dev, virtio.MMIOConfig{
			Host: host, Base: MMIOBase, Line: &m.Interrupts, Doorbells: bells,
		})
		if err != nil {
			return err
		}
		if err := m.Bus.Map(MMIOBase, virtio.MMIOSize, t); err != nil {
			return err
		}
		m.Transport = t
		m.regs = &mmioRegs{m}
	}
	return nil
}

// Successor returns a machine with the same memory and driver, and dev in
// place of m's device, as after a save and load: m's transport must be paused
// and is not used again. Closing the successor leaves the memory to m.
func (m *Machine) Successor(dev virtio.Device) (*Machine, error) {
	n := &Machine{
		Mem: m.Mem, Rings: m.Rings, Features: m.Features,
		cfg: m.cfg, next: m.next, borrowed: true,
	}
	n.Inbox.Hold(m.cfg.Hold)
	if err := n.attach(dev); err != nil {
		return nil, err
	}
	if r, ok := n.regs.(*pciRegs); ok {
		cfg := r.cfg
		*r = *m.regs.(*pciRegs)
		r.m, r.cfg = n, cfg
	}
	return n, nil
}

// Close closes device and memory.
func (m *Machine) Close() error {
	err := m.Transport.Close()
	if m.borrowed {
		return err
	}
	if n := m.bells.len(); n != 0 && err == nil {
		err = fmt.Errorf("%d doorbells left open", n)
	}
	if e := m.Mem.Close(); err == nil {
		err = e
	}
	return err
}

// Read and Write perform an access of 1, 2, 4 or 8 bytes as a CPU would.
func (m *Machine) Read(addr uint64, size int) uint64 {
	b := m.buf[:]
	clear(b)
	m.Bus.Read(addr, b[:size])
	return binary.LittleEndian.Uint64(b)
}

// Write performs a store; a doorbell takes it if one claims it.
func (m *Machine) Write(addr uint64, size int, v uint64) {
	if size < 8 {
		v &= 1<<(8*size) - 1
	}
	if m.bells.take(addr, size, v) {
		return
	}
	b := m.buf[:]
	binary.LittleEndian.PutUint64(b, v)
	m.Bus.Write(addr, b[:size])
}

// Alloc takes n bytes of guest memory, aligned to 4096. It panics when memory
// runs out.
func (m *Machine) Alloc(n uint64) uint64 {
	gpa := m.next
	m.next += (n + 4095) &^ 4095
	if m.next > m.cfg.Memory {
		panic("virtiotest: out of guest memory")
	}
	return gpa
}

// Status and SetStatus access the device status.
func (m *Machine) Status() byte { return m.regs.status() }

// SetStatus writes the device status.
func (m *Machine) SetStatus(v byte) { m.regs.setStatus(v) }

// NumQueues is the number of queues of the device.
func (m *Machine) NumQueues() int { return len(m.Transport.Device().QueueSizes()) }

// Generation is the configuration generation.
func (m *Machine) Generation() uint32 { return m.regs.generation() }

// ReadConfig reads the device configuration, byte by byte.
func (m *Machine) ReadConfig(off uint64, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(m.Read(m.regs.config()+off+uint64(i), 1))
	}
	return p
}

// WriteConfig writes the device configuration with one access.
func (m *Machine) WriteConfig(off uint64, size int, v uint64) {
	m.Write(m.regs.config()+off, size, v)
}

// Reset resets the device as a driver does.
func (m *Machine) Reset() {
	m.SetStatus(0)
	m.Rings = nil
	m.next = allocBase
}

// Negotiate brings the device from reset to FEATURES_OK.
func (m *Machine) Negotiate() error {
	m.regs.enable()
	m.Reset()
	m.SetStatus(virtio.StatusAcknowledge)
	m.SetStatus(virtio.StatusAcknowledge | virtio.StatusDriver)
	m.Features = m.regs.features() &^ m.cfg.Refuse
	m.regs.setFeatures(m.Features)
	const ok = virtio.StatusAcknowledge | virtio.StatusDriver | virtio.StatusFeaturesOK
	m.SetStatus(ok)
	if s := m.Status(); s != ok {
		return fmt.Errorf("status %#x after negotiating %#x", s, m.Features)
	}
	return nil
}

// Start brings the device from reset to DRIVER_OK with all its queues.
func (m *Machine) Start() error {
	if err := m.Negotiate(); err != nil {
		return err
	}
	for q := range m.NumQueues() {
		size := m.regs.maxSize(q)
		if m.cfg.QueueSize != 0 {
			size = min(size, m.cfg.QueueSize)
		}
		r, err := NewRing(m.Mem, m.Alloc(RingBytes(size)), size, m.Features)
		if err != nil {
			return err
		}
		m.Rings = append(m.Rings, r)
		m.regs.setQueue(q, r)
		if !m.regs.enabled(q) {
			return fmt.Errorf("queue %d is not enabled", q)
		}
	}
	m.SetStatus(m.Status() | virtio.StatusDriverOK)
	if s := m.Status(); s&^virtio.StatusDriverOK != virtio.StatusAcknowledge|virtio.StatusDriver|virtio.StatusFeaturesOK {
		return fmt.Errorf("status %#x after DRIVER_OK", s)
	}
	return nil
}

// Notify tells the device of new buffers in queue q.
func (m *Machine) Notify(q int) { m.regs.notify(q) }

// Kick does so if the device wants it.
func (m *Machine) Kick(q int) {
	if m.Rings[q].NeedNotify() {
		m.Notify(q)
	}
}

// WaitUsed waits for the next used entry of queue q.
func (m *Machine) WaitUsed(q int, timeout time.Duration) (head uint16, written uint32, err error) {
	deadline := time.Now().Add(timeout)
	for pause := time.Microsecond; ; pause = min(2*pause, time.Millisecond) {
		if head, n, ok := m.Rings[q].Used1(); ok {
			return head, n, nil
		}
		if time.Now().After(deadline) {
			return 0, 0, fmt.Errorf("queue %d: no used buffer after %v: %w", q, timeout, ErrTimeout)
		}
		time.Sleep(pause)
	}
}

// Do offers one chain on queue q and waits, a minute at most, until it is used.
func (m *Machine) Do(q int, bufs ...Buf) (written uint32, err error) {
	head, err := m.Rings[q].Add(bufs...)
	if err != nil {
		return 0, err
	}
	m.Kick(q)
	got, n, err := m.WaitUsed(q, time.Minute)
	if err == nil && got != head {
		err = fmt.Errorf("queue %d: used head %d, want %d", q, got, head)
	}
	return n, err
}
