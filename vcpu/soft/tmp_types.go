package soft

func (c *CPU) deviceBlock(lin uint64, m mode) (*block, stop) { return nil, c.raise(excUD) }
func lowerCRC32(*lowerer) bool                               { return false }
func (l *lowerer) nopOrPause() bool                          { l.emit(kindNop); return true }
