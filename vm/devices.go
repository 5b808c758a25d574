package vm

import (
	"fmt"

	"github.com/vmkit-go/vmkit/internal/pci"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vm/device"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// transport is a virtio device on PCI or MMIO.
type transport interface {
	device.Stateful
	pauser
	Yield()
	Close() error
}

// slot is one virtio device in its place.
type slot struct {
	name      string
	transport transport
}

var typeNames = map[virtio.Type]string{
	virtio.TypeNet: "net", virtio.TypeBlock: "blk", virtio.TypeConsole: "console", virtio.TypeEntropy: "rng",
}

// attach gives a device the next slot. Names count per type, so that adding a
// disk does not rename a network card.
func (m *Machine) attach(d virtio.Device) error {
	kind, ok := typeNames[d.Type()]
	if !ok {
		kind = fmt.Sprintf("virtio%d-", d.Type())
	}
	n := 0
	for i := range m.slots {
		if m.cfg.Devices[i].Type() == d.Type() {
			n++
		}
	}
	name := fmt.Sprintf("%s%d", kind, n)
	host := virtio.Host{Name: name, Memory: m.mem, Inbox: m.inbox, Log: m.log}
	attach := m.attachPCI
	if m.cfg.Transport == MMIO {
		attach = m.attachMMIO
	}
	if err := attach(d, host); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// occupy records a slot. From here on closing the transport closes the device.
func (m *Machine) occupy(name string, s slot) {
	s.name = name
	m.slots = append(m.slots, s)
	m.parts = append(m.parts, part{name, s.transport})
}

// mmioSlot returns the register window and the interrupt line of MMIO device i,
// if there is room for it.
func mmioSlot(i int) (base uint64, gsi uint32, ok bool) {
	gsi, ok = platform.MMIOGSI(i)
	return uint64(platform.MMIOBase + i*platform.MMIOSize), gsi, ok
}

func (m *Machine) attachMMIO(d virtio.Device, host virtio.Host) error {
	base, gsi, ok := mmioSlot(len(m.slots))
	if !ok {
		return fmt.Errorf("no room: MMIO has %d slots", platform.MaxMMIOSlots)
	}
	t, err := virtio.NewMMIO(d, virtio.MMIOConfig{
		Host: host, Base: base, Line: m.engine.Line(int(gsi)), Doorbells: m.engine,
	})
	if err != nil {
		return err
	}
	m.occupy(host.Name, slot{transport: t})
	return m.mmio.Map(base, platform.MMIOSize, t)
}

// addBus makes the PCI bus with its host bridge, unless devices are on MMIO.
func (m *Machine) addBus() error {
	if m.cfg.Transport != PCI {
		return nil
	}
	m.pci = pci.NewBus(pci.Window{Base: platform.PCIWindowBase, Size: platform.PCIWindowSize})
	if err := m.pci.Add(0, pci.NewHostBridge()); err != nil {
		return err
	}
	if err := m.ports.Map(platform.PortPCIAddress, 8, m.pci.Ports()); err != nil {
		return err
	}
	if err := m.mmio.Map(platform.ECAMBase, platform.ECAMSize, m.pci.ECAM()); err != nil {
		return err
	}
	m.parts = append(m.parts, part{"pci", m.pci})
	return nil
}

func (m *Machine) attachPCI(d virtio.Device, host virtio.Host) error {
	i := len(m.slots) + 1 // the host bridge has slot 0
	if i >= pci.Slots {
		return fmt.Errorf("no room: the PCI bus has %d slots for devices", pci.Slots-1)
	}
	t, err := virtio.NewPCI(d, virtio.PCIConfig{
		Host: host, Bus: &m.mmio, MSI: m.engine, Doorbells: m.engine,
		BAR: platform.PCIWindowBase + uint64(i)*virtio.PCIBARSize,
	})
	if err != nil {
		return err
	}
	m.occupy(host.Name, slot{transport: t})
	return m.pci.Add(i, t.Function())
}
