package soft

// uop is one micro-operation. Most instructions are one; one with a memory operand
// and a result is a load, an operation and a store. Within an instruction whatever can
// fault comes before whatever changes the CPU's state, so that a fault leaves nothing
// to undo.
type uop struct {
	fn   func(*CPU, *uop) stop // of kindCall
	imm  uint64
	disp uint64
	kind kind
	off  uint16 // of the instruction, from the block's first byte
	d    uint8  // registers: destination, source
	s    uint8
	b    uint8 // address: r[b] + r[x]<<sh + disp + r[seg]
	x    uint8
	sh   uint8
	seg  uint8
	n    uint8 // instructions of the block before this one
	len  uint8 // of the instruction
	size uint8 // of the operand: 1, 2, 4 or 8 bytes
	cc   uint8 // condition code; anything else that fn wants to know
	ss   bool  // the operand is on the stack: its faults are #SS
}

// addr is the linear address of u's memory operand.
func (c *CPU) addr(u *uop) uint64 {
	return c.r[u.b&31] + c.r[u.x&31]<<(u.sh&3) + u.disp + c.r[u.seg&31]
}

// kind selects what a micro-operation does: see execute in exec_unsafe.go, which
// has a case for each.
type kind uint16
