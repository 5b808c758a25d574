package virtio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/vm/device"
)

// Device status bits (virtio 1.2, section 2.1).
const (
	StatusAcknowledge = 1
	StatusDriver      = 2
	StatusDriverOK    = 4
	StatusFeaturesOK  = 8
	StatusNeedsReset  = 64
	StatusFailed      = 128
)

// noVector is the vector number for no MSI-X vector (virtio 1.2, section 4.1.4.3).
const noVector = 0xffff

// maxQueues bounds the queues of a device; the notification areas of both
// transports have room for as many.
const maxQueues = 1024

// ErrDevice is wrapped by errors for a device or a transport configuration
// that breaks its contract.
var ErrDevice = errors.New("virtio device")

// ErrState is wrapped by errors for saved state that contradicts itself or the
// device that it is loaded into.
var ErrState = errors.New("saved state")

// wiring is what a transport adds to the common state machine.
type wiring interface {
	// queueInterrupt and configInterrupt tell the driver of used buffers
	// and of a configuration change. They take no lock of core.
	queueInterrupt(queue int)
	configInterrupt()
	// doorbell returns the guest address that notifies a queue. It is
	// called with core.mu held; ok is false while there is none.
	doorbell(queue int) (addr uint64, size int, match *uint64, ok bool)
	// reset clears the interrupt state. It is called with core.mu held.
	reset()
}

// queueRegs are the registers of one queue, as the driver wrote them.
type queueRegs struct {
	Size              uint16
	Enabled           bool
	Desc, Avail, Used uint64
	Vector            uint16 // PCI
}

// core is the transport-independent half of a virtio device: its status, the
// feature negotiation, the queue registers and the life of its queues.
type core struct {
	dev       Device
	host      Host
	wires     wiring
	doorbells device.Doorbells
	release   func() // memory's hold
	maxSizes  []uint16
	offered   uint64
	prompt    bool // see device.Port

	// status is changed with mu held, except that NEEDS_RESET may be set at
	// any time.
	status atomic.Uint32

	// mu guards the registers below and serialises the device's life cycle.
	// It is held while a reset waits for requests in flight, but never
	// wanted by a device or an interrupt on its way out.
	mu             sync.Mutex
	deviceSel      uint32 // device_feature_select
	driverSel      uint32 // driver_feature_select
	driverFeatures uint64
	queueSel       uint16
	queues         []queueRegs
	configVector   uint16 // PCI
	active         bool   // the device is activated
	paused         bool
	closed         bool
	lastConfig     [256]byte // as of the last look at the generation

	// runners is replaced as a whole, on activation and reset.
	runners atomic.Pointer[[]*runner]

	generation atomic.Uint32
	warnings   atomic.Uint32

	configMu      sync.Mutex
	configPaused  bool // hold configuration interrupts back
	configPending bool // one was held back
}

func (t *core) init(dev Device, host Host, d device.Doorbells, w wiring) error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%w %q: %w", ErrDevice, host.Name, fmt.Errorf(format, args...))
	}
	if dev == nil {
		return fail("no device")
	}
	if host.Memory == nil {
		return fail("no memory")
	}
	if host.Log == nil {
		host.Log = slog.New(slog.DiscardHandler)
	}
	t.dev, t.host, t.doorbells, t.wires = dev, host, d, w
	t.host.ConfigChanged = t.configChanged
	t.host.Drain = t.drain
	t.maxSizes = dev.QueueSizes()
	if len(t.maxSizes) == 0 || len(t.maxSizes) > maxQueues {
		return fail("%d queues", len(t.maxSizes))
	}
	for i, n := range t.maxSizes {
		if n == 0 || n&(n-1) != 0 || n > MaxQueueSize {
			return fail("queue %d: size %d", i, n)
		}
	}
	t.offered = dev.Features() | FeatureIndirectDesc | FeatureEventIdx | FeatureVersion1
	t.clearRegs()
	if host.Inbox != nil { // its devices say whether they need one
		port, err := host.Inbox.Open(host.Name+"/queues", nil)
		if err != nil {
			return fail("%w", err)
		}
		t.prompt = port.Prompt()
	}
	release, err := host.Memory.Hold()
	if err != nil {
		return fail("%w", err)
	}
	if err := dev.Attach(&t.host); err != nil {
		release()
		return fail("attach: %w", err)
	}
	t.release = release
	return nil
}

func (t *core) clearRegs() {
	t.status.Store(0)
	t.deviceSel, t.driverSel, t.driverFeatures, t.queueSel = 0, 0, 0, 0
	t.configVector = noVector
	t.queues = make([]queueRegs, len(t.maxSizes))
	for i := range t.queues {
		t.queues[i] = queueRegs{Size: t.maxSizes[i], Vector: noVector}
	}
}

// Device returns the device behind the transport.
func (t *core) Device() Device { return t.dev }

// The register accesses below are called with mu held.

