package soft

import (
	"errors"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/vcpu"
)

func TestWriteControl(t *testing.T) {
	const cr0 = cr0PE | cr0PG | cr0ET | cr0NE | cr0WP
	const cr4 = cr4PAE | cr4OSFXSR | cr4OSXMMEXCPT
	for _, tc := range []struct {
		name string
		reg  byte
		v    uint64
		ok   bool
	}{
		{"CR0 as it is", 0, cr0, true},
		{"CR0 without ET", 0, cr0 &^ cr0ET, true},
		{"CR0 with TS", 0, cr0 | cr0TS, true},
		{"CR0 with CD and NW", 0, cr0 | cr0CD | cr0NW, true},
		{"CR0 with NW alone", 0, cr0 | cr0NW, false},
		{"CR0 with PG alone", 0, cr0 &^ cr0PE, false},
		{"CR0 without PG in 64-bit code", 0, cr0 &^ cr0PG, false},
		{"CR0 with bit 32", 0, cr0 | 1<<32, false},
		{"CR3", 3, atTables, true},
		{"CR3 above the physical width", 3, 1 << physBits, false},
		{"CR3 with bit 63", 3, atTables | 1<<63, false},
		{"CR4 with what there is", 4, cr4 | cr4FSGSBASE | cr4SMEP | cr4SMAP | cr4UMIP | cr4OSXSAVE | cr4PGE | cr4DE | cr4TSD | cr4MCE | cr4PSE | cr4PCE, true},
		{"CR4 without PAE in long mode", 4, cr4 &^ cr4PAE, false},
		{"CR4.VME", 4, cr4 | cr4VME, false},
		{"CR4.PCIDE", 4, cr4 | 1<<17, false},
		{"CR4.LA57", 4, cr4 | 1<<12, false},
		{"CR4.PKE", 4, cr4 | 1<<22, false},
		{"CR4 with bit 32", 4, cr4 | 1<<32, false},
		{"CR8", 8, 15, true},
		{"CR8 of 16", 8, 16, false},
	} {
		m := newLong(t)
		code := []byte{0x0f, 0x22, 0xc0 | tc.reg&7<<3, 0x0f, 0x0b} // MOV CRn, RAX
		if tc.reg >= 8 {
			code = append([]byte{0x44}, code...)
		}
		m.kernel(code...)
		m.r[regRAX] = tc.v
		m.runs()
		want := excUD
		if !tc.ok {
			want = excGP
		}
		if m.vector() != want {
			t.Errorf("%s: vector %d, want %d", tc.name, m.vector(), want)
		}
		if got := map[byte]uint64{0: m.cr0, 3: m.cr3, 4: m.cr4, 8: uint64(m.e.taskPriority(m.CPU))}[tc.reg]; tc.ok && got != tc.v|uint64(bit(tc.reg == 0))<<4 {
			t.Errorf("%s: %#x after writing %#x", tc.name, got, tc.v)
		}
	}
}

// Leaving and entering paging with PAE loads the page-directory pointers, and checks them.
func TestPDPTRs(t *testing.T) {
	for _, bad := range []uint64{0, 1 << 1, 1 << 8, 1 << physBits, 1 << 63} {
		m := newProtected(t)
		m.put64(atData, 0x5000|ptePresent, 0x6000|ptePresent|bad, 0, 0)
		m.cr3, m.cr4 = atData, cr4PAE
		if s := m.setCR0(m.cr0 | cr0PG); (s == next) != (bad == 0) {
			t.Errorf("entry %#x: %d", 0x6000|ptePresent|bad, s)
		}
		if want := [4]uint64{0x5001, 0x6001}; bad == 0 && m.pdpt != want {
			t.Errorf("PDPTRs %#x", m.pdpt)
		}
		if bad != 0 && m.cr0&cr0PG != 0 {
			t.Error("paging is on after a fault")
		}
	}
}

func TestLongModeActivation(t *testing.T) {
	m := newProtected(t)
	if !m.writeEFER(eferLME) || m.efer != eferLME {
		t.Fatalf("EFER %#x", m.efer)
	}
	m.cr3 = atTables
	if s := m.setCR0(m.cr0 | cr0PG); s != fault {
		t.Error("long mode without PAE")
	}
	m.cr4 = cr4PAE
	if s := m.setCR0(m.cr0 | cr0PG); s != next || m.efer != eferLME|eferLMA || m.mode&modeSize != mode32 {
		t.Errorf("%d, EFER %#x, mode %d", s, m.efer, m.mode)
	}
	if m.writeEFER(0) {
		t.Error("LME is cleared with paging on")
	}
	if s := m.setCR0(m.cr0 &^ cr0PG); s != next || m.efer != eferLME {
		t.Errorf("%d, EFER %#x after leaving", s, m.efer)
	}
}

