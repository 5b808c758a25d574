package soft

// highByte marks a register operand of 8 bits that is bits 15 to 8 of register 0 to 3:
// AH, CH, DH, BH.
const highByte = 0x40

// reg names general register r as an operand of size bytes.
func (l *lowerer) reg(r, size uint8) uint8 {
	if size == 1 && l.in.REX == 0 && r >= 4 && r < 8 {
		return r - 4 | highByte
	}
	return r
}

// get reads a register operand, zero-extended.
func (c *CPU) get(r, size uint8) uint64 {
	v := c.r[r&31]
	if r&highByte != 0 {
		v >>= 8
	}
	return v & maskOf(size)
}

// set writes a register operand.
func (c *CPU) set(r, size uint8, v uint64) {
	p := &c.r[r&31]
	switch size {
	case 1:
		if r&highByte != 0 {
			*p = *p&^0xff00 | v&0xff<<8
		} else {
			*p = *p&^0xff | v&0xff
		}
	case 2:
		*p = *p&^0xffff | v&0xffff
	case 4:
		*p = uint64(uint32(v))
	default:
		*p = v
	}
}

// byteOr is the size of an operand by the opcode's bit 0: one byte, or the
// operand size.
func (l *lowerer) byteOr() uint8 {
	if l.in.Op&1 == 0 {
		return 1
	}
	return l.in.OpSize
}

// source makes the r/m operand available in a register and returns its name.
func (l *lowerer) source(size uint8) uint8 {
	if !l.in.Mem {
		return l.reg(l.in.RM, size)
	}
	l.load(regT0, size, l.mem())
	return regT0
}

// modify makes the r/m operand available for change and returns its name. done
// must be called after the micro-operations that change it.
func (l *lowerer) modify(size uint8) (r uint8, done func()) {
	if !l.in.Mem {
		return l.reg(l.in.RM, size), func() {}
	}
	o := l.mem()
	l.loadW(regT0, size, o)
	return regT0, func() { l.store(regT0, size, 0, o) }
}

// loadW loads what will be stored again.
func (l *lowerer) loadW(d, size uint8, o operand) {
	if size < 4 {
		l.probe(size, o)
		l.load(d, size, o)
		return
	}
	k := kindLoadW32
	if size == 8 {
		k = kindLoadW64
	}
	u := l.emit(k).at(o)
	u.d, u.size = d, size
}
