package soft

import "github.com/vmkit-go/vmkit/vcpu/soft/decode"

// checkPort makes sure that the guest's code may access a port (Intel SDM volume 1,
// section 19.5): by IOPL, or by the I/O permission bitmap of the task-state segment.
func (c *CPU) checkPort(port uint16, size uint8) stop {
	if !c.protected() || c.cpl <= c.iopl() {
		return next
	}
	if c.tr.Unusable || c.tr.Type&8 == 0 || c.tr.Limit < 0x67 {
		return c.gp()
	}
	at, s := c.systemRead(c.tr.Base+0x66, 2)
	if s != next {
		return s
	}
	at += uint64(port >> 3)
	if at+1 > uint64(c.tr.Limit) {
		return c.gp()
	}
	bits, s := c.systemRead(c.tr.Base+at, 2)
	if s != next {
		return s
	}
	if bits>>(port&7)&(1<<size-1) != 0 {
		return c.gp()
	}
	return next
}

// readPort and writePort access a port for the guest.
func (c *CPU) readPort(port uint16, size uint8) (uint64, stop) {
	if v, ok := c.e.portIn(port, size); ok {
		return v, next
	}
	return c.askDevice(deviceAccess{port: true, size: size, addr: uint64(port)})
}

func (c *CPU) writePort(port uint16, size uint8, v uint64) stop {
	if c.e.portOut(port, size, v) {
		return leave
	}
	return c.post(deviceAccess{port: true, write: true, size: size, addr: uint64(port), value: v})
}

func lowerPort(l *lowerer) bool {
	in := &l.in
	size := min(in.OpSize, 4)
	if in.Op&1 == 0 {
		size = 1
	}
	u := l.terminate((*CPU).in)
	if in.Op&2 != 0 {
		u.fn = (*CPU).out
	}
	u.size = size
	u.s, u.imm = regZero, in.Imm&0xff
	if in.Op&8 != 0 {
		u.s, u.imm = regRDX, 0
	}
	return true
}

func (c *CPU) in(u *uop) stop {
	c.asker = u
	port := uint16(c.r[u.s&31] + u.imm)
	if s := c.checkPort(port, u.size); s != next {
		return s
	}
	v, s := c.readPort(port, u.size)
	if s != next {
		return s
	}
	c.ioBreakpoints(port, u.size)
	if u.size < 4 {
		m := maskOf(u.size)
		v = c.r[regRAX]&^m | v&m
	}
	c.r[regRAX] = v
	c.rip = c.nextRIP(u)
	return event
}

func (c *CPU) out(u *uop) stop {
	c.asker = u
	port := uint16(c.r[u.s&31] + u.imm)
	if s := c.checkPort(port, u.size); s != next {
		return s
	}
	if s := c.writePort(port, u.size, c.r[regRAX]&maskOf(u.size)); s > leave {
		return s
	}
	c.ioBreakpoints(port, u.size)
	c.rip = c.nextRIP(u)
	return event
}

// lowerPortString is INS and OUTS. With a repeat prefix each repetition is an
// instruction of its own, after which RIP stays.
func lowerPortString(l *lowerer) bool {
	in := &l.in
	u := l.terminate((*CPU).ins)
	if in.Op&2 != 0 {
		u.fn = (*CPU).outs
	}
	u.size = min(in.OpSize, 4)
	if in.Op&1 == 0 {
		u.size = 1
	}
	u.cc = in.AddrSize
	u.d = uint8(bit(in.Rep != 0))
	u.x = segDS
	if in.Seg != decode.NoSeg {
		u.x = in.Seg
	}
	return true
}

func (c *CPU) ins(u *uop) stop {
	c.asker = u
	port := uint16(c.r[regRDX])
	if s := c.checkPort(port, u.size); s != next { // even with nothing to do
		return s
	}
	if c.repeatOver(u) {
		return done
	}
	lin, s := c.stringAddr(regRDI, segES, u.cc, u.size)
	if s != next {
		return s
	}
	if s := c.probe(u, lin, u.size); s != next {
		return s
	}
	v, s := c.readPort(port, u.size)
	if s != next {
		return s
	}
	if s := c.write(u, lin, u.size, v); s > leave {
		return s
	}
	c.ioBreakpoints(port, u.size)
	return c.repeated(u, regRDI)
}

func (c *CPU) outs(u *uop) stop {
	c.asker = u
	port := uint16(c.r[regRDX])
	if s := c.checkPort(port, u.size); s != next { // even with nothing to do
		return s
	}
	if c.repeatOver(u) {
		return done
	}
	lin, s := c.stringAddr(regRSI, u.x, u.cc, u.size)
	if s != next {
		return s
	}
	v, s := c.read(u, lin, u.size)
	if s != next {
		return s
	}
	if s := c.writePort(port, u.size, v); s > leave {
		return s
	}
	c.ioBreakpoints(port, u.size)
	return c.repeated(u, regRSI)
}

// repeatOver reports whether there is nothing to repeat, and then goes on.
func (c *CPU) repeatOver(u *uop) bool {
	if u.d == 0 || c.r[regRCX]&maskOf(u.cc) != 0 {
		return false
	}
	c.rip = c.nextRIP(u)
	return true
}

// repeated moves an index register on, counts, and stays at the instruction if it has
// more to do.
func (c *CPU) repeated(u *uop, index uint8) stop {
	step := uint64(u.size)
	if c.flags&flagDF != 0 {
		step = -step
	}
	c.set(index, u.cc, c.r[index&31]+step)
	c.rip = c.nextRIP(u)
	if u.d != 0 {
		c.set(regRCX, u.cc, c.r[regRCX]-1)
		if c.r[regRCX]&maskOf(u.cc) != 0 {
			c.rip = c.here(u)
		}
	}
	return event
}
