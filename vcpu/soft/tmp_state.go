package soft

import "github.com/vmkit-go/vmkit/vcpu"

func (c *CPU) State(s *vcpu.State) error { return nil }
func (c *CPU) SetState(s *vcpu.State) error {
	c.setRegisters(&s.Regs)
	c.setRFLAGS(s.Regs.RFLAGS)
	c.setSegments(&s.Segments)
	c.gdtr, c.idtr = s.GDT, s.IDT
	c.cr0, c.cr2, c.cr3, c.cr4 = s.Control.CR0, s.Control.CR2, s.Control.CR3, s.Control.CR4
	c.efer = s.Control.EFER
	c.cpl = c.seg[segSS].DPL
	c.wait = s.MP
	c.flushTLB()
	c.updateMode()
	return nil
}
