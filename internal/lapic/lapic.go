// Package lapic is a local APIC in xAPIC and x2APIC mode (Intel SDM volume 3,
// chapter 11): registers, priorities, local vectors, timer. What it sends, to
// other local APICs and to the I/O APIC, goes out through a [Bus]; matching a
// destination and choosing among several is shared between [APIC.Match] and
// the Bus.
//
//	a := lapic.New(lapic.Config{ID: 0, BSP: true, Bus: bus, Now: clock})
//	a.Write(0xf0, 0x1ff)                       // software enable
//	a.Accept(lapic.Message{Vector: 0x40})      // arrives from the bus
//	if v, ok := a.Ack(); ok { ... a.Write(0xb0, 0) }
//
// Where models differ it is what KVM implements: version 0x14 with six local
// vectors, a timer clock of 1 GHz, an ID that software may write in xAPIC mode,
// focus processor checking and bus arbitration without effect, ExtINT by LINT0
// accepted also while the APIC is off. IPIs other than INIT are edge-triggered
// whatever their trigger mode, as the SDM has it.
package lapic

import (
	"math/bits"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Delivery modes (Intel SDM volume 3, section 11.5.1).
const (
	Fixed          = 0
	LowestPriority = 1
	SMI            = 2 // there is no system-management mode: ignored
	NMI            = 4
	INIT           = 5
	StartUp        = 6
	ExtINT         = 7
)

// Shorthand is a destination shorthand of the interrupt command register.
type Shorthand uint8

// The shorthands.
const (
	NoShorthand Shorthand = iota
	Self
	AllIncludingSelf
	AllExcludingSelf
)

// Broadcast as Message.Dest with Wide set is every local APIC. Without Wide it
// is 0xff.
const Broadcast = 0xffffffff

// Message is one interrupt on its way.
type Message struct {
	Dest      uint32
	Vector    uint8
	Mode      uint8 // delivery mode
	Shorthand Shorthand
	Logical   bool
	Level     bool // level-triggered: its end is broadcast to the I/O APIC
	Wide      bool // Dest has 32 bits, as in x2APIC mode, not 8
	Hint      bool // redirection hint of an MSI: only one may take it
}

// ToAll reports whether the destination is the broadcast.
func (m *Message) ToAll() bool {
	if m.Wide {
		return m.Dest == Broadcast
	}
	return m.Dest == 0xff
}

// Bus is what a local APIC sends to.
type Bus interface {
	// Send delivers an interprocessor interrupt.
	Send(from *APIC, m Message)
	// EOI tells the I/O APIC that a level-triggered interrupt has ended.
	EOI(vector uint8)
}

// Config says how a local APIC is wired.
type Config struct {
	ID  uint8 // 0 to 254, initial and x2APIC ID
	BSP bool
	Bus Bus
	// Now is the machine's time in nanoseconds.
	Now func() int64
	// TSCTime is when this CPU's TSC reaches a value, at the earliest; a
	// time that is past if it has. Nil: there is no TSC-deadline mode.
	TSCTime func(tsc uint64) int64
}

// bitmap has a bit for each vector.
type bitmap [8]uint32

func (b *bitmap) set(v uint8)      { b[v>>5] |= 1 << (v & 31) }
func (b *bitmap) clear(v uint8)    { b[v>>5] &^= 1 << (v & 31) }
func (b *bitmap) has(v uint8) bool { return b[v>>5]>>(v&31)&1 != 0 }

// highest is the highest vector in the map, or -1.
func (b *bitmap) highest() int {
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] != 0 {
			return i<<5 + bits.Len32(b[i]) - 1
		}
	}
	return -1
}

// firstVector is the lowest vector that an interrupt may have.
const firstVector = 16

// APIC is a local APIC. It is not safe for concurrent use.
type APIC struct {
	cfg  Config
	base uint64 // IA32_APIC_BASE

	id            uint8 // in xAPIC mode
	tpr, ppr      uint8
	ldr, dfr      uint32
	svr           uint32
	esr, errs     uint32 // as read; and what has happened since its last write
	icr, icrHigh  uint32
	lvt           [lvtEntries]uint32
	isr, tmr, irr bitmap

	nmi, init, sipi bool
	sipiVector      uint8

	timer timer
}

// New returns a local APIC as after power-up.
func New(cfg Config) *APIC {
	a := &APIC{cfg: cfg, base: platform.LAPICBase | vcpu.APICBaseEnable}
	if cfg.BSP {
		a.base |= vcpu.APICBaseBSP
	}
	a.id = cfg.ID
	a.Reset()
	return a
}

