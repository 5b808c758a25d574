package soft

// Model-specific registers (Intel SDM volume 4, chapter 2; AMD APM volume 2, appendix A).
const (
	msrTSC         = 0x10
	msrAPICBase    = 0x1b
	msrTSCAdjust   = 0x3b
	msrUcodeWrite  = 0x79
	msrUcodeRev    = 0x8b
	msrMTRRCap     = 0xfe
	msrSysenterCS  = 0x174
	msrSysenterESP = 0x175
	msrSysenterEIP = 0x176
	msrMCGCap      = 0x179
	msrMCGStatus   = 0x17a
	msrMiscEnable  = 0x1a0
	msrMTRRPhys    = 0x200 // base and mask of 8 ranges
	msrPAT         = 0x277
	msrMTRRDefType = 0x2ff
	msrTSCDeadline = 0x6e0
	msrX2APIC      = 0x800 // to 0x8ff
	msrEFER        = 0xc0000080
	msrSTAR        = 0xc0000081
	msrLSTAR       = 0xc0000082
	msrCSTAR       = 0xc0000083
	msrSFMASK      = 0xc0000084
	msrFSBase      = 0xc0000100
	msrGSBase      = 0xc0000101
	msrKernelGS    = 0xc0000102
	msrTSCAux      = 0xc0000103
	msrSYSCFG      = 0xc0010010
	msrHWCR        = 0xc0010015
	msrNBCFG       = 0xc001001f
	msrPatchLoader = 0xc0010020
	msrIntPending  = 0xc0010055 // C1E of family 15, which is off
	msrVMCR        = 0xc0010114
	msrMCBase      = 0x400 // 4 MSRs for each machine-check bank
	msrDECFG       = 0xc0011029
)

const (
	maxBanks   = 32
	mtrrRanges = 8
	// mtrrCap: 8 variable ranges, fixed ranges, write-combining.
	mtrrCap = mtrrRanges | 1<<8 | 1<<10
	// decfgSerialize: LFENCE waits for all instructions before it, as here.
	decfgSerialize = 1 << 1
)

// mtrrFixed are the MSRs of the fixed ranges.
var mtrrFixed = [11]uint32{0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f}

// msrs are the model-specific registers that are no more than stored.
type msrs struct {
	star, lstar, cstar, sfmask           uint64
	kernelGS                             uint64
	sysenterCS, sysenterESP, sysenterEIP uint64
	tscAdjust, tscAux                    uint64
	pat                                  uint64
	mtrrPhys                             [2 * mtrrRanges]uint64
	mtrrFix                              [len(mtrrFixed)]uint64
	mtrrDef                              uint64
	miscEnable                           uint64
	mcgStatus                            uint64
	ucodeRev                             uint64
	syscfg, hwcr, nbcfg                  uint64
	// Machine-check banks: none, but for states of engines that have them.
	banks uint8
	bank  [4 * maxBanks]uint64
}

// reset sets what power-up sets.
func (m *msrs) reset() {
	*m = msrs{pat: 0x0007040600070406, miscEnable: 1, ucodeRev: ucodeRevision}
}

// ucodeRevision is the microcode level, in IA32_BIOS_SIGN_ID's form. It is one that
// no kernel has a complaint about.
const ucodeRevision = 0x1000065

// tsc is what RDTSC reads in u's instruction.
func (c *CPU) tsc(u *uop) uint64 { return c.tscAt(c.now(u)) }

// rdmsr and wrmsr are the instructions.
func (c *CPU) rdmsr(u *uop) stop {
	c.asker = u
	if c.cpl != 0 {
		return c.gp()
	}
	index := uint32(c.r[regRCX])
	v, ok := c.readMSR(index, c.now(u))
	if !ok {
		return c.gp()
	}
	c.r[regRAX], c.r[regRDX] = uint64(uint32(v)), v>>32
	return next
}

