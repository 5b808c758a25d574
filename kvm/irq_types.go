package kvm

// Chip numbers of IRQChip.ChipID and of routes.
const (
	ChipPICMaster uint32 = 0
	ChipPICSlave  uint32 = 1
	ChipIOAPIC    uint32 = 2
)

// IOAPICPins is the number of inputs of the in-kernel IOAPIC.
const IOAPICPins = 24

// IRQChip is struct kvm_irqchip: the state of one interrupt chip. PIC views
// it when ChipID is ChipPICMaster or ChipPICSlave, IOAPIC when it is
// ChipIOAPIC.
type IRQChip struct {
	ChipID uint32
	_      uint32
	chip   [64]uint64
}

// PICState is struct kvm_pic_state: one 8259A.
type PICState struct {
	LastIRR                uint8 // line levels, for edge detection
	IRR                    uint8
	IMR                    uint8
	ISR                    uint8
	PriorityAdd            uint8 // highest priority
	IRQBase                uint8
	ReadRegSelect          uint8
	Poll                   uint8
	SpecialMask            uint8
	InitState              uint8
	AutoEOI                uint8
	RotateOnAutoEOI        uint8
	SpecialFullyNestedMode uint8
	Init4                  uint8
	ELCR                   uint8
	ELCRMask               uint8
}

// IOAPICState is struct kvm_ioapic_state. RedirTbl holds redirection entries
// as the IOAPIC's registers do (82093AA datasheet, section 3.2.4).
type IOAPICState struct {
	BaseAddress uint64
	IORegSel    uint32
	ID          uint32
	IRR         uint32
	_           uint32
	RedirTbl    [IOAPICPins]uint64
}

type irqLevel struct {
	irqOrStatus uint32
	level       uint32
}

// MSIValidDevID in MSI.Flags says that DevID is in use (not on x86).
const MSIValidDevID = 1

// MSI is struct kvm_msi: a message-signalled interrupt, as a device would
// write it (Intel SDM volume 3, section "Message Signalled Interrupts").
type MSI struct {
	AddressLo uint32
	AddressHi uint32
	Data      uint32
	Flags     uint32
	DevID     uint32
	_         [12]uint8
}

// Types of IRQRoutingEntry.
const (
	RoutingIRQChip uint32 = 1
	RoutingMSI     uint32 = 2
)

// IRQRoutingEntry is struct kvm_irq_routing_entry: where a GSI leads. RouteToChip
// and RouteToMSI make one.
type IRQRoutingEntry struct {
	GSI   uint32
	Type  uint32
	Flags uint32
	_     uint32
	// U is the union. RoutingIRQChip: chip, pin. RoutingMSI: address low,
	// address high, data, device ID.
	U [8]uint32
}

// RouteToChip routes gsi to an input of an in-kernel chip.
func RouteToChip(gsi, chip, pin uint32) IRQRoutingEntry {
	return IRQRoutingEntry{GSI: gsi, Type: RoutingIRQChip, U: [8]uint32{chip, pin}}
}

// RouteToMSI makes gsi send a message. With the split irqchip it is how an
// irqfd raises an interrupt.
func RouteToMSI(gsi uint32, m MSI) IRQRoutingEntry {
	return IRQRoutingEntry{
		GSI: gsi, Type: RoutingMSI, Flags: m.Flags,
		U: [8]uint32{m.AddressLo, m.AddressHi, m.Data, m.DevID},
	}
}

type routingHeader struct {
	count uint32
	_     uint32 // flags
}

// Flags of IRQFD.
const (
	IRQFDDeassign uint32 = 1 << 0
	IRQFDResample uint32 = 1 << 1 // ResampleFD is in use
)

// IRQFD is struct kvm_irqfd: an eventfd whose signal raises GSI.
type IRQFD struct {
	FD         uint32
	GSI        uint32
	Flags      uint32
	ResampleFD uint32 // signalled when the guest acknowledges a level interrupt
	_          [16]uint8
}

// Flags of IOEventFD.
const (
	IOEventFDDatamatch uint32 = 1 << 0
	IOEventFDPIO       uint32 = 1 << 1
	IOEventFDDeassign  uint32 = 1 << 2
)

// IOEventFD describes a guest write that signals an eventfd in place of an
// exit.
type IOEventFD struct {
	Addr      uint64 // guest-physical, or a port with IOEventFDPIO
	Len       uint32 // bytes written: 1, 2, 4, 8; 0 for any length
	FD        int
	Flags     uint32
	Datamatch uint64 // the value to match, with IOEventFDDatamatch
}

type ioEventFD struct {
	datamatch uint64
	addr      uint64
	length    uint32
	fd        int32
	flags     uint32
	_         [36]uint8
}

// PITSpeakerDummy as flag of VM.CreatePIT2 has the kernel answer port 0x61.
const PITSpeakerDummy = 1

type pitConfig struct {
	flags uint32
	_     [15]uint32
}

// PITChannel is struct kvm_pit_channel_state: one counter of the 8254.
type PITChannel struct {
	Count         uint32 // up to 65536
	LatchedCount  uint16
	CountLatched  uint8
	StatusLatched uint8
	Status        uint8
	ReadState     uint8
	WriteState    uint8
	WriteLatch    uint8
	RWMode        uint8
	Mode          uint8
	BCD           uint8
	Gate          uint8
	CountLoadTime int64 // host monotonic time, in nanoseconds
}

// Flags of PITState.
const (
	PITHPETLegacy    uint32 = 1 << 0
	PITSpeakerDataOn uint32 = 1 << 1
)

// PITState is struct kvm_pit_state2.
type PITState struct {
	Channels [3]PITChannel
	Flags    uint32
	_        [9]uint32
}

// Flags of ClockData.
const (
	ClockTSCStable uint32 = 1 << 1 // get only: every vCPU sees the same clock
	ClockRealtime  uint32 = 1 << 2 // Realtime is valid; on set, advance by the time since
	ClockHostTSC   uint32 = 1 << 3 // get only: HostTSC is valid
)

// ClockData is struct kvm_clock_data: the guest's paravirtual clock.
type ClockData struct {
	Clock    uint64 // nanoseconds of guest time
	Flags    uint32
	_        uint32
	Realtime uint64 // host CLOCK_REALTIME, in nanoseconds
	HostTSC  uint64
	_        [4]uint32
}

type coalescedZone struct {
	addr uint64
	size uint32
	pio  uint32
}
