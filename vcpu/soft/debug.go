package soft

// Debug registers (Intel SDM volume 3, chapter 17).

const (
	dr6Fixed = 0xffff0ff0
	dr6BD    = 1 << 13 // an access to debug registers under DR7.GD
	dr6BS    = 1 << 14 // single step
	dr6Valid = 0xe00f
	dr7Fixed = 0x400
	dr7Valid = 0xffff23ff // bit 11 is TSX's, which there is not
	dr7GD    = 1 << 13
)

// Kinds of breakpoints, the R/W field of DR7.
const (
	breakCode  = 0
	breakWrite = 1
	breakIO    = 2
	breakData  = 3
)

// breakKind is the kind of breakpoint i; on is false if it is not enabled.
func (c *CPU) breakKind(i int) (kind uint8, on bool) {
	kind = uint8(c.dr7 >> (16 + 4*i) & 3)
	if kind == breakIO && c.cr4&cr4DE == 0 {
		return kind, false
	}
	return kind, c.dr7>>(2*i)&3 != 0
}

// breakSize is the length of breakpoint i in bytes.
func (c *CPU) breakSize(i int) uint64 {
	return [4]uint64{1, 2, 8, 4}[c.dr7>>(18+4*i)&3]
}

// breakpoints reports whether any breakpoint is on, and whether one is on data.
func (c *CPU) breakpoints() (some, data bool) {
	if c.dr7&0xff == 0 {
		return false, false
	}
	for i := range 4 {
		if kind, on := c.breakKind(i); on {
			some = true
			data = data || kind == breakWrite || kind == breakData
		}
	}
	return some, data
}

// dataAccess notes the breakpoints that an access hits. The trap comes after the
// instruction.
func (c *CPU) dataAccess(lin uint64, size uint8, kind accessKind) {
	for i := range 4 {
		k, on := c.breakKind(i)
		if !on || k != breakData && (k != breakWrite || kind != accessWrite) {
			continue
		}
		n := c.breakSize(i)
		if at := c.dr[i] &^ (n - 1); lin < at+n && at < lin+uint64(size) {
			c.hits |= 1 << i
		}
	}
}

// ioBreakpoints does so for an access to a port.
func (c *CPU) ioBreakpoints(port uint16, size uint8) {
	if c.dr7&0xff == 0 {
		return
	}
	for i := range 4 {
		k, on := c.breakKind(i)
		n := c.breakSize(i)
		if at := c.dr[i] &^ (n - 1); on && k == breakIO && uint64(port) < at+n && at < uint64(port)+uint64(size) {
			c.hits |= 1 << i
		}
	}
}

// beforeInstruction looks for breakpoints on the instruction at RIP, and reports false
// if the CPU went to their handler. The engine calls it before each instruction while
// the mode has modeSingle.
func (c *CPU) beforeInstruction() bool {
	c.stepping, c.resuming = c.flags&flagTF != 0, c.flags&flagRF != 0
	if c.flags&flagRF != 0 || c.shadowMOVSS || c.dr7&0xff == 0 {
		return true
	}
	lin := c.codeAddress()
	var hits uint64
	for i := range 4 {
		if kind, on := c.breakKind(i); on && kind == breakCode && c.dr[i] == lin {
			hits |= 1 << i
		}
	}
	if hits == 0 {
		return true
	}
	c.debugFault(hits)
	c.deliverFault() // the handler sets RF to get past it
	return false
}

// afterInstruction delivers the traps of the instruction that has just been executed:
// single step and breakpoints on data. The engine calls it after each instruction while
// the mode before it had modeSingle, and whenever hits is not 0.
func (c *CPU) afterInstruction() {
	if c.resuming {
		c.flags &^= flagRF
	}
	hits := c.hits
	if c.shadowMOVSS {
		c.stepping = false // held off until after the next instruction
		return
	}
	if c.stepping {
		hits |= dr6BS
	}
	c.hits, c.stepping = 0, false
	if hits != 0 {
		c.debugFault(hits)
		c.deliverFault()
	}
}

// debugFault makes exc a debug exception for the reasons in bits.
func (c *CPU) debugFault(bits uint64) stop {
	c.dr6 = c.dr6&^0xf | bits
	c.dr7 &^= dr7GD
	return c.raise(excDB)
}

func lowerMovFromDebug(l *lowerer) bool {
	if l.in.Reg > 7 {
		return false
	}
	u := l.call((*CPU).readDebug)
	u.d, u.cc = l.in.RM, l.in.Reg
	return true
}

func lowerMovToDebug(l *lowerer) bool {
	if l.in.Reg > 7 {
		return false
	}
	u := l.terminate((*CPU).writeDebug)
	u.s, u.cc = l.in.RM, l.in.Reg
	return true
}

// debugRegister checks an access to debug register n and resolves DR4 and DR5, the old
// names of DR6 and DR7.
func (c *CPU) debugRegister(n uint8) (uint8, stop) {
	if n == 4 || n == 5 {
		if c.cr4&cr4DE != 0 {
			return n, c.raise(excUD)
		}
		n += 2
	}
	if c.cpl != 0 {
		return n, c.gp()
	}
	if c.dr7&dr7GD != 0 {
		return n, c.debugFault(dr6BD)
	}
	return n, next
}

func (c *CPU) readDebug(u *uop) stop {
	n, s := c.debugRegister(u.cc)
	if s != next {
		return s
	}
	v := c.dr7
	switch {
	case n < 4:
		v = c.dr[n]
	case n == 6:
		v = c.dr6
	}
	if !c.is64() {
		v = uint64(uint32(v))
	}
	c.r[u.d&31] = v
	return next
}

func (c *CPU) writeDebug(u *uop) stop {
	n, s := c.debugRegister(u.cc)
	if s != next {
		return s
	}
	v := c.r[u.s&31]
	if !c.is64() {
		v = uint64(uint32(v))
	}
	rip := c.nextRIP(u)
	switch {
	case n < 4:
		c.dr[n] = v
	case v>>32 != 0:
		return c.gp()
	case n == 6:
		c.dr6 = v&dr6Valid | dr6Fixed
	default:
		c.dr7 = v&dr7Valid | dr7Fixed
	}
	c.rip = rip
	c.updateMode()
	return event
}
