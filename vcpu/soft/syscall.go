package soft

import "github.com/vmkit-go/vmkit/vcpu"

// SYSCALL and its like load flat segments without a look at any descriptor.

func flatCode(sel uint16, dpl uint8, long bool) vcpu.Segment {
	return vcpu.Segment{
		Selector: sel, Limit: 0xffffffff, Type: typeCode | typeReadable | typeAccessed, DPL: dpl,
		Present: true, Granularity: true, Long: long, Big: !long,
	}
}

func flatStack(sel uint16, dpl uint8) vcpu.Segment {
	return vcpu.Segment{
		Selector: sel, Limit: 0xffffffff, Type: typeWritable | typeAccessed, DPL: dpl,
		Present: true, Granularity: true, Big: true,
	}
}

// enterFlat goes to flat code at a privilege level.
func (c *CPU) enterFlat(cs, ss uint16, cpl uint8, long bool, rip uint64) {
	c.setSegment(segCS, flatCode(cs, cpl, long))
	c.setSegment(segSS, flatStack(ss, cpl))
	c.cpl = cpl
	c.rip = rip
	c.updateMode()
}

// syscall is SYSCALL, which AMD's processors have in every mode.
func (c *CPU) syscall(u *uop) stop {
	if c.efer&eferSCE == 0 || !c.protected() {
		return c.raise(excUD)
	}
	cs := uint16(c.msr.star >> 32)
	rip := c.nextRIP(u)
	if !c.longMode() {
		c.r[regRCX] = rip
		c.flags &^= flagIF | flagRF | flagVM
		c.enterFlat(cs&^3, cs&^3+8, 0, false, uint64(uint32(c.msr.star)))
		return done
	}
	if !c.is64() && !c.amd {
		return c.raise(excUD)
	}
	target := c.msr.lstar
	if !c.is64() {
		target = c.msr.cstar
	}
	c.r[regRCX] = rip
	f := c.rflags() &^ flagRF
	c.r[regR11] = f
	c.setRFLAGS(f &^ c.msr.sfmask)
	c.enterFlat(cs&^3, cs&^3+8, 0, true, target)
	return done
}

// sysret is SYSRET. SS gets the attributes of a flat segment, as on Intel's processors;
// AMD's leave the old ones.
func (c *CPU) sysret(u *uop) stop {
	if c.efer&eferSCE == 0 || !c.amd && !c.is64() {
		return c.raise(excUD)
	}
	if !c.protected() || c.cpl != 0 {
		return c.gp()
	}
	sel := uint16(c.msr.star >> 48)
	rip := c.r[regRCX]
	if u.size == 8 && !c.amd && !canonical(rip) {
		return c.gp()
	}
	if c.longMode() {
		c.setRFLAGS(c.r[regR11] & (flagArith | flagTF | flagIF | flagDF | flagIOPL | flagNT | flagAC | flagVIF | flagVIP | flagID))
	} else {
		c.flags |= flagIF
	}
	if u.size == 8 && c.is64() {
		c.enterFlat((sel+16)|3, (sel+8)|3, 3, true, rip)
	} else {
		c.enterFlat(sel|3, (sel+8)|3, 3, false, uint64(uint32(rip)))
	}
	return event
}

// sysenter is SYSENTER, which AMD's processors lack in long mode.
func (c *CPU) sysenter(*uop) stop {
	if c.longMode() && c.amd {
		return c.raise(excUD)
	}
	cs := uint16(c.msr.sysenterCS)
	if !c.protected() || null(cs) {
		return c.gp()
	}
	c.flags &^= flagIF | flagRF | flagVM
	rip, sp := c.msr.sysenterEIP, c.msr.sysenterESP
	if !c.longMode() {
		rip, sp = uint64(uint32(rip)), uint64(uint32(sp))
	}
	c.enterFlat(cs&^3, cs&^3+8, 0, c.longMode(), rip)
	c.r[regRSP] = sp
	return done
}

func (c *CPU) sysexit(u *uop) stop {
	if c.longMode() && c.amd {
		return c.raise(excUD)
	}
	cs := uint16(c.msr.sysenterCS)
	if !c.protected() || c.cpl != 0 || null(cs) {
		return c.gp()
	}
	rip, sp := c.r[regRDX], c.r[regRCX]
	if u.size == 8 {
		if !canonical(rip) || !canonical(sp) {
			return c.gp()
		}
		cs = (cs + 32) | 3
		c.enterFlat(cs, cs+8, 3, true, rip)
	} else {
		cs = (cs + 16) | 3
		rip, sp = uint64(uint32(rip)), uint64(uint32(sp))
		c.enterFlat(cs, cs+8, 3, false, rip)
	}
	c.r[regRSP] = sp
	return event
}

func (c *CPU) swapgs(*uop) stop {
	if c.cpl != 0 {
		return c.gp()
	}
	g := &c.seg[segGS]
	g.Base, c.msr.kernelGS = c.msr.kernelGS, g.Base
	c.r[regSeg+segGS] = g.Base
	return next
}

// lowerBaseInstruction is RDFSBASE, RDGSBASE, WRFSBASE and WRGSBASE: F3 0F AE.
func lowerBaseInstruction(l *lowerer) bool {
	in := &l.in
	if !l.long() {
		return false
	}
	u := l.call((*CPU).readBase)
	if in.Reg&2 != 0 {
		u.fn = (*CPU).writeBase
	}
	u.d, u.cc = in.RM, segFS+in.Reg&1
	return true
}

func (c *CPU) readBase(u *uop) stop {
	if c.cr4&cr4FSGSBASE == 0 {
		return c.raise(excUD)
	}
	c.r[u.d&31] = c.seg[u.cc].Base & maskOf(u.size)
	return next
}

func (c *CPU) writeBase(u *uop) stop {
	if c.cr4&cr4FSGSBASE == 0 {
		return c.raise(excUD)
	}
	v := c.r[u.d&31] & maskOf(u.size)
	if !canonical(v) {
		return c.gp()
	}
	c.setBase(u.cc, v)
	return next
}

// setBase changes the base of FS or GS alone.
func (c *CPU) setBase(i uint8, v uint64) {
	c.seg[i].Base = v
	c.r[regSeg+i&31] = v
}
