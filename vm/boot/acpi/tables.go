package acpi

import (
	"encoding/binary"
	"fmt"

	"github.com/vmkit-go/vmkit/internal/platform"
)

var le = binary.LittleEndian

const (
	oemID      = "VMKIT "
	oemTableID = "VMKITMCH"
	creatorID  = "VMKT"

	rsdpSize   = 36
	headerSize = 36
)

// sum is what makes the bytes of b add up to zero.
func sum(b []byte) byte {
	var s byte
	for _, v := range b {
		s += v
	}
	return -s
}

// table prepends the system description table header (section 5.2.6).
func table(signature string, revision uint8, body []byte) []byte {
	b := make([]byte, 0, headerSize+len(body))
	b = append(b, signature...)
	b = le.AppendUint32(b, uint32(headerSize+len(body)))
	b = append(b, revision, 0)
	b = append(b, oemID...)
	b = append(b, oemTableID...)
	b = le.AppendUint32(b, 1)
	b = append(b, creatorID...)
	b = le.AppendUint32(b, 1)
	b = append(b, body...)
	b[9] = sum(b)
	return b
}

// rsdp is the Root System Description Pointer (section 5.2.5.3).
func rsdp(xsdt uint64) []byte {
	b := make([]byte, rsdpSize)
	copy(b, "RSD PTR ")
	copy(b[9:], oemID)
	b[15] = 2
	le.PutUint32(b[20:], rsdpSize)
	le.PutUint64(b[24:], xsdt)
	b[8] = sum(b[:20])
	b[32] = sum(b)
	return b
}

// xsdt is the Extended System Description Table (section 5.2.8).
func xsdt(tables []uint64) []byte {
	var body []byte
	for _, t := range tables {
		body = le.AppendUint64(body, t)
	}
	return table("XSDT", 1, body)
}

// facs is the Firmware ACPI Control Structure (section 5.2.10).
func facs() []byte {
	b := make([]byte, 64)
	copy(b, "FACS")
	le.PutUint32(b[4:], uint32(len(b)))
	b[32] = 2
	return b
}

// The flags of the FADT (section 5.2.9, table 5.10): a power button in the
// fixed registers, no sleep button.
const (
	fadtWBINVD     = 1 << 0
	fadtC1         = 1 << 2
	fadtNoSleep    = 1 << 5
	fadtNoFixedRTC = 1 << 6
	fadtReset      = 1 << 10

	// IAPC_BOOT_ARCH. The i8042 is there only to reset the machine, so its
	// flag stays clear and no driver probes for a keyboard.
	bootLegacyDevices = 1 << 0
	bootNoVGA         = 1 << 2
)

// gas is a Generic Address Structure for I/O ports (section 5.2.3.2): size is
// the register's in bits, access the width of one access (1 byte, 2 word,
// 3 dword).
func gas(port uint64, size, access uint8) []byte {
	return le.AppendUint64([]byte{1, size, 0, access}, port)
}

// fadt is the Fixed ACPI Description Table (section 5.2.9).
func fadt(facs, dsdt uint64) []byte {
	const size = 276
	b := make([]byte, size)
	le.PutUint32(b[36:], uint32(facs))
	le.PutUint32(b[40:], uint32(dsdt))
	le.PutUint16(b[46:], platform.GSISCI)
	// SMI_CMD stays 0: the machine is always in ACPI mode.
	le.PutUint32(b[56:], platform.PortPM1aEvent)
	le.PutUint32(b[64:], platform.PortPM1aControl)
	le.PutUint32(b[76:], platform.PortPMTimer)
	le.PutUint32(b[80:], platform.PortGPE0)
	b[88] = platform.PM1aEventSize
	b[89] = platform.PM1aControlSize
	b[91] = platform.PMTimerSize
	b[92] = platform.GPE0Size
	le.PutUint16(b[96:], 0xfff) // no C2
	le.PutUint16(b[98:], 0xfff) // no C3
	le.PutUint16(b[109:], bootLegacyDevices|bootNoVGA)
	le.PutUint32(b[112:], fadtWBINVD|fadtC1|fadtNoSleep|fadtNoFixedRTC|fadtReset)
	copy(b[116:], gas(platform.PortReset, 8, 1))
	b[128] = platform.ResetValue
	b[131] = 5 // minor version: 6.5
	// One of FIRMWARE_CTRL and X_FIRMWARE_CTRL is to be zero; the DSDT has both.
	le.PutUint64(b[140:], dsdt)
	copy(b[148:], gas(platform.PortPM1aEvent, 8*platform.PM1aEventSize, 2))
	copy(b[172:], gas(platform.PortPM1aControl, 8*platform.PM1aControlSize, 2))
	copy(b[208:], gas(platform.PortPMTimer, 8*platform.PMTimerSize, 3))
	copy(b[220:], gas(platform.PortGPE0, 8*platform.GPE0Size, 1))
	copy(b[268:], "VMKIT")
	return table("FACP", 6, b[headerSize:])
}

