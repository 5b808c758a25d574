package vm

import (
	"fmt"

	"github.com/vmkit-go/vmkit/internal/acpipm"
	"github.com/vmkit-go/vmkit/internal/i8042"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/internal/pvpanic"
	"github.com/vmkit-go/vmkit/internal/rtc"
	"github.com/vmkit-go/vmkit/internal/serial"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
	"github.com/vmkit-go/vmkit/vm/device"
)

// pauser is a chip with timers or input of its own, which must not touch the
// guest while the machine is paused.
type pauser interface {
	Pause()
	Resume()
}

// addPlatform makes the chips that every machine has and puts them on its
// port bus.
func (m *Machine) addPlatform() error {
	pm, err := acpipm.New(acpipm.Config{
		Inbox: m.inbox, Line: m.engine.Line(platform.GSISCI), Clock: m.clock, Log: m.log,
		OnPowerOff: func() { m.finish(errPowerOff) },
		OnReset:    func() { m.finish(ErrReset) },
	})
	if err != nil {
		return err
	}
	m.closers = append(m.closers, pm)
	m.power = pm.PressPowerButton
	com, err := serial.New(serial.Config{
		Inbox: m.inbox, Line: m.engine.Line(platform.GSICOM1), Log: m.log, Output: m.cfg.Serial.Out,
	})
	if err != nil {
		return err
	}
	m.closers = append(m.closers, com)
	m.serial = com
	if m.cfg.Serial.In != nil {
		go m.typeInto(com)
	}
	clock, err := rtc.New(rtc.Config{
		Inbox: m.inbox, Line: m.engine.Line(platform.GSIRTC), Clock: m.clock, Start: m.start, Log: m.log,
	})
	if err != nil {
		return err
	}
	m.closers = append(m.closers, clock)
	keyboard := i8042.New(i8042.Config{OnReset: func() { m.finish(ErrReset) }})
	panicked := pvpanic.New(pvpanic.Config{OnCrash: m.crashed})

	for _, c := range []struct {
		name       string
		base, size uint64
		chip       interface {
			device.Handler
			device.Stateful
		}
	}{
		{"acpipm", platform.PortPM1aEvent, acpipm.Size, pm},
		{"serial", platform.PortCOM1, platform.COM1Size, com},
		{"rtc", platform.PortRTCIndex, 2, clock},
		{"i8042", platform.PortI8042Data, i8042.Size, keyboard},
		{"pvpanic", platform.PortPvpanic, 1, panicked},
	} {
		if err := m.ports.Map(c.base, c.size, c.chip); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		m.parts = append(m.parts, part{c.name, c.chip})
	}
	return nil
}

// typeInto passes the serial port's input on until it ends or the machine is
// closed. A Read under way then cannot be stopped; its bytes are dropped.
func (m *Machine) typeInto(com *serial.UART) {
	buf := make([]byte, 256)
	for m.life.Err() == nil {
		n, err := m.cfg.Serial.In.Read(buf)
		for p := buf[:n]; len(p) > 0; {
			taken, err := com.Input(m.life, p)
			if err != nil {
				return
			}
			p = p[taken:]
		}
		if err != nil {
			return
		}
	}
}

// crashed is called by pvpanic when the guest's kernel has panicked.
func (m *Machine) crashed() { m.finish(ErrCrash) }

// hardware describes the machine for its firmware tables. It reads nothing but
// the configuration, since the machine is still being made.
func (m *Machine) hardware() acpi.Config {
	hw := acpi.Config{CPUs: m.cfg.CPUs, Serial: true, RTC: true, Pvpanic: true}
	if m.cfg.Transport == MMIO {
		for i := range m.cfg.Devices {
			base, gsi, ok := mmioSlot(i)
			if !ok {
				break // attach fails
			}
			hw.MMIO = append(hw.MMIO, acpi.MMIODevice{Base: base, Size: platform.MMIOSize, GSI: gsi})
		}
		return hw
	}
	hw.PCI = &acpi.PCI{
		ECAM: platform.ECAMBase, Buses: 1,
		Windows: []acpi.Window{{Base: platform.PCIWindowBase, Size: platform.PCIWindowSize}},
	}
	return hw
}

// PressPowerButton asks the guest to shut down, as the button of a PC does.
func (m *Machine) PressPowerButton() { m.power() }