func (c *CPU) wrmsr(u *uop) stop {
	c.asker = u
	if c.cpl != 0 {
		return c.gp()
	}
	v := uint64(uint32(c.r[regRAX])) | c.r[regRDX]<<32
	if !c.writeMSR(uint32(c.r[regRCX]), v, c.now(u)) {
		return c.gp()
	}
	return c.leaveBlock(u)
}

// readMSR reads an MSR when the machine has executed now instructions. It reports false
// for one that there is not.
func (c *CPU) readMSR(index uint32, now int64) (v uint64, ok bool) {
	m := &c.msr
	switch index {
	case msrTSC:
		return c.tscAt(now), true
	case msrAPICBase, msrTSCDeadline:
		return c.e.readAPIC(c, index)
	case msrEFER:
		return c.efer, true
	case msrFSBase:
		return c.seg[segFS].Base, true
	case msrGSBase:
		return c.seg[segGS].Base, true
	case msrMTRRCap:
		return mtrrCap, true
	case msrDECFG:
		return decfgSerialize, true
	case msrMCGCap:
		return uint64(m.banks), true
	case msrPatchLoader, msrIntPending:
		return 0, true
	case msrVMCR:
		return 0, false // no SVM
	}
	if index >= msrX2APIC && index < msrX2APIC+0x100 {
		return c.e.readAPIC(c, index)
	}
	if p := m.stored(index); p != nil {
		return *p, true
	}
	return 0, false
}

// stored returns where an MSR is that reads as what it is.
func (m *msrs) stored(index uint32) *uint64 {
	switch index {
	case msrTSCAdjust:
		return &m.tscAdjust
	case msrUcodeRev:
		return &m.ucodeRev
	case msrSysenterCS:
		return &m.sysenterCS
	case msrSysenterESP:
		return &m.sysenterESP
	case msrSysenterEIP:
		return &m.sysenterEIP
	case msrMCGStatus:
		return &m.mcgStatus
	case msrMiscEnable:
		return &m.miscEnable
	case msrPAT:
		return &m.pat
	case msrMTRRDefType:
		return &m.mtrrDef
	case msrSTAR:
		return &m.star
	case msrLSTAR:
		return &m.lstar
	case msrCSTAR:
		return &m.cstar
	case msrSFMASK:
		return &m.sfmask
	case msrKernelGS:
		return &m.kernelGS
	case msrTSCAux:
		return &m.tscAux
	case msrSYSCFG:
		return &m.syscfg
	case msrHWCR:
		return &m.hwcr
	case msrNBCFG:
		return &m.nbcfg
	}
	if index >= msrMCBase && index < msrMCBase+4*uint32(m.banks) {
		return &m.bank[index-msrMCBase]
	}
	if index >= msrMTRRPhys && index < msrMTRRPhys+2*mtrrRanges {
		return &m.mtrrPhys[index-msrMTRRPhys]
	}
	for i, f := range mtrrFixed {
		if f == index {
			return &m.mtrrFix[i]
		}
	}
	return nil
}

// writeMSR writes an MSR. It reports false for one that there is not, and for a value
// that it cannot have.
func (c *CPU) writeMSR(index uint32, v uint64, now int64) bool {
	m := &c.msr
	switch index {
	case msrTSC:
		old := c.tscOffset
		c.tscOffset = v - c.ticks(now)
		m.tscAdjust += c.tscOffset - old
		c.e.tscChanged(c)
		return true
	case msrTSCAdjust:
		c.tscOffset += v - m.tscAdjust
		m.tscAdjust = v
		c.e.tscChanged(c)
		return true
	case msrAPICBase, msrTSCDeadline:
		return c.e.writeAPIC(c, index, v)
	case msrEFER:
		return c.writeEFER(v)
	case msrFSBase, msrGSBase:
		if !canonical(v) {
			return false
		}
		c.setBase(segFS+uint8(index-msrFSBase), v)
		return true
	case msrUcodeWrite, msrPatchLoader:
		return true // a microcode update does nothing
	case msrUcodeRev:
		return true // written before it is read, to no effect
	case msrDECFG:
		return v&^decfgSerialize == 0
	case msrMTRRCap, msrMCGCap, msrIntPending:
		return false
	case msrSysenterESP, msrSysenterEIP:
		if c.amd { // no SYSENTER in long mode, and no upper half
			v = uint64(uint32(v))
		}
	}
	if index >= msrX2APIC && index < msrX2APIC+0x100 {
		return c.e.writeAPIC(c, index, v)
	}
	p := m.stored(index)
	if p == nil || !c.validMSR(index, v) {
		return false
	}
	*p = v
	return true
}

