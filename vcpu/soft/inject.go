package soft

import "github.com/vmkit-go/vmkit/vcpu"

// injection is an event whose delivery began on another engine, and has to be
// completed before the CPU does anything else.
type injection struct {
	exception vcpu.Exception
	interrupt vcpu.Interrupt
	nmi       bool
	triple    bool
}

// injecting reports whether there is such an event.
func (c *CPU) injecting() bool {
	i := &c.inject
	return i.exception.Injected || i.exception.Pending || i.interrupt.Injected || i.nmi || i.triple
}

// deliverInjected delivers it. The engine calls it before the first instruction while
// injecting says so.
func (c *CPU) deliverInjected() {
	i := c.inject
	c.inject = injection{}
	switch e := &i.exception; {
	case i.triple:
		c.shutdown = true
	case e.Injected || e.Pending:
		if e.HasPayload {
			switch e.Vector {
			case excPF:
				c.cr2 = e.Payload
			case excDB:
				c.dr6 = c.dr6&^0xf | e.Payload&0xe00f
				c.dr7 &^= dr7GD
			}
		}
		c.exc = exception{vector: e.Vector, hasCode: e.HasErrorCode, code: e.ErrorCode}
		t := trap{exception: c.exc, external: true, resume: e.Vector != excDB && e.Vector != excDF}
		if e.Vector == excBP || e.Vector == excOF { // RIP is after the instruction
			t.resume = false
		}
		c.deliver(t)
	case i.interrupt.Injected:
		t := trap{exception: exception{vector: i.interrupt.Vector}, soft: i.interrupt.Soft, external: !i.interrupt.Soft, irq: true}
		c.deliver(t)
	case i.nmi:
		c.takeNMI()
	}
}
