package virtio

import (
	"encoding/binary"
	"fmt"

	"github.com/vmkit-go/vmkit/vm/device"
)

// MMIOSize is the size in bytes of the window of an [MMIO] transport.
const MMIOSize = 0x1000

// Registers of the MMIO transport (virtio 1.2, section 4.2.2).
const (
	mmioMagic             = 0x000
	mmioVersion           = 0x004
	mmioDeviceID          = 0x008
	mmioVendorID          = 0x00c
	mmioDeviceFeatures    = 0x010
	mmioDeviceFeaturesSel = 0x014
	mmioDriverFeatures    = 0x020
	mmioDriverFeaturesSel = 0x024
	mmioQueueSel          = 0x030
	mmioQueueNumMax       = 0x034
	mmioQueueNum          = 0x038
	mmioQueueReady        = 0x044
	mmioQueueNotify       = 0x050
	mmioInterruptStatus   = 0x060
	mmioInterruptACK      = 0x064
	mmioStatus            = 0x070
	mmioQueueDescLow      = 0x080
	mmioQueueDescHigh     = 0x084
	mmioQueueDriverLow    = 0x090
	mmioQueueDriverHigh   = 0x094
	mmioQueueDeviceLow    = 0x0a0
	mmioQueueDeviceHigh   = 0x0a4
	mmioSHMLenLow         = 0x0b0
	mmioSHMBaseHigh       = 0x0bc
	mmioConfigGeneration  = 0x0fc
	mmioConfig            = 0x100

	mmioMagicValue   = 0x74726976 // "virt"
	mmioVersionValue = 2
	mmioVendorValue  = 0x1af4
)

// MMIOConfig places a device behind the MMIO transport.
type MMIOConfig struct {
	// Host names the device and its surroundings. Name and Memory are
	// required, Inbox if the device needs it; ConfigChanged is filled in.
	Host Host
	// Base is the guest-physical address of the window. The caller maps the
	// transport there, MMIOSize bytes long.
	Base uint64
	// Line is the level-triggered interrupt. Required.
	Line device.Line
	// Doorbells, if not nil, take notifications off the CPUs.
	Doorbells device.Doorbells
}

// MMIO is a device behind the MMIO transport (virtio 1.2, section 4.2, version
// 2 registers). It is the [device.Handler] for its window. All methods may be
// called from any goroutine, but Save and Load only between Pause and Resume.
type MMIO struct {
	core
	base uint64
	irq  irqLine
}

var (
	_ device.Handler  = (*MMIO)(nil)
	_ device.Stateful = (*MMIO)(nil)
)

