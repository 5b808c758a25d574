package vcpu

import "fmt"

// ChipState is the state of the interrupt chips and timers that the CPUs of a
// machine share. A part is nil where the machine has no such chip.
type ChipState struct {
	PICs   *[2]PIC `json:",omitempty"` // master, slave
	IOAPIC *IOAPIC `json:",omitempty"`
	PIT    *PIT    `json:",omitempty"`
	Clock  *Clock  `json:",omitempty"`
}

// PIC is one 8259A interrupt controller.
type PIC struct {
	LastIRR, IRR, ISR, IMR uint8
	PriorityAdd            uint8 // the highest priority's line, 0 to 7
	VectorBase             uint8 // ICW2
	ReadISR                bool  // OCW3: reads return the ISR
	Poll                   bool  // OCW3: poll command
	SpecialMask            bool
	InitState              uint8 // initialization command words still due, 0 to 3
	AutoEOI                bool
	RotateOnAutoEOI        bool
	SpecialFullyNested     bool
	Init4                  bool // ICW4 is expected
	ELCR, ELCRMask         uint8
}

// IOAPIC is an 82093AA I/O APIC with 24 inputs.
type IOAPIC struct {
	Base     uint64 // guest-physical address
	Select   uint32 // IOREGSEL
	ID       uint32
	IRR      uint32
	Redirect [24]uint64 // the redirection table
}

// PIT is an 8254 timer.
type PIT struct {
	Channels [3]PITChannel
	// SpeakerOn is bit 1 of port 0x61, the speaker's data.
	SpeakerOn bool
	// HPETLegacy says that the HPET has taken over the PIT's interrupt.
	HPETLegacy bool
}

// PITUnset is the mode of a counter that has not been programmed.
const PITUnset = 0xff

// PITChannel is one counter of an 8254.
type PITChannel struct {
	Count         uint32 // the reload value, 1 to 65536
	LatchedCount  uint16
	CountLatched  uint8
	StatusLatched bool
	Status        uint8
	ReadState     uint8
	WriteState    uint8
	WriteLatch    uint8
	RWMode        uint8
	Mode          uint8 // 0 to 7, or PITUnset
	BCD           bool
	Gate          bool
	// Elapsed is the time in nanoseconds since the count was loaded. An
	// engine that cannot go on from there restarts the count.
	Elapsed int64
}

// Clock is the paravirtual clock (KVM's kvmclock).
type Clock struct {
	Nanoseconds uint64 // since boot, as the guest sees it
}

// Validate reports the first thing that no chip can be in.
func (s *ChipState) Validate() error {
	if s.PICs != nil {
		for i := range s.PICs {
			p := &s.PICs[i]
			if p.PriorityAdd > 7 || p.InitState > 3 {
				return fmt.Errorf("%w: PIC %d: priority %d, initialization state %d", ErrState, i, p.PriorityAdd, p.InitState)
			}
		}
	}
	if a := s.IOAPIC; a != nil && (a.Base>>52 != 0 || a.Select > 0xff || a.IRR>>24 != 0 || a.ID > 0xff) {
		return fmt.Errorf("%w: IOAPIC: base %#x, select %#x, IRR %#x, ID %#x", ErrState, a.Base, a.Select, a.IRR, a.ID)
	}
	if s.PIT != nil {
		for i := range s.PIT.Channels {
			c := &s.PIT.Channels[i]
			if c.Count > 1<<16 || c.CountLatched > 3 || c.ReadState > 4 || c.WriteState > 4 || c.RWMode > 3 || c.Mode > 7 && c.Mode != PITUnset || c.Elapsed < 0 {
				return fmt.Errorf("%w: PIT channel %d: %+v", ErrState, i, *c)
			}
		}
	}
	return nil
}
