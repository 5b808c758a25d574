package soft

func (c *CPU) deviceBlock(lin uint64, m mode) (*block, stop) { return nil, c.raise(excUD) }
func (l *lowerer) nopOrPause() bool                          { l.emit(kindNop); return true }
