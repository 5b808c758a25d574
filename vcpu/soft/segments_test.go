package soft

import (
	"testing"

	"github.com/vmkit-go/vmkit/vcpu"
)

func TestLoadSegment(t *testing.T) {
	// MOV DS, AX and so on: ModRM names the register.
	const ds, ss, fs = 0xd8, 0xd0, 0xe0
	for _, tc := range []struct {
		name        string
		user        bool
		reg         byte
		sel         uint16
		vector, err int
	}{
		{"data", false, ds, selData, -1, 0},
		{"user's data for the kernel", false, ds, selUserSS, -1, 0},
		{"null", false, ds, 0, -1, 0},
		{"null with RPL 3", false, fs, 3, -1, 0},
		{"code that can be read", false, ds, selCode, -1, 0},
		{"conforming code for the user", true, ds, selConform | 3, -1, 0},
		{"the kernel's data for the user", true, ds, selData, excGP, selData},
		{"RPL above DPL", false, ds, selData | 3, excGP, selData},
		{"code that cannot be read", false, ds, selExec, excGP, selExec},
		{"a system segment", false, ds, selTSS, excGP, selTSS},
		{"not present", false, ds, selAbsent, excNP, selAbsent},
		{"beyond the table", false, ds, 0x90, excGP, 0x90},
		{"of the LDT, and there is none", false, ds, 0x0c, excGP, 0x0c},
		{"SS: data", false, ss, selData, -1, 0},
		{"SS: data that cannot be written", false, ss, selROData, excGP, selROData},
		{"SS: code", false, ss, selCode, excGP, selCode},
		{"SS: another level's", false, ss, selUserSS, excGP, selUserSS &^ 3},
		{"SS: null in 64-bit code", false, ss, 0, -1, 0},
		{"SS: null for the user", true, ss, 3, excGP, 0},
		{"SS: not present", true, ss, selAbsent | 3, excSS, selAbsent},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newLong(t)
			at := uint64(atCode)
			code := []byte{0x8e, tc.reg, 0xcd, 0x50}
			m.put64(atIDT+16*0x50, gate(selCode, atHandlers+16*0x50, sysInt|0xe0, 0))
			if tc.user {
				at = atUser
				m.user(code...)
			} else {
				m.kernel(code...)
			}
			m.r[regRAX] = uint64(tc.sel) | 0xabcd0000
			m.runs()
			if tc.vector >= 0 {
				m.fault(tc.vector, tc.err, at)
				return
			}
			m.fault(0x50, -1, at+4)
			if reg := tc.reg >> 3 & 7; reg != segSS || !tc.user {
				got := m.seg[reg]
				if got.Selector != tc.sel || got.Unusable != null(tc.sel) || !got.Unusable && got.Type&typeAccessed == 0 {
					t.Errorf("segment %+v", got)
				}
			}
			if d := m.get(atGDT+uint64(tc.sel&^7), 8); !null(tc.sel) && d&descAccessed == 0 {
				t.Errorf("descriptor %#x has not been accessed", d)
			}
		})
	}
}

func TestShadowMOVSS(t *testing.T) {
	m := newLong(t)
	m.kernel(0x8e, 0xd0, 0x90) // MOV SS, AX
	m.r[regRAX] = selData
	m.flags |= flagIF
	m.steps(1)
	if m.interruptible() || !m.shadowMOVSS {
		t.Error("interruptible right after MOV SS")
	}
	m.steps(1)
	if !m.interruptible() || m.shadowMOVSS {
		t.Error("not interruptible afterwards")
	}
}

