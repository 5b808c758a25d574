// Package vcpu is the contract between a machine and the engine that runs its
// CPUs: [State], the whole architectural state of one CPU in a form that no
// engine owns; [CPU], something that can run it; [Exit], why it stopped; and
// [Loop], which serves exits from a bus until told to stop.
//
// An engine makes the CPUs of one machine (packages vcpu/kvmcpu and
// vcpu/soft):
//
//	eng, err := kvmcpu.New(mem, kvmcpu.Config{})
//	cpu, err := eng.NewCPU(0)
//	err = cpu.SetState(&state)
//	var exit vcpu.Exit
//	err = cpu.Run(&exit)
package vcpu

import (
	"github.com/vmkit-go/vmkit/vm/device"
)

// Reason says why a CPU left the guest.
type Reason uint8

// The reasons. Everything else that an engine meets is an error of Run.
const (
	ExitNone     Reason = iota
	ExitKick            // Kick was called; no port or memory access is pending
	ExitIO              // port access: Port, Size, Count, Write, Data
	ExitMMIO            // memory access outside every region: Addr, Write, Data
	ExitHalt            // HLT with no in-engine interrupt chips
	ExitShutdown        // triple fault (Intel SDM volume 3, section 7.15, "double fault")
	ExitDebug           // single step or breakpoint: DR6, Addr is the address
	ExitReset           // the guest asked the engine for a reset
	ExitPowerOff        // the guest asked the engine for power-off
	ExitCrash           // the guest reported a crash to the engine
)

// Exit describes one exit. Data aliases engine memory and is valid until the
// next Run; for reads the caller fills it before that.
type Exit struct {
	Reason Reason
	Write  bool
	Size   uint8  // bytes per port access: 1, 2 or 4
	Port   uint16 // ExitIO
	Count  uint32 // port accesses in Data, for string instructions
	Addr   uint64 // ExitMMIO, ExitDebug
	DR6    uint64 // ExitDebug
	Data   []byte // ExitIO: Size*Count bytes; ExitMMIO: 1 to 8 bytes
}

// CPU is one virtual CPU. Run, State, SetState and SetSingleStep are called
// from one goroutine at a time, which is locked to its thread while in Run
// (runtime.LockOSThread). Kick may be called from any. [Loop] sees to both.
type CPU interface {
	// ID is the CPU's index in the machine, and its initial APIC ID.
	ID() int
	// Run enters the guest until something needs attention. It allocates
	// nothing. An error means that the CPU cannot go on.
	Run(exit *Exit) error
	// Kick makes the current Run, or else the next one, return ExitKick
	// once no access is pending: a Run that returns another exit first
	// leaves the kick for the Run after it. Several kicks may give one exit.
	Kick()
	// State and SetState copy the whole architectural state out and in.
	// State completes a pending port or memory access first.
	State(s *State) error
	SetState(s *State) error
	// SetSingleStep makes Run return ExitDebug after each instruction.
	SetSingleStep(on bool) error
	Close() error
}

// Attacher is a CPU that runs faster when it knows its thread. Between Attach
// and Detach, both called by the goroutine that calls Run, that goroutine stays
// locked to one thread. [Loop] does this.
type Attacher interface {
	Attach()
	Detach()
}

// Engine makes the CPUs of one machine and owns the interrupt chips between
// them. Its methods may be called from any goroutine.
type Engine interface {
	// NewCPU makes CPU id with the engine's CPU model.
	NewCPU(id int) (CPU, error)
	// CPUID is what CPUID instructions of CPU 0 report.
	CPUID() CPUID
	// Line returns interrupt line gsi (0 to 23) of the chips.
	Line(gsi int) device.Line
	device.MSI
	device.Doorbells
	// SaveChips and LoadChips copy the state of the interrupt chips and
	// timers that the CPUs share, while every CPU is out of the guest.
	// LoadChips comes after SetState of every CPU and right before they
	// run.
	SaveChips() (ChipState, error)
	LoadChips(ChipState) error
	Close() error
}
