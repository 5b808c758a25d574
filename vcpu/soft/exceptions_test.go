package soft

import (
	"testing"
)

func TestFaults(t *testing.T) {
	for _, tc := range []struct {
		name   string
		user   bool
		code   []byte
		vector int
		err    int // -1: none
		at     uint64
	}{
		{"divide", false, []byte{0x31, 0xc9, 0xf7, 0xf1}, excDE, -1, 2},
		{"undefined", false, []byte{0x0f, 0x0b}, excUD, -1, 0},
		{"kernel read of an absent page", false, []byte{0x8b, 0x04, 0x25, 0, 0, 3, 0}, excPF, 0, 0},
		{"kernel write of an absent page", false, []byte{0x90, 0x89, 0x04, 0x25, 0, 0, 3, 0}, excPF, pfWrite, 1},
		{"kernel write of a read-only page", false, []byte{0x89, 0x04, 0x25, 0, 0x10, 3, 0}, excPF, pfWrite | pfPresent, 0},
		{"user read of a kernel page", true, []byte{0x8b, 0x04, 0x25, 0, 0, 4, 0}, excPF, pfUser | pfPresent, 0},
		{"user HLT", true, []byte{0xf4}, excGP, 0, 0},
		{"user CLI", true, []byte{0xfa}, excGP, 0, 0},
		{"user MOV CR0", true, []byte{0x0f, 0x20, 0xc0}, excGP, 0, 0},
		{"user RDMSR", true, []byte{0x0f, 0x32}, excGP, 0, 0},
		{"user INT 0x30, whose gate is the kernel's", true, []byte{0xcd, 0x30}, excGP, 0x30<<3 | codeIDT, 0},
		{"address that is not canonical", false, []byte{0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x8b, 0}, excGP, 0, 10},
		{"stack address that is not canonical", false, []byte{0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x36, 0x48, 0x89, 0xc5, 0x8b, 0x45, 0}, excSS, 0, 14},
		{"OUT without permission", true, []byte{0xe6, 0x80}, excGP, 0, 0},
		{"SWAPGS", true, []byte{0x0f, 0x01, 0xf8}, excGP, 0, 0},
		{"RDFSBASE without CR4.FSGSBASE", false, []byte{0xf3, 0x48, 0x0f, 0xae, 0xc0}, excUD, -1, 0},
		{"XGETBV without CR4.OSXSAVE", false, []byte{0x0f, 0x01, 0xd0}, excUD, -1, 0},
		{"SYSENTER on AMD in long mode", false, []byte{0x0f, 0x34}, excUD, -1, 0},
		{"VMCALL", false, []byte{0x0f, 0x01, 0xc1}, excUD, -1, 0},
		{"MONITOR", false, []byte{0x0f, 0x01, 0xc8}, excUD, -1, 0},
		{"RSM", false, []byte{0x0f, 0xaa}, excUD, -1, 0},
		{"MOV CS", false, []byte{0x8e, 0xc8}, excUD, -1, 0},
		{"PUSH ES in 64-bit code", false, []byte{0x06}, excUD, -1, 0},
		{"MOV to CR1", false, []byte{0x0f, 0x22, 0xc8}, excUD, -1, 0},
		{"STAC", true, []byte{0x0f, 0x01, 0xcb}, excUD, -1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newLong(t)
			base := uint64(atCode)
			if tc.user {
				base = atUser
				m.user(tc.code...)
			} else {
				m.kernel(tc.code...)
			}
			m.runs()
			m.fault(tc.vector, tc.err, base+tc.at)
			frame := m.r[regRSP]
			if tc.err >= 0 {
				frame += 8
			}
			if f := m.get(frame+16, 8); f&flagRF == 0 {
				t.Errorf("RF is not set in the saved flags %#x", f)
			}
			if m.flags&(flagIF|flagTF|flagRF|flagNT) != 0 {
				t.Errorf("flags %#x in the handler", m.flags)
			}
			wantCS, wantTop := uint64(selCode), uint64(kernStack)
			if tc.user {
				wantCS, wantTop = selUser, rsp0
			}
			if cs := m.get(frame+8, 8); cs != wantCS {
				t.Errorf("saved CS %#x, want %#x", cs, wantCS)
			}
			if top := frame + 40; top != wantTop {
				t.Errorf("frame ends at %#x, want %#x", top, wantTop)
			}
			if m.cpl != 0 || m.seg[segCS].Selector != selCode {
				t.Errorf("CPL %d, CS %#x in the handler", m.cpl, m.seg[segCS].Selector)
			}
			if ss := m.seg[segSS]; tc.user && (ss.Selector != 0 || !ss.Unusable) {
				t.Errorf("SS %+v, want a null selector", ss)
			}
		})
	}
}

