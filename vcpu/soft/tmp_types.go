package soft

import "unsafe"

// fpu is the x87.
type fpu struct {
	mm   [8]uint64 // mantissas, by physical register
	se   [8]uint16 // signs and exponents
	tags uint8     // a bit for each physical register that is in use
	cw   uint16
	sw   uint16 // with TOP
}

func (f *fpu) pending() bool { return f.sw&0x80 != 0 }
func (f *fpu) enterMMX()     { f.sw, f.tags = f.sw&^(7<<11), 0xff }
func (f *fpu) leaveMMX()     { f.sw, f.tags = f.sw&^(7<<11), 0 }

type msrs struct{}
type injection struct{}

func (c *CPU) touchSpecial(lin, gpa uint64, size uint8, kind accessKind, page unsafe.Pointer) (unsafe.Pointer, stop) {
	c.access.gpa = gpa
	return nil, next
}

func (c *CPU) deviceBlock(lin uint64, m mode) (*block, stop) { return nil, c.raise(excUD) }
func (l *lowerer) dropDeadFlags()                            {}
