package kvm

import "strconv"

// ExitReason says why VCPU.Run returned.
type ExitReason uint32

// The exit reasons that x86 uses.
const (
	ExitUnknown       ExitReason = 0
	ExitException     ExitReason = 1
	ExitIO            ExitReason = 2
	ExitHypercall     ExitReason = 3
	ExitDebug         ExitReason = 4
	ExitHLT           ExitReason = 5
	ExitMMIO          ExitReason = 6
	ExitIRQWindowOpen ExitReason = 7
	ExitShutdown      ExitReason = 8
	ExitFailEntry     ExitReason = 9
	ExitIntr          ExitReason = 10
	ExitSetTPR        ExitReason = 11
	ExitTPRAccess     ExitReason = 12
	ExitNMI           ExitReason = 16
	ExitInternalError ExitReason = 17
	ExitSystemEvent   ExitReason = 24
	ExitIOAPICEOI     ExitReason = 26
	ExitHyperV        ExitReason = 27
	ExitRDMSR         ExitReason = 29
	ExitWRMSR         ExitReason = 30
	ExitDirtyRingFull ExitReason = 31
	ExitAPResetHold   ExitReason = 32
	ExitBusLock       ExitReason = 33
	ExitXen           ExitReason = 34
	ExitNotify        ExitReason = 37
	ExitMemoryFault   ExitReason = 39
)

var exitNames = [...]string{
	ExitUnknown: "UNKNOWN", ExitException: "EXCEPTION", ExitIO: "IO", ExitHypercall: "HYPERCALL",
	ExitDebug: "DEBUG", ExitHLT: "HLT", ExitMMIO: "MMIO", ExitIRQWindowOpen: "IRQ_WINDOW_OPEN",
	ExitShutdown: "SHUTDOWN", ExitFailEntry: "FAIL_ENTRY", ExitIntr: "INTR", ExitSetTPR: "SET_TPR",
	ExitTPRAccess: "TPR_ACCESS", ExitNMI: "NMI", ExitInternalError: "INTERNAL_ERROR",
	ExitSystemEvent: "SYSTEM_EVENT", ExitIOAPICEOI: "IOAPIC_EOI", ExitHyperV: "HYPERV",
	ExitRDMSR: "X86_RDMSR", ExitWRMSR: "X86_WRMSR", ExitDirtyRingFull: "DIRTY_RING_FULL",
	ExitAPResetHold: "AP_RESET_HOLD", ExitBusLock: "X86_BUS_LOCK", ExitXen: "XEN",
	ExitNotify: "NOTIFY", ExitMemoryFault: "MEMORY_FAULT",
}

// String returns the kernel's name, such as "KVM_EXIT_IO".
func (r ExitReason) String() string {
	if int(r) < len(exitNames) && exitNames[r] != "" {
		return "KVM_EXIT_" + exitNames[r]
	}
	return "KVM_EXIT(" + strconv.FormatUint(uint64(r), 10) + ")"
}

// Bits of Run.Flags.
const (
	RunFlagSMM     uint16 = 1 << 0
	RunFlagBusLock uint16 = 1 << 1
)

// Classes of registers in Run.ValidRegs and Run.DirtyRegs.
const (
	SyncRegsRegs   uint64 = 1 << 0
	SyncRegsSregs  uint64 = 1 << 1
	SyncRegsEvents uint64 = 1 << 2
)

// Run is struct kvm_run, in the page that the kernel shares with user space.
// The kernel writes it during VCPU.Run only. It must not be touched after
// VCPU.Close.
type Run struct {
	entry [2]uint32 // request_interrupt_window, immediate_exit, padding

	ExitReason                 ExitReason
	ReadyForInterruptInjection uint8  // VCPU.Interrupt would be accepted
	IfFlag                     uint8  // RFLAGS.IF
	Flags                      uint16 // RunFlag bits

	// CR8 and APICBase are read on entry and written on exit when there is
	// no in-kernel local APIC.
	CR8      uint64
	APICBase uint64

	exit [32]uint64 // the union

	// ValidRegs asks for classes of registers to be copied to Sync at each
	// exit, and DirtyRegs (which Run clears) for classes to be taken from
	// there at entry. With CapSyncRegs.
	ValidRegs uint64
	DirtyRegs uint64
	Sync      SyncRegs
	_         [2048 - 520]uint8
}

// SyncRegs is struct kvm_sync_regs.
type SyncRegs struct {
	Regs   Regs
	Sregs  Sregs
	Events VCPUEvents
}

