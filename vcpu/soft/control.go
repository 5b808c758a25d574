package soft

// Control registers (Intel SDM volume 3, section 2.5).

const (
	cr0Defined = cr0PE | cr0MP | cr0EM | cr0TS | cr0ET | cr0NE | cr0WP | cr0AM | cr0NW | cr0CD | cr0PG
	cr0Flushes = cr0PG | cr0WP | cr0PE
	cr4Flushes = cr4PSE | cr4PAE | cr4PGE | cr4SMEP | cr4SMAP
)

func lowerMovFromControl(l *lowerer) bool {
	in := &l.in
	switch in.Reg {
	case 0, 2, 3, 4, 8:
	default:
		return false
	}
	u := l.call((*CPU).readControl)
	u.d, u.cc = in.RM, in.Reg
	return true
}

func (c *CPU) readControl(u *uop) stop {
	if c.cpl != 0 {
		return c.gp()
	}
	var v uint64
	switch u.cc {
	case 0:
		v = c.cr0
	case 2:
		v = c.cr2
	case 3:
		v = c.cr3
	case 4:
		v = c.cr4
	case 8:
		v = uint64(c.e.taskPriority(c))
	}
	if !c.is64() {
		v = uint64(uint32(v))
	}
	c.r[u.d&31] = v
	return next
}

func lowerMovToControl(l *lowerer) bool {
	in := &l.in
	switch in.Reg {
	case 0, 2, 3, 4, 8:
	default:
		return false
	}
	u := l.terminate((*CPU).writeControl)
	u.s, u.cc = in.RM, in.Reg
	return true
}

func (c *CPU) writeControl(u *uop) stop {
	if c.cpl != 0 {
		return c.gp()
	}
	v := c.r[u.s&31]
	if !c.is64() {
		v = uint64(uint32(v))
	}
	rip := c.nextRIP(u)
	s := next
	switch u.cc {
	case 0:
		s = c.setCR0(v)
	case 2:
		c.cr2 = v
	case 3:
		s = c.setCR3(v)
	case 4:
		s = c.setCR4(v)
	case 8:
		if v > 15 {
			return c.gp()
		}
		c.e.setTaskPriority(c, uint8(v))
	}
	if s != next {
		return s
	}
	c.rip = rip
	return event
}

func (c *CPU) setCR0(v uint64) stop {
	if v>>32 != 0 || v&(cr0PG|cr0PE) == cr0PG || v&(cr0NW|cr0CD) == cr0NW {
		return c.gp()
	}
	v = v&cr0Defined | cr0ET
	changed := v ^ c.cr0
	efer := c.efer
	if changed&cr0PG != 0 {
		switch long := efer&eferLME != 0; {
		case v&cr0PG == 0:
			if c.is64() {
				return c.gp()
			}
			efer &^= eferLMA
		case long:
			if c.cr4&cr4PAE == 0 || c.seg[segCS].Long {
				return c.gp()
			}
			efer |= eferLMA
		}
	}
	if v&cr0PG != 0 && c.cr4&cr4PAE != 0 && efer&eferLMA == 0 && changed&(cr0PG|cr0CD|cr0NW) != 0 {
		if s := c.loadPDPTRs(c.cr3); s != next {
			return s
		}
	}
	c.cr0, c.efer = v, efer
	if changed&cr0Flushes != 0 {
		c.flushTLB()
	}
	c.updateMode()
	return next
}

func (c *CPU) setCR3(v uint64) stop {
	if c.longMode() {
		if v&c.e.reservedPTE != 0 || v>>52 != 0 {
			return c.gp()
		}
	} else if c.cr0&cr0PG != 0 && c.cr4&cr4PAE != 0 {
		if s := c.loadPDPTRs(v); s != next {
			return s
		}
	}
	c.cr3 = v
	c.flushTLB()
	return next
}

func (c *CPU) setCR4(v uint64) stop {
	if v&^c.cr4Valid != 0 {
		return c.gp()
	}
	changed := v ^ c.cr4
	if c.longMode() && v&cr4PAE == 0 {
		return c.gp()
	}
	if c.cr0&cr0PG != 0 && v&cr4PAE != 0 && !c.longMode() && changed&(cr4PAE|cr4PGE|cr4PSE|cr4SMEP) != 0 {
		if s := c.loadPDPTRs(c.cr3); s != next {
			return s
		}
	}
	c.cr4 = v
	if changed&cr4Flushes != 0 {
		c.flushTLB()
	}
	c.updateMode()
	return next
}

// loadPDPTRs loads the page-directory-pointer registers of PAE paging (section 4.4.1).
func (c *CPU) loadPDPTRs(cr3 uint64) stop {
	var p [4]uint64
	for i := range p {
		e, ok := c.e.load64(cr3&0xffffffe0 + uint64(i)*8)
		if !ok {
			e = ^uint64(0)
		}
		if e&ptePresent != 0 && e&(0x1e6|c.e.reservedPTE|0xfff<<52) != 0 {
			return c.gp()
		}
		p[i] = e
	}
	c.pdpt = p
	return next
}

// clts is CLTS.
func (c *CPU) clts(u *uop) stop {
	if c.cpl != 0 {
		return c.gp()
	}
	c.cr0 &^= cr0TS
	c.updateMode()
	return c.leaveBlock(u)
}

