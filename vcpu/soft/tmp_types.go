package soft

import "unsafe"

type fpu struct{}
type msrs struct{}
type injection struct{}

func (c *CPU) touchSpecial(lin, gpa uint64, size uint8, kind accessKind, page unsafe.Pointer) (unsafe.Pointer, stop) {
	c.access.gpa = gpa
	return nil, next
}

func (c *CPU) deviceBlock(lin uint64, m mode) (*block, stop)                   { return nil, c.raise(excUD) }
func lowerARPL(*lowerer) bool                                                  { return false }
func lowerCRC32(*lowerer) bool                                                 { return false }
func lowerFarIndirect(*lowerer) bool                                           { return false }
func (l *lowerer) nopOrPause() bool                                            { l.emit(kindNop); return true }
func (c *CPU) checkSegment(seg uint8, off uint64, size uint8, write bool) stop { return next }
