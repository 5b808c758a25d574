// Package acpi writes the firmware tables that tell a guest what machine it
// runs on (Advanced Configuration and Power Interface Specification 6.5).
//
// The addresses, ports and interrupt lines of the fixed hardware are those
// of the vmkit machine; [Config] says which optional parts it has:
//
//	img, err := acpi.Build(acpi.Base, acpi.Config{CPUs: 2, Serial: true})
//	err = mem.Write(acpi.Base, img) // the RSDP is at acpi.Base
package acpi

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/vmkit-go/vmkit/internal/platform"
)

// The area in which a PC looks for the RSDP when nobody tells it the address
// (section 5.2.5.1).
const (
	Base    = 0xe0000
	MaxSize = 0x20000
)

// MaxCPUs is the largest number of CPUs that [Build] describes.
const MaxCPUs = 4096

// ErrConfig is wrapped by every error of [Build]: the machine described
// cannot exist.
var ErrConfig = errors.New("acpi: invalid configuration")

// Config describes a machine. The zero value is one CPU with the fixed
// hardware: interrupt chips, power management registers, power button.
type Config struct {
	// CPUs is the number of CPUs; their APIC IDs are 0 to CPUs-1. 0 means 1.
	CPUs int

	// MMIO lists the virtio-mmio devices in the order in which the guest
	// shall number them.
	MMIO []MMIODevice

	// PCI describes the PCI Express root bridge, if there is one.
	PCI *PCI

	Serial  bool // a 16550 at COM1
	RTC     bool // a MC146818 real-time clock
	Pvpanic bool // a pvpanic device
}

// MMIODevice is a virtio-mmio device, announced as LNRO0005.
type MMIODevice struct {
	Base uint64 // below 4 GiB
	Size uint64 // in bytes
	GSI  uint32 // its interrupt line: level-triggered, active high
}

// PCI is a PCI Express root bridge of segment 0. Its devices interrupt by
// message only, so no interrupt routing is announced.
type PCI struct {
	ECAM    uint64 // base of the configuration space of bus 0: below 4 GiB, aligned to 1 MiB
	Buses   int    // buses from 0 on that ECAM covers, 1 MiB each: 1 to 256; 0 means 1
	Windows []Window
}

// Window is a range of guest-physical addresses that the bridge passes on to
// its devices, for their BARs.
type Window struct {
	Base, Size   uint64
	Prefetchable bool
}

func (c Config) validate() error {
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		return fmt.Errorf("%w: %d CPUs: want 1 to %d", ErrConfig, c.CPUs, MaxCPUs)
	}
	for i, d := range c.MMIO {
		if d.Size == 0 || d.Base > math.MaxUint32 || d.Size > math.MaxUint32-d.Base {
			return fmt.Errorf("%w: virtio-mmio device %d: [%#x, +%#x) is empty or not below 4 GiB", ErrConfig, i, d.Base, d.Size)
		}
		if d.GSI >= platform.IOAPICPins {
			return fmt.Errorf("%w: virtio-mmio device %d: interrupt line %d: want less than %d", ErrConfig, i, d.GSI, platform.IOAPICPins)
		}
	}
	p := c.PCI
	if p == nil {
		return nil
	}
	if p.Buses < 1 || p.Buses > 256 {
		return fmt.Errorf("%w: %d PCI buses: want 1 to 256", ErrConfig, p.Buses)
	}
	if size := uint64(p.Buses) << 20; p.ECAM%(1<<20) != 0 || p.ECAM > math.MaxUint32 || size > math.MaxUint32+1-p.ECAM {
		return fmt.Errorf("%w: ECAM [%#x, +%#x) is not aligned to 1 MiB or not below 4 GiB", ErrConfig, p.ECAM, size)
	}
	for i, w := range p.Windows {
		if w.Size == 0 || w.Base+w.Size-1 < w.Base {
			return fmt.Errorf("%w: PCI window %d: [%#x, +%#x) is empty or wraps", ErrConfig, i, w.Base, w.Size)
		}
	}
	return nil
}

// Build returns the tables of machine c as one image for guest-physical
// address base, which is below 4 GiB and aligned to 64 bytes. The RSDP is
// its first byte. Equal configurations give equal images. The image is at
// most [MaxSize] bytes long. Errors wrap [ErrConfig].
func Build(base uint64, c Config) ([]byte, error) {
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.PCI != nil && c.PCI.Buses == 0 {
		p := *c.PCI
		p.Buses = 1
		c.PCI = &p
	}
	if err := c.validate(); err != nil {
		return nil, err
	}
	if base%64 != 0 || base > math.MaxUint32-MaxSize {
		return nil, fmt.Errorf("%w: tables at %#x: want an address below 4 GiB, aligned to 64", ErrConfig, base)
	}
	b := image{base: base, data: make([]byte, rsdpSize)}
	facsAt := b.add(facs())
	dsdtAt := b.add(dsdt(c))
	tables := []uint64{b.add(fadt(facsAt, dsdtAt)), b.add(madt(c))}
	if c.PCI != nil {
		tables = append(tables, b.add(mcfg(*c.PCI)))
	}
	xsdtAt := b.add(xsdt(tables))
	copy(b.data, rsdp(xsdtAt))
	if len(b.data) > MaxSize {
		return nil, fmt.Errorf("%w: the tables take %d bytes: at most %d fit", ErrConfig, len(b.data), MaxSize)
	}
	return b.data, nil
}

// image collects tables and assigns their addresses.
type image struct {
	base uint64
	data []byte
}

// add appends table t and returns its address. The FACS needs 64-byte
// alignment (section 5.2.10); it does no harm to the others.
func (b *image) add(t []byte) uint64 {
	for len(b.data)%64 != 0 {
		b.data = append(b.data, 0)
	}
	at := b.base + uint64(len(b.data))
	b.data = append(b.data, t...)
	return at
}

// overrides lists the ISA interrupts that differ from the default of edge,
// active high and identity mapping, besides the timer's.
func (c Config) overrides() []uint8 {
	level := []uint8{platform.GSISCI}
	for _, d := range c.MMIO {
		if d.GSI < 16 && !slices.Contains(level, uint8(d.GSI)) {
			level = append(level, uint8(d.GSI))
		}
	}
	slices.Sort(level)
	return level
}