func TestMSRs(t *testing.T) {
	const noncanonical = 1 << 63
	for _, tc := range []struct {
		name  string
		index uint32
		v     uint64
		ok    bool
		reads uint64
	}{
		{"EFER", msrEFER, eferSCE | eferLME | eferLMA | eferNXE, true, eferSCE | eferLME | eferLMA | eferNXE},
		{"EFER: LMA cannot be written", msrEFER, eferLME, true, eferLME | eferLMA},
		{"EFER: LME is fixed with paging", msrEFER, 0, false, 0},
		{"EFER: SVME", msrEFER, eferLME | 1<<12, false, 0},
		{"LSTAR", msrLSTAR, 0xffff_8000_0000_0000, true, 0xffff_8000_0000_0000},
		{"LSTAR not canonical", msrLSTAR, noncanonical, false, 0},
		{"CSTAR not canonical", msrCSTAR, noncanonical, false, 0},
		{"STAR", msrSTAR, ^uint64(0), true, ^uint64(0)},
		{"SFMASK", msrSFMASK, 0x47700, true, 0x47700},
		{"SFMASK of 64 bits", msrSFMASK, 1 << 32, false, 0},
		{"FS base", msrFSBase, 0x1234, true, 0x1234},
		{"FS base not canonical", msrFSBase, noncanonical, false, 0},
		{"GS base", msrGSBase, 0x1234, true, 0x1234},
		{"kernel's GS base", msrKernelGS, 0x1234, true, 0x1234},
		{"kernel's GS base not canonical", msrKernelGS, noncanonical, false, 0},
		{"SYSENTER_EIP", msrSysenterEIP, 0x1234, true, 0x1234},
		{"SYSENTER_EIP has 32 bits", msrSysenterEIP, noncanonical | 0x1234, true, 0x1234},
		{"SYSENTER_ESP has 32 bits", msrSysenterESP, 0xffff_8000_1234_5678, true, 0x1234_5678},
		{"TSC_AUX", msrTSCAux, 3, true, 3},
		{"TSC_AUX of 64 bits", msrTSCAux, 1 << 32, false, 0},
		{"PAT", msrPAT, 0x0407010600070106, true, 0x0407010600070106},
		{"PAT of type 2", msrPAT, 2, false, 0},
		{"MTRR default", msrMTRRDefType, 0xc06, true, 0xc06},
		{"MTRR default of type 7", msrMTRRDefType, 7, false, 0},
		{"MTRR default, reserved", msrMTRRDefType, 0x106, false, 0},
		{"MTRR base", msrMTRRPhys, 0x80000006, true, 0x80000006},
		{"MTRR base of type 3", msrMTRRPhys + 2, 3, false, 0},
		{"MTRR mask", msrMTRRPhys + 1, 0xff_8000_0800, true, 0xff_8000_0800},
		{"MTRR mask, reserved", msrMTRRPhys + 1, 0x400, false, 0},
		{"MTRR mask, too wide", msrMTRRPhys + 1, 1 << physBits, false, 0},
		{"MTRR fixed", 0x250, 0x0606060606060606, true, 0x0606060606060606},
		{"MTRR fixed of type 2", 0x26f, 2, false, 0},
		{"MTRR capabilities", msrMTRRCap, 0, false, 0},
		{"the ninth MTRR", 0x210, 0, false, 0},
		{"APIC base", msrAPICBase, 0xfee00000 | vcpu.APICBaseBSP | vcpu.APICBaseEnable, true, 0xfee00000 | vcpu.APICBaseBSP | vcpu.APICBaseEnable},
		{"APIC base, too wide", msrAPICBase, 1<<physBits | 0xfee00000 | vcpu.APICBaseEnable, false, 0},
		{"APIC base, reserved", msrAPICBase, 0xfee00001, false, 0},
		{"microcode level", msrUcodeRev, 0, true, ucodeRevision},
		{"MISC_ENABLE", msrMiscEnable, 1, true, 1},
		{"MCG_CAP", msrMCGCap, 1, false, 0},
		{"DE_CFG", msrDECFG, decfgSerialize, true, decfgSerialize},
		{"HWCR", msrHWCR, 0x40, true, 0x40},
		{"x2APIC register in xAPIC mode", msrX2APIC + 8, 0, false, 0},
		{"none", 0x12345, 0, false, 0},
		{"KVM's", 0x4b564d00, 0, false, 0},
		{"performance counter", 0xc1, 0, false, 0},
	} {
		m := newLong(t)
		m.kernel(0x0f, 0x30, 0x0f, 0x32, 0x0f, 0x0b) // WRMSR; RDMSR
		m.r[regRCX], m.r[regRAX], m.r[regRDX] = uint64(tc.index), tc.v&0xffffffff, tc.v>>32
		m.runs()
		if !tc.ok {
			if m.vector() != excGP || m.get(m.r[regRSP]+8, 8) != atCode {
				t.Errorf("%s: vector %d, want #GP of WRMSR", tc.name, m.vector())
			}
			continue
		}
		if got := m.r[regRDX]<<32 | m.r[regRAX]; m.vector() != excUD || got != tc.reads {
			t.Errorf("%s: vector %d, reads %#x, want %#x", tc.name, m.vector(), got, tc.reads)
		}
	}
}

