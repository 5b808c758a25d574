package soft

import "github.com/vmkit-go/vmkit/vcpu"

// reset is power-up (Intel SDM volume 3, table 10-1).
func (c *CPU) reset() {
	s := vcpu.PowerUp(c.id == 0)
	c.r = [numRegs]uint64{}
	c.xmm = [16]xmm{}
	c.mxcsr = 0x1f80
	c.fpu.reset()
	c.msr.reset()
	c.xcr0 = 1
	c.tscOffset = 0
	c.setRate(0)
	c.updateAPICPage()
	c.wait = s.MP
	c.nmiPending, c.nmiMasked = 0, false
	c.setInit(&s)
}

// init is INIT: as reset, but the x87, SSE, MSRs, the TSC and caching stay as they are,
// and an application processor waits for a start-up interrupt. The local APIC is reset but
// for what says where it is.
func (c *CPU) init() {
	s := vcpu.PowerUp(true)
	s.Control.CR0 = cr0ET | c.cr0&(cr0CD|cr0NW)
	c.setInit(&s)
	c.nmiPending, c.nmiMasked = 0, false
	l := c.e.chips.LAPIC(c.id)
	l.Reset()
	c.e.retime()
	c.wait = vcpu.MPRunning
	if l.Base()&vcpu.APICBaseBSP == 0 {
		c.wait = vcpu.MPInit
	}
}

// sipi is a start-up interrupt: it begins to run at page vector.
func (c *CPU) sipi(vector uint8) {
	if c.wait != vcpu.MPInit && c.wait != vcpu.MPSIPI {
		return
	}
	c.wait = vcpu.MPRunning
	cs := c.seg[segCS]
	cs.Selector, cs.Base = uint16(vector)<<8, uint64(vector)<<12
	c.setSegment(segCS, cs)
	c.rip = 0
	c.updateMode()
}

// setInit sets what INIT and power-up have in common.
func (c *CPU) setInit(s *vcpu.State) {
	c.setRegisters(&s.Regs)
	c.setRFLAGS(s.Regs.RFLAGS)
	c.r[regRDX] = 0x60fb1 // the processor's signature
	if l, ok := c.leaves.Get(1, 0); ok {
		c.r[regRDX] = uint64(l.EAX)
	}
	c.setSegments(&s.Segments)
	c.gdtr, c.idtr = s.GDT, s.IDT
	c.cr0, c.cr2, c.cr3, c.cr4 = s.Control.CR0, 0, 0, 0
	c.efer = 0
	c.pdpt = [4]uint64{}
	c.dr, c.dr6, c.dr7 = s.Debug.DR, s.Debug.DR6, s.Debug.DR7
	c.cpl = 0
	c.shadow, c.shadowMOVSS, c.halted, c.shutdown = false, false, false, false
	c.hits, c.stepping = 0, false
	c.inject = injection{}
	c.access = access{}
	c.flushTLB()
	c.updateMode()
}

func (c *CPU) setSegments(s *vcpu.Segments) {
	for i, g := range [...]*vcpu.Segment{&s.ES, &s.CS, &s.SS, &s.DS, &s.FS, &s.GS} {
		c.setSegment(uint8(i), *g)
	}
	c.tr, c.ldtr = s.TR, s.LDT
}

func (c *CPU) setRegisters(r *vcpu.Registers) {
	c.r[regRAX], c.r[regRCX], c.r[regRDX], c.r[regRBX] = r.RAX, r.RCX, r.RDX, r.RBX
	c.r[regRSP], c.r[regRBP], c.r[regRSI], c.r[regRDI] = r.RSP, r.RBP, r.RSI, r.RDI
	c.r[regR8], c.r[regR9], c.r[regR10], c.r[regR11] = r.R8, r.R9, r.R10, r.R11
	c.r[regR12], c.r[regR13], c.r[regR14], c.r[regR15] = r.R12, r.R13, r.R14, r.R15
	c.rip = r.RIP
}
