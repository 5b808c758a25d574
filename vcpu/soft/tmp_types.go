package soft

import "unsafe"

func (c *CPU) touchSpecial(lin, gpa uint64, size uint8, kind accessKind, page unsafe.Pointer) (unsafe.Pointer, stop) {
	c.access.gpa = gpa
	return nil, next
}

func (c *CPU) deviceBlock(lin uint64, m mode) (*block, stop) { return nil, c.raise(excUD) }
func (l *lowerer) dropDeadFlags()                            {}
