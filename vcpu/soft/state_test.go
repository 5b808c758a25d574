package soft

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmkit-go/vmkit/vcpu"
)

// filled is a state in which nearly every part differs from reset's.
func filled() vcpu.State {
	r := rand.New(rand.NewPCG(1, 2))
	s := longState()
	s.Regs = vcpu.Registers{
		RAX: r.Uint64(), RBX: r.Uint64(), RCX: r.Uint64(), RDX: r.Uint64(), RSI: r.Uint64(), RDI: r.Uint64(), RSP: r.Uint64(), RBP: r.Uint64(),
		R8: r.Uint64(), R9: r.Uint64(), R10: r.Uint64(), R11: r.Uint64(), R12: r.Uint64(), R13: r.Uint64(), R14: r.Uint64(), R15: r.Uint64(),
		RIP: 0xffff_ffff_8100_0000, RFLAGS: flag1 | flagArith | flagIF | flagAC | flagID | flagNT | flagRF,
	}
	s.Segments.CS = flatCode(selUser, 3, true)
	s.Segments.SS = flatStack(selUserSS, 3)
	s.Segments.FS.Base, s.Segments.GS.Base = 0x7fff_1234_5000, 0xffff_8880_0000_0000
	s.Segments.DS = vcpu.Segment{Unusable: true}
	s.Segments.LDT = vcpu.Segment{Selector: selLDT, Base: 0x1000, Limit: 0xfff, Type: sysLDT, System: true, Present: true}
	s.Control.CR2, s.Control.CR8 = r.Uint64(), 7
	s.Control.CR4 |= cr4FSGSBASE | cr4SMEP | cr4SMAP | cr4UMIP | cr4OSXSAVE | cr4PGE
	s.Debug = vcpu.DebugRegisters{DR: [4]uint64{1, 2, 3, 4}, DR6: dr6Fixed | dr6BS | 1, DR7: dr7Fixed | 0x2}
	s.XCRs = []vcpu.XCR{{Index: 0, Value: 3}}
	s.XSAVE = make([]byte, xsaveSize)
	for i := range 512 - 96 {
		s.XSAVE[i] = byte(r.Uint32())
	}
	le := binary.LittleEndian
	le.PutUint16(s.XSAVE, 0x27f)
	le.PutUint16(s.XSAVE[2:], 0x3800|0x41)
	le.PutUint16(s.XSAVE[4:], 0x5a)
	le.PutUint16(s.XSAVE[6:], 0x123)
	putMXCSR(s.XSAVE, 0x1fa0)
	for i := range 8 {
		clear(s.XSAVE[offST+16*i+10 : offST+16*i+16])
	}
	le.PutUint64(s.XSAVE[512:], 3)
	s.MSRs = []vcpu.MSR{
		{Index: msrTSCAdjust, Value: 5}, {Index: msrUcodeRev, Value: 0x8701021}, {Index: msrSysenterCS, Value: 0x10},
		{Index: msrSysenterESP, Value: 0x1000}, {Index: msrSysenterEIP, Value: 0x2000}, {Index: msrMCGStatus}, {Index: msrMiscEnable, Value: 1},
		{Index: msrPAT, Value: 0x0407050600070106},
	}
	for i := range uint32(16) {
		s.MSRs = append(s.MSRs, vcpu.MSR{Index: msrMTRRPhys + i, Value: uint64(i)<<20 | 6*uint64(1-i&1) | 0x800*uint64(i&1)})
	}
	for _, f := range mtrrFixed {
		s.MSRs = append(s.MSRs, vcpu.MSR{Index: f, Value: 0x0606060606060606})
	}
	s.MSRs = append(s.MSRs,
		vcpu.MSR{Index: msrMTRRDefType, Value: 0xc06},
		vcpu.MSR{Index: msrSTAR, Value: 0x23001000000000}, vcpu.MSR{Index: msrLSTAR, Value: 0xffff_ffff_8180_0000},
		vcpu.MSR{Index: msrCSTAR, Value: 0xffff_ffff_8180_1000}, vcpu.MSR{Index: msrSFMASK, Value: 0x47700},
		vcpu.MSR{Index: msrKernelGS, Value: 0x1000}, vcpu.MSR{Index: msrTSCAux, Value: 1},
		vcpu.MSR{Index: msrSYSCFG}, vcpu.MSR{Index: msrHWCR, Value: 0x40}, vcpu.MSR{Index: msrNBCFG},
	)
	for i := range uint32(8) {
		s.MSRs = append(s.MSRs, vcpu.MSR{Index: msrMCBase + i, Value: uint64(bit(i&3 == 0)) * ^uint64(0)})
	}
	s.MSRs = append(s.MSRs, vcpu.MSR{Index: msrTSCDeadline, Value: 1 << 50})
	s.TSC, s.TSCHz = 1<<40, 2_400_000_000
	s.Events = vcpu.Events{
		Exception: vcpu.Exception{Injected: true, Vector: excPF, HasErrorCode: true, ErrorCode: 6, HasPayload: true, Payload: 0x1234},
		NMI:       vcpu.NMI{Pending: 1, Masked: true},
		ShadowSTI: true, SIPI: 9,
	}
	return s
}