func TestTSC(t *testing.T) {
	m := newLong(t)
	m.kernel(0x0f, 0x31, 0x90, 0xf4) // RDTSC
	m.e.count = 1000
	m.steps(1)
	if got := m.r[regRAX]; got != 1000*insnTime {
		t.Errorf("TSC %d after 1000 instructions", got)
	}
	if !m.writeMSR(msrTSC, 5, m.e.count) || m.tscAt(m.e.count) != 5 {
		t.Errorf("TSC %d after writing 5", m.tscAt(m.e.count))
	}
	adjust, _ := m.readMSR(msrTSCAdjust, 0)
	if !m.writeMSR(msrTSCAdjust, adjust+100, m.e.count) || m.tscAt(m.e.count) != 105 {
		t.Errorf("TSC %d after adding 100 to TSC_ADJUST", m.tscAt(m.e.count))
	}
	m.setTSC(7, 3*TSCHz)
	if got := m.tscAt(m.e.count + 10); got != 7+3*10*insnTime {
		t.Errorf("TSC at 3 GHz: %d", got)
	}
	for _, ticks := range []uint64{0, 1, 2, 3, 100, 12345678} {
		if at := m.clockOf(ticks); scale(at, m.tscRate, TSCHz) < ticks || at > 0 && scale(at-1, m.tscRate, TSCHz) >= ticks {
			t.Errorf("%d ticks are there at %d", ticks, at)
		}
	}
	m.cr4 |= cr4TSD
	m.user(0x0f, 0x31)
	m.runs()
	m.fault(excGP, 0, atUser)
}

// TestDeadlineAfterTSC: with a TSC that had been set back, every deadline was past.
func TestDeadlineAfterTSC(t *testing.T) {
	m := newLong(t)
	m.e.clock.skipped = 1_000_000
	if !m.writeMSR(msrTSC, 0, m.e.count) {
		t.Fatal("WRMSR")
	}
	for tsc, want := range map[uint64]int64{
		5000: 1_005_000, 0: 1_000_000, 1 << 62: 1<<62 + 1_000_000, 1<<64 - 1: never, 1<<64 - 1_000_001: never,
	} {
		if got := max(m.e.tscTime(0, tsc), m.e.clock.Now()); got != want {
			t.Errorf("TSC %d at %d, want %d", tsc, got, want)
		}
	}
}

