package virtio

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"github.com/vmkit-go/vmkit/internal/pci"
	"github.com/vmkit-go/vmkit/vm/device"
)

// PCIBARSize is the size in bytes, and alignment, of the one memory BAR of a
// [PCI] transport.
const PCIBARSize = 0x8000

// Layout of the BAR: one page for each structure, so that a guest may map
// them apart, and two for up to 2048 queues' notification addresses.
const (
	barCommon = 0x0000
	barISR    = 0x1000
	barDevice = 0x2000
	barTable  = 0x3000
	barPBA    = 0x4000
	barNotify = 0x6000

	commonSize    = 60
	notifySpacing = 4 // notify_off_multiplier

	// A page holds the table of so many vectors. Queues beyond share the last.
	maxPCIVectors = 256

	pciBAR = 0 // index; 64 bits wide, so 1 is its upper half
)

// Vendor capability types (virtio 1.2, section 4.1.4).
const (
	pciCapCommon = 1
	pciCapNotify = 2
	pciCapISR    = 3
	pciCapDevice = 4
	pciCapConfig = 5
)

// PCIConfig places a device behind the PCI transport.
type PCIConfig struct {
	// Host names the device and its surroundings. Name and Memory are
	// required, Inbox if the device needs it; ConfigChanged is filled in.
	Host Host
	// Bus is the bus of guest-physical addresses. The transport maps its
	// BAR there when the guest enables it, and moves it. Required.
	Bus *device.Bus
	// BAR is the address assigned to the BAR before the guest starts, a
	// multiple of PCIBARSize, or 0 to leave that to the guest.
	BAR uint64
	// MSI sends the device's interrupts. Required.
	MSI device.MSI
	// Line, if not nil, is the device's INTA#, for drivers without MSI-X,
	// and InterruptLine its number for the guest.
	Line          device.Line
	InterruptLine uint8
	// Doorbells, if not nil, take notifications off the CPUs.
	Doorbells device.Doorbells
}

// PCI is a device behind the PCI transport, modern interface only (virtio
// 1.2, section 4.1), with MSI-X. All methods may be called from any goroutine,
// but Save and Load only between Pause and Resume.
type PCI struct {
	core
	fn   *pci.Function
	msix *pci.MSIX
	irq  irqLine // INTx and the ISR status
	bus  *device.Bus

	barAddr uint64 // where it is mapped; 0: nowhere. Guarded by core.mu

	// Copies of the vector registers that interrupts read without a lock.
	configVec atomic.Uint32
	queueVec  []atomic.Uint32
}

var (
	_ device.Handler  = (*PCI)(nil)
	_ device.Stateful = (*PCI)(nil)
)

// pciClasses are the class codes of this module's device types, as drivers'
// and users' tools know them; others are "unclassified".
var pciClasses = map[Type]uint32{
	TypeNet:     0x020000,
	TypeBlock:   0x018000,
	TypeConsole: 0x078000,
}

// NewPCI attaches dev to its machine. The caller closes the transport, which
// closes the device; on an error the device is the caller's still.
func NewPCI(dev Device, cfg PCIConfig) (*PCI, error) {
	if cfg.Bus == nil || cfg.MSI == nil {
		return nil, fmt.Errorf("%w %q: no bus or no MSI", ErrDevice, cfg.Host.Name)
	}
	if dev == nil {
		return nil, fmt.Errorf("%w %q: no device", ErrDevice, cfg.Host.Name)
	}
	typ := dev.Type()
	class, ok := pciClasses[typ]
	if !ok {
		class = 0xff0000
	}
	h := pci.Header{
		Vendor: 0x1af4, Device: 0x1040 + uint16(typ), Revision: 1,
		SubsystemVendor: 0x1af4, SubsystemDevice: 0x1100, Class: class,
	}
	if cfg.Line != nil {
		h.InterruptPin, h.InterruptLine = 1, cfg.InterruptLine
	}
	p := &PCI{fn: pci.NewFunction(h), bus: cfg.Bus}
	p.irq.line = cfg.Line
	if err := p.layOut(len(dev.QueueSizes()), cfg); err != nil {
		return nil, fmt.Errorf("%w %q: %w", ErrDevice, cfg.Host.Name, err)
	}
	if err := p.init(dev, cfg.Host, cfg.Doorbells, p); err != nil {
		return nil, err
	}
	return p, nil
}