// madt is the Multiple APIC Description Table (section 5.2.12). An APIC ID
// above 254 fits only an x2APIC entry.
func madt(c Config) []byte {
	b := le.AppendUint32(nil, platform.LAPICBase)
	b = le.AppendUint32(b, 1) // PCAT_COMPAT: there are 8259s too
	for id := range c.CPUs {
		if id < 255 {
			b = append(b, 0, 8, byte(id), byte(id))
			b = le.AppendUint32(b, 1) // enabled
			continue
		}
		b = append(b, 9, 16, 0, 0)
		b = le.AppendUint32(b, uint32(id))
		b = le.AppendUint32(b, 1)
		b = le.AppendUint32(b, uint32(id))
	}
	b = append(b, 1, 12, 0, 0) // I/O APIC 0
	b = le.AppendUint32(b, platform.IOAPICBase)
	b = le.AppendUint32(b, 0) // its first GSI
	b = append(b, 2, 10, 0, 0)
	b = le.AppendUint32(b, platform.GSITimer)
	b = le.AppendUint16(b, 0) // conforms to the bus
	for _, irq := range c.overrides() {
		b = append(b, 2, 10, 0, irq)
		b = le.AppendUint32(b, uint32(irq))
		b = le.AppendUint16(b, 0xd) // level, active high
	}
	b = append(b, 4, 6, 0xff, 0, 0, 1) // LINT1 is NMI on every CPU
	if c.CPUs > 255 {
		b = append(b, 10, 12, 0, 0)
		b = le.AppendUint32(b, 0xffff_ffff)
		b = append(b, 1, 0, 0, 0)
	}
	return table("APIC", 5, b)
}

// mcfg tells where the PCI configuration space is mapped (PCI Firmware
// Specification 3.3, section 4.1.2).
func mcfg(p PCI) []byte {
	b := make([]byte, 8)
	b = le.AppendUint64(b, p.ECAM)
	b = append(b, 0, 0, 0, byte(p.Buses-1))
	b = append(b, 0, 0, 0, 0)
	return table("MCFG", 1, b)
}

// dsdt is the Differentiated System Description Table (section 5.2.11.1).
func dsdt(c Config) []byte {
	var devices [][]byte
	if c.PCI != nil {
		devices = append(devices, pciBridge(*c.PCI))
	}
	devices = append(devices, motherboard(c))
	if c.Serial {
		devices = append(devices, amlDevice("COM1",
			amlName("_HID", amlEISAID("PNP0501")),
			amlName("_UID", amlInt(1)),
			resources(resIO(platform.PortCOM1, platform.COM1Size), resIRQ(platform.GSICOM1))))
	}
	if c.RTC {
		devices = append(devices, amlDevice("RTC_",
			amlName("_HID", amlEISAID("PNP0B00")),
			resources(resIO(platform.PortRTCIndex, 2), resIRQ(platform.GSIRTC))))
	}
	if c.Pvpanic {
		devices = append(devices, amlDevice("PEVT",
			amlName("_HID", amlString("QEMU0001")),
			amlName("_STA", amlInt(0xf)),
			resources(resIO(platform.PortPvpanic, 1))))
	}
	for i, d := range c.MMIO {
		devices = append(devices, amlDevice(fmt.Sprintf("V%03X", i),
			amlName("_HID", amlString("LNRO0005")),
			amlName("_UID", amlInt(uint64(i))),
			resources(resMemory32(uint32(d.Base), uint32(d.Size)), resInterrupt(d.GSI))))
	}
	return table("DSDT", 2, join(
		amlName(`\_S5_`, amlPackage(amlInt(platform.SleepTypeS5), amlInt(0), amlInt(0), amlInt(0))),
		amlScope(`\_SB_`, devices...)))
}

// pciBridge is the PCI Express root bridge. Configuration mechanism 1 is
// part of its resources, as on a PC.
func pciBridge(p PCI) []byte {
	crs := [][]byte{resBusNumbers(0, uint16(p.Buses-1)), resIO(platform.PortPCIAddress, 8)}
	for _, w := range p.Windows {
		crs = append(crs, resWindow(w.Base, w.Size, w.Prefetchable))
	}
	return amlDevice("PCI0",
		amlName("_HID", amlEISAID("PNP0A08")),
		amlName("_CID", amlEISAID("PNP0A03")),
		amlName("_SEG", amlInt(0)),
		amlName("_BBN", amlInt(0)),
		amlName("_UID", amlInt(0)),
		resources(crs...))
}

// motherboard reserves what no other device claims: the fixed power
// management ports, and ECAM, which an operating system uses only when it
// is reserved here (PCI Firmware Specification 3.3, section 4.1.2).
func motherboard(c Config) []byte {
	crs := [][]byte{resIO(platform.PortPM1aEvent, platform.PortGPE0+platform.GPE0Size-platform.PortPM1aEvent)}
	if c.PCI != nil {
		crs = append(crs, resMemory32(uint32(c.PCI.ECAM), uint32(c.PCI.Buses)<<20))
	}
	return amlDevice("MBRD",
		amlName("_HID", amlEISAID("PNP0C02")),
		amlName("_UID", amlInt(0)),
		resources(crs...))
}
