package boot

import "github.com/vmkit-go/vmkit/vcpu"

const (
	msrMTRRDefType  = 0x2ff // IA32_MTRR_DEF_TYPE
	mtrrEnable      = 1 << 11
	mtrrWriteBack   = 6
	tssLimit        = 0x67
	typeBusyTSS     = 11
	typeCodeReadExe = 11 // accessed
	typeDataWrite   = 3  // accessed
)

// State returns the state in which CPU 0 starts at e. The other CPUs start
// from [vcpu.PowerUp].
func (e Entry) State() vcpu.State {
	s := vcpu.PowerUp(true)
	s.Regs = vcpu.Registers{RIP: e.RIP, RSP: e.RSP, RSI: e.RSI, RBX: e.RBX, RFLAGS: 2}
	code := vcpu.Segment{Limit: 0xffff_ffff, Selector: CodeSelector, Type: typeCodeReadExe, Present: true, Granularity: true}
	data := vcpu.Segment{Limit: 0xffff_ffff, Selector: DataSelector, Type: typeDataWrite, Present: true, Big: true, Granularity: true}
	s.Control.CR0 = vcpu.CR0PE | vcpu.CR0ET
	if e.Mode == Long64 {
		code.Long = true
		s.Control.CR0 |= vcpu.CR0PG
		s.Control.CR3 = e.CR3
		s.Control.CR4 = vcpu.CR4PAE
		s.Control.EFER = vcpu.EFERLME | vcpu.EFERLMA
	} else {
		code.Big = true
	}
	s.Segments = vcpu.Segments{
		CS: code, DS: data, ES: data, FS: data, GS: data, SS: data,
		TR:  vcpu.Segment{Limit: tssLimit, Type: typeBusyTSS, System: true, Present: true},
		LDT: vcpu.Segment{Type: 2, System: true, Unusable: true},
	}
	s.GDT = vcpu.Table{Base: e.GDTBase, Limit: e.GDTLimit}
	s.IDT = vcpu.Table{}
	// RAM is cached from the start, as firmware leaves it.
	s.MSRs = []vcpu.MSR{{Index: msrMTRRDefType, Value: mtrrEnable | mtrrWriteBack}}
	return s
}