// In 32-bit code segments have bases and limits.
func TestLimits(t *testing.T) {
	read := []byte{0x8b, 0x06}  // MOV EAX, [ESI]
	write := []byte{0x89, 0x06} // MOV [ESI], EAX
	data := vcpu.Segment{Selector: selData, Base: atData, Limit: 0xfff, Type: 3, Present: true, Big: true}
	down := data
	down.Type |= typeDown
	exec := data
	exec.Type = typeCode
	ro := data
	ro.Type = 1
	small := down
	small.Big = false
	for _, tc := range []struct {
		name string
		seg  vcpu.Segment
		code []byte
		esi  uint64
		ok   bool
	}{
		{"first", data, read, 0, true},
		{"last", data, read, 0xffc, true},
		{"across the limit", data, read, 0xffd, false},
		{"beyond", data, write, 0x1000, false},
		{"last byte", data, []byte{0x8a, 0x06}, 0xfff, true},
		{"offset that wraps", data, read, 0xffffffff, false},
		{"read-modify-write", data, []byte{0x83, 0x06, 1}, 0xffd, false},
		{"read-only, read", ro, read, 0, true},
		{"read-only, written", ro, write, 0, false},
		{"read-only, modified", ro, []byte{0xff, 0x06}, 0, false},
		{"execute-only", exec, read, 0, false},
		{"null", vcpu.Segment{Unusable: true}, read, 0, false},
		{"expand-down, below", down, read, 0xffc, false},
		{"expand-down, within", down, read, 0x1000, true},
		{"expand-down of 64 KiB, within", small, read, 0xfffc, true},
		{"expand-down of 64 KiB, beyond", small, read, 0xfffd, false},
		{"string", data, []byte{0xad}, 0xffd, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newProtected(t)
			m.kernel(append(tc.code, 0xf4)...)
			m.CPU.setSegment(segDS, tc.seg)
			m.updateMode()
			m.r[regRSI] = tc.esi
			m.r[regRAX] = 0
			m.put64(atData, 0x1122334455667788)
			m.runs()
			if !tc.ok {
				m.fault32(excGP, 0, atCode)
			} else if m.vector() >= 0 {
				t.Errorf("vector %d, error %#x", m.vector(), m.get(m.r[regRSP], 4))
			} else if tc.esi == 0 && m.r[regRAX] != 0x55667788 {
				t.Errorf("EAX %#x: not from the segment's base", m.r[regRAX])
			}
		})
	}
	m := newProtected(t)
	m.kernel(0x50) // PUSH EAX
	m.CPU.setSegment(segSS, down)
	m.r[regRSP] = 0x1002
	m.updateMode()
	if s := m.push(4, 0); s != fault || m.exc != (exception{vector: excSS, hasCode: true}) || m.r[regRSP] != 0x1002 {
		t.Errorf("push below an expand-down stack: %d %+v", s, m.exc)
	}
}

func TestAlignmentCheck(t *testing.T) {
	for _, tc := range []struct {
		ac, am, user bool
		off          uint64
		fault        bool
	}{
		{true, true, true, 1, true},
		{true, true, true, 0, false},
		{false, true, true, 1, false},
		{true, false, true, 1, false},
		{true, true, false, 1, false},
	} {
		m := newLong(t)
		if tc.am {
			m.cr0 |= cr0AM
		}
		code := []byte{0x8b, 0x06, 0x0f, 0x0b} // MOV EAX, [RSI]; UD2
		if tc.user {
			m.user(code...)
		} else {
			m.kernel(code...)
		}
		if tc.ac {
			m.flags |= flagAC
		}
		m.updateMode()
		m.r[regRSI] = atUser + 0x100 + tc.off
		m.runs()
		want := excUD
		if tc.fault {
			want = excAC
		}
		if m.vector() != want {
			t.Errorf("%+v: vector %d", tc, m.vector())
		}
	}
}

func TestDescriptorInstructions(t *testing.T) {
	for _, tc := range []struct {
		name string
		user bool
		code []byte // with the selector in AX, a result in ECX
		sel  uint16
		zf   bool
		ecx  uint64
	}{
		{"LAR of code", false, []byte{0x0f, 0x02, 0xc8}, selCode, true, 0xaf9b00},
		{"LAR of a TSS", false, []byte{0x0f, 0x02, 0xc8}, selTSS, true, 0x8900},
		{"LAR of a gate", false, []byte{0x0f, 0x02, 0xc8}, selGate, true, 0x2ec00},
		{"LAR of null", false, []byte{0x0f, 0x02, 0xc8}, 0, false, 7},
		{"LAR of the kernel's for the user", true, []byte{0x0f, 0x02, 0xc8}, selData, false, 7},
		{"LAR beyond", false, []byte{0x0f, 0x02, 0xc8}, 0x1000, false, 7},
		{"LSL of data", false, []byte{0x0f, 0x03, 0xc8}, selData, true, 0xffffffff},
		{"LSL of a TSS", false, []byte{0x0f, 0x03, 0xc8}, selTSS, true, 0xffff},
		{"LSL of a gate", false, []byte{0x0f, 0x03, 0xc8}, selGate, false, 7},
		{"LSL of conforming code for the user", true, []byte{0x0f, 0x03, 0xc8}, selConform, true, 0xffffffff},
		{"VERR of data", false, []byte{0x0f, 0x00, 0xe0}, selData, true, 7},
		{"VERR of code that cannot be read", false, []byte{0x0f, 0x00, 0xe0}, selExec, false, 7},
		{"VERR of the kernel's data for the user", true, []byte{0x0f, 0x00, 0xe0}, selData, false, 7},
		{"VERW of data", false, []byte{0x0f, 0x00, 0xe8}, selData, true, 7},
		{"VERW of read-only data", false, []byte{0x0f, 0x00, 0xe8}, selROData, false, 7},
		{"VERW of code", false, []byte{0x0f, 0x00, 0xe8}, selCode, false, 7},
		{"SLDT", false, []byte{0x0f, 0x00, 0xc1}, 0, false, 0},
		{"STR", false, []byte{0x0f, 0x00, 0xc9}, 0, false, selTSS},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := newLong(t)
			code := append(tc.code, 0x0f, 0x0b)
			if tc.user {
				m.user(code...)
			} else {
				m.kernel(code...)
			}
			m.r[regRAX], m.r[regRCX] = uint64(tc.sel), 7
			m.runs()
			if m.vector() != excUD {
				t.Fatalf("vector %d", m.vector())
			}
			if zf := m.arith()&flagZF != 0; zf != tc.zf || m.r[regRCX] != tc.ecx {
				t.Errorf("ZF %v, ECX %#x, want %v, %#x", zf, m.r[regRCX], tc.zf, tc.ecx)
			}
		})
	}
}