func featureWord(features uint64, sel uint32) uint32 {
	if sel > 1 {
		return 0
	}
	return uint32(features >> (32 * sel))
}

func (t *core) setDriverFeatures(v uint32) {
	if t.status.Load()&StatusFeaturesOK != 0 {
		return
	}
	switch t.driverSel {
	case 0:
		t.driverFeatures = t.driverFeatures&^0xffff_ffff | uint64(v)
	case 1:
		t.driverFeatures = t.driverFeatures&0xffff_ffff | uint64(v)<<32
	}
}

// selected returns the registers of the selected queue, or nil.
func (t *core) selected() *queueRegs {
	if int(t.queueSel) >= len(t.queues) {
		return nil
	}
	return &t.queues[t.queueSel]
}

// settable returns the registers of the selected queue if the driver may
// change them now: after the features are fixed and before the queue or the
// device is live.
func (t *core) settable() *queueRegs {
	s := t.status.Load()
	q := t.selected()
	if q == nil || q.Enabled || s&StatusFeaturesOK == 0 || s&(StatusDriverOK|StatusNeedsReset) != 0 {
		return nil
	}
	return q
}

func setLow(p *uint64, v uint32)  { *p = *p&^0xffff_ffff | uint64(v) }
func setHigh(p *uint64, v uint32) { *p = *p&0xffff_ffff | uint64(v)<<32 }

// statusSteps are the bits that a driver may set, with what must be set
// before (virtio 1.2, section 3.1.1).
var statusSteps = []struct{ bit, need uint32 }{
	{StatusAcknowledge, 0},
	{StatusDriver, StatusAcknowledge},
	{StatusFeaturesOK, StatusAcknowledge | StatusDriver},
	{StatusDriverOK, StatusAcknowledge | StatusDriver | StatusFeaturesOK},
	{StatusFailed, 0},
}

// setStatus is a driver's write to the status register. Zero resets; anything
// else may only add bits, each in its turn.
func (t *core) setStatus(v uint32) {
	if v == 0 {
		t.resetLocked()
		return
	}
	old := t.status.Load()
	for _, s := range statusSteps {
		if v&s.bit == 0 || old&s.bit != 0 {
			continue
		}
		if old&s.need != s.need || old&StatusFailed != 0 {
			t.host.Log.Debug("virtio: illegal status change", "device", t.host.Name, "status", old, "write", v)
			return
		}
		switch s.bit {
		case StatusFeaturesOK:
			if bad := t.driverFeatures &^ t.offered; bad != 0 || t.driverFeatures&FeatureVersion1 == 0 {
				t.host.Log.Debug("virtio: features refused", "device", t.host.Name,
					"offered", t.offered, "wanted", t.driverFeatures)
				return
			}
		case StatusDriverOK:
			if old&StatusNeedsReset != 0 {
				return
			}
			t.status.Or(s.bit)
			if err := t.activate(nil); err != nil {
				t.needsReset(err)
			}
		}
		old = t.status.Or(s.bit) | s.bit
	}
}

// needsReset marks the device as broken until the driver resets it (virtio
// 1.2, section 2.1.2). It may be called from anywhere.
func (t *core) needsReset(err error) {
	old := t.status.Or(StatusNeedsReset)
	if old&StatusNeedsReset != 0 {
		return
	}
	t.warn("virtio: device needs a reset", "error", err)
	if old&StatusDriverOK != 0 {
		t.wires.configInterrupt()
	}
}

// activate builds the enabled queues and starts the device. saved holds the
// queues' positions when a machine is loaded.
func (t *core) activate(saved []queueState) error {
	queues := make([]*Queue, len(t.queues))
	runners := make([]*runner, len(t.queues))
	for i := range t.queues {
		r := &t.queues[i]
		if !r.Enabled {
			continue
		}
		if r.Size > t.maxSizes[i] {
			return fmt.Errorf("%w %d: size %d, at most %d", ErrQueue, i, r.Size, t.maxSizes[i])
		}
		cfg := QueueConfig{
			Memory: t.host.Memory, Index: i, Size: r.Size,
			Desc: r.Desc, Avail: r.Avail, Used: r.Used,
			Features:  t.driverFeatures,
			Interrupt: func() { t.wires.queueInterrupt(i) },
			Broken:    t.needsReset,
			Malformed: t.malformed,
		}
		if saved != nil {
			cfg.Next, cfg.Kept = saved[i].Next, saved[i].Kept
		}
		q, err := NewQueue(cfg)
		if err != nil {
			return err
		}
		queues[i] = q
		runners[i] = newRunner(q, func() { t.dev.Notify(i) }, t.prompt)
	}
	if err := t.dev.Activate(t.driverFeatures, queues); err != nil {
		t.dev.Reset()
		return err
	}
	t.active = true
	t.runners.Store(&runners)
	if !t.paused {
		t.openRunners()
	}
	t.listen()
	return nil
}

func (t *core) malformed(err error) {
	t.warn("virtio: malformed request, further ones on this queue are not logged", "error", err)
}

