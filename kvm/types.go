package kvm

// The structures below have the kernel's layout. Reserved fields must stay
// zero where the kernel reads them, hence are blank.

// Regs is struct kvm_regs: the general-purpose registers.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is struct kvm_segment: a segment register with its hidden part.
// Limit is in bytes, whatever G says.
type Segment struct {
	Base     uint64
	Limit    uint32
	Selector uint16
	Type     uint8 // type field of the descriptor
	Present  uint8
	DPL      uint8
	DB       uint8 // default operation size
	S        uint8 // 0 for a system segment
	L        uint8 // 64-bit code
	G        uint8 // granularity
	AVL      uint8
	Unusable uint8
	_        uint8
}

// DTable is struct kvm_dtable: GDTR or IDTR.
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs: segment and control registers.
// InterruptBitmap has the bit of the one external interrupt that has been
// injected and not yet delivered, if any.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	InterruptBitmap         [4]uint64
}

// Sregs2PDPTRsValid in Sregs2.Flags says that PDPTRs is in use, as it is
// with PAE paging.
const Sregs2PDPTRsValid = 1

// Sregs2 is struct kvm_sregs2: Sregs with the PDPTRs in place of the
// interrupt bitmap.
type Sregs2 struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	Flags                   uint64
	PDPTRs                  [4]uint64
}

// FPU is struct kvm_fpu: x87 and SSE state. The kernel ignores MXCSR and leaves it 0;
// XSave carries it.
type FPU struct {
	FPR        [8][16]uint8
	FCW        uint16
	FSW        uint16
	FTWX       uint8 // abridged tag word, as FXSAVE stores it
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]uint8
	MXCSR      uint32
	_          uint32
}

// XSaveMinSize is the size of the area of KVM_GET_XSAVE, and the least of
// KVM_GET_XSAVE2, in bytes.
const XSaveMinSize = 4096

type xsaveArea [XSaveMinSize]uint8

// MaxXCRs is the room for extended control registers in XCRs.
const MaxXCRs = 16

// XCR is struct kvm_xcr: one extended control register. XCR0 is number 0.
type XCR struct {
	XCR   uint32
	_     uint32
	Value uint64
}

// XCRs is struct kvm_xcrs: the first Count of XCRs are in use.
type XCRs struct {
	Count uint32
	Flags uint32
	XCRs  [MaxXCRs]XCR
	_     [16]uint64
}

// LAPIC is struct kvm_lapic_state: the register page of the local APIC.
// A register stands at its xAPIC offset (Intel SDM volume 3, table
// "Local APIC Register Address Map"), also in x2APIC mode.
type LAPIC struct {
	Regs [0x400]uint8
}

// The MP states that x86 uses.
const (
	MPStateRunnable      uint32 = 0
	MPStateUninitialized uint32 = 1 // an application processor before INIT
	MPStateInitReceived  uint32 = 2 // waits for SIPI
	MPStateHalted        uint32 = 3
	MPStateSIPIReceived  uint32 = 4
	MPStateAPResetHold   uint32 = 9
)

// Flags of VCPUEvents. The kernel sets them on get; on set they select the
// optional fields to apply.
const (
	EventValidNMIPending  uint32 = 1 << 0
	EventValidSIPIVector  uint32 = 1 << 1
	EventValidShadow      uint32 = 1 << 2
	EventValidSMM         uint32 = 1 << 3
	EventValidPayload     uint32 = 1 << 4 // after EnableCap(CapExceptionPayload, 1)
	EventValidTripleFault uint32 = 1 << 5 // after EnableCap(CapX86TripleFaultEvent, 1)
)

// Bits of VCPUEvents.Interrupt.Shadow.
const (
	ShadowMovSS uint8 = 0x01
	ShadowSTI   uint8 = 0x02
)

// VCPUEvents is struct kvm_vcpu_events: events that are pending or being
// delivered.
type VCPUEvents struct {
	Exception struct {
		Injected     uint8
		Nr           uint8
		HasErrorCode uint8
		Pending      uint8
		ErrorCode    uint32
	}
	Interrupt struct {
		Injected uint8
		Nr       uint8
		Soft     uint8
		Shadow   uint8
	}
	NMI struct {
		Injected uint8
		Pending  uint8
		Masked   uint8
		_        uint8
	}
	SIPIVector uint32
	Flags      uint32
	SMI        struct {
		SMM          uint8
		Pending      uint8
		SMMInsideNMI uint8
		LatchedInit  uint8
	}
	TripleFault struct {
		Pending uint8
	}
	_                   [26]uint8
	ExceptionHasPayload uint8
	ExceptionPayload    uint64
}

// DebugRegs is struct kvm_debugregs: the guest's own debug registers.
type DebugRegs struct {
	DB    [4]uint64
	DR6   uint64
	DR7   uint64
	Flags uint64 // none defined
	_     [9]uint64
}

// Bits of GuestDebug.Control.
const (
	GuestDebugEnable     uint32 = 0x00000001
	GuestDebugSingleStep uint32 = 0x00000002
	GuestDebugUseSWBP    uint32 = 0x00010000 // INT3 exits
	GuestDebugUseHWBP    uint32 = 0x00020000 // DebugReg is in force
	GuestDebugInjectDB   uint32 = 0x00040000
	GuestDebugInjectBP   uint32 = 0x00080000
	GuestDebugBlockIRQ   uint32 = 0x00100000 // no interrupts while stepping
)

// GuestDebug is struct kvm_guest_debug. DebugReg holds DR0 to DR7 as the
// debugger wants them, with GuestDebugUseHWBP.
type GuestDebug struct {
	Control  uint32
	_        uint32
	DebugReg [8]uint64
}

// Translation is struct kvm_translation: the answer of VCPU.Translate.
type Translation struct {
	LinearAddress   uint64
	PhysicalAddress uint64
	Valid           uint8
	Writable        uint8 // the kernel fills this with 1, whatever the page tables say
	UserMode        uint8 // the kernel fills this with 0
	_               [5]uint8
}

// CPUIDSignificantIndex in CPUIDEntry.Flags says that the leaf has
// subleaves and Index, the value of ECX, selects this one.
const CPUIDSignificantIndex = 1

// CPUIDEntry is struct kvm_cpuid_entry2: the answer to one CPUID leaf.
type CPUIDEntry struct {
	Function           uint32
	Index              uint32
	Flags              uint32
	EAX, EBX, ECX, EDX uint32
	_                  [3]uint32
}

type cpuidHeader struct {
	count uint32
	_     uint32
}

// MSREntry is struct kvm_msr_entry: one model-specific register.
type MSREntry struct {
	Index uint32
	_     uint32
	Data  uint64
}

type msrsHeader struct {
	count uint32
	_     uint32
}

type msrListHeader struct{ count uint32 }

type enableCap struct {
	cap  uint32
	_    uint32 // flags
	args [4]uint64
	_    [64]uint8
}

type deviceAttr struct {
	_     uint32 // flags
	group uint32
	attr  uint64
	addr  uint64
}