// validMSR reports whether a stored MSR can have a value.
func (c *CPU) validMSR(index uint32, v uint64) bool {
	switch index {
	case msrLSTAR, msrCSTAR, msrKernelGS, msrSysenterESP, msrSysenterEIP:
		return canonical(v)
	case msrTSCAux, msrSFMASK:
		return v>>32 == 0
	case msrPAT:
		return validTypes(v, 1<<0|1<<1|1<<4|1<<5|1<<6|1<<7)
	case msrMTRRDefType:
		return v&^0xcff == 0 && memoryType(v)
	case msrMCGStatus:
		return v == 0
	}
	if isBank(index) {
		return index&3 == 0 || v == 0
	}
	if index >= msrMTRRPhys && index < msrMTRRPhys+2*mtrrRanges {
		if v&c.physReserved() != 0 {
			return false
		}
		if index&1 == 0 {
			return v&0xf00 == 0 && memoryType(v)
		}
		return v&0x7ff == 0
	}
	for _, f := range mtrrFixed {
		if f == index {
			return validTypes(v, mtrrTypes)
		}
	}
	return true
}

// mtrrTypes are the memory types UC, WC, WT, WP and WB.
const mtrrTypes = 1<<0 | 1<<1 | 1<<4 | 1<<5 | 1<<6

func memoryType(v uint64) bool { return v&0xff < 8 && mtrrTypes>>(v&0xff)&1 != 0 }

// validTypes checks eight memory types.
func validTypes(v, types uint64) bool {
	for range 8 {
		if t := v & 0xff; t > 7 || types>>t&1 == 0 {
			return false
		}
		v >>= 8
	}
	return true
}

// physReserved are the bits above the physical address width.
func (c *CPU) physReserved() uint64 { return c.e.reservedPTE | 0xfff<<52 }

func (c *CPU) writeEFER(v uint64) bool {
	if v&^(c.eferValid|eferLMA) != 0 {
		return false
	}
	if (v^c.efer)&eferLME != 0 && c.cr0&cr0PG != 0 {
		return false
	}
	v = v&^eferLMA | c.efer&eferLMA
	if (v^c.efer)&eferNXE != 0 {
		c.flushTLB()
	}
	c.efer = v
	return true
}

// rdtsc is RDTSC; rdtscp gives IA32_TSC_AUX as well.
func (c *CPU) rdtsc(u *uop) stop {
	if c.cr4&cr4TSD != 0 && c.cpl != 0 && c.protected() {
		return c.gp()
	}
	v := c.tsc(u)
	c.r[regRAX], c.r[regRDX] = uint64(uint32(v)), v>>32
	return next
}

func (c *CPU) rdtscp(u *uop) stop {
	if !c.hasRDTSCP {
		return c.raise(excUD)
	}
	if s := c.rdtsc(u); s != next {
		return s
	}
	c.r[regRCX] = uint64(uint32(c.msr.tscAux))
	return next
}

// rdpmc is RDPMC. There is no counter, whatever ECX says.
func (c *CPU) rdpmc(*uop) stop { return c.gp() }

func isBank(index uint32) bool { return index >= msrMCBase && index < msrMCBase+4*maxBanks }