// layOut builds the configuration space.
func (p *PCI) layOut(queues int, cfg PCIConfig) error {
	err := p.fn.AddBAR(pciBAR, pci.BAR{Size: PCIBARSize, Addr: cfg.BAR, Is64: true, Move: p.moveBAR})
	if err != nil {
		return err
	}
	p.fn.OnCommand(func(command uint16) { p.irq.disable(command&pci.CommandINTxDisable != 0) })
	p.msix, err = pci.NewMSIX(p.fn, cfg.MSI, min(queues+1, maxPCIVectors), pciBAR, barTable, barPBA)
	if err != nil {
		return err
	}
	p.queueVec = make([]atomic.Uint32, queues)
	p.syncVectors(nil)

	// virtio 1.2, section 4.1.4: cap_len, cfg_type, bar, id, padding,
	// offset, length after the common two bytes.
	for _, c := range []struct {
		typ            byte
		offset, length uint32
		extra          []byte
	}{
		{pciCapCommon, barCommon, commonSize, nil},
		{pciCapNotify, barNotify, uint32(queues) * notifySpacing, []byte{notifySpacing, 0, 0, 0}},
		{pciCapISR, barISR, 1, nil},
		{pciCapDevice, barDevice, 0x1000, nil},
	} {
		if _, err := p.fn.AddCapability(pci.CapVendor, vendorCap(c.typ, c.offset, c.length, c.extra), nil, nil, nil); err != nil {
			return err
		}
	}
	// Section 4.1.4.9: bar, offset, length and the data are writable.
	body := vendorCap(pciCapConfig, 0, 0, make([]byte, 4))
	wmask := make([]byte, len(body))
	wmask[2] = 0xff
	for i := 6; i < len(wmask); i++ {
		wmask[i] = 0xff
	}
	var at int
	at, err = p.fn.AddCapability(pci.CapVendor, body, wmask,
		func(off int, b []byte) { p.windowRead(at, off, b) },
		func(off int, b []byte) { p.windowWrite(at, off, b) })
	return err
}

func vendorCap(typ byte, offset, length uint32, extra []byte) []byte {
	b := make([]byte, 14, 18)
	b[0] = byte(16 + len(extra))
	b[1] = typ
	b[2] = pciBAR
	binary.LittleEndian.PutUint32(b[6:], offset)
	binary.LittleEndian.PutUint32(b[10:], length)
	return append(b, extra...)
}

// Function is the PCI function, to be put on a bus.
func (p *PCI) Function() *pci.Function { return p.fn }

// windowData is where the data of the configuration access window lies in its
// capability.
const windowData = 16

// window returns the BAR access that the configuration access capability at
// offset at describes now. The configuration space is locked.
func (p *PCI) window(at int) (off uint64, n int, ok bool) {
	c := p.fn.Locked(at, windowData)
	off = uint64(binary.LittleEndian.Uint32(c[8:]))
	length := binary.LittleEndian.Uint32(c[12:])
	if c[4] != pciBAR || length != 1 && length != 2 && length != 4 || off%uint64(length) != 0 || off+uint64(length) > PCIBARSize {
		return 0, 0, false
	}
	return off, int(length), true
}

func (p *PCI) windowRead(at, off int, b []byte) {
	if off >= windowData+4 || off+len(b) <= windowData {
		return
	}
	boff, n, ok := p.window(at)
	if !ok {
		return
	}
	var data [4]byte
	p.Read(boff, data[:n])
	for i := range b {
		if j := off + i - windowData; j >= 0 && j < n {
			b[i] = data[j]
		}
	}
}

func (p *PCI) windowWrite(at, off int, b []byte) {
	if off >= windowData+4 || off+len(b) <= windowData {
		return
	}
	if boff, n, ok := p.window(at); ok {
		var data [4]byte
		copy(data[:], p.fn.Locked(at+windowData, 4))
		p.Write(boff, data[:n])
	}
}

// moveBAR follows the guest's BAR and command registers. It runs with the
// configuration space locked.
func (p *PCI) moveBAR(addr uint64, mapped bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if mapped {
		if err := p.bus.Map(addr, PCIBARSize, p); err != nil {
			p.warn("virtio: BAR not mapped", "error", err)
			return
		}
		p.barAddr = addr
	} else {
		if p.barAddr == 0 {
			return
		}
		p.bus.Unmap(p.barAddr)
		p.barAddr = 0
	}
	p.shutRunners()
	p.unlisten()
	p.listen()
	if !p.paused {
		p.openRunners()
		p.eachRunner(func(_ int, r *runner) { r.ring() })
	}
}

func (p *PCI) doorbell(queue int) (addr uint64, size int, match *uint64, ok bool) {
	return p.barAddr + barNotify + uint64(queue)*notifySpacing, 2, nil, p.barAddr != 0
}

