package vcpu

import "github.com/vmkit-go/vmkit/vm/device"

// Turns is an [Engine] whose CPUs take turns on one goroutine, on a clock of
// the machine's own. Given the same events at the same instruction counts, a
// machine on it does the same things, bit for bit.
//
// Its Doorbell returns an error wrapping errors.ErrUnsupported: a notification
// is a write on the bus, done with before the next instruction.
type Turns interface {
	Engine
	// Runner returns the CPU whose Run runs all CPUs of the machine by turns;
	// the same one at each call. An exit is that of whichever CPU has the
	// turn. A [Loop] runs it. The CPUs of NewCPU are for State and SetState,
	// while the Runner is out of the guest, and for Kick, which is the same
	// as the Runner's. A Kick from the Runner's own goroutine, in an access
	// that is being served, takes effect before the next instruction. Close of
	// the engine closes the Runner too.
	Runner() CPU
	// Clock is the machine's clock, driven by the instructions executed. Its
	// timers go off on the Runner's goroutine.
	Clock() device.Clock
	// Interject has f run on the goroutine of the Runner's Run, with no
	// instruction half done, before the next instruction, and wakes CPUs
	// that all wait for something to do. Functions run in the order of their
	// Interject; one that f itself interjects runs before the next
	// instruction too. While Run is not called they wait. It may be called
	// from any goroutine, holding locks that f takes, and does not allocate
	// as long as few functions wait.
	Interject(f func())
}
