package soft

func init() {
	registerSystem()
	registerALU()
	registerMoves()
	registerShifts()
	registerMultiply()
	registerBits()
	registerFlow()
	registerStack()
	registerStrings()
	registerDecimal()
	registerBMI()
	registerSSE()
	registerX87() // the last: it shares opcodes with others, see also
}

// each enters f at several opcodes of a table.
func each(t *[256]lowering, f lowering, ops ...int) {
	for _, op := range ops {
		t[op] = f
	}
}

// span enters f at the opcodes from first to last.
func span(t *[256]lowering, f lowering, first, last int) {
	for op := first; op <= last; op++ {
		t[op] = f
	}
}