// TestConfigTSC: an engine's TSCs have the frequency of its Config, until a state
// says another.
func TestConfigTSC(t *testing.T) {
	m := newMachine(t)
	for _, hz := range []uint64{1e6 - 1, 1e12 + 1} {
		if _, err := New(m.mem, Config{TSCHz: hz}); !errors.Is(err, ErrConfig) {
			t.Errorf("%d Hz: %v", hz, err)
		}
	}
	e, err := New(m.mem, Config{TSCHz: 2 * TSCHz, CPUs: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	e.count = 1000
	for _, set := range []uint64{0, 0, 3 * TSCHz, TSCHz, 0} {
		for _, c := range e.cpus {
			var s vcpu.State
			if err := c.State(&s); err != nil {
				t.Fatal(err)
			}
			s.TSC, s.TSCHz = 7, set
			if err := c.SetState(&s); err != nil {
				t.Fatal(err)
			}
			if set == 0 {
				set = 2 * TSCHz
			}
			if err := c.State(&s); err != nil || s.TSCHz != set || c.tscAt(e.count+10)-7 != 10*insnTime*set/TSCHz {
				t.Errorf("%v, %d Hz, want %d; in 10 instructions it counts %d", err, s.TSCHz, set, c.tscAt(e.count+10)-7)
			}
		}
	}
}

// TestINIT: INIT left the registers of the local APIC as they were.
func TestINIT(t *testing.T) {
	m := newLong(t)
	l := m.e.chips.LAPIC(0)
	for _, r := range [][2]uint32{{0xf0, 0x1ff}, {0x80, 0x30}, {0x320, 0x40}, {0x380, 1000}} { // SVR, TPR, timer
		l.Write(r[0], r[1])
	}
	if err := m.e.Signal(0xfee00000, 5<<8); err != nil {
		t.Fatal(err)
	}
	if !m.poll() || m.rip != 0xfff0 || m.cr0&cr0PE != 0 {
		t.Errorf("RIP %#x, CR0 %#x", m.rip, m.cr0)
	}
	if svr := l.Read(0xf0); svr != 0xff || l.TPR() != 0 || l.Read(0x380) != 0 || m.e.chips.Next() != never {
		t.Errorf("SVR %#x, TPR %d, the timer's count %d", svr, l.TPR(), l.Read(0x380))
	}
}

// TestStrayStartUp: a start-up interrupt for a CPU that runs, of which Linux sends one to
// each, stayed pending for good, and the CPU looked for it after every STI or IRET.
func TestStrayStartUp(t *testing.T) {
	m := newLong(t)
	l := m.e.chips.LAPIC(0)
	l.Write(0x310, 0)      // ICR: to CPU 0
	l.Write(0x300, 0x4612) // start-up at 0x12000
	if !l.HasEvent() {
		t.Fatal("it does not arrive")
	}
	rip := m.rip
	if !m.poll() || l.HasEvent() || m.rip != rip {
		t.Errorf("RIP %#x, events %b", m.rip, l.Events())
	}
}

// TestEndOfTime: an idle machine whose only timer was due in 292 years let that time pass
// at once, and its clock had no room to go on.
func TestEndOfTime(t *testing.T) {
	m := newLong(t)
	m.kernel(0xf4)
	l := m.e.chips.LAPIC(0)
	l.Write(0xf0, 0x1ff)
	l.Write(0x320, 0x40040) // the timer's mode is TSC-deadline
	l.SetDeadline(never - 1)
	m.e.At(1<<64-1, func() { t.Error("At the end of all counts") })
	go func() {
		time.Sleep(time.Millisecond)
		m.Kick()
	}()
	var exit vcpu.Exit
	if err := m.e.Runner().Run(&exit); err != nil || exit.Reason != vcpu.ExitKick {
		t.Fatal(err, exit.Reason)
	}
	// A kick that was too early finds it before it is idle.
	m.e.poke()
	m.e.idle()
	if now := m.e.clock.Now(); now < 0 || now > 1000 {
		t.Errorf("it is %d", now)
	}
}

func TestTables(t *testing.T) {
	m := newLong(t)
	// SGDT [0x40000]; LIDT [0x40010]; SIDT [0x40020]
	m.kernel(0x0f, 0x01, 0x04, 0x25, 0, 0, 4, 0, 0x0f, 0x01, 0x1c, 0x25, 0x10, 0, 4, 0, 0x0f, 0x01, 0x0c, 0x25, 0x20, 0, 4, 0, 0xf4)
	m.put64(atData+0x10, 0x12345678_07ff, 0)
	m.runs()
	if got := m.get(atData, 2); got != gdtLimit || m.get(atData+2, 8) != atGDT {
		t.Errorf("SGDT: %#x, %#x", got, m.get(atData+2, 8))
	}
	if m.idtr != (vcpu.Table{Base: 0x12345678, Limit: 0x7ff}) || m.get(atData+0x22, 8) != 0x12345678 {
		t.Errorf("IDTR %+v", m.idtr)
	}
	for _, code := range [][]byte{
		{0x0f, 0x01, 0x04, 0x25, 0, 0xb0, 0, 0}, {0x0f, 0x01, 0x0c, 0x25, 0, 0xb0, 0, 0}, // SGDT, SIDT
		{0x0f, 0x01, 0xe0}, {0x0f, 0x00, 0xc0}, {0x0f, 0x00, 0xc8}, // SMSW, SLDT, STR
	} {
		m := newLong(t)
		m.cr4 |= cr4UMIP
		m.user(code...)
		m.runs()
		m.fault(excGP, 0, atUser)
	}
}

func TestLMSW(t *testing.T) {
	m := newProtected(t)
	m.kernel(0x0f, 0x01, 0xf0, 0x0f, 0x01, 0xe1, 0x0f, 0x06, 0xf4) // LMSW AX; SMSW ECX; CLTS
	m.r[regRAX] = cr0TS | cr0MP
	m.runs()
	if want := uint64(cr0PE | cr0ET | cr0NE | cr0WP | cr0MP); m.cr0 != want || m.r[regRCX] != want|cr0TS {
		t.Errorf("CR0 %#x, before CLTS %#x", m.cr0, m.r[regRCX])
	}
}

// SMAP keeps the kernel from user pages until STAC, and always from implicit accesses.
func TestSMAP(t *testing.T) {
	m := newLong(t)
	m.cr4 |= cr4SMAP | cr4SMEP
	read := []byte{0x8b, 0x04, 0x25, 0, 0x05, 1, 0} // MOV EAX, [0x10500]
	m.kernel(append([]byte{0x0f, 0x01, 0xcb}, append(read, append([]byte{0x0f, 0x01, 0xca}, read...)...)...)...)
	m.put64(atUser+0x500, 0x77)
	m.runs()
	m.fault(excPF, pfPresent, atCode+3+7+3)
	if m.r[regRAX] != 0x77 {
		t.Errorf("EAX %#x after STAC", m.r[regRAX])
	}
	m = newLong(t)
	m.cr4 |= cr4SMEP
	m.kernel(0xff, 0xe0) // JMP RAX
	m.r[regRAX] = atUser
	m.runs()
	m.fault(excPF, pfPresent|pfFetch, atUser)
}

func TestFlagsInstructions(t *testing.T) {
	for _, tc := range []struct {
		name       string
		user       bool
		iopl       uint64
		load, want uint64
	}{
		{"kernel", false, 0, ^uint64(0) &^ flagTF, flag1 | flagArith | flagIF | flagDF | flagIOPL | flagNT | flagAC | flagID},
		{"user", true, 0, ^uint64(0) &^ flagTF, flag1 | flagArith | flagDF | flagNT | flagAC | flagID},
		{"user with IOPL 3", true, 3, ^uint64(0) &^ flagTF, flag1 | flagArith | flagIF | flagDF | flagIOPL | flagNT | flagAC | flagID},
		{"cleared", true, 3, 0, flag1 | flagIOPL},
	} {
		m := newLong(t)
		code := []byte{0x50, 0x9d, 0x9c, 0x59, 0x0f, 0x0b} // PUSH RAX; POPF; PUSHF; POP RCX
		if tc.user {
			m.user(code...)
		} else {
			m.kernel(code...)
		}
		m.flags |= tc.iopl << 12
		m.r[regRAX] = tc.load
		m.runs()
		if m.r[regRCX] != tc.want {
			t.Errorf("%s: flags %#x, want %#x", tc.name, m.r[regRCX], tc.want)
		}
	}
}

func TestCPUID(t *testing.T) {
	leaves := Supported()
	if err := leaves.Validate(); err != nil {
		t.Fatal(err)
	}
	if leaves.Vendor() != "AuthenticAMD" || leaves.PhysicalBits() != physBits {
		t.Errorf("vendor %s, %d bits", leaves.Vendor(), leaves.PhysicalBits())
	}
	if _, err := vcpu.ModelV2.Apply(leaves); err != nil {
		t.Error(err)
	}
	m := newLong(t)
	m.kernel(0x0f, 0xa2, 0xf4)
	for _, osxsave := range []uint64{0, cr4OSXSAVE} {
		m.cr4 = m.cr4&^cr4OSXSAVE | osxsave
		m.r[regRAX], m.r[regRCX], m.rip, m.halted = 0xffff_ffff_0000_0001, 0, atCode, false
		m.runs()
		if got := m.r[regRCX]&feat1ECXOSXSAVE != 0; got != (osxsave != 0) {
			t.Errorf("OSXSAVE %v with CR4.OSXSAVE %v", got, osxsave != 0)
		}
		if m.r[regRAX] != 0x60fb1 {
			t.Errorf("signature %#x", m.r[regRAX])
		}
	}
	m.r[regRAX], m.rip, m.halted = 0x40000000, atCode, false
	m.runs()
	if m.r[regRAX]|m.r[regRBX]|m.r[regRCX]|m.r[regRDX] != 0 {
		t.Error("a leaf that there is not is not zero")
	}
}
