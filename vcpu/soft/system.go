package soft

import "github.com/vmkit-go/vmkit/vcpu"

// system is the part of a CPU that only the instructions of this package's system side
// and the engine look at.
type system struct {
	leaves    vcpu.CPUID // what CPUID reports
	amd       bool       // whose processor it is, where they differ
	hasRDTSCP bool
	cr4Valid  uint64 // the bits that CR4 and EFER may have
	eferValid uint64

	tscOffset  uint64 // IA32_TSC less the machine's clock
	apicPage   uint64 // where the local APIC has its registers, or noPage
	nmiPending uint8
	sipiVector uint8           // with wait == vcpu.MPSIPI
	tscRate    uint64          // the TSC's frequency if it is not TSCHz, or 0
	aligned    bool            // misaligned accesses raise #AC
	delivering bool            // an event is being delivered
	stepping   bool            // TF was set before the instruction
	resuming   bool            // RF was
	hits       uint64          // breakpoints that the instruction hit
	area       [xsaveSize]byte // scratch of FXSAVE and its like
}

// insn makes a lowering of an instruction without operands that the block goes on after.
func insn(f func(*CPU, *uop) stop) lowering {
	return func(l *lowerer) bool { l.call(f); return true }
}

// last makes a lowering of an instruction without operands that ends its block.
func last(f func(*CPU, *uop) stop) lowering {
	return func(l *lowerer) bool { l.terminate(f); return true }
}

// registerSystem enters the system instructions, except for those that share an opcode
// with others.
func registerSystem() {
	for op, f := range map[byte]lowering{
		0x06: lowerPushSegment, 0x0e: lowerPushSegment, 0x16: lowerPushSegment, 0x1e: lowerPushSegment,
		0x07: lowerPopSegment, 0x17: lowerPopSegment, 0x1f: lowerPopSegment,
		0x62: lowerBound,
		0x6c: lowerPortString, 0x6d: lowerPortString, 0x6e: lowerPortString, 0x6f: lowerPortString,
		0x8c: lowerMovFromSegment, 0x8e: lowerMovToSegment,
		0x9a: lowerFarDirect, 0xea: lowerFarDirect,
		0x9c: lowerPushFlags, 0x9d: lowerPopFlags,
		0xc4: lowerLoadFar, 0xc5: lowerLoadFar,
		0xca: lowerRetFar, 0xcb: lowerRetFar,
		0xcc: lowerInt, 0xcd: lowerInt, 0xce: lowerInt, 0xf1: lowerInt, 0xcf: lowerIRET,
		0xe4: lowerPort, 0xe5: lowerPort, 0xe6: lowerPort, 0xe7: lowerPort,
		0xec: lowerPort, 0xed: lowerPort, 0xee: lowerPort, 0xef: lowerPort,
		0xf4: last((*CPU).hlt),
		0xfa: insn((*CPU).cli), 0xfb: last((*CPU).sti),
	} {
		lowerPrimary[op] = f
	}
	for op, f := range map[byte]lowering{
		0x00: lowerGroup6, 0x01: lowerGroup7, 0x02: lowerLAR, 0x03: lowerLAR,
		0x05: lowerSyscall, 0x07: lowerSysret, 0x34: lowerSysenter, 0x35: lowerSysexit,
		0x06: insn((*CPU).clts), 0x08: insn((*CPU).invd), 0x09: insn((*CPU).invd),
		0x20: lowerMovFromControl, 0x21: lowerMovFromDebug, 0x22: lowerMovToControl, 0x23: lowerMovToDebug,
		0x30: insn((*CPU).wrmsr), 0x31: insn((*CPU).rdtsc), 0x32: insn((*CPU).rdmsr), 0x33: insn((*CPU).rdpmc),
		0xa0: lowerPushSegment, 0xa1: lowerPopSegment, 0xa8: lowerPushSegment, 0xa9: lowerPopSegment,
		0xa2: insn((*CPU).cpuidInsn),
		0xae: lowerXSave,
		0xb2: lowerLoadFar, 0xb4: lowerLoadFar, 0xb5: lowerLoadFar,
	} {
		lower0F[op] = f
	}
}

func lowerSyscall(l *lowerer) bool { l.terminate((*CPU).syscall); return true }
func lowerSysret(l *lowerer) bool  { l.terminate((*CPU).sysret); return true }

func lowerSysenter(l *lowerer) bool { l.terminate((*CPU).sysenter); return true }
func lowerSysexit(l *lowerer) bool  { l.terminate((*CPU).sysexit); return true }

// here is the address of u's instruction.
func (c *CPU) here(u *uop) uint64 {
	rip := c.r[regRIP] + uint64(u.off)
	switch c.mode & modeSize {
	case mode32:
		rip = uint64(uint32(rip))
	case mode16:
		rip = uint64(uint16(rip))
	}
	return rip
}