func TestPageFaultAddress(t *testing.T) {
	m := newLong(t)
	m.kernel(0xa1, 0x44, 0x03, 0x03, 0, 0, 0, 0, 0) // MOV EAX, [0x30344]
	m.runs()
	m.fault(excPF, 0, atCode)
	if m.cr2 != 0x30344 {
		t.Errorf("CR2 %#x", m.cr2)
	}
}

// A push that faults leaves RSP as it was.
func TestRestart(t *testing.T) {
	m := newLong(t)
	m.kernel(0x50) // PUSH RAX
	m.r[regRSP] = atAbsent + 0x1000
	m.put64(atIDT+16*excPF, gate(selCode, atHandlers+16*excPF, sysInt|0x80, 1))
	m.runs()
	m.fault(excPF, pfWrite, atCode)
	if sp := m.get(m.r[regRSP]+32, 8); sp != atAbsent+0x1000 {
		t.Errorf("saved RSP %#x", sp)
	}
	if top := m.r[regRSP] + 48; top != ist1 {
		t.Errorf("frame ends at %#x, want the interrupt stack's %#x", top, ist1)
	}
	if m.seg[segSS].Selector != selData {
		t.Errorf("SS %#x: it changes with the privilege level alone", m.seg[segSS].Selector)
	}
}

func TestStackAlignment(t *testing.T) {
	for low := range uint64(16) {
		m := newLong(t)
		m.kernel(0xcc) // INT3
		m.r[regRSP] = kernStack - low
		m.runs()
		m.fault(excBP, -1, atCode+1)
		if want := (kernStack-low)&^15 - 40; m.r[regRSP] != want {
			t.Errorf("RSP %#x from %#x, want %#x", m.r[regRSP], kernStack-low, want)
		}
	}
}

func TestInterruptGates(t *testing.T) {
	for _, tc := range []struct {
		name   string
		gate   uint64
		high   uint64
		vector int
		err    int
	}{
		{"interrupt gate", gate(selCode, atHandlers+16*0x40, sysInt|0x80, 0), 0, 0x40, -1},
		{"trap gate", gate(selCode, atHandlers+16*0x40, sysTrap|0x80, 0), 0, 0x40, -1},
		{"not present", gate(selCode, atHandlers+16*0x40, sysInt, 0), 0, excNP, 0x40<<3 | codeIDT},
		{"call gate", gate(selCode, atHandlers+16*0x40, sysCall|0x80, 0), 0, excGP, 0x40<<3 | codeIDT},
		{"null selector", gate(0, atHandlers+16*0x40, sysInt|0x80, 0), 0, excGP, 0},
		{"data segment", gate(selData, atHandlers+16*0x40, sysInt|0x80, 0), 0, excGP, selData},
		{"32-bit code", gate(selCode32, atHandlers+16*0x40, sysInt|0x80, 0), 0, excGP, selCode32},
		{"user's code", gate(selUser, atHandlers+16*0x40, sysInt|0x80, 0), 0, excGP, selUser &^ 3},
		{"beyond the GDT", gate(0x1000, atHandlers+16*0x40, sysInt|0x80, 0), 0, excGP, 0x1000},
		{"handler that is not canonical", gate(selCode, 0, sysInt|0x80, 0), 0x8000_0000, excGP, 0},
		{"interrupt stack that is not canonical", gate(selCode, atHandlers+16*0x40, sysInt|0x80, 2), 0, excSS, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newLong(t)
			m.put64(atTSS+0x2c, 1<<63)
			m.put64(atIDT+16*0x40, tc.gate, tc.high)
			m.kernel(0xfb, 0xcd, 0x40) // STI; INT 0x40
			m.runs()
			rip := uint64(atCode + 1)
			if tc.err < 0 {
				rip += 2
			}
			m.fault(tc.vector, tc.err, rip)
			if on := m.flags&flagIF != 0; on != (tc.name == "trap gate") {
				t.Errorf("IF is %v", on)
			}
		})
	}
}

// A fault while an external event is delivered has EXT set.
func TestExternalBit(t *testing.T) {
	m := newLong(t)
	m.put64(atIDT+16*0x40, gate(selData, atHandlers, sysInt|0x80, 0))
	m.kernel(0x90)
	m.takeInterrupt(0x40)
	m.runs()
	m.fault(excGP, selData|codeEXT, atCode)

	m = newLong(t)
	m.idtr.Limit = 16*0x40 - 1
	m.kernel(0xcd, 0x40)
	m.runs()
	m.fault(excGP, 0x40<<3|codeIDT, atCode)
}

