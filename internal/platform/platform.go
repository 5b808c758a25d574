// Package platform holds the numbers that every part of a machine agrees on:
// guest-physical addresses, I/O ports and interrupt lines. A chip, the
// firmware tables that announce it and the machine that wires it all take
// them from here, so that they cannot drift apart.
package platform

// Guest-physical memory. RAM is [0, LowRAMEnd) and, when there is more, from
// HighRAMBase on; the hole between them holds everything else.
const (
	LowRAMEnd   = 0xc000_0000
	HighRAMBase = 1 << 32

	// The window from which a PCI driver's BARs are served.
	PCIWindowBase = 0xc000_0000
	PCIWindowSize = 0x1000_0000

	// virtio-mmio slot i is at MMIOBase + i*MMIOSize.
	MMIOBase = 0xd000_0000
	MMIOSize = 0x1000

	// PCI Express configuration space of bus 0: one page per function
	// (PCI Express Base Specification, section 7.2.2).
	ECAMBase = 0xe000_0000
	ECAMSize = 0x10_0000

	IOAPICBase = 0xfec0_0000
	LAPICBase  = 0xfee0_0000
	LAPICSize  = 0x1000

	// MSIBase is where message-signalled interrupts are written to: the
	// megabyte from here on (Intel SDM volume 3, section 11.11.1).
	MSIBase = LAPICBase
	MSISize = 0x10_0000

	// Pages that KVM on VMX needs for itself (KVM_SET_TSS_ADDR takes three
	// pages, KVM_SET_IDENTITY_MAP_ADDR one).
	KVMIdentityMapBase = 0xfeff_b000
	KVMTSSBase         = 0xfeff_c000

	// MaxMMIOSlots is how many virtio-mmio slots have an interrupt line:
	// see MMIOGSI.
	MaxMMIOSlots = 15
)

// I/O ports.
const (
	// Interrupt chips and timers: two 8259As with a command and a data port
	// each, their edge/level registers, the 8254's three counters and control
	// word, and system control port B with the gate of counter 2.
	PortPIC1       = 0x20
	PortPIC2       = 0xa0
	PortELCR1      = 0x4d0
	PortELCR2      = 0x4d1
	PortPIT        = 0x40
	PortPITControl = 0x43
	PortSystemB    = 0x61

	PortI8042Data    = 0x60
	PortI8042Command = 0x64
	PortRTCIndex     = 0x70
	PortRTCData      = 0x71
	PortCOM1         = 0x3f8
	COM1Size         = 8
	PortPvpanic      = 0x505

	// ACPI fixed hardware (ACPI 6.5, section 4.8.3).
	PortPM1aEvent   = 0x600 // PM1 status and enable, 2 bytes each
	PM1aEventSize   = 4
	PortPM1aControl = 0x604
	PM1aControlSize = 2
	PortPMTimer     = 0x608
	PMTimerSize     = 4
	PortReset       = 0x610 // RESET_REG of the FADT
	ResetValue      = 1     // RESET_VALUE: this written to PortReset resets
	PortGPE0        = 0x620 // GPE0 status and enable, 2 bytes each
	GPE0Size        = 4

	// PCI configuration mechanism 1.
	PortPCIAddress = 0xcf8
	PortPCIData    = 0xcfc
)

// SleepTypeS5 is the SLP_TYP value that, written to PM1a control with SLP_EN,
// powers the machine off. The DSDT announces it as \_S5.
const SleepTypeS5 = 5

// PMTimerHz is the rate of the 24-bit ACPI PM timer.
const PMTimerHz = 3_579_545

// PITHz is the rate of the 8254's input clock.
const PITHz = 1_193_182

// Global system interrupts.
const (
	GSITimer = 2 // ISA IRQ 0, by the usual override
	GSICOM1  = 4
	GSIRTC   = 8
	GSISCI   = 9 // level, active high

	// IOAPICPins is the number of inputs of the I/O APIC, from GSI 0 on.
	IOAPICPins = 24
)

// mmioGSI lists the lines free for virtio-mmio slots: the I/O APIC's own
// first, then ISA lines without a device. 13 (the FPU's) is left alone.
var mmioGSI = [MaxMMIOSlots]uint8{16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 7, 10, 11, 14, 15}

// MMIOGSI returns the interrupt line of virtio-mmio slot i (level, active
// high), and false when i is not in [0, MaxMMIOSlots).
func MMIOGSI(i int) (gsi uint32, ok bool) {
	if i < 0 || i >= MaxMMIOSlots {
		return 0, false
	}
	return uint32(mmioGSI[i]), true
}
