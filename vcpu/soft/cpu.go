package soft

import (
	"unsafe"

	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/soft/decode"
	"github.com/vmkit-go/vmkit/vcpu/soft/float"
)

// The register file that micro-operations name. Beside the general registers it
// holds what an address is made of, so that every address is base plus scaled
// index plus displacement plus segment base, without a case distinction.
const (
	regRAX = iota
	regRCX
	regRDX
	regRBX
	regRSP
	regRBP
	regRSI
	regRDI
	regR8
	regR9
	regR10
	regR11
	regR12
	regR13
	regR14
	regR15
	regZero // always 0
	regRIP  // RIP of the block's first instruction
	regT0   // temporaries within one instruction
	regT1
	regEA        // an address that was computed by a micro-operation of its own
	regSeg  = 24 // bases of ES, CS, SS, DS, FS, GS
	numRegs = 32
)

// Segment registers, by their numbers in instructions.
const (
	segES = decode.ES
	segCS = decode.CS
	segSS = decode.SS
	segDS = decode.DS
	segFS = decode.FS
	segGS = decode.GS
)

// RFLAGS.
const (
	flagCF   = 1 << 0
	flag1    = 1 << 1 // always set
	flagPF   = 1 << 2
	flagAF   = 1 << 4
	flagZF   = 1 << 6
	flagSF   = 1 << 7
	flagTF   = 1 << 8
	flagIF   = 1 << 9
	flagDF   = 1 << 10
	flagOF   = 1 << 11
	flagIOPL = 3 << 12
	flagNT   = 1 << 14
	flagRF   = 1 << 16
	flagVM   = 1 << 17
	flagAC   = 1 << 18
	flagVIF  = 1 << 19
	flagVIP  = 1 << 20
	flagID   = 1 << 21

	flagArith = flagCF | flagPF | flagAF | flagZF | flagSF | flagOF
)

// Control registers.
const (
	cr0PE = 1 << 0
	cr0MP = 1 << 1
	cr0EM = 1 << 2
	cr0TS = 1 << 3
	cr0ET = 1 << 4
	cr0NE = 1 << 5
	cr0WP = 1 << 16
	cr0AM = 1 << 18
	cr0NW = 1 << 29
	cr0CD = 1 << 30
	cr0PG = 1 << 31

	cr4VME        = 1 << 0
	cr4PVI        = 1 << 1
	cr4TSD        = 1 << 2
	cr4DE         = 1 << 3
	cr4PSE        = 1 << 4
	cr4PAE        = 1 << 5
	cr4MCE        = 1 << 6
	cr4PGE        = 1 << 7
	cr4PCE        = 1 << 8
	cr4OSFXSR     = 1 << 9
	cr4OSXMMEXCPT = 1 << 10
	cr4UMIP       = 1 << 11
	cr4FSGSBASE   = 1 << 16
	cr4OSXSAVE    = 1 << 18
	cr4SMEP       = 1 << 20
	cr4SMAP       = 1 << 21

	eferSCE = vcpu.EFERSCE
	eferLME = vcpu.EFERLME
	eferLMA = vcpu.EFERLMA
	eferNXE = vcpu.EFERNXE
)

// Exception vectors (Intel SDM volume 3, table 6-1).
const (
	excDE = 0
	excDB = 1
	excBP = 3
	excOF = 4
	excBR = 5
	excUD = 6
	excNM = 7
	excDF = 8
	excTS = 10
	excNP = 11
	excSS = 12
	excGP = 13
	excPF = 14
	excMF = 16
	excAC = 17
	excXM = 19
)

// mode is what the meaning of code depends on; blocks are made for one mode.
type mode uint8

const (
	mode16 mode = mode(decode.Mode16) // size of code, 2 bits
	mode32 mode = mode(decode.Mode32)
	mode64 mode = mode(decode.Mode64)

	modeSize    mode = 3
	modeStack32 mode = 1 << 2 // SS.B, outside 64-bit mode
	modeFlat    mode = 1 << 3 // segments are flat: no base, no limit to check
	modeSingle  mode = 1 << 4 // one instruction per block
)

func (m mode) size() decode.Mode { return decode.Mode(m & modeSize) }

// stop says how a micro-operation ends. All but next end the block.
type stop int

