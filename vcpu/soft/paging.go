package soft

// accessKind is what an access does.
type accessKind uint8

const (
	accessRead accessKind = iota
	accessWrite
	accessExec
)

// may says what a translation allows beside the access it was made for.
type may uint8

const (
	mayRead may = 1 << iota
	mayWrite
)

// Bits of page-table entries (Intel SDM volume 3, section 4.5).
const (
	ptePresent  = 1 << 0
	pteWritable = 1 << 1
	pteUser     = 1 << 2
	pteAccessed = 1 << 5
	pteDirty    = 1 << 6
	pteLarge    = 1 << 7
	pteNX       = 1 << 63
	pteAddr     = 0x000f_ffff_ffff_f000
)

// Bits of a page fault's error code (section 4.7).
const (
	pfPresent  = 1 << 0
	pfWrite    = 1 << 1
	pfUser     = 1 << 2
	pfReserved = 1 << 3
	pfFetch    = 1 << 4
)

// canonical reports whether a 48-bit linear address is sign-extended.
func canonical(lin uint64) bool { return uint64(int64(lin<<16)>>16) == lin }

// wrap cuts a linear address to 32 bits outside 64-bit mode.
func (c *CPU) wrap(lin uint64) uint64 {
	if c.is64() {
		return lin
	}
	return uint64(uint32(lin))
}

// canonicalPair reports whether both ends of an operand have addresses that are canonical.
func (c *CPU) canonicalPair(lin uint64, size uint8) bool {
	return !c.is64() || canonical(lin) && canonical(lin+uint64(size)-1)
}

func (c *CPU) notCanonical(ss bool) stop {
	if ss {
		return c.raiseCode(excSS, 0)
	}
	return c.gp()
}

// check makes sure that an access would not fault.
func (c *CPU) check(sp space, ss bool, lin uint64, kind accessKind) stop {
	_, _, s := c.translate(sp, ss, lin, kind)
	return s
}

// translate turns a linear address into a guest-physical one for an access, sets
// accessed and dirty bits, or raises the fault.
func (c *CPU) translate(sp space, ss bool, lin uint64, kind accessKind) (gpa uint64, how may, s stop) {
	if c.cr0&cr0PG == 0 {
		return uint64(uint32(lin)), mayRead | mayWrite, next
	}
	if c.efer&eferLMA != 0 && !canonical(lin) {
		return 0, 0, c.notCanonical(ss)
	}
	gpa, how, code, ok := c.walk(sp, lin, kind)
	if !ok {
		c.cr2 = lin
		return 0, 0, c.raiseCode(excPF, code)
	}
	return gpa, how, next
}

// walk is the page walk of the paging mode in use. A false ok comes with the page
// fault's error code.
func (c *CPU) walk(sp space, lin uint64, kind accessKind) (gpa uint64, how may, code uint32, ok bool) {
	if kind == accessWrite {
		code |= pfWrite
	}
	if sp == spaceUser {
		code |= pfUser
	}
	nx := c.efer&eferNXE != 0 && c.cr4&cr4PAE != 0
	if kind == accessExec && (nx || c.cr4&cr4SMEP != 0) {
		code |= pfFetch
	}
	if c.cr4&cr4PAE == 0 {
		return c.walk32(sp, lin, kind, code)
	}
	reserved := c.e.reservedPTE
	if !nx {
		reserved |= pteNX
	}
	var at uint64 // of the entry
	level := 3    // 3: PML4, 2: PDPT, 1: PD, 0: PT
	rights := uint64(pteWritable | pteUser)
	denied := uint64(0) // NX of any level
	if c.efer&eferLMA != 0 {
		at = c.cr3&pteAddr + lin>>39&511*8
	} else {
		pdpte := c.pdpt[lin>>30&3]
		if pdpte&ptePresent == 0 {
			return 0, 0, code, false
		}
		level = 1
		at = pdpte&pteAddr + lin>>21&511*8
	}
	for {
		e, ok := c.e.load64(at)
		if !ok { // no RAM there: reads as ones
			e = ^uint64(0)
		}
		if e&ptePresent == 0 {
			return 0, 0, code, false
		}
		leaf := level == 0 || e&pteLarge != 0 && level <= 2
		bad := e & reserved
		switch {
		case level == 3:
			bad |= e & pteLarge
		case leaf && level > 0:
			bad |= e & pteAddr & (1<<(12+9*level) - 1) &^ (1 << 12) // bit 12 is PAT
		}
		if level == 2 && !c.e.huge && leaf {
			bad |= pteLarge
		}
		if bad != 0 {
			return 0, 0, code | pfPresent | pfReserved, false
		}
		rights &= e
		denied |= e & pteNX
		if !leaf {
			if e&pteAccessed == 0 {
				c.e.store64(at, e|pteAccessed)
			}
			level--
			at = e&pteAddr + lin>>(12+9*level)&511*8
			continue
		}
		if !c.allowed(sp, kind, rights, denied) {
			return 0, 0, code | pfPresent, false
		}
		set := uint64(pteAccessed)
		if kind == accessWrite {
			set |= pteDirty
		}
		if e&set != set {
			c.e.store64(at, e|set)
			e |= set
		}
		low := uint64(1)<<(12+9*level) - 1
		return e&pteAddr&^low | lin&low, c.mayAlso(sp, rights, e), 0, true
	}
}

