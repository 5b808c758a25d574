package kvm

// Bits of control registers that SetLongMode sets: Intel SDM volume 3, section
// "Control Registers", and "IA32_EFER".
const (
	cr0PE   = 1 << 0
	cr0MP   = 1 << 1
	cr0ET   = 1 << 4
	cr0NE   = 1 << 5
	cr0WP   = 1 << 16
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10
)

// SetLongMode changes s to 64-bit mode at CPL 0 with flat segments, paging from the
// table at physical address cr3, no descriptor tables, and leaves the rest (TR, LDT,
// APICBase) alone.
func (s *Sregs) SetLongMode(cr3 uint64) {
	s.CR0 = cr0PE | cr0MP | cr0ET | cr0NE | cr0WP | cr0PG
	s.CR3 = cr3
	s.CR4 = cr4PAE
	s.EFER = eferLME | eferLMA
	s.GDT, s.IDT = DTable{}, DTable{}
	code := Segment{Selector: 0x08, Limit: 0xffffffff, Type: 11, Present: 1, S: 1, L: 1, G: 1}
	data := Segment{Selector: 0x10, Limit: 0xffffffff, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
	s.CS = code
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
}