// maxWarnings is how often a guest can make a transport warn: a log is not
// the guest's to fill.
const maxWarnings = 32

// warn logs what a driver did wrong.
func (t *core) warn(msg string, args ...any) {
	level := slog.LevelWarn
	switch n := t.warnings.Add(1); {
	case n == maxWarnings:
		msg += " (the last warning)"
	case n > maxWarnings:
		t.warnings.Store(maxWarnings)
		level = slog.LevelDebug
	}
	t.host.Log.Log(context.Background(), level, msg, append(args, "device", t.host.Name)...)
}

func (t *core) eachRunner(f func(i int, r *runner)) {
	if rs := t.runners.Load(); rs != nil {
		for i, r := range *rs {
			if r != nil {
				f(i, r)
			}
		}
	}
}

func (t *core) openRunners() { t.eachRunner(func(_ int, r *runner) { r.unshut() }) }
func (t *core) shutRunners() { t.eachRunner(func(_ int, r *runner) { r.shut() }) }

// listen claims the doorbells of all live queues. Where that fails the
// notifications arrive over the bus, slower but complete.
func (t *core) listen() {
	t.eachRunner(func(i int, r *runner) {
		addr, size, match, ok := t.wires.doorbell(i)
		if !ok {
			return
		}
		failed := func(err error) {
			t.warn("virtio: no doorbell", "queue", i, "error", err)
		}
		event := -1
		if w, ok := t.dev.(Waiter); ok {
			event = w.EventFD(i)
		}
		if err := r.listen(t.doorbells, event, addr, size, match, failed); err != nil {
			failed(err)
		}
	})
}

func (t *core) unlisten() { t.eachRunner(func(_ int, r *runner) { r.unlisten() }) }

// ring is a driver's notification that came over the bus.
func (t *core) ring(queue uint32) {
	if rs := t.runners.Load(); rs != nil && queue < uint32(len(*rs)) && (*rs)[queue] != nil {
		(*rs)[queue].ring()
	}
}

// drain is Host.Drain.
func (t *core) drain(queue int) (more bool) {
	rs := t.runners.Load()
	return rs != nil && (*rs)[queue] != nil && (*rs)[queue].drain()
}

// resetLocked returns the device to its initial state. It waits for requests
// in flight.
func (t *core) resetLocked() {
	t.shutRunners()
	t.unlisten()
	t.dev.Reset()
	t.eachRunner(func(_ int, r *runner) { r.queue.kill() })
	t.runners.Store(nil)
	t.active = false
	t.clearRegs()
	t.configMu.Lock()
	t.configPending = false
	t.configMu.Unlock()
	t.wires.reset()
}

// configChanged is Host.ConfigChanged.
func (t *core) configChanged() {
	t.generation.Add(1)
	t.configMu.Lock()
	held := t.configPaused
	t.configPending = t.configPending || held
	t.configMu.Unlock()
	if !held && t.status.Load()&StatusDriverOK != 0 {
		t.wires.configInterrupt()
	}
}

// configGeneration is a driver's read of the generation. The device tells of
// a change only after making it, so compare what the driver could have read
// since the last look: equal generations then always mean an unchanged
// configuration between them (virtio 1.2, section 2.5.3).
func (t *core) configGeneration() uint32 {
	var now [len(t.lastConfig)]byte
	t.dev.ReadConfig(0, now[:])
	if !bytes.Equal(now[:], t.lastConfig[:]) {
		t.lastConfig = now
		return t.generation.Add(1)
	}
	return t.generation.Load()
}

// Yield lets a CPU go on that waits for the device's outside; see Yielder. It
// precedes Pause and Close where a CPU has to be stopped first.
func (t *core) Yield() {
	if y, ok := t.dev.(Yielder); ok {
		y.Yield()
	}
}

// Pause stops notifications between two of them and pauses the device. When
// it returns nothing of the device touches guest memory or interrupts before
// Resume.
func (t *core) Pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.paused || t.closed {
		return
	}
	t.paused = true
	t.shutRunners()
	t.dev.Pause()
	t.eachRunner(func(_ int, r *runner) { r.queue.Publish() })
	t.configMu.Lock()
	t.configPaused = true
	t.configMu.Unlock()
}

// Resume ends Pause and notifies every queue.
func (t *core) Resume() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.paused || t.closed {
		return
	}
	t.paused = false
	t.configMu.Lock()
	pending := t.configPending
	t.configPaused, t.configPending = false, false
	t.configMu.Unlock()
	if pending && t.status.Load()&StatusDriverOK != 0 {
		t.wires.configInterrupt()
	}
	t.dev.Resume()
	t.openRunners()
	t.eachRunner(func(_ int, r *runner) { r.ring() })
}

// Close resets the device and releases what it owns. It waits for the
// device's requests and goroutines. A second Close does nothing.
func (t *core) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.resetLocked()
	t.closed = true
	err := t.dev.Close()
	t.release()
	return err
}