// Reset is what INIT does: the registers are as after power-up but for the ID,
// the mode and IA32_APIC_BASE. A start-up interrupt that has arrived stays.
func (a *APIC) Reset() {
	a.tpr, a.ppr = 0, 0
	a.ldr, a.dfr = 0, 0xffffffff
	a.svr = 0xff
	a.esr, a.errs = 0, 0
	a.icr, a.icrHigh = 0, 0
	for i := range a.lvt {
		a.lvt[i] = lvtMask
	}
	if a.cfg.BSP {
		// Virtual wire mode, in which firmware would leave it.
		a.lvt[lvtLINT0] = ExtINT << lvtModeShift
	}
	a.isr, a.tmr, a.irr = bitmap{}, bitmap{}, bitmap{}
	a.nmi = false
	a.timer = timer{due: Never}
	a.setDivide(0)
	if a.x2() {
		a.ldr = x2LDR(a.cfg.ID)
	}
}

func x2LDR(id uint8) uint32 { return uint32(id)>>4<<16 | 1<<(id&15) }

// on reports whether the APIC is enabled by IA32_APIC_BASE.
func (a *APIC) on() bool { return a.base&vcpu.APICBaseEnable != 0 }

func (a *APIC) x2() bool { return a.base&vcpu.APICBaseX2APIC != 0 }

// Enabled reports whether the APIC takes interrupts: it is on, and enabled by
// software.
func (a *APIC) Enabled() bool { return a.on() && a.svr&svrEnable != 0 }

// Index is the ID that the APIC was made with.
func (a *APIC) Index() int { return int(a.cfg.ID) }

// Base is IA32_APIC_BASE.
func (a *APIC) Base() uint64 { return a.base }

// validBase reports whether v may be in IA32_APIC_BASE.
func validBase(v uint64) bool {
	const reserved = 0x2ff | ^uint64(1<<52-1)
	return v&reserved == 0 && v&(vcpu.APICBaseEnable|vcpu.APICBaseX2APIC) != vcpu.APICBaseX2APIC
}

// SetBase is the guest's write to IA32_APIC_BASE. It reports false where that
// is #GP: reserved bits, or a transition between modes that does not exist
// (Intel SDM volume 3, figure 11-26). Address bits beyond the CPU's are the
// caller's to refuse.
func (a *APIC) SetBase(v uint64) bool {
	const modes = vcpu.APICBaseEnable | vcpu.APICBaseX2APIC
	from, to := a.base&modes, v&modes
	if !validBase(v) || from == modes && to == vcpu.APICBaseEnable || from == 0 && to == modes {
		return false
	}
	a.base = v
	switch {
	case from == to:
	case to == 0:
		// The registers do not survive.
		a.id = a.cfg.ID
		a.Reset()
	case to == modes:
		a.id, a.ldr = a.cfg.ID, x2LDR(a.cfg.ID)
	}
	return true
}

// LoadBase sets IA32_APIC_BASE without the rules for transitions, and reports
// whether the value is possible. Load comes after it.
func (a *APIC) LoadBase(v uint64) bool {
	if !validBase(v) {
		return false
	}
	a.base = v
	if a.x2() {
		a.id, a.ldr = a.cfg.ID, x2LDR(a.cfg.ID)
	}
	return true
}

// Match reports whether a message without a shorthand is for this APIC. One that
// is off takes nothing.
func (a *APIC) Match(m *Message) bool {
	switch {
	case !a.on():
		return false
	case m.ToAll():
		return true
	case !m.Logical && a.x2():
		return m.Dest == uint32(a.cfg.ID)
	case !m.Logical:
		return m.Dest == uint32(a.id)
	case a.x2():
		return m.Dest>>16 == a.ldr>>16 && m.Dest&a.ldr&0xffff != 0
	case m.Dest > 0xff:
		return false
	}
	id := a.ldr >> 24
	if a.dfr>>28 == 0xf { // flat
		return id&m.Dest != 0
	}
	return a.dfr>>28 == 0 && id>>4 == m.Dest>>4 && id&m.Dest&0xf != 0
}

// Accept takes an interrupt from the bus, and reports whether the APIC was in a
// state to.
func (a *APIC) Accept(m Message) bool {
	if !a.on() {
		return false
	}
	switch m.Mode {
	case Fixed, LowestPriority:
		if !a.Enabled() {
			return false
		}
		if m.Vector < firstVector {
			a.fault(esrReceiveVector)
			return false
		}
		if m.Level {
			a.tmr.set(m.Vector)
		} else {
			a.tmr.clear(m.Vector)
		}
		a.irr.set(m.Vector)
	case NMI:
		a.nmi = true
	case INIT:
		a.init, a.sipi = true, false
	case StartUp:
		a.sipi, a.sipiVector = true, m.Vector
	default:
		return false
	}
	return true
}