const (
	next  stop = iota // go on with the next micro-operation
	link0             // the block ends at its branch's target; rip is set
	link1             // the block ends at the instruction after it; rip is set
	done              // the block ends; rip is set
	event             // as done, and interrupts have to be looked at
	leave             // go on to the end of this instruction, then as event
	fault             // the instruction did not happen: exc is to be delivered
	abort             // the instruction did not happen: it waits for an access, see access.go
)

// exception is what a fault delivers.
type exception struct {
	vector  uint8
	hasCode bool
	code    uint32
}

// CPU is one CPU of an [Engine]. It implements [vcpu.CPU].
//
// The fields that every instruction touches come first.
type CPU struct {
	r    [numRegs]uint64
	tlb  *dataTLB
	base unsafe.Pointer // host address of guest-physical 0
	left int64          // instructions until the engine has to look at something

	// Arithmetic flags: those in fl if lazy is lazyNone, or else what they are
	// computed from; see flags.go.
	lazy   lazyOp
	la, lr uint64
	fl     uint64

	rip  uint64
	itlb *codeTLB
	mode mode // of the code that runs

	flags uint64 // RFLAGS but for the arithmetic flags
	cpl   uint8
	exc   exception

	xmm   [16]xmm
	xmmT  [16]xmm // temporaries within one instruction, see CPU.x
	mxcsr uint32
	fm    float.MXCSR // of the instruction that runs, see floatBegin
	fpu   fpu

	seg  [6]vcpu.Segment // by number; bases are in r too, see setSegment
	ldtr vcpu.Segment
	tr   vcpu.Segment
	gdtr vcpu.Table
	idtr vcpu.Table
	cr0  uint64
	cr2  uint64
	cr3  uint64
	cr4  uint64
	efer uint64
	xcr0 uint64
	dr   [4]uint64
	dr6  uint64
	dr7  uint64
	pdpt [4]uint64 // under PAE paging outside long mode
	msr  msrs

	// shadow holds interrupts off for one instruction, after STI or MOV SS.
	shadow      bool
	shadowMOVSS bool // it was MOV SS, which holds off debug traps as well
	halted      bool
	wait        vcpu.MPState // MPRunning, or what an application processor waits for
	nmiMasked   bool
	shutdown    bool // a triple fault
	inject      injection

	id     int
	e      *Engine
	access access // what an instruction waits for
	end    int64  // count of instructions at which left is 0

	tlbs  [3]dataTLB // kernel; kernel while AC lifts SMAP; user
	itlbs [2]codeTLB // kernel; user
	// writable has the pages that the entries of tlbs let writes go to.
	writable [3][tlbSize]uint64
	jumps    [jumpCacheSize]jump

	cur     *block // that runs
	tail    block  // see finish
	tailOps [maxTail]uop
	watched bool // breakpoints on data: no access may bypass touch
	lower   lowerer
	space   space // of the guest's own accesses, see memory_unsafe.go
	step    bool  // SetSingleStep
	yield   bool  // PAUSE: another CPU should have the turn
	// asker is the micro-operation that asks something of the machine, whose time is then
	// that of its instruction.
	asker *uop

	system
}

// maxTail is more micro-operations than an instruction has.
const maxTail = 32

// xmm is a vector register; element 0 is the low half.
type xmm [2]uint64

// is64 reports whether the CPU runs 64-bit code.
func (c *CPU) is64() bool { return c.mode&modeSize == mode64 }

// now is the count of instructions that the machine has executed when the
// instruction of u begins. Only micro-operations of the running block may ask.
func (c *CPU) now(u *uop) int64 { return c.end - c.left - c.cur.n + int64(u.n) }

// raise makes u's instruction fault without an error code.
func (c *CPU) raise(vector uint8) stop {
	c.exc = exception{vector: vector}
	return fault
}

// raiseCode makes u's instruction fault with an error code.
func (c *CPU) raiseCode(vector uint8, code uint32) stop {
	c.exc = exception{vector: vector, hasCode: true, code: code}
	return fault
}

// gp raises #GP(0).
func (c *CPU) gp() stop { return c.raiseCode(excGP, 0) }

// nextRIP is the address of the instruction after u's.
func (c *CPU) nextRIP(u *uop) uint64 {
	return (c.r[regRIP] + uint64(u.off) + uint64(u.len)) & c.ripMask()
}

// ripMask has the bits of RIP that count.
func (c *CPU) ripMask() uint64 {
	switch c.mode & modeSize {
	case mode64:
		return ^uint64(0)
	case mode32:
		return 0xffffffff
	}
	return 0xffff
}