// Read answers a guest read of the BAR.
func (p *PCI) Read(off uint64, b []byte) {
	clear(b)
	page := off &^ 0xfff
	off &= 0xfff
	switch page {
	case barCommon:
		p.readCommon(off, b)
	case barISR:
		if off == 0 {
			b[0] = byte(p.irq.lower(^uint32(0)))
		}
	case barDevice:
		p.mu.Lock()
		p.dev.ReadConfig(uint32(off), b)
		p.mu.Unlock()
	case barTable:
		p.msix.ReadTable(off, b)
	case barPBA:
		p.msix.ReadPending(off, b)
	}
}

// Write performs a guest write to the BAR.
func (p *PCI) Write(off uint64, b []byte) {
	if off >= barNotify {
		p.ring(uint32(off-barNotify) / notifySpacing)
		return
	}
	page := off &^ 0xfff
	off &= 0xfff
	switch page {
	case barCommon:
		p.mu.Lock()
		if !p.closed {
			p.writeCommon(off, b)
		}
		p.mu.Unlock()
	case barDevice:
		p.mu.Lock()
		p.dev.WriteConfig(uint32(off), b)
		p.mu.Unlock()
	case barTable:
		p.msix.WriteTable(off, b)
	}
}

// Offsets in the common configuration structure (virtio 1.2, section 4.1.4.3).
const (
	comDeviceFeatureSelect = 0
	comDeviceFeature       = 4
	comDriverFeatureSelect = 8
	comDriverFeature       = 12
	comConfigVector        = 16
	comNumQueues           = 18
	comStatus              = 20
	comGeneration          = 21
	comQueueSelect         = 22
	comQueueSize           = 24
	comQueueVector         = 26
	comQueueEnable         = 28
	comQueueNotifyOff      = 30
	comQueueDesc           = 32
	comQueueDriver         = 40
	comQueueDevice         = 48
)

// readCommon reads the structure from an image of it, whatever the width.
func (p *PCI) readCommon(off uint64, b []byte) {
	if off >= commonSize {
		return
	}
	var img [commonSize]byte
	le := binary.LittleEndian
	p.mu.Lock()
	le.PutUint32(img[comDeviceFeatureSelect:], p.deviceSel)
	le.PutUint32(img[comDeviceFeature:], featureWord(p.offered, p.deviceSel))
	le.PutUint32(img[comDriverFeatureSelect:], p.driverSel)
	le.PutUint32(img[comDriverFeature:], featureWord(p.driverFeatures, p.driverSel))
	le.PutUint16(img[comConfigVector:], p.configVector)
	le.PutUint16(img[comNumQueues:], uint16(len(p.queues)))
	img[comStatus] = byte(p.status.Load())
	if off <= comGeneration && off+uint64(len(b)) > comGeneration {
		img[comGeneration] = byte(p.configGeneration())
	}
	le.PutUint16(img[comQueueSelect:], p.queueSel)
	if q := p.selected(); q != nil {
		le.PutUint16(img[comQueueSize:], q.Size)
		le.PutUint16(img[comQueueVector:], q.Vector)
		if q.Enabled {
			img[comQueueEnable] = 1
		}
		le.PutUint16(img[comQueueNotifyOff:], p.queueSel)
		le.PutUint64(img[comQueueDesc:], q.Desc)
		le.PutUint64(img[comQueueDriver:], q.Avail)
		le.PutUint64(img[comQueueDevice:], q.Used)
	} else {
		le.PutUint16(img[comQueueVector:], noVector)
	}
	p.mu.Unlock()
	copy(b, img[off:])
}

// writeCommon takes a write of a field in its own width, 64-bit fields also
// in halves; other writes are dropped (section 4.1.3.1).
func (p *PCI) writeCommon(off uint64, b []byte) {
	switch len(b) {
	case 1:
		if off == comStatus {
			p.setStatus(uint32(b[0]))
		}
	case 2:
		p.writeCommon16(off, binary.LittleEndian.Uint16(b))
	case 4:
		p.writeCommon32(off, binary.LittleEndian.Uint32(b))
	case 8:
		switch off {
		case comQueueDesc, comQueueDriver, comQueueDevice:
			p.writeCommon32(off, binary.LittleEndian.Uint32(b))
			p.writeCommon32(off+4, binary.LittleEndian.Uint32(b[4:]))
		}
	}
}

func (p *PCI) writeCommon16(off uint64, v uint16) {
	switch off {
	case comConfigVector:
		p.configVector = p.vector(v)
		p.configVec.Store(uint32(p.configVector))
	case comQueueSelect:
		p.queueSel = v
	case comQueueSize:
		if q := p.settable(); q != nil {
			q.Size = v
		}
	case comQueueVector:
		if q := p.selected(); q != nil {
			q.Vector = p.vector(v)
			p.queueVec[p.queueSel].Store(uint32(q.Vector))
		}
	case comQueueEnable:
		if q := p.settable(); q != nil && v == 1 {
			q.Enabled = true
		}
	}
}