func TestDoubleFault(t *testing.T) {
	absent := func(m *machine, v uint64) { m.put64(atIDT+16*v, gate(selCode, 0, sysInt, 0)) }
	for _, tc := range []struct {
		name   string
		code   []byte
		absent []uint64
		vector int // -1: shutdown
	}{
		{"#GP and #NP", []byte{0xf4}, []uint64{excGP}, excDF},
		{"#PF and #NP", []byte{0x8b, 0x04, 0x25, 0, 0, 3, 0}, []uint64{excPF}, excDF},
		{"#UD and #NP are one after the other", []byte{0x0f, 0x0b}, []uint64{excUD}, excNP},
		{"#BP and #NP are one after the other", []byte{0xcc}, []uint64{excBP}, excGP},
		{"triple", []byte{0xf4}, []uint64{excGP, excDF}, -1},
		{"#UD, #NP, then a double fault", []byte{0x0f, 0x0b}, []uint64{excUD, excNP}, excDF},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newLong(t)
			m.user(tc.code...)
			for _, v := range tc.absent {
				absent(m, v)
			}
			m.runs()
			switch {
			case tc.vector < 0:
				if !m.shutdown {
					t.Errorf("no shutdown, halted at %#x", m.rip)
				}
			case m.vector() != tc.vector:
				t.Errorf("vector %d, want %d", m.vector(), tc.vector)
			case tc.vector == excDF:
				m.fault(excDF, 0, atUser)
			}
		})
	}
}

// A stack that is not there is a double fault, and with it on the way, a shutdown.
func TestStackFaultShutsDown(t *testing.T) {
	m := newLong(t)
	m.put64(atTSS+4, atAbsent+0x800)
	m.user(0x0f, 0x0b)
	m.runs()
	if !m.shutdown {
		t.Errorf("no shutdown: vector %d", m.vector())
	}
}

func TestNMI(t *testing.T) {
	m := newLong(t)
	m.kernel(0x90, 0xf4)
	m.takeNMI()
	if !m.nmiMasked || m.rip != atHandlers+2*16 {
		t.Fatalf("masked %v, at %#x", m.nmiMasked, m.rip)
	}
	m.code(atHandlers+2*16, 0x48, 0xcf) // IRETQ
	m.runs()
	if m.nmiMasked || m.rip != atCode+2 {
		t.Errorf("masked %v, at %#x after IRET", m.nmiMasked, m.rip)
	}
}

func TestShadow(t *testing.T) {
	m := newLong(t)
	m.kernel(0xfb, 0x90, 0xf4) // STI; NOP; HLT
	m.steps(1)
	if m.rip != atCode+1 || m.interruptible() || !m.shadow {
		t.Errorf("at %#x: interruptible %v after STI", m.rip, m.interruptible())
	}
	m.steps(1)
	if !m.interruptible() {
		t.Error("not interruptible an instruction after STI")
	}
	// STI with interrupts enabled holds nothing off.
	m.kernel(0xfb)
	m.steps(1)
	if !m.interruptible() {
		t.Error("not interruptible after another STI")
	}
}

