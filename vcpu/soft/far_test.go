package soft

import (
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

// pointer puts a far pointer where callIndirect and jumpIndirect take it from.
func (m *machine) pointer(sel uint16, off uint32) {
	m.put64(atUser+0x800, uint64(off)|uint64(sel)<<32)
}

var (
	callIndirect = []byte{0xff, 0x1c, 0x25, 0, 0x08, 1, 0} // 64-bit code: CALL FAR [0x10800]
	jumpIndirect = []byte{0xff, 0x2c, 0x25, 0, 0x08, 1, 0}
)

func TestCallGate64(t *testing.T) {
	m := newLong(t)
	m.user(append(callIndirect, 0x0f, 0x0b)...)
	m.pointer(selGate|3, 0xdead)
	m.code(atGate, 0x48, 0xcb) // RETFQ
	m.steps(1)
	if m.rip != atGate || m.cpl != 0 || m.r[regRSP] != rsp0-32 || m.seg[segSS].Selector != 0 {
		t.Fatalf("at %#x, CPL %d, RSP %#x, SS %+v", m.rip, m.cpl, m.r[regRSP], m.seg[segSS])
	}
	for i, want := range []uint64{atUser + 7, selUser, userStack - 64, selUserSS} {
		if got := m.get(m.r[regRSP]+uint64(i)*8, 8); got != want {
			t.Errorf("word %d of the frame is %#x, want %#x", i, got, want)
		}
	}
	m.steps(1)
	if m.rip != atUser+7 || m.cpl != 3 || m.r[regRSP] != userStack-64 || m.seg[segSS].Selector != selUserSS {
		t.Errorf("after RET: at %#x, CPL %d, RSP %#x, SS %+v", m.rip, m.cpl, m.r[regRSP], m.seg[segSS])
	}
}

func TestCallGate32(t *testing.T) {
	m := newProtected(t)
	m.user32(0x6a, 1, 0x6a, 2, 0x9a, 0, 0, 0, 0, selGate|3, 0, 0x0f, 0x0b)
	m.code(atGate, 0xca, 8, 0) // RETF 8
	m.steps(3)
	if m.rip != atGate || m.cpl != 0 || m.r[regRSP] != rsp0-24 || m.seg[segSS].Selector != selData {
		t.Fatalf("at %#x, CPL %d, ESP %#x, SS %+v", m.rip, m.cpl, m.r[regRSP], m.seg[segSS])
	}
	for i, want := range []uint64{atUser + 11, selUser32, 2, 1, userStack - 72, selUserSS} {
		if got := m.get(m.r[regRSP]+uint64(i)*4, 4); got != want {
			t.Errorf("word %d of the frame is %#x, want %#x", i, got, want)
		}
	}
	m.steps(1)
	if m.rip != atUser+11 || m.cpl != 3 || m.r[regRSP] != userStack-64 {
		t.Errorf("after RET: at %#x, CPL %d, ESP %#x", m.rip, m.cpl, m.r[regRSP])
	}
}

func TestFarTargets(t *testing.T) {
	for _, tc := range []struct {
		name        string
		user        bool
		sel         uint16
		vector, err int
		before      func(*machine)
	}{
		{"same level", false, selCode, -1, 0, nil},
		{"to 32-bit code", false, selCode32, -1, 0, nil},
		{"conforming", true, selConform | 3, -1, 0, nil},
		{"null", false, 0, excGP, 0, nil},
		{"data", false, selData, excGP, selData, nil},
		{"user's code", false, selUser, excGP, selUser &^ 3, nil},
		{"kernel's code", true, selCode | 3, excGP, selCode, nil},
		{"a TSS", false, selTSS, excGP, selTSS, nil},
		{"L and D", false, selCode64D, excGP, selCode64D, nil},
		{"a gate that is not present", false, selGate, excNP, selGate,
			func(m *machine) { m.put64(atGDT+selGate, gate(selCode, atGate, sysCall, 0)) }},
		{"a gate of a lower level", true, selGate | 3, excGP, selGate,
			func(m *machine) { m.put64(atGDT+selGate, gate(selCode, atGate, sysCall|0x80, 0)) }},
		{"a gate whose upper half has a type", false, selGate, excGP, selGate,
			func(m *machine) { m.put64(atGDT+selGate+8, 1<<40) }},
		{"a gate to 32-bit code", false, selGate, excGP, selCode32,
			func(m *machine) { m.put64(atGDT+selGate, gate(selCode32, atGate, sysCall|0x80, 0)) }},
	} {
		for _, code := range [][]byte{callIndirect, jumpIndirect} {
			m := newLong(t)
			if tc.before != nil {
				tc.before(m)
			}
			at := uint64(atCode)
			if tc.user {
				at = atUser
				m.user(code...)
			} else {
				m.kernel(code...)
			}
			m.pointer(tc.sel, atUser+0x100)
			if tc.vector >= 0 {
				m.runs()
				if m.vector() != tc.vector || m.get(m.r[regRSP], 8) != uint64(tc.err) || m.get(m.r[regRSP]+8, 8) != at {
					t.Errorf("%s: vector %d, error %#x", tc.name, m.vector(), m.get(m.r[regRSP], 8))
				}
				continue
			}
			m.steps(1)
			if m.rip != atUser+0x100 || m.seg[segCS].Selector&^3 != tc.sel&^3 || m.seg[segCS].Selector&3 != uint16(m.cpl) {
				t.Errorf("%s: at %#x:%#x", tc.name, m.seg[segCS].Selector, m.rip)
			}
		}
	}
}

// SYSCALL and SYSRET go by the MSRs alone.
func TestSyscall(t *testing.T) {
	m := newLong(t)
	m.user(0x0f, 0x05, 0xf4)
	m.msr.star = selCode<<32 | uint64(selUser32)<<48
	m.msr.lstar, m.msr.sfmask = atGate, flagIF|flagDF
	m.code(atGate, 0x48, 0x0f, 0x07) // SYSRETQ
	m.setRFLAGS(flag1 | flagIF | flagDF | flagCF)
	m.steps(1)
	if m.rip != atGate || m.cpl != 0 || m.r[regRCX] != atUser+2 || m.r[regR11] != flag1|flagIF|flagDF|flagCF {
		t.Fatalf("at %#x, CPL %d, RCX %#x, R11 %#x", m.rip, m.cpl, m.r[regRCX], m.r[regR11])
	}
	if m.rflags() != flag1|flagCF || m.seg[segCS] != flatCode(selCode, 0, true) || m.seg[segSS] != flatStack(selData, 0) {
		t.Errorf("flags %#x, CS %+v, SS %+v", m.rflags(), m.seg[segCS], m.seg[segSS])
	}
	m.steps(1)
	if m.rip != atUser+2 || m.cpl != 3 || m.rflags() != flag1|flagIF|flagDF|flagCF {
		t.Errorf("after SYSRET: at %#x, CPL %d, flags %#x", m.rip, m.cpl, m.rflags())
	}
	if m.seg[segCS].Selector != selUser || m.seg[segSS].Selector != selUserSS || m.seg[segSS].DPL != 3 {
		t.Errorf("CS %+v, SS %+v", m.seg[segCS], m.seg[segSS])
	}

	// To 32-bit code, and from there by CSTAR.
	m = newLong(t)
	m.msr.star = selCode<<32 | uint64(selUser32)<<48
	m.msr.cstar = atGate
	m.kernel(0x0f, 0x07)
	m.r[regRCX], m.r[regR11] = atUser|1<<32, flag1
	m.code(atUser, 0x0f, 0x05)
	m.steps(1)
	if m.mode&modeSize != mode32 || m.rip != atUser || m.cpl != 3 {
		t.Fatalf("SYSRETL: mode %d, at %#x, CPL %d", m.mode, m.rip, m.cpl)
	}
	m.steps(1)
	if !m.is64() || m.rip != atGate || m.cpl != 0 || m.r[regRCX] != atUser+2 {
		t.Errorf("SYSCALL of 32-bit code: at %#x, CPL %d, RCX %#x", m.rip, m.cpl, m.r[regRCX])
	}

	m = newLong(t)
	m.efer &^= eferSCE
	m.user(0x0f, 0x05)
	m.runs()
	m.fault(excUD, -1, atUser)
	m = newLong(t)
	m.user(0x0f, 0x07)
	m.runs()
	m.fault(excGP, 0, atUser)
}

func TestSysenter(t *testing.T) {
	m := newProtected(t)
	m.user32(0x0f, 0x34)
	m.msr.sysenterCS, m.msr.sysenterESP, m.msr.sysenterEIP = selCode32, kernStack, atGate
	m.code(atGate, 0x0f, 0x35)
	m.flags |= flagIF
	m.steps(1)
	if m.rip != atGate || m.cpl != 0 || m.r[regRSP] != kernStack || m.flags&flagIF != 0 || m.seg[segSS].Selector != selCode32+8 {
		t.Fatalf("at %#x, CPL %d, ESP %#x, SS %#x", m.rip, m.cpl, m.r[regRSP], m.seg[segSS].Selector)
	}
	m.r[regRDX], m.r[regRCX] = atUser, userStack
	m.steps(1)
	if m.rip != atUser || m.cpl != 3 || m.r[regRSP] != userStack || m.seg[segCS].Selector != selCode32+16|3 {
		t.Errorf("at %#x, CPL %d, ESP %#x", m.rip, m.cpl, m.r[regRSP])
	}
	m.msr.sysenterCS = 0
	m.user32(0x0f, 0x34)
	m.runs()
	m.fault32(excGP, 0, atUser)
}

func TestBases(t *testing.T) {
	m := newLong(t)
	m.cr4 |= cr4FSGSBASE
	// WRFSBASE RAX; WRGSBASE RCX; RDFSBASE RDX; SWAPGS; RDGSBASE RBX; MOV ESI, FS:[8]; HLT
	m.kernel(0xf3, 0x48, 0x0f, 0xae, 0xd0, 0xf3, 0x48, 0x0f, 0xae, 0xd9, 0xf3, 0x48, 0x0f, 0xae, 0xc2,
		0x0f, 0x01, 0xf8, 0xf3, 0x48, 0x0f, 0xae, 0xcb, 0x64, 0x8b, 0x34, 0x25, 8, 0, 0, 0, 0xf4)
	m.r[regRAX], m.r[regRCX], m.msr.kernelGS = atData, 0xffff_8000_0000_0000, 0x1234
	m.put64(atData+8, 0x55)
	m.runs()
	if m.r[regRDX] != atData || m.r[regRBX] != 0x1234 || m.msr.kernelGS != 0xffff_8000_0000_0000 || m.r[regRSI] != 0x55 {
		t.Errorf("FS %#x, GS %#x, kernel's GS %#x, ESI %#x", m.r[regRDX], m.r[regRBX], m.msr.kernelGS, m.r[regRSI])
	}
	if m.seg[segFS].Base != atData || m.seg[segGS].Base != 0x1234 {
		t.Errorf("bases %#x, %#x", m.seg[segFS].Base, m.seg[segGS].Base)
	}
	m.halted = false
	m.kernel(0xf3, 0x48, 0x0f, 0xae, 0xd0)
	m.r[regRAX] = 1 << 63
	m.runs()
	m.fault(excGP, 0, atCode)
}

// From reset to 64-bit code, as a kernel goes.
func TestModes(t *testing.T) {
	m := newLong(t)
	s := realState()
	if err := m.SetState(&s); err != nil {
		t.Fatal(err)
	}
	m.code(0x900, 0x8f, 0, 0, 0x20, 0, 0) // limit and base of the GDT
	m.code(0x1000,
		0x0f, 0x01, 0x16, 0x00, 0x09, // LGDT [0x900]
		0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // CR0 |= PE
		0xea, 0x20, 0x10, 0x60, 0x00) // JMP 0x60:0x1020
	m.code(0x1020,
		0xb8, 0x10, 0, 0, 0, 0x8e, 0xd8, 0x8e, 0xd0, // DS = SS = 0x10
		0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0, // CR4 |= PAE
		0xb8, 0, 0x50, 0, 0, 0x0f, 0x22, 0xd8, // CR3
		0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32, 0x0d, 0, 1, 0, 0, 0x0f, 0x30, // EFER |= LME
		0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0, // CR0 |= PG
		0xea, 0x80, 0x10, 0, 0, 0x08, 0) // JMP 8:0x1080
	m.code(0x1080, 0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xf4)
	m.runs()
	if !m.is64() || m.r[regRAX] != 0x0807060504030201 || m.rip != 0x108b || m.efer != eferLME|eferLMA {
		t.Errorf("mode %d, RAX %#x, at %#x, EFER %#x", m.mode, m.r[regRAX], m.rip, m.efer)
	}
	if m.seg[segDS].Selector != selData || m.gdtr != (vcpu.Table{Base: atGDT, Limit: 0x8f}) {
		t.Errorf("DS %+v, GDTR %+v", m.seg[segDS], m.gdtr)
	}
}