// vector returns v if there is such a vector, and otherwise what tells the
// driver that there is none (section 4.1.5.1.2.1).
func (p *PCI) vector(v uint16) uint16 {
	if int(v) < p.msix.Vectors() {
		return v
	}
	return noVector
}

func (p *PCI) writeCommon32(off uint64, v uint32) {
	switch off {
	case comDeviceFeatureSelect:
		p.deviceSel = v
		return
	case comDriverFeatureSelect:
		p.driverSel = v
		return
	case comDriverFeature:
		p.setDriverFeatures(v)
		return
	}
	q := p.settable()
	if q == nil {
		return
	}
	switch off {
	case comQueueDesc:
		setLow(&q.Desc, v)
	case comQueueDesc + 4:
		setHigh(&q.Desc, v)
	case comQueueDriver:
		setLow(&q.Avail, v)
	case comQueueDriver + 4:
		setHigh(&q.Avail, v)
	case comQueueDevice:
		setLow(&q.Used, v)
	case comQueueDevice + 4:
		setHigh(&q.Used, v)
	}
}

func (p *PCI) queueInterrupt(queue int) {
	p.interrupt(p.queueVec[queue].Load(), isrQueue)
}

func (p *PCI) configInterrupt() { p.interrupt(p.configVec.Load(), isrConfig) }

// interrupt signals a vector, or INTA# while MSI-X is off.
func (p *PCI) interrupt(vec, isr uint32) {
	if p.msix.Signal(int(vec)) || p.msix.Enabled() {
		return
	}
	p.irq.raise(isr)
}

// syncVectors copies the vector registers to where interrupts look; nil means
// no vectors.
func (p *PCI) syncVectors(queues []queueRegs) {
	p.configVec.Store(uint32(p.configVector))
	if queues == nil {
		p.configVec.Store(noVector)
	}
	for i := range p.queueVec {
		v := uint32(noVector)
		if queues != nil {
			v = uint32(queues[i].Vector)
		}
		p.queueVec[i].Store(v)
	}
}

func (p *PCI) reset() {
	p.syncVectors(nil)
	p.irq.lower(^uint32(0))
}

// Reset returns device and transport, with the function's configuration
// space, to their state after NewPCI, for a machine that is reset.
func (p *PCI) Reset() {
	p.mu.Lock()
	if !p.closed {
		p.resetLocked()
	}
	p.mu.Unlock()
	p.msix.Reset()
	p.fn.Reset()
}

// Close resets the device, takes its BAR off the bus and releases what the
// device owns. It waits for the device's requests and goroutines. A second
// Close does nothing.
func (p *PCI) Close() error {
	err := p.core.Close()
	p.fn.Reset() // takes the configuration space's lock before core.mu
	return err
}

// pciState is version 1 of the saved state.
type pciState struct {
	Core     coreState     `json:"core"`
	ISR      uint32        `json:"isr_status"`
	Function pci.State     `json:"function"`
	MSIX     pci.MSIXState `json:"msix"`
}

// Save returns the state of device, queues, transport and configuration space.
func (p *PCI) Save() (device.State, error) {
	p.mu.Lock()
	st, err := p.save()
	p.mu.Unlock()
	if err != nil {
		return device.State{}, err
	}
	return device.EncodeState(1, pciState{
		Core: st, ISR: p.irq.status(), Function: p.fn.Save(), MSIX: p.msix.Save(),
	})
}

// Load replaces the state by a saved one. Guest memory must have been loaded
// before. On an error the device is as after a reset.
func (p *PCI) Load(s device.State) error {
	var st pciState
	if err := s.Decode(1, &st); err != nil {
		return fmt.Errorf("%s: %w", p.host.Name, err)
	}
	if err := p.loadCore(&st); err != nil {
		return err
	}
	// Both were checked before anything was changed.
	if err := p.msix.Load(st.MSIX); err != nil {
		return err
	}
	if err := p.fn.Load(st.Function); err != nil {
		return err
	}
	p.irq.raise(st.ISR)
	return nil
}

func (p *PCI) loadCore(st *pciState) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.check(&st.Core, p.msix.Vectors()); err != nil {
		return err
	}
	if err := checkISR(p.host.Name, st.ISR); err != nil {
		return err
	}
	if err := p.msix.Check(st.MSIX); err != nil {
		return fmt.Errorf("%s: %w", p.host.Name, err)
	}
	if err := p.fn.Check(st.Function); err != nil {
		return fmt.Errorf("%s: %w", p.host.Name, err)
	}
	if err := p.load(&st.Core); err != nil {
		return err
	}
	p.syncVectors(p.queues)
	return nil
}
