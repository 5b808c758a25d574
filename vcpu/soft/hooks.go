package soft

// What the system side of a CPU asks of the machine around it.

// tscAt is the value of the machine's clock, which the TSCs count, when it has executed
// count instructions.
func (e *Engine) tscAt(count int64) uint64 { return uint64(count) }

// tscChanged says that c's TSC has jumped, on which its deadline timer depends.
func (e *Engine) tscChanged(*CPU) {}

// readAPIC and writeAPIC access the local APIC through MSRs: IA32_APIC_BASE,
// IA32_TSC_DEADLINE and those of x2APIC mode. They report false for #GP.
func (e *Engine) readAPIC(c *CPU, index uint32) (uint64, bool) {
	if index == msrAPICBase {
		return c.apicBase, true
	}
	return 0, false
}

func (e *Engine) writeAPIC(c *CPU, index uint32, v uint64) bool {
	if index != msrAPICBase || v&^(c.apicBase&0x100|0xfffff000|0xc00) != 0 {
		return false
	}
	c.apicBase = v
	return true
}

// taskPriority and setTaskPriority are CR8.
func (e *Engine) taskPriority(c *CPU) uint8       { return c.cr8 }
func (e *Engine) setTaskPriority(c *CPU, v uint8) { c.cr8 = v }

// portIn and portOut serve the ports of the interrupt chips. They report false for any
// other port.
func (e *Engine) portIn(c *CPU, port uint16, size uint8) (uint64, bool) { return 0, false }

func (e *Engine) portOut(c *CPU, port uint16, size uint8, v uint64) bool { return false }