func TestStateRoundTrip(t *testing.T) {
	m := newMachine(t)
	m.e.count = 12345
	s := filled()
	var page vcpu.State
	if err := m.State(&page); err != nil {
		t.Fatal(err)
	}
	s.LAPIC = page.LAPIC
	binary.LittleEndian.PutUint32(s.LAPIC[0x80:], 0x70) // TPR, as CR8 has it
	binary.LittleEndian.PutUint32(s.LAPIC[0xa0:], 0x70) // PPR
	binary.LittleEndian.PutUint32(s.LAPIC[0xf0:], 0x1ff)
	binary.LittleEndian.PutUint32(s.LAPIC[0x320:], 0x400ef) // LVT timer: TSC deadline
	if err := m.SetState(&s); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		var got vcpu.State
		if err := m.State(&got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(s, got); d != "" {
			t.Fatal(d)
		}
		if err := got.Validate(); err != nil {
			t.Fatal(err)
		}
		if err := m.SetState(&got); err != nil {
			t.Fatal(err)
		}
	}
}

// Modes outside long mode, and what CPUs wait for, come back as well.
func TestStateModes(t *testing.T) {
	for name, change := range map[string]func(*vcpu.State){
		"reset":     func(s *vcpu.State) { *s = vcpu.PowerUp(true) },
		"wait":      func(s *vcpu.State) { *s = vcpu.PowerUp(false) },
		"init":      func(s *vcpu.State) { *s = vcpu.PowerUp(false); s.MP = vcpu.MPInit },
		"sipi":      func(s *vcpu.State) { *s = vcpu.PowerUp(false); s.MP, s.Events.SIPI = vcpu.MPSIPI, 0x9a },
		"real":      func(s *vcpu.State) { *s = realState() },
		"halted":    func(s *vcpu.State) { s.MP = vcpu.MPHalted },
		"MOV SS":    func(s *vcpu.State) { s.Events.ShadowMOVSS = true },
		"interrupt": func(s *vcpu.State) { s.Events.Interrupt = vcpu.Interrupt{Injected: true, Vector: 0x40} },
		"NMI":       func(s *vcpu.State) { s.Events.NMI.Injected = true },
		"shutdown":  func(s *vcpu.State) { s.Events.TripleFault = true },
		"PAE": func(s *vcpu.State) {
			s.Control.EFER, s.Segments.CS = 0, flatCode(selCode32, 0, false)
			s.Control.PDPTRs = []uint64{1, 2, 4, 0x5001}
		},
		"x2APIC":  func(s *vcpu.State) { s.Control.APICBase |= vcpu.APICBaseX2APIC },
		"no APIC": func(s *vcpu.State) { s.Control.APICBase &^= vcpu.APICBaseEnable },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			s := longState()
			change(&s)
			if err := m.SetState(&s); err != nil {
				t.Fatal(err)
			}
			var got, again vcpu.State
			if err := m.State(&got); err != nil {
				t.Fatal(err)
			}
			first := got
			got.XCRs, got.XSAVE, got.MSRs, got.LAPIC, got.TSC, got.TSCHz = nil, nil, nil, nil, s.TSC, s.TSCHz
			if d := cmp.Diff(s, got); d != "" {
				t.Fatal(d)
			}
			other := newMachine(t)
			if err := other.SetState(&first); err != nil {
				t.Fatal(err)
			}
			if err := other.State(&again); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(first, again); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestStateRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*vcpu.State)
		err    error
		says   string
	}{
		{"CR4.PKE", func(s *vcpu.State) { s.Control.CR4 |= 1 << 22 }, vcpu.ErrMissing, "CR4"},
		{"EFER.SVME", func(s *vcpu.State) { s.Control.EFER |= vcpu.EFERSVME }, vcpu.ErrMissing, "EFER"},
		{"XCR0 with AVX", func(s *vcpu.State) { s.XCRs = []vcpu.XCR{{Index: 0, Value: 7}} }, vcpu.ErrMissing, "AVX"},
		{"AVX in use", func(s *vcpu.State) {
			s.XSAVE = make([]byte, 832)
			s.XSAVE[512], s.XSAVE[800] = 7, 1
		}, vcpu.ErrMissing, "AVX"},
		{"virtual-8086 mode", func(s *vcpu.State) { s.Regs.RFLAGS |= flagVM }, vcpu.ErrMissing, "8086"},
		{"system-management mode", func(s *vcpu.State) { s.Events.SMI.Active = true }, vcpu.ErrMissing, "system-management"},
		{"CR3", func(s *vcpu.State) { s.Control.CR3 = 1 << 45 }, vcpu.ErrMissing, "physical"},
		{"APIC base", func(s *vcpu.State) { s.Control.APICBase |= 1 << 45 }, vcpu.ErrMissing, "IA32_APIC_BASE"},
		{"KVM's clock", func(s *vcpu.State) { s.MSRs = []vcpu.MSR{{Index: 0x4b564d01, Value: 1}} }, vcpu.ErrMissing, "0x4b564d01"},
		{"PAT", func(s *vcpu.State) { s.MSRs = []vcpu.MSR{{Index: msrPAT, Value: 2}} }, vcpu.ErrState, "0x277"},
		{"EFER as an MSR", func(s *vcpu.State) { s.MSRs = []vcpu.MSR{{Index: msrEFER}} }, vcpu.ErrState, "field"},
		{"LMA alone", func(s *vcpu.State) { s.Control.EFER = vcpu.EFERLMA }, vcpu.ErrState, "LMA"},
		{"LAPIC page", func(s *vcpu.State) { s.LAPIC = make([]byte, 7) }, vcpu.ErrState, "APIC"},
	} {
		m := newMachine(t)
		s := longState()
		tc.change(&s)
		err := m.SetState(&s)
		if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %v that says %q", tc.name, err, tc.err, tc.says)
		}
	}
	// Unknown MSRs that are zero, and AVX state that nothing is in, are no error.
	m := newMachine(t)
	s := longState()
	s.MSRs = []vcpu.MSR{{Index: 0x4b564d01}, {Index: 0x10a, Value: 0x1234}}
	s.XSAVE = make([]byte, 2696)
	s.XSAVE[512] = 7
	putMXCSR(s.XSAVE, mxcsrInit)
	if err := m.SetState(&s); err != nil {
		t.Error(err)
	}
}

