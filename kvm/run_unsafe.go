package kvm

import (
	"sync/atomic"
	"unsafe"
)

// The bytes request_interrupt_window and immediate_exit share a word with
// padding, and another thread may set the latter at any time; hence both
// change by atomic operations on the word.
const (
	requestWindowBits = 0x000000ff
	requestWindowOn   = 0x00000001
	immediateExitBits = 0x0000ff00
	immediateExitOn   = 0x00000100
)

func setBits(word *uint32, mask, value uint32, on bool) {
	if on {
		atomic.OrUint32(word, value)
	} else {
		atomic.AndUint32(word, ^mask)
	}
}

// SetImmediateExit makes Run return EINTR at once, before entering the guest,
// for as long as it is on. It is atomic. Goroutines that do not own the vCPU
// use [VCPU.SetImmediateExit], which is safe against Close.
func (r *Run) SetImmediateExit(on bool) {
	setBits(&r.entry[0], immediateExitBits, immediateExitOn, on)
}

// ImmediateExit reports what SetImmediateExit set.
func (r *Run) ImmediateExit() bool {
	return atomic.LoadUint32(&r.entry[0])&immediateExitBits != 0
}

// SetRequestInterruptWindow makes Run return ExitIRQWindowOpen as soon as the
// guest can take an external interrupt. Without an in-kernel local APIC only.
func (r *Run) SetRequestInterruptWindow(on bool) {
	setBits(&r.entry[0], requestWindowBits, requestWindowOn, on)
}

// RequestInterruptWindow reports what SetRequestInterruptWindow set.
func (r *Run) RequestInterruptWindow() bool {
	return atomic.LoadUint32(&r.entry[0])&requestWindowBits != 0
}

// The accessors below view the union; each is meaningful only for its exit
// reason, until the next VCPU.Run.

// IO views the union for ExitIO.
func (r *Run) IO() *IOExit { return (*IOExit)(unsafe.Pointer(&r.exit)) }

// MMIO views the union for ExitMMIO.
func (r *Run) MMIO() *MMIOExit { return (*MMIOExit)(unsafe.Pointer(&r.exit)) }

// Debug views the union for ExitDebug.
func (r *Run) Debug() *DebugExit { return (*DebugExit)(unsafe.Pointer(&r.exit)) }

// HardwareExitReason is the union for ExitUnknown: the code that the processor
// gave.
func (r *Run) HardwareExitReason() uint64 { return r.exit[0] }

// FailEntry views the union for ExitFailEntry.
func (r *Run) FailEntry() *FailEntryExit { return (*FailEntryExit)(unsafe.Pointer(&r.exit)) }

// Exception views the union for ExitException.
func (r *Run) Exception() *ExceptionExit { return (*ExceptionExit)(unsafe.Pointer(&r.exit)) }

// InternalError views the union for ExitInternalError.
func (r *Run) InternalError() *InternalErrorExit {
	return (*InternalErrorExit)(unsafe.Pointer(&r.exit))
}

// SystemEvent views the union for ExitSystemEvent.
func (r *Run) SystemEvent() *SystemEventExit { return (*SystemEventExit)(unsafe.Pointer(&r.exit)) }

// EOI views the union for ExitIOAPICEOI.
func (r *Run) EOI() *EOIExit { return (*EOIExit)(unsafe.Pointer(&r.exit)) }

// MSR views the union for ExitRDMSR and ExitWRMSR.
func (r *Run) MSR() *MSRExit { return (*MSRExit)(unsafe.Pointer(&r.exit)) }

// Hypercall views the union for ExitHypercall.
func (r *Run) Hypercall() *HypercallExit { return (*HypercallExit)(unsafe.Pointer(&r.exit)) }

// TPRAccess views the union for ExitTPRAccess.
func (r *Run) TPRAccess() *TPRAccessExit { return (*TPRAccessExit)(unsafe.Pointer(&r.exit)) }

// Notify views the union for ExitNotify.
func (r *Run) Notify() *NotifyExit { return (*NotifyExit)(unsafe.Pointer(&r.exit)) }

// MemoryFault views the union for ExitMemoryFault.
func (r *Run) MemoryFault() *MemoryFaultExit { return (*MemoryFaultExit)(unsafe.Pointer(&r.exit)) }
