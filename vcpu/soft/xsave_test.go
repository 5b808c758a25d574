package soft

import (
	"testing"
)

// fillVectors gives the x87 and vector registers values of their own.
func (m *machine) fillVectors() {
	for i := range m.xmm {
		m.xmm[i] = xmm{uint64(i)<<32 | 1, uint64(i)<<32 | 2}
	}
	m.fpu = fpu{cw: 0x27f, sw: 5 << 11, tw: 0x81, fop: 0x123, fip: 0x1111_2222_3333, fdp: 0x4444_5555_6666, fcs: 0x10, fds: 0x18}
	for i := range m.fpu.mm {
		m.fpu.mm[i], m.fpu.se[i] = uint64(i)+1<<63, uint16(i)+0x3fff
	}
	m.mxcsr = 0x1fa0
}

func TestFXSAVE(t *testing.T) {
	m := newLong(t)
	m.kernel(0x48, 0x0f, 0xae, 0x06, 0x48, 0x0f, 0xae, 0x0f, 0xf4) // FXSAVE64 [RSI]; FXRSTOR64 [RDI]
	m.r[regRSI], m.r[regRDI] = atData, atData
	m.fillVectors()
	want := *m.CPU
	m.put64(atData+464, 0x1234) // what is not written stays
	m.steps(1)
	m.xmm, m.fpu, m.mxcsr = [16]xmm{}, fpu{}, 0
	m.runs()
	want.fpu.fcs, want.fpu.fds = 0, 0 // not in the 64-bit form
	if m.xmm != want.xmm || m.fpu != want.fpu || m.mxcsr != want.mxcsr {
		t.Errorf("%+v, MXCSR %#x", m.fpu, m.mxcsr)
	}
	if m.get(atData+464, 8) != 0x1234 || m.get(atData+28, 4) != mxcsrValid || m.get(atData+32, 8) != m.fpu.mm[5] {
		t.Errorf("area: %#x, mask %#x, ST0 %#x", m.get(atData+464, 8), m.get(atData+28, 4), m.get(atData+32, 8))
	}

	// In 32-bit code there are selectors, and eight vector registers.
	p := newProtected(t)
	p.kernel(0x0f, 0xae, 0x06, 0x0f, 0xae, 0x0f, 0xf4)
	p.r[regRSI], p.r[regRDI] = atData, atData
	p.fillVectors()
	want = *p.CPU
	p.steps(1)
	clear(p.xmm[:8])
	p.fpu = fpu{}
	p.runs()
	want.fpu.fip, want.fpu.fdp = 0x22223333, 0x55556666
	if p.xmm != want.xmm || p.fpu != want.fpu || p.get(atData+160+128, 8) != 0 {
		t.Errorf("%+v", p.fpu)
	}
}

func TestXSAVE(t *testing.T) {
	for _, tc := range []struct {
		name       string
		mask       uint64
		header     uint64 // before
		wantHeader uint64
	}{
		{"all", 3, 0, 3},
		{"x87", 1, 2, 3},
		{"SSE", 2, 0, 2},
		{"none", 0, 1, 1},
		{"more than there is", ^uint64(0), 0, 3},
	} {
		m := newLong(t)
		m.cr4 |= cr4OSXSAVE
		m.xcr0 = 3
		m.kernel(0x48, 0x0f, 0xae, 0x26, 0x48, 0x0f, 0xae, 0x2e, 0xf4) // XSAVE64 [RSI]; XRSTOR64 [RSI]
		m.r[regRSI], m.r[regRAX], m.r[regRDX] = atData, tc.mask&0xffffffff, tc.mask>>32
		m.put64(atData+512, tc.header)
		m.fillVectors()
		m.steps(1)
		if got := m.get(atData+512, 8); got != tc.wantHeader {
			t.Errorf("%s: XSTATE_BV %d", tc.name, got)
		}
		if wrote := m.get(atData+32, 8) != 0; wrote != (tc.mask&1 != 0) {
			t.Errorf("%s: x87 written: %v", tc.name, wrote)
		}
		if wrote := m.get(atData+160, 8) != 0; wrote != (tc.mask&2 != 0) {
			t.Errorf("%s: SSE written: %v", tc.name, wrote)
		}
		want := *m.CPU
		if tc.mask&1 != 0 {
			m.fpu = fpu{}
			want.fpu.fcs, want.fpu.fds = 0, 0
		}
		if tc.mask&2 != 0 {
			m.xmm, m.mxcsr = [16]xmm{}, 0
		}
		m.runs()
		if m.xmm != want.xmm || m.fpu != want.fpu || m.mxcsr != want.mxcsr {
			t.Errorf("%s: %+v, MXCSR %#x", tc.name, m.fpu, m.mxcsr)
		}
	}
}