// What another engine had begun to deliver is delivered first.
func TestInjection(t *testing.T) {
	for _, tc := range []struct {
		name        string
		ev          vcpu.Events
		vector, err int
		rip         uint64
	}{
		{"page fault", vcpu.Events{Exception: vcpu.Exception{Injected: true, Vector: excPF, HasErrorCode: true, ErrorCode: 2}}, excPF, 2, atCode},
		{"page fault with its address", vcpu.Events{Exception: vcpu.Exception{Pending: true, Vector: excPF, HasErrorCode: true, ErrorCode: 2, HasPayload: true, Payload: 0x77}}, excPF, 2, atCode},
		{"debug", vcpu.Events{Exception: vcpu.Exception{Pending: true, Vector: excDB, HasPayload: true, Payload: dr6BS}}, excDB, -1, atCode},
		{"interrupt", vcpu.Events{Interrupt: vcpu.Interrupt{Injected: true, Vector: 0x40}}, 0x40, -1, atCode},
		{"NMI", vcpu.Events{NMI: vcpu.NMI{Injected: true}}, 2, -1, atCode},
	} {
		m := newLong(t)
		s := longState()
		s.Events = tc.ev
		if err := m.SetState(&s); err != nil {
			t.Fatal(err)
		}
		m.code(atCode, 0xf4)
		m.runs()
		m.fault(tc.vector, tc.err, tc.rip)
		if p := tc.ev.Exception.Payload; p == 0x77 && m.cr2 != p || p == dr6BS && m.dr6 != dr6Fixed|p {
			t.Errorf("%s: CR2 %#x, DR6 %#x", tc.name, m.cr2, m.dr6)
		}
	}
	m := newLong(t)
	s := longState()
	s.Events.TripleFault = true
	if err := m.SetState(&s); err != nil {
		t.Fatal(err)
	}
	m.runs()
	if !m.shutdown {
		t.Error("no shutdown")
	}
}

// State completes an access that the caller of Run has served.
func TestStateCompletes(t *testing.T) {
	m := newLong(t)
	m.kernel(0xe4, 0x80, 0x90) // IN AL, 0x80
	r := m.e.Runner()
	var exit vcpu.Exit
	if err := r.Run(&exit); err != nil || exit.Reason != vcpu.ExitIO || exit.Port != 0x80 {
		t.Fatalf("%+v, %v", exit, err)
	}
	exit.Data[0] = 0x5a
	var s vcpu.State
	if err := m.State(&s); err != nil {
		t.Fatal(err)
	}
	if s.Regs.RIP != atCode+2 || s.Regs.RAX != 0x5a {
		t.Errorf("RIP %#x, RAX %#x", s.Regs.RIP, s.Regs.RAX)
	}
}