func TestLoadSystemSegments(t *testing.T) {
	m := newLong(t)
	m.kernel(0x0f, 0x00, 0xd0, 0x8c, 0xc9, 0xf4) // LLDT AX
	m.r[regRAX] = selLDT
	m.put64(atGDT+selLDT+8, 0x1234)
	m.runs()
	if m.ldtr.Base != 0x1234_00003f00 || m.ldtr.Limit != 0xff || m.ldtr.Selector != selLDT {
		t.Errorf("LDTR %+v", m.ldtr)
	}
	m = newLong(t)
	m.kernel(0x0f, 0x00, 0xd8, 0xf4) // LTR AX
	m.r[regRAX] = selTSS
	m.tr = vcpu.Segment{Unusable: true}
	m.runs()
	if m.tr.Base != atTSS || m.tr.Type != sysTSSBusy || m.get(atGDT+selTSS, 8)&descBusy == 0 {
		t.Errorf("TR %+v, descriptor %#x", m.tr, m.get(atGDT+selTSS, 8))
	}
	m.kernel(0x0f, 0x00, 0xd8) // a busy one
	m.halted = false
	m.runs()
	m.fault(excGP, selTSS, atCode)
}

// TestAlignmentCheckOfOperands: what has to be aligned under AC and AM, by instruction
// (Intel SDM volume 3, table 6-7).
func TestAlignmentCheckOfOperands(t *testing.T) {
	for _, tc := range []struct {
		name string
		code []byte // with RSI at the operand, and RSP too
		need uint64 // its alignment
		cw   uint16 // of the x87 with an empty stack, if not 0
	}{
		{"PUSH of 8 bytes", []byte{0x50}, 8, 0},
		{"PUSH of 2 bytes", []byte{0x66, 0x50}, 2, 0},
		{"POP of 8 bytes", []byte{0x58}, 8, 0},
		{"POP of 2 bytes", []byte{0x66, 0x58}, 2, 0},
		{"PUSH of memory", []byte{0xff, 0x34, 0x24}, 8, 0},
		{"PUSHF", []byte{0x9c}, 8, 0},
		{"CALL", []byte{0xe8, 0, 0, 0, 0}, 8, 0},
		{"ENTER", []byte{0xc8, 0, 0, 0}, 8, 0},
		{"FNSTENV", []byte{0xd9, 0x36}, 4, 0},
		{"FNSTENV of 14 bytes", []byte{0x66, 0xd9, 0x36}, 2, 0},
		{"FLDENV", []byte{0xd9, 0x26}, 4, 0},
		{"FNSAVE", []byte{0xdd, 0x36}, 4, 0},
		{"FNSAVE of 94 bytes", []byte{0x66, 0xdd, 0x36}, 2, 0},
		{"FRSTOR", []byte{0xdd, 0x26}, 4, 0},
		{"FSTP of 80 bits", []byte{0xdb, 0x3e}, 8, 0},
		{"FSTP of 80 bits without a result", []byte{0xdb, 0x3e}, 8, 0x37e},
		{"FBSTP without a result", []byte{0xdf, 0x36}, 8, 0x37e},
		{"FSTP of 64 bits without a result", []byte{0xdd, 0x1e}, 8, 0x37e},
		{"FRSTOR of 94 bytes", []byte{0x66, 0xdd, 0x26}, 2, 0},
	} {
		for off := range uint64(9) {
			m := newLong(t)
			m.cr0 |= cr0AM
			m.user(append(tc.code, 0x0f, 0x0b)...) // UD2
			m.flags |= flagAC
			m.updateMode()
			if tc.cw != 0 {
				m.fpu.init() // without a number in ST(0)
				m.fpu.cw = tc.cw
			}
			m.r[regRSI] = atUser + 0x800 + off
			m.r[regRSP] = m.r[regRSI]
			m.runs()
			want := excUD
			if off%tc.need != 0 {
				want = excAC
			}
			if m.vector() != want {
				t.Errorf("%s at %d: vector %d, want %d", tc.name, off, m.vector(), want)
			}
		}
	}
}