// NewMMIO attaches dev to its machine. The caller closes the transport, which
// closes the device; on an error the device is the caller's still.
func NewMMIO(dev Device, cfg MMIOConfig) (*MMIO, error) {
	if cfg.Line == nil {
		return nil, fmt.Errorf("%w %q: no interrupt line", ErrDevice, cfg.Host.Name)
	}
	m := &MMIO{base: cfg.Base}
	m.irq.line = cfg.Line
	if err := m.init(dev, cfg.Host, cfg.Doorbells, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Read answers a guest read. Registers are 32 bits wide and read as 0 with
// any other width; the device configuration may be read in any.
func (m *MMIO) Read(off uint64, p []byte) {
	clear(p)
	if off >= mmioConfig {
		m.mu.Lock()
		m.dev.ReadConfig(uint32(off-mmioConfig), p)
		m.mu.Unlock()
		return
	}
	if len(p) != 4 || off%4 != 0 {
		return
	}
	var v uint32
	if off == mmioInterruptStatus { // needs no lock but the interrupt's
		v = m.irq.status()
	} else {
		m.mu.Lock()
		v = m.register(off)
		m.mu.Unlock()
	}
	binary.LittleEndian.PutUint32(p, v)
}

func (m *MMIO) register(off uint64) uint32 {
	switch off {
	case mmioMagic:
		return mmioMagicValue
	case mmioVersion:
		return mmioVersionValue
	case mmioDeviceID:
		return uint32(m.dev.Type())
	case mmioVendorID:
		return mmioVendorValue
	case mmioDeviceFeatures:
		return featureWord(m.offered, m.deviceSel)
	case mmioQueueNumMax:
		if int(m.queueSel) < len(m.maxSizes) {
			return uint32(m.maxSizes[m.queueSel])
		}
	case mmioQueueReady:
		if q := m.selected(); q != nil && q.Enabled {
			return 1
		}
	case mmioStatus:
		return m.status.Load()
	case mmioConfigGeneration:
		return m.configGeneration()
	}
	if off >= mmioSHMLenLow && off <= mmioSHMBaseHigh {
		return 0xffff_ffff // no shared memory region (section 4.2.2)
	}
	return 0
}

// Write performs a guest write. A register write of another width than 32
// bits is dropped, as is one to a register that is read-only or unknown.
func (m *MMIO) Write(off uint64, p []byte) {
	if off >= mmioConfig {
		m.mu.Lock()
		m.dev.WriteConfig(uint32(off-mmioConfig), p)
		m.mu.Unlock()
		return
	}
	if len(p) != 4 {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	switch off {
	case mmioQueueNotify:
		m.ring(v)
		return
	case mmioInterruptACK:
		m.irq.lower(v)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	switch off {
	case mmioDeviceFeaturesSel:
		m.deviceSel = v
	case mmioDriverFeatures:
		m.setDriverFeatures(v)
	case mmioDriverFeaturesSel:
		m.driverSel = v
	case mmioQueueSel:
		m.queueSel = uint16(min(v, 0xffff))
	case mmioStatus:
		m.setStatus(v)
	case mmioQueueReady:
		m.setReady(v)
	default:
		if q := m.settable(); q != nil {
			setQueueRegister(q, off, v)
		}
	}
}

// setReady enables the selected queue, or disables it as long as the device
// is not live.
func (m *MMIO) setReady(v uint32) {
	if q := m.settable(); q != nil {
		q.Enabled = v&1 != 0
	} else if q := m.selected(); q != nil && v&1 == 0 && m.status.Load()&StatusDriverOK == 0 {
		q.Enabled = false
	}
}

func setQueueRegister(q *queueRegs, off uint64, v uint32) {
	switch off {
	case mmioQueueNum:
		q.Size = uint16(v)
		if v > MaxQueueSize {
			q.Size = 0 // refused when the queue is built
		}
	case mmioQueueDescLow:
		setLow(&q.Desc, v)
	case mmioQueueDescHigh:
		setHigh(&q.Desc, v)
	case mmioQueueDriverLow:
		setLow(&q.Avail, v)
	case mmioQueueDriverHigh:
		setHigh(&q.Avail, v)
	case mmioQueueDeviceLow:
		setLow(&q.Used, v)
	case mmioQueueDeviceHigh:
		setHigh(&q.Used, v)
	}
}

func (m *MMIO) queueInterrupt(int) { m.irq.raise(isrQueue) }
func (m *MMIO) configInterrupt()   { m.irq.raise(isrConfig) }
func (m *MMIO) reset()             { m.irq.lower(^uint32(0)) }

func (m *MMIO) doorbell(queue int) (addr uint64, size int, match *uint64, ok bool) {
	v := uint64(queue)
	return m.base + mmioQueueNotify, 4, &v, true
}

// Reset returns device and transport to their state after NewMMIO, for a
// machine that is reset.
func (m *MMIO) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.resetLocked()
	}
}

// mmioState is version 1 of the saved state.
type mmioState struct {
	Core coreState `json:"core"`
	ISR  uint32    `json:"interrupt_status"`
}

// Save returns the state of device, queues and transport.
func (m *MMIO) Save() (device.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st, err := m.save()
	if err != nil {
		return device.State{}, err
	}
	return device.EncodeState(1, mmioState{Core: st, ISR: m.irq.status()})
}

// Load replaces the state by a saved one. Guest memory must have been loaded
// before. On an error the device is as after a reset.
func (m *MMIO) Load(s device.State) error {
	var st mmioState
	if err := s.Decode(1, &st); err != nil {
		return fmt.Errorf("%s: %w", m.host.Name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(&st.Core, 0); err != nil {
		return err
	}
	if err := checkISR(m.host.Name, st.ISR); err != nil {
		return err
	}
	if err := m.load(&st.Core); err != nil {
		return err
	}
	m.irq.raise(st.ISR)
	return nil
}