// lmsw is LMSW: it can set CR0.PE but not clear it.
func (c *CPU) lmsw(u *uop) stop {
	if c.cpl != 0 {
		return c.gp()
	}
	rip := c.nextRIP(u)
	v := c.r[u.s&31] & (cr0PE | cr0MP | cr0EM | cr0TS)
	if s := c.setCR0(c.cr0&^(cr0MP|cr0EM|cr0TS) | v); s != next {
		return s
	}
	c.rip = rip
	return event
}

// umip reports whether CR4.UMIP keeps user code from an instruction.
func (c *CPU) umip() bool { return c.cpl != 0 && c.cr4&cr4UMIP != 0 && c.protected() }

func (c *CPU) smsw(u *uop) stop {
	if c.umip() {
		return c.gp()
	}
	switch v := c.cr0; u.size {
	case 2:
		c.r[u.d&31] = c.r[u.d&31]&^0xffff | v&0xffff
	case 4:
		c.r[u.d&31] = uint64(uint32(v))
	default:
		c.r[u.d&31] = v
	}
	return next
}

// lowerGroup7 is 0F 01.
func lowerGroup7(l *lowerer) bool {
	in := &l.in
	if !in.Mem {
		return lowerGroup7Register(l)
	}
	switch in.Reg & 7 {
	case 0, 1:
		o := l.mem()
		u := l.call((*CPU).storeTable).at(o)
		u.cc = in.Reg & 7
	case 2, 3:
		o := l.mem()
		u := l.terminate((*CPU).loadTable).at(o)
		u.cc, u.size = in.Reg&7, in.OpSize
	case 4:
		o := l.mem()
		u := l.call((*CPU).smsw)
		u.d, u.size = regT0, 4
		l.store(regT0, 2, 0, o)
	case 6:
		l.load(regT0, 2, l.mem())
		l.terminate((*CPU).lmsw).s = regT0
	case 7:
		// The address is not accessed: there is no limit to check.
		o := l.mem()
		l.terminate((*CPU).invlpg).at(o)
	default:
		return false
	}
	return true
}

func lowerGroup7Register(l *lowerer) bool {
	in := &l.in
	switch in.Reg & 7 {
	case 4:
		u := l.call((*CPU).smsw)
		u.d = in.RM
		return true
	case 6:
		l.terminate((*CPU).lmsw).s = in.RM
		return true
	}
	if in.Op66 || in.Rep != 0 {
		return false
	}
	switch in.Reg&7<<3 | in.RM&7 {
	case 0o12:
		l.call((*CPU).clac)
	case 0o13:
		l.call((*CPU).stac)
	case 0o20:
		l.call((*CPU).xgetbv)
	case 0o21:
		l.terminate((*CPU).xsetbv)
	case 0o70:
		if !l.long() {
			return false
		}
		l.call((*CPU).swapgs)
	case 0o71:
		l.call((*CPU).rdtscp)
	default: // VMCALL, MONITOR, MWAIT, VMRUN and others that are not offered
		return false
	}
	return true
}

func (c *CPU) stac(*uop) stop {
	if c.cpl != 0 || c.cr4Valid&cr4SMAP == 0 {
		return c.raise(excUD)
	}
	c.flags |= flagAC
	c.updateSpace()
	return next
}

func (c *CPU) clac(*uop) stop {
	if c.cpl != 0 || c.cr4Valid&cr4SMAP == 0 {
		return c.raise(excUD)
	}
	c.flags &^= flagAC
	c.updateSpace()
	return next
}

func (c *CPU) invlpg(u *uop) stop {
	if c.cpl != 0 {
		return c.gp()
	}
	if lin := c.addr(u); !c.longMode() || canonical(lin) {
		c.flushPage(lin)
	}
	c.rip = c.nextRIP(u)
	return done
}

// storeTable is SGDT and SIDT.
func (c *CPU) storeTable(u *uop) stop {
	if c.umip() {
		return c.gp()
	}
	t := c.gdtr
	if u.cc == 1 {
		t = c.idtr
	}
	size := uint8(4)
	if c.is64() {
		size = 8
	}
	lin := c.addr(u)
	if s := c.probe(u, lin, 2+size); s != next {
		return s
	}
	s := c.write(u, lin, 2, uint64(t.Limit))
	if s > leave {
		return s
	}
	s2 := c.write(u, c.wrap(lin+2), size, t.Base)
	return max(s, s2)
}

// loadTable is LGDT and LIDT.
func (c *CPU) loadTable(u *uop) stop {
	if c.cpl != 0 {
		return c.gp()
	}
	lin := c.addr(u)
	limit, s := c.read(u, lin, 2)
	if s != next {
		return s
	}
	size := uint8(4)
	if c.is64() {
		size = 8
	}
	base, s := c.read(u, c.wrap(lin+2), size)
	if s != next {
		return s
	}
	if size == 4 && u.size == 2 {
		base &= 0xffffff
	}
	if size == 8 && !canonical(base) {
		return c.gp()
	}
	t := &c.gdtr
	if u.cc == 3 {
		t = &c.idtr
	}
	t.Base, t.Limit = base, uint16(limit)
	c.rip = c.nextRIP(u)
	return done
}

// hlt is HLT.
func (c *CPU) hlt(u *uop) stop {
	if c.cpl != 0 {
		return c.gp()
	}
	c.halted = true
	c.rip = c.nextRIP(u)
	return event
}

// invd is INVD and WBINVD: there are no caches.
func (c *CPU) invd(*uop) stop { return c.privileged() }

// pause is PAUSE: another CPU may be what this one waits for.
func (c *CPU) pause(u *uop) stop {
	c.yield = true
	c.rip = c.nextRIP(u)
	return event
}
