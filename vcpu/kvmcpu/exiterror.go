package kvmcpu

import (
	"fmt"

	"github.com/vmkit-go/vmkit/kvm"
)

// GuestError says that KVM cannot run the guest on: an instruction that it can
// neither run nor emulate, or a state that the hardware refuses to enter.
type GuestError struct {
	Exit        kvm.ExitReason
	Suberror    uint32   // of ExitInternalError: kvm.InternalErrorEmulation, ...
	Reason      uint64   // of ExitFailEntry and ExitUnknown: the hardware's code
	RIP         uint64   // where the guest is
	Instruction []byte   // the bytes there, nil if they cannot be read
	Data        []uint64 // what else the kernel told
}

func (e *GuestError) Error() string {
	what := e.Exit.String()
	switch e.Exit {
	case kvm.ExitInternalError:
		name := "unknown"
		switch e.Suberror {
		case kvm.InternalErrorEmulation:
			name = "instruction cannot be emulated"
		case kvm.InternalErrorSimulEx:
			name = "exception during exception"
		case kvm.InternalErrorDeliveryEV:
			name = "exit during event delivery"
		case kvm.InternalErrorUnexpectedExitReason:
			name = "unexpected hardware exit"
		}
		what += fmt.Sprintf(", suberror %d (%s)", e.Suberror, name)
	case kvm.ExitFailEntry, kvm.ExitUnknown:
		what += fmt.Sprintf(", hardware reason %#x", e.Reason)
	}
	insn := "not readable"
	if len(e.Instruction) > 0 {
		insn = fmt.Sprintf("% x", e.Instruction)
	}
	return fmt.Sprintf("kvmcpu: the guest cannot go on: %s at RIP %#x, instruction %s", what, e.RIP, insn)
}

func (c *CPU) exitError(r *kvm.Run) error {
	e := &GuestError{Exit: r.ExitReason}
	switch r.ExitReason {
	case kvm.ExitInternalError:
		i := r.InternalError()
		e.Suberror = i.Suberror
		e.Instruction = i.Instruction()
		e.Data = append(e.Data, i.Data[:min(int(i.NData), len(i.Data))]...)
	case kvm.ExitFailEntry:
		e.Reason = r.FailEntry().HardwareEntryFailureReason
	case kvm.ExitUnknown:
		e.Reason = r.HardwareExitReason()
	}
	regs, err := c.v.Regs()
	if err != nil {
		return fmt.Errorf("%w (%w)", e, err)
	}
	e.RIP = regs.RIP
	if len(e.Instruction) == 0 {
		e.Instruction = c.code(regs.RIP)
	}
	return e
}

// code reads the instruction at rip through the guest's page tables.
func (c *CPU) code(rip uint64) []byte {
	s, err := c.v.Sregs()
	if err != nil {
		return nil
	}
	linear := rip
	if s.CS.L == 0 {
		linear = uint64(uint32(s.CS.Base + rip))
	}
	var out []byte
	for len(out) < 15 { // the longest instruction; it may cross a page
		t, err := c.v.Translate(linear)
		if err != nil || t.Valid == 0 {
			break
		}
		n := min(15-len(out), int(4096-linear&4095))
		b := make([]byte, n)
		if c.e.mem.Read(t.PhysicalAddress, b) != nil {
			break
		}
		out = append(out, b...)
		linear += uint64(n)
	}
	return out
}
