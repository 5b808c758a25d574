package irqchip

import (
	"sync/atomic"

	"github.com/vmkit-go/vmkit/internal/lapic"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Event is a set of things that a CPU can take.
type Event uint32

// The events.
const (
	EventInterrupt Event = 1 << iota // Pending
	EventNMI
	EventINIT
	EventSIPI
)

// LAPIC is the local APIC of one CPU with the part of the other chips that this
// CPU sees.
type LAPIC struct {
	c      *Chips
	apic   *lapic.APIC
	due    int64 // as Chips.next has it
	events atomic.Uint32
}

// LAPIC returns the local APIC of a CPU, 0 to Config.CPUs-1.
func (c *Chips) LAPIC(cpu int) *LAPIC { return &c.cpus[cpu] }

// update computes the events and wakes the CPU if there is a new one.
func (l *LAPIC) update() {
	var e Event
	if l.apic.Pending() || l.c.picOut && l.apic.AcceptsExtINT() {
		e |= EventInterrupt
	}
	if l.apic.NMI() {
		e |= EventNMI
	}
	if l.apic.INIT() {
		e |= EventINIT
	}
	if l.apic.SIPI() {
		e |= EventSIPI
	}
	if old := Event(l.events.Load()); old != e {
		l.events.Store(uint32(e))
		if e&^old != 0 && l.c.cfg.Wake != nil {
			l.c.cfg.Wake(l.apic.Index())
		}
	}
}

// lock begins an access to this CPU's APIC, unlock ends it.
func (l *LAPIC) lock() { l.c.mu.Lock() }

func (l *LAPIC) unlock() {
	l.c.touch(l.apic.Index())
	l.c.settled()
	l.c.mu.Unlock()
}

// Events is what there is to take. It takes no lock.
func (l *LAPIC) Events() Event { return Event(l.events.Load()) }

// HasEvent reports whether there is anything to take. It takes no lock.
func (l *LAPIC) HasEvent() bool { return l.events.Load() != 0 }

// Pending reports whether there is an interrupt to take: one of the APIC that
// the processor priority lets through, or one of the PICs. It takes no lock.
func (l *LAPIC) Pending() bool { return l.Events()&EventInterrupt != 0 }

// Ack takes the interrupt that is pending, the PICs' first: it is in service
// from now on. Another CPU may have taken the PICs' before, then ok is false.
func (l *LAPIC) Ack() (vector int, ok bool) {
	l.lock()
	defer l.unlock()
	if l.c.pics.Output() && l.apic.AcceptsExtINT() {
		return int(l.c.pics.Ack()), true
	}
	v, ok := l.apic.Ack()
	return int(v), ok
}

// Read reads the 32-bit register at an offset into the xAPIC page. It reads as
// ones while the page is not there: see Base.
func (l *LAPIC) Read(off uint32) uint32 {
	l.lock()
	defer l.unlock()
	return l.apic.Read(off)
}

// Write writes the 32-bit register at an offset into the xAPIC page.
func (l *LAPIC) Write(off, v uint32) {
	l.lock()
	defer l.unlock()
	l.apic.Write(off, v)
}

// MSRs of the local APIC beside those of x2APIC mode, 0x800 to 0x83f.
const (
	msrAPICBase    = 0x1b
	msrTSCDeadline = 0x6e0
)

// ReadMSR reads an MSR of the local APIC: IA32_APIC_BASE, IA32_TSC_DEADLINE or one
// of x2APIC mode. False is #GP.
func (l *LAPIC) ReadMSR(index uint32) (v uint64, ok bool) {
	switch index {
	case msrAPICBase:
		return l.Base(), true
	case msrTSCDeadline:
		return l.Deadline(), true
	}
	l.lock()
	defer l.unlock()
	return l.apic.ReadMSR(index)
}

// WriteMSR writes an MSR that ReadMSR reads; false is #GP. For IA32_APIC_BASE see
// SetBase.
func (l *LAPIC) WriteMSR(index uint32, v uint64) bool {
	switch index {
	case msrAPICBase:
		return l.SetBase(v)
	case msrTSCDeadline:
		l.SetDeadline(v)
		return true
	}
	l.lock()
	defer l.unlock()
	return l.apic.WriteMSR(index, v)
}

// Base is IA32_APIC_BASE. The xAPIC page is there while the APIC is enabled and
// not in x2APIC mode.
func (l *LAPIC) Base() uint64 {
	l.lock()
	defer l.c.mu.Unlock()
	return l.apic.Base()
}

// Page is the address of the xAPIC page; false if it is not there.
func (l *LAPIC) Page() (addr uint64, ok bool) {
	base := l.Base()
	return base & (1<<52 - 1) &^ (PageSize - 1), base&(vcpu.APICBaseEnable|vcpu.APICBaseX2APIC) == vcpu.APICBaseEnable
}

// SetBase is the guest's write to IA32_APIC_BASE; false is #GP. Address bits
// beyond the CPU's physical address width are the caller's to refuse.
func (l *LAPIC) SetBase(v uint64) bool {
	l.lock()
	defer l.unlock()
	return l.apic.SetBase(v)
}

// TPR is the task priority, 0 to 15, as CR8 has it.
func (l *LAPIC) TPR() uint8 {
	l.lock()
	defer l.c.mu.Unlock()
	return l.apic.TPR()
}

// SetTPR is a write to CR8, of which the low 4 bits count.
func (l *LAPIC) SetTPR(v uint8) {
	l.lock()
	defer l.unlock()
	l.apic.SetTPR(v & 15)
}

// Deadline is IA32_TSC_DEADLINE: 0 if it is not armed.
func (l *LAPIC) Deadline() uint64 {
	l.lock()
	defer l.unlock()
	return l.apic.Deadline()
}

// SetDeadline is a write to IA32_TSC_DEADLINE. It has no effect while the timer
// is in another mode. A deadline that is past interrupts at once.
func (l *LAPIC) SetDeadline(tsc uint64) {
	l.lock()
	defer l.unlock()
	l.apic.SetDeadline(tsc)
}

// TSCChanged says that this CPU's TSC was set or changed its rate, so that
// Config.TSCTime now tells another time for its deadline.
func (l *LAPIC) TSCChanged() {
	l.lock()
	defer l.unlock()
	l.apic.TSCChanged()
}

// TakeNMI takes a non-maskable interrupt. Several that arrive before it are one.
func (l *LAPIC) TakeNMI() bool {
	l.lock()
	defer l.unlock()
	return l.apic.TakeNMI()
}

// TakeINIT takes an INIT, which comes before a start-up interrupt. The engine
// resets the CPU, calls Reset, and waits for a start-up interrupt or, on the
// bootstrap processor, starts at the reset vector.
func (l *LAPIC) TakeINIT() bool {
	l.lock()
	defer l.unlock()
	return l.apic.TakeINIT()
}

// TakeSIPI takes a start-up interrupt. A CPU that does not wait for one is to
// take and ignore it.
func (l *LAPIC) TakeSIPI() (vector uint8, ok bool) {
	l.lock()
	defer l.unlock()
	return l.apic.TakeSIPI()
}

// Reset is what INIT does to the local APIC. ID, mode and IA32_APIC_BASE stay.
func (l *LAPIC) Reset() {
	l.lock()
	defer l.unlock()
	l.apic.Reset()
}
