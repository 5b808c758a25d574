package vcpu

// State is the whole architectural state of one CPU, in a form that no engine
// owns. It is plain data: it marshals to JSON and compares with go-cmp.
//
// A State read from an engine is complete. For SetState, XCRs, XSAVE, MSRs and
// LAPIC may be left empty, which leaves those parts of the CPU as they are, so
// that a caller can build an entry state from [PowerUp] by hand.
type State struct {
	Regs     Registers
	Segments Segments
	GDT, IDT Table
	Control  Control
	Debug    DebugRegisters

	// XCRs are the extended control registers; XCR0 has index 0.
	XCRs []XCR
	// XSAVE is the x87, SSE and extended state in the standard form of
	// XSAVE, never the compacted one (Intel SDM volume 1, section 13.4).
	XSAVE []byte
	// MSRs are the model-specific registers that no other field holds, in
	// the order in which they are to be written.
	MSRs []MSR
	// LAPIC is the local APIC's register page in its architectural layout
	// (Intel SDM volume 3, table 12-1), 4096 bytes. The ID register is in
	// xAPIC form (bits 31 to 24) in every mode.
	LAPIC []byte

	Events Events
	MP     MPState

	// TSC is the value that RDTSC would read, IA32_TSC.
	TSC uint64
	// TSCHz is the frequency of the TSC in hertz, or 0 if unknown.
	TSCHz uint64
}

// Registers are the general registers, RIP and RFLAGS.
type Registers struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is a segment register with its hidden part.
type Segment struct {
	Base     uint64
	Limit    uint32 // in bytes, after scaling by Granularity
	Selector uint16
	Type     uint8 // 4 bits, Intel SDM volume 3, section 3.4.5.1
	DPL      uint8 // 0 to 3

	System      bool // a system segment: the descriptor's S flag is clear
	Present     bool
	Available   bool // AVL
	Long        bool // L: 64-bit code
	Big         bool // D/B: 32-bit code, data or stack
	Granularity bool // G
	Unusable    bool // loaded with a null selector
}

// Segments are all segment registers.
type Segments struct {
	CS, DS, ES, FS, GS, SS Segment
	TR, LDT                Segment
}

// Table is GDTR or IDTR.
type Table struct {
	Base  uint64
	Limit uint16
}

// Control holds the control registers and the two MSRs that belong with them.
type Control struct {
	CR0, CR2, CR3, CR4 uint64
	CR8                uint64 // the task priority, 0 to 15
	EFER               uint64
	APICBase           uint64 // IA32_APIC_BASE
	// PDPTRs are the page-directory-pointer entries that the CPU holds
	// under PAE paging outside long mode; nil otherwise or if unknown, in
	// which case they are loaded from memory at CR3.
	PDPTRs []uint64
}

// DebugRegisters are DR0 to DR3, DR6 and DR7.
type DebugRegisters struct {
	DR       [4]uint64
	DR6, DR7 uint64
}

// XCR is one extended control register.
type XCR struct {
	Index uint32
	Value uint64
}

// MSR is one model-specific register.
type MSR struct {
	Index uint32
	Value uint64
}

// Events are the interrupts and exceptions on their way to a CPU.
type Events struct {
	Exception Exception
	Interrupt Interrupt
	NMI       NMI
	SMI       SMI
	// ShadowSTI and ShadowMOVSS say that the next instruction runs with
	// interrupts held off, after STI or after a load of SS. At most one is
	// set; an engine that cannot tell them apart says STI.
	ShadowSTI, ShadowMOVSS bool
	// SIPI is the vector of the last start-up interrupt received.
	SIPI uint8
	// TripleFault says that the CPU is about to shut down.
	TripleFault bool
}

// Exception is the exception on its way. Pending means that it has not yet
// changed DR6 or CR2, Injected that its delivery has begun.
type Exception struct {
	Pending, Injected bool
	Vector            uint8 // 0 to 31
	HasErrorCode      bool
	ErrorCode         uint32
	HasPayload        bool // Payload is the future value of CR2, or bits for DR6
	Payload           uint64
}

// Interrupt is the external or software interrupt whose delivery has begun.
type Interrupt struct {
	Injected bool
	Soft     bool // by INT n
	Vector   uint8
}

// NMI is the state of non-maskable interrupts. Pending counts up to 2.
type NMI struct {
	Injected bool
	Pending  uint8
	Masked   bool
}

// SMI is the state of system-management mode.
type SMI struct {
	Active    bool // in SMM
	Pending   bool
	InsideNMI bool // SMM was entered while NMIs were masked
	Init      bool // an INIT is latched
}

// MPState is what a CPU does in a multiprocessor machine.
type MPState uint8

// The states.
const (
	MPRunning MPState = iota // executing instructions
	MPHalted                 // in HLT, waiting for an interrupt
	MPWait                   // an application processor before its first INIT
	MPInit                   // has had INIT and waits for a start-up interrupt
	MPSIPI                   // has had a start-up interrupt, Events.SIPI
)

var mpNames = [...]string{"running", "halted", "wait", "init", "sipi"}

// String returns the state's name.
func (s MPState) String() string {
	if int(s) < len(mpNames) {
		return mpNames[s]
	}
	return "unknown"
}

// Architectural constants of the control registers that states are made of.
const (
	CR0PE  = 1 << 0  // protection
	CR0ET  = 1 << 4  // fixed at 1
	CR0NW  = 1 << 29 // not write-through
	CR0CD  = 1 << 30 // cache disable
	CR0PG  = 1 << 31 // paging
	CR4PAE = 1 << 5  // physical address extension
	CR4SVE = 1 << 18 // OSXSAVE

	EFERSCE   = 1 << 0  // SYSCALL
	EFERLME   = 1 << 8  // long mode enable
	EFERLMA   = 1 << 10 // long mode active
	EFERNXE   = 1 << 11 // no-execute
	EFERSVME  = 1 << 12 // SVM
	EFERFFXSR = 1 << 14 // fast FXSAVE

	APICBaseBSP    = 1 << 8  // bootstrap processor
	APICBaseX2APIC = 1 << 10 // x2APIC mode
	APICBaseEnable = 1 << 11 // local APIC on
)

// PowerUp returns the state of a CPU after power-up or RESET (Intel SDM volume
// 3, table 10-1): real mode at 0xfffffff0. XCRs, XSAVE, MSRs and LAPIC are
// empty. bsp says whether it is the bootstrap processor; others wait for INIT.
func PowerUp(bsp bool) State {
	data := Segment{Limit: 0xffff, Type: 3, Present: true}
	s := State{
		Regs: Registers{RIP: 0xfff0, RFLAGS: 2, RDX: 0x600},
		Segments: Segments{
			CS: Segment{Base: 0xffff0000, Limit: 0xffff, Selector: 0xf000, Type: 11, Present: true},
			DS: data, ES: data, FS: data, GS: data, SS: data,
			TR:  Segment{Limit: 0xffff, Type: 11, System: true, Present: true},
			LDT: Segment{Limit: 0xffff, Type: 2, System: true, Present: true},
		},
		GDT:     Table{Limit: 0xffff},
		IDT:     Table{Limit: 0xffff},
		Control: Control{CR0: CR0ET | CR0NW | CR0CD, APICBase: 0xfee00000 | APICBaseEnable},
		Debug:   DebugRegisters{DR6: 0xffff0ff0, DR7: 0x400},
	}
	if bsp {
		s.Control.APICBase |= APICBaseBSP
	} else {
		s.MP = MPWait
	}
	return s
}
