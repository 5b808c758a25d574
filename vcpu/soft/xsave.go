package soft

const (
	xcr0Valid = 3 // x87 and SSE
	xsaveSize = 576
)

func (c *CPU) xgetbv(*uop) stop {
	if c.cr4&cr4OSXSAVE == 0 {
		return c.raise(excUD)
	}
	if uint32(c.r[regRCX]) != 0 {
		return c.gp()
	}
	c.r[regRAX], c.r[regRDX] = c.xcr0&0xffffffff, c.xcr0>>32
	return next
}

func (c *CPU) xsetbv(u *uop) stop {
	if c.cr4&cr4OSXSAVE == 0 {
		return c.raise(excUD)
	}
	v := uint64(uint32(c.r[regRAX])) | c.r[regRDX]<<32
	if c.cpl != 0 || uint32(c.r[regRCX]) != 0 || v&1 == 0 || v&^xcr0Valid != 0 {
		return c.gp()
	}
	c.xcr0 = v
	c.rip = c.nextRIP(u)
	return event
}
