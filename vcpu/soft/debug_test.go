package soft

import "testing"

func (m *machine) breakpoint(i int, at uint64, kind, size uint64) {
	m.dr[i] = at
	m.dr7 |= 2<<(2*i) | kind<<(16+4*i) | map[uint64]uint64{1: 0, 2: 1, 4: 3, 8: 2}[size]<<(18+4*i)
	m.updateMode()
}

func TestSingleStep(t *testing.T) {
	m := newLong(t)
	m.kernel(0x9d, 0x90, 0x90) // POPF; NOP
	m.r[regRSP] = kernStack - 8
	m.put64(kernStack-8, flag1|flagTF)
	m.runs()
	// POPF is not followed by a trap, since TF was clear before it.
	m.fault(excDB, -1, atCode+2)
	if m.dr6 != dr6Fixed|dr6BS {
		t.Errorf("DR6 %#x", m.dr6)
	}
	if f := m.get(m.r[regRSP]+16, 8); f != flag1|flagTF || m.flags&flagTF != 0 {
		t.Errorf("saved flags %#x, flags %#x", f, m.rflags())
	}

	// MOV SS holds the trap off for one instruction more.
	m = newLong(t)
	m.kernel(0x8e, 0xd0, 0x90, 0x90)
	m.r[regRAX] = selData
	m.flags |= flagTF
	m.updateMode()
	m.runs()
	m.fault(excDB, -1, atCode+3)
}

func TestCodeBreakpoint(t *testing.T) {
	m := newLong(t)
	m.kernel(0x90, 0x90, 0xf4)
	m.breakpoint(2, atCode+1, breakCode, 1)
	m.runs()
	m.fault(excDB, -1, atCode+1)
	if m.dr6 != dr6Fixed|4 {
		t.Errorf("DR6 %#x", m.dr6)
	}
	if f := m.get(m.r[regRSP]+16, 8); f&flagRF != 0 {
		t.Errorf("RF is set in the saved flags %#x", f)
	}
	// The handler sets RF, and the instruction runs.
	m.put64(m.r[regRSP]+16, flag1|flagRF)
	m.code(atHandlers+16, 0x48, 0xcf)
	m.rip, m.halted = atHandlers+16, false
	m.runs()
	if m.rip != atCode+3 || m.flags&flagRF != 0 {
		t.Errorf("at %#x, flags %#x", m.rip, m.rflags())
	}
}

func TestDataBreakpoint(t *testing.T) {
	for _, tc := range []struct {
		name     string
		at, kind uint64
		size     uint64
		code     []byte
		hit      bool
	}{
		{"write", atData + 4, breakWrite, 4, []byte{0xc7, 0x06, 1, 2, 3, 4}, false},
		{"write, hit", atData, breakWrite, 4, []byte{0xc7, 0x06, 1, 2, 3, 4}, true},
		{"write of the last byte", atData + 3, breakWrite, 1, []byte{0xc7, 0x06, 1, 2, 3, 4}, true},
		{"read, of writes", atData, breakWrite, 4, []byte{0x8b, 0x06}, false},
		{"read", atData, breakData, 4, []byte{0x8b, 0x06}, true},
		{"8 bytes", atData, breakData, 8, []byte{0x8a, 0x46, 7}, true},
		{"push", kernStack - 8, breakWrite, 8, []byte{0x50}, true},
		{"string", atData, breakData, 1, []byte{0xac}, true},
	} {
		m := newLong(t)
		m.kernel(append(append([]byte{0x8b, 0x06}, tc.code...), 0x90, 0x0f, 0x0b)...)
		m.r[regRSI] = atData + 0x20
		m.steps(1) // fills the TLB
		m.r[regRSI] = atData
		m.breakpoint(1, tc.at, tc.kind, tc.size)
		m.runs()
		want, at := excUD, uint64(atCode+2+len(tc.code)+1)
		if tc.hit {
			want, at = excDB, at-1
		}
		if m.vector() != want || m.get(m.r[regRSP], 8) != at {
			t.Errorf("%s: vector %d at %#x, want %d at %#x", tc.name, m.vector(), m.get(m.r[regRSP], 8), want, at)
		}
		if tc.hit && m.dr6 != dr6Fixed|2 {
			t.Errorf("%s: DR6 %#x", tc.name, m.dr6)
		}
	}
}

func TestPortBreakpoint(t *testing.T) {
	m := newLong(t)
	m.cr4 |= cr4DE
	m.kernel(0xe6, 0x80, 0x90, 0xf4)
	m.breakpoint(0, 0x80, breakIO, 1)
	m.served()
	m.fault(excDB, -1, atCode+2)
	if m.dr6 != dr6Fixed|1 {
		t.Errorf("DR6 %#x", m.dr6)
	}
}

func TestDebugRegisters(t *testing.T) {
	m := newLong(t)
	m.kernel(0x0f, 0x23, 0xd8, 0x0f, 0x21, 0xd9, 0xf4) // MOV DR3, RAX; MOV RCX, DR3
	m.r[regRAX] = 0xffff_8000_1234_5678
	m.runs()
	if m.r[regRCX] != 0xffff_8000_1234_5678 {
		t.Errorf("DR3 %#x", m.r[regRCX])
	}
	// Under GD an access is a fault, which clears GD.
	m = newLong(t)
	m.dr7 |= dr7GD
	m.kernel(0x90, 0x0f, 0x21, 0xf8)
	m.runs()
	m.fault(excDB, -1, atCode+1)
	if m.dr6 != dr6Fixed|dr6BD || m.dr7&dr7GD != 0 {
		t.Errorf("DR6 %#x, DR7 %#x", m.dr6, m.dr7)
	}
	// DR4 is DR6 without CR4.DE.
	m = newLong(t)
	m.kernel(0x0f, 0x21, 0xe1, 0xf4)
	m.runs()
	if m.r[regRCX] != dr6Fixed {
		t.Errorf("DR4 %#x", m.r[regRCX])
	}
	m.cr4 |= cr4DE
	m.rip, m.halted = atCode, false
	m.runs()
	m.fault(excUD, -1, atCode)
	m = newLong(t)
	m.kernel(0x0f, 0x23, 0xf8) // MOV DR7, RAX
	m.r[regRAX] = 1 << 32
	m.runs()
	m.fault(excGP, 0, atCode)
}

// TestReservedDebugBits: bits of DR6 and DR7 that are reserved do not change.
func TestReservedDebugBits(t *testing.T) {
	for _, tc := range []struct {
		name   string
		modrm  byte // MOV of RAX to it and of it to RCX
		v, got uint64
	}{
		{"DR6, all set", 0xf0, 0xffffffff, 0xffffefff},
		{"DR6, none", 0xf0, 0, 0xffff0ff0},
		{"DR6: bit 12", 0xf0, 1 << 12, 0xffff0ff0},
		{"DR7, all set but GD", 0xf8, 0xffffdf00, 0xffff0700},
		{"DR7, none", 0xf8, 0, 0x400},
		{"DR7: bit 11, without TSX", 0xf8, 1 << 11, 0x400},
		{"DR7: bits 12, 14 and 15", 0xf8, 1<<12 | 1<<14 | 1<<15, 0x400},
	} {
		m := newLong(t)
		m.kernel(0x0f, 0x23, tc.modrm, 0x0f, 0x21, tc.modrm|1, 0xf4)
		m.r[regRAX] = tc.v
		m.runs()
		if m.r[regRCX] != tc.got {
			t.Errorf("%s: %#x, not %#x", tc.name, m.r[regRCX], tc.got)
		}
	}
}