func TestIRET(t *testing.T) {
	push := func(v ...uint32) (code []byte) {
		for _, x := range v {
			code = append(code, 0x68, byte(x), byte(x>>8), byte(x>>16), byte(x>>24))
		}
		return append(code, 0x48, 0xcf)
	}
	for _, tc := range []struct {
		name                 string
		ss, rsp, fl, cs, rip uint32
		vector, err          int // -1, -1: it succeeds
		wantCPL, wantBits    int
		wantRSP              uint64
		before               func(*machine)
	}{
		{"to user code", selUserSS, userStack, 0x202, selUser, atUser, -1, -1, 3, 64, userStack, nil},
		{"to 32-bit user code", selUserSS, userStack, 0x202, selUser32, atUser, -1, -1, 3, 32, userStack, nil},
		{"to the kernel", selData, kernStack - 8, 2, selCode, atUser + 0x100, -1, -1, 0, 64, kernStack - 8, nil},
		{"with a null SS", 0, kernStack - 8, 2, selCode, atUser + 0x100, -1, -1, 0, 64, kernStack - 8, nil},
		{"to user code with a null SS", 3, userStack, 2, selUser, atUser, excGP, 0, 0, 64, 0, nil},
		{"null CS", selData, userStack, 2, 0, atUser, excGP, 0, 0, 64, 0, nil},
		{"data as CS", selData, userStack, 2, selData, atUser, excGP, selData, 0, 64, 0, nil},
		{"RPL below DPL", selData, userStack, 2, selUser &^ 3, atUser, excGP, selUser &^ 3, 0, 64, 0, nil},
		{"SS of another level", selData, userStack, 2, selUser, atUser, excGP, selData, 0, 64, 0, nil},
		{"absent SS", selAbsent | 3, userStack, 2, selUser, atUser, excSS, selAbsent, 0, 64, 0, nil},
		{"L and D", selData, userStack, 2, selCode64D, atUser, excGP, selCode64D, 0, 64, 0, nil},
		{"NT", selData, kernStack, 2, selCode, atUser, excGP, 0, 0, 64, 0, func(m *machine) { m.flags |= flagNT }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newLong(t)
			code := push(tc.ss, tc.rsp, tc.fl, tc.cs, tc.rip)
			m.kernel(code...)
			m.code(atUser, 0xeb, 0xfe) // JMP to itself
			m.code(atUser+0x100, 0xf4) // HLT
			m.put64(atGDT+selAbsent, desc(0, 0xfffff, 0x73, 0xc))
			if tc.before != nil {
				tc.before(m)
			}
			if tc.vector >= 0 {
				m.runs()
				m.fault(tc.vector, tc.err, atCode+uint64(len(code))-2)
				return
			}
			m.steps(7)
			if int(m.cpl) != tc.wantCPL || m.r[regRSP] != tc.wantRSP {
				t.Errorf("CPL %d, RSP %#x", m.cpl, m.r[regRSP])
			}
			if bits := map[mode]int{mode16: 16, mode32: 32, mode64: 64}[m.mode&modeSize]; bits != tc.wantBits {
				t.Errorf("%d-bit code", bits)
			}
			if m.rip&^0x1ff != atUser {
				t.Errorf("at %#x", m.rip)
			}
			if tc.wantCPL == 3 {
				for _, i := range []uint8{segDS, segES, segFS, segGS} {
					if !m.seg[i].Unusable {
						t.Errorf("segment register %d of the kernel is left", i)
					}
				}
			}
		})
	}
}

func TestRealModeInterrupt(t *testing.T) {
	m := newMachine(t)
	s := realState()
	if err := m.SetState(&s); err != nil {
		t.Fatal(err)
	}
	m.code(0x21*4, 0x34, 0x12, 0x00, 0x20) // 2000:1234
	m.code(0x21234, 0xcf)                  // IRET
	m.code(0x1000, 0xfb, 0xf9, 0xcd, 0x21, 0xf4)
	m.steps(3)
	if m.rip != 0x1234 || m.seg[segCS].Base != 0x20000 || m.flags&flagIF != 0 {
		t.Fatalf("at %#x:%#x, flags %#x", m.seg[segCS].Selector, m.rip, m.rflags())
	}
	if got := m.get(0x7ffa, 6); got != 0x0203_0000_1004 {
		t.Errorf("frame %#x", got)
	}
	m.runs()
	if m.rip != 0x1005 || m.r[regRSP] != 0x8000 || m.flags&flagIF == 0 {
		t.Errorf("after IRET: %#x, SP %#x, flags %#x", m.rip, m.r[regRSP], m.rflags())
	}
}

func TestClasses(t *testing.T) {
	want := map[uint8]class{excDE: classContributory, excTS: classContributory, excNP: classContributory, excSS: classContributory,
		excGP: classContributory, excPF: classPage, excDF: classDouble}
	for v := range uint8(32) {
		tr := trap{exception: exception{vector: v}}
		if got := classOf(tr); got != want[v] {
			t.Errorf("vector %d: class %d, want %d", v, got, want[v])
		}
		tr.irq = true
		if got := classOf(tr); got != classBenign {
			t.Errorf("interrupt %d: class %d", v, got)
		}
	}
}

// TestAlignmentInBulk: repeated string instructions were not held to the alignment that is
// checked once the TLB had their pages.
func TestAlignmentInBulk(t *testing.T) {
	for name, code := range map[string][]byte{"STOSQ": {0xf3, 0x48, 0xab}, "MOVSQ": {0xf3, 0x48, 0xa5}, "STOSB": {0xf3, 0xaa}} {
		m := newLong(t)
		m.user(append([]byte{0x48, 0x89, 0x07}, append(code, 0xf4)...)...) // MOV [RDI], RAX; ...; HLT
		m.cr0 |= cr0AM
		m.updateMode()
		m.r[regRDI], m.r[regRSI], m.r[regRCX] = atUser+0x3801, atUser+0x3900, 8
		m.steps(1)
		m.flags |= flagAC
		m.updateMode()
		m.runs()
		if name == "STOSB" {
			m.fault(excGP, 0, atUser+3+uint64(len(code)))
		} else {
			m.fault(excAC, 0, atUser+3)
		}
	}
}