// A component that XSTATE_BV leaves out is initialized.
func TestXRSTORInit(t *testing.T) {
	m := newLong(t)
	m.cr4 |= cr4OSXSAVE
	m.xcr0 = 3
	m.kernel(0x0f, 0xae, 0x2e, 0xf4)
	m.r[regRSI], m.r[regRAX], m.r[regRDX] = atData, 3, 0
	m.put64(atData+24, 0x1f81)
	m.fillVectors()
	m.runs()
	init := fpu{}
	init.init()
	if m.fpu != init || m.xmm != [16]xmm{} || m.mxcsr != 0x1f81 || m.inUse() != 0 {
		t.Errorf("%+v, MXCSR %#x", m.fpu, m.mxcsr)
	}
}

func TestXSAVEFaults(t *testing.T) {
	for _, tc := range []struct {
		name   string
		code   []byte
		off    uint64
		before func(*machine)
		vector int
	}{
		{"FXSAVE, misaligned", []byte{0x0f, 0xae, 0x06}, 8, nil, excGP},
		{"FXSAVE with TS", []byte{0x0f, 0xae, 0x06}, 0, func(m *machine) { m.cr0 |= cr0TS }, excNM},
		{"FXRSTOR with EM", []byte{0x0f, 0xae, 0x0e}, 0, func(m *machine) { m.cr0 |= cr0EM }, excNM},
		{"FXRSTOR, MXCSR", []byte{0x0f, 0xae, 0x0e}, 0, func(m *machine) { m.put64(atData+24, 1<<16) }, excGP},
		{"XSAVE without OSXSAVE", []byte{0x0f, 0xae, 0x26}, 0, func(m *machine) { m.cr4 &^= cr4OSXSAVE }, excUD},
		{"XSAVE, misaligned", []byte{0x0f, 0xae, 0x26}, 16, nil, excGP},
		{"XSAVE with TS", []byte{0x0f, 0xae, 0x26}, 0, func(m *machine) { m.cr0 |= cr0TS }, excNM},
		{"XRSTOR of a component not in XCR0", []byte{0x0f, 0xae, 0x2e}, 0, func(m *machine) { m.put64(atData+512, 4) }, excGP},
		{"XRSTOR of the compacted form", []byte{0x0f, 0xae, 0x2e}, 0, func(m *machine) { m.put64(atData+520, 1<<63) }, excGP},
		{"XRSTOR, header", []byte{0x0f, 0xae, 0x2e}, 0, func(m *machine) { m.put64(atData+528, 1) }, excGP},
		{"XRSTOR, MXCSR", []byte{0x0f, 0xae, 0x2e}, 0, func(m *machine) { m.put64(atData+24, 1<<16) }, excGP},
		{"XSAVEOPT is not offered", []byte{0x0f, 0xae, 0x36}, 0, nil, excUD},
		{"XSAVEC is not offered", []byte{0x0f, 0xc7, 0x26}, 0, nil, excUD},
		{"XSETBV without x87", []byte{0x0f, 0x01, 0xd1}, 0, func(m *machine) { m.r[regRAX], m.r[regRCX] = 2, 0 }, excGP},
		{"XSETBV with AVX", []byte{0x0f, 0x01, 0xd1}, 0, func(m *machine) { m.r[regRAX], m.r[regRCX] = 7, 0 }, excGP},
		{"XSETBV of XCR1", []byte{0x0f, 0x01, 0xd1}, 0, func(m *machine) { m.r[regRAX], m.r[regRCX] = 3, 1 }, excGP},
		{"XGETBV of XCR1", []byte{0x0f, 0x01, 0xd0}, 0, func(m *machine) { m.r[regRCX] = 1 }, excGP},
	} {
		m := newLong(t)
		m.cr4 |= cr4OSXSAVE
		m.xcr0 = 3
		m.r[regRSI], m.r[regRAX], m.r[regRDX] = atData+tc.off, 3, 0
		if tc.before != nil {
			tc.before(m)
		}
		m.kernel(tc.code...)
		m.fillVectors()
		want := m.fpu
		m.runs()
		if m.vector() != tc.vector || m.fpu != want || m.mxcsr != 0x1fa0 {
			t.Errorf("%s: vector %d, want %d; or state has changed", tc.name, m.vector(), tc.vector)
		}
	}
}

// An area whose second page is not there is left as it was.
func TestXSAVEAcross(t *testing.T) {
	m := newLong(t)
	m.cr4 |= cr4OSXSAVE
	m.xcr0 = 3
	m.kernel(0x0f, 0xae, 0x26)
	m.r[regRSI], m.r[regRAX], m.r[regRDX] = atAbsent-192, 3, 0
	m.fillVectors()
	m.runs()
	m.fault(excPF, 0, atCode)
	b := make([]byte, 192)
	if err := m.mem.Read(atAbsent-192, b); err != nil {
		t.Fatal(err)
	}
	for i, v := range b {
		if v != 0 {
			t.Fatalf("byte %d is written", i)
		}
	}
}