// local delivers the interrupt of a local vector.
func (a *APIC) local(entry int) {
	v := a.lvt[entry]
	if v&lvtMask != 0 || !a.on() {
		return
	}
	m := Message{Vector: uint8(v)}
	if lvtWritable[entry]&lvtModeMask != 0 {
		m.Mode = uint8(v >> lvtModeShift & 7)
	}
	if entry == lvtLINT0 || entry == lvtLINT1 {
		m.Level = v&lvtLevel != 0
	}
	if m.Mode == ExtINT || m.Mode == StartUp || m.Mode == LowestPriority {
		return
	}
	a.Accept(m)
}

// LINT0 says that the PICs' output, which is wired to LINT0, has gone up. In
// ExtINT mode there is nothing to do: the CPU takes the vector from the PICs.
func (a *APIC) LINT0() { a.local(lvtLINT0) }

// AcceptsExtINT reports whether the CPU takes interrupts from the PICs.
func (a *APIC) AcceptsExtINT() bool {
	return !a.on() || a.lvt[lvtLINT0]&(lvtMask|lvtModeMask) == ExtINT<<lvtModeShift
}

// updatePPR computes the processor priority (Intel SDM volume 3, section
// 11.8.3.1).
func (a *APIC) updatePPR() {
	a.ppr = a.tpr
	if v := a.isr.highest(); v > 0 && uint8(v)&0xf0 > a.tpr&0xf0 {
		a.ppr = uint8(v) & 0xf0
	}
}

// PPR is the processor priority.
func (a *APIC) PPR() uint8 { return a.ppr }

// Pending reports whether there is an interrupt that the processor priority
// lets through.
func (a *APIC) Pending() bool {
	v := a.irr.highest()
	return v >= 0 && uint8(v)&0xf0 > a.ppr&0xf0 && a.on()
}

// Ack puts the interrupt for which Pending is true in service and returns its
// vector.
func (a *APIC) Ack() (vector uint8, ok bool) {
	if !a.Pending() {
		return 0, false
	}
	vector = uint8(a.irr.highest())
	a.irr.clear(vector)
	a.isr.set(vector)
	a.updatePPR()
	return vector, true
}

// Holds reports whether an interrupt with this vector waits or is in service.
func (a *APIC) Holds(vector uint8) bool { return a.irr.has(vector) || a.isr.has(vector) }

// eoi ends the interrupt in service that has the highest priority.
func (a *APIC) eoi() {
	v := a.isr.highest()
	if v < 0 {
		return
	}
	a.isr.clear(uint8(v))
	a.updatePPR()
	if a.tmr.has(uint8(v)) {
		a.cfg.Bus.EOI(uint8(v))
	}
}

// TPR is the task priority as CR8 has it, 0 to 15.
func (a *APIC) TPR() uint8 { return a.tpr >> 4 }

// SetTPR is a write to CR8.
func (a *APIC) SetTPR(v uint8) {
	a.tpr = v << 4
	a.updatePPR()
}

// NMI reports whether a non-maskable interrupt has arrived.
func (a *APIC) NMI() bool { return a.nmi }

// INIT reports whether an INIT has arrived.
func (a *APIC) INIT() bool { return a.init }

// SIPI reports whether a start-up interrupt has arrived.
func (a *APIC) SIPI() bool { return a.sipi }

// TakeNMI takes the non-maskable interrupt that has arrived, if one has.
func (a *APIC) TakeNMI() (taken bool) {
	taken, a.nmi = a.nmi, false
	return taken
}

// TakeINIT takes the INIT that has arrived, if one has. Reset is the caller's.
func (a *APIC) TakeINIT() (taken bool) {
	taken, a.init = a.init, false
	return taken
}

// TakeSIPI takes the start-up interrupt that has arrived, if one has.
func (a *APIC) TakeSIPI() (vector uint8, taken bool) {
	taken, a.sipi = a.sipi, false
	return a.sipiVector, taken
}

// fault notes an error and raises the error interrupt.
func (a *APIC) fault(bit uint32) {
	again := a.errs&bit != 0
	a.errs |= bit
	// The error vector may be illegal itself: that is one more error, once.
	if !again || bit != esrReceiveVector {
		a.local(lvtError)
	}
}