// walk32 walks the two levels of 32-bit paging.
func (c *CPU) walk32(sp space, lin uint64, kind accessKind, code uint32) (uint64, may, uint32, bool) {
	lin = uint64(uint32(lin))
	at := c.cr3&0xfffff000 + lin>>22*4
	rights := uint64(pteWritable | pteUser)
	low := uint64(1<<22 - 1)
	e, ok := c.e.load32(at)
	if !ok {
		e = ^uint32(0)
	}
	if e&ptePresent == 0 {
		return 0, 0, code, false
	}
	rights &= uint64(e)
	page := uint64(e&0xffc00000) | uint64(e>>13&0xff)<<32 // PSE-36
	if e&pteLarge == 0 || c.cr4&cr4PSE == 0 {
		if e&pteAccessed == 0 {
			c.e.store32(at, e|pteAccessed)
		}
		at = uint64(e&0xfffff000) + lin>>12&1023*4
		if e, ok = c.e.load32(at); !ok {
			e = ^uint32(0)
		}
		if e&ptePresent == 0 {
			return 0, 0, code, false
		}
		rights &= uint64(e)
		low = pageSize - 1
		page = uint64(e & 0xfffff000)
	} else if e&(1<<21) != 0 {
		return 0, 0, code | pfPresent | pfReserved, false
	}
	if !c.allowed(sp, kind, rights, 0) {
		return 0, 0, code | pfPresent, false
	}
	set := uint32(pteAccessed)
	if kind == accessWrite {
		set |= pteDirty
	}
	if e&set != set {
		e |= set
		c.e.store32(at, e)
	}
	return page | lin&low, c.mayAlso(sp, rights, uint64(e)), 0, true
}

// allowed applies the access rights of section 4.6.
func (c *CPU) allowed(sp space, kind accessKind, rights, denied uint64) bool {
	user := rights&pteUser != 0
	switch {
	case kind == accessExec && denied != 0:
		return false
	case sp == spaceUser:
		return user && (kind != accessWrite || rights&pteWritable != 0)
	case kind == accessExec:
		return !user || c.cr4&cr4SMEP == 0
	case user && sp == spaceKernel && c.cr4&cr4SMAP != 0:
		return false
	}
	return kind != accessWrite || rights&pteWritable != 0 || c.cr0&cr0WP == 0
}

// mayAlso tells what a translation that was found may be used for as well.
func (c *CPU) mayAlso(sp space, rights, e uint64) may {
	var m may
	if c.allowed(sp, accessRead, rights, 0) {
		m = mayRead
	}
	if e&pteDirty != 0 && c.allowed(sp, accessWrite, rights, 0) {
		m |= mayWrite
	}
	return m
}