// Values of IOExit.Direction.
const (
	IOIn  uint8 = 0
	IOOut uint8 = 1
)

// IOExit is the part of kvm_run for ExitIO: Count port accesses of Size bytes.
// The bytes are VCPU.IOData.
type IOExit struct {
	Direction  uint8
	Size       uint8 // 1, 2 or 4
	Port       uint16
	Count      uint32
	DataOffset uint64 // from the start of kvm_run
}

// MMIOExit is the part for ExitMMIO.
type MMIOExit struct {
	PhysAddr uint64
	Data     [8]uint8
	Len      uint32 // 1 to 8
	IsWrite  uint8
}

// Bytes returns the Len bytes that are written, or to be read.
func (e *MMIOExit) Bytes() []byte { return e.Data[:min(e.Len, 8)] }

// DebugExit is the part for ExitDebug.
type DebugExit struct {
	Exception uint32 // vector: 1 for #DB, 3 for #BP
	_         uint32
	PC        uint64 // linear address of the instruction
	DR6       uint64
	DR7       uint64
}

// FailEntryExit is the part for ExitFailEntry.
type FailEntryExit struct {
	HardwareEntryFailureReason uint64
	CPU                        uint32
}

// ExceptionExit is the part for ExitException.
type ExceptionExit struct {
	Exception uint32
	ErrorCode uint32
}

// Values of InternalErrorExit.Suberror.
const (
	InternalErrorEmulation            uint32 = 1
	InternalErrorSimulEx              uint32 = 2
	InternalErrorDeliveryEV           uint32 = 3
	InternalErrorUnexpectedExitReason uint32 = 4
)

// InternalErrorExit is the part for ExitInternalError.
type InternalErrorExit struct {
	Suberror uint32
	NData    uint32
	Data     [16]uint64
}

// Instruction returns the bytes of the instruction that could not be emulated,
// as far as the kernel tells: they are 15 bytes from its start and may run
// beyond its end. It returns nil when the kernel does not tell.
func (e *InternalErrorExit) Instruction() []byte {
	const haveInsn = 1
	if e.Suberror != InternalErrorEmulation || e.NData < 3 || e.Data[0]&haveInsn == 0 {
		return nil
	}
	n := e.Data[1] & 0xff
	insn := make([]byte, 0, 15)
	for i := uint64(1); i <= min(n, 15); i++ {
		insn = append(insn, byte(e.Data[1+i/8]>>(i%8*8)))
	}
	return insn
}

// Values of SystemEventExit.Type.
const (
	SystemEventShutdown uint32 = 1
	SystemEventReset    uint32 = 2
	SystemEventCrash    uint32 = 3
)

// SystemEventExit is the part for ExitSystemEvent.
type SystemEventExit struct {
	Type  uint32
	NData uint32
	Data  [16]uint64
}

// EOIExit is the part for ExitIOAPICEOI: the guest ended a level-triggered
// interrupt of a user-space IOAPIC (split irqchip).
type EOIExit struct {
	Vector uint8
}

// Bits of MSRExit.Reason, and of the argument of VM.EnableUserSpaceMSR.
const (
	MSRExitInval   uint32 = 1 << 0 // access with a value or in a way that is not valid
	MSRExitUnknown uint32 = 1 << 1 // KVM does not know the MSR
	MSRExitFilter  uint32 = 1 << 2 // denied by VM.SetMSRFilter
)

// MSRExit is the part for ExitRDMSR and ExitWRMSR. The VMM sets Data for a read;
// a nonzero Error makes the guest take #GP.
type MSRExit struct {
	Error  uint8
	_      [7]uint8
	Reason uint32
	Index  uint32
	Data   uint64
}

// HypercallExit is the part for ExitHypercall. The VMM sets Ret.
type HypercallExit struct {
	Nr       uint64
	Args     [6]uint64
	Ret      uint64
	LongMode uint32
	_        uint32
}

// TPRAccessExit is the part for ExitTPRAccess.
type TPRAccessExit struct {
	RIP     uint64
	IsWrite uint32
	_       uint32
}

// NotifyExit is the part for ExitNotify. Bit 0 of Flags says that the state
// of the vCPU is lost.
type NotifyExit struct {
	Flags uint32
}

// MemoryFaultExit is the part for ExitMemoryFault.
type MemoryFaultExit struct {
	Flags uint64
	GPA   uint64
	Size  uint64
}
