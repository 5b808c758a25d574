package kvmcpu

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/vcpu"
)

// sameState compares all but the TSC, which runs, and which some hosts without
// native kernel code cannot set.
func sameState(t *testing.T, what string, want, got *vcpu.State) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.IgnoreFields(vcpu.State{}, "TSC")); d != "" {
		t.Errorf("%s: -want +got\n%s", what, d)
	}
	if !kvmtest.Native(t, kvmtest.Open(t)) {
		return
	}
	if got.TSC < want.TSC || got.TSC-want.TSC > 100e9 {
		t.Errorf("%s: TSC %d after %d", what, got.TSC, want.TSC)
	}
}

func throughJSON(t *testing.T, s vcpu.State) vcpu.State {
	t.Helper()
	b, err := json.Marshal(&s)
	must(t, err)
	var out vcpu.State
	must(t, json.Unmarshal(b, &out))
	return out
}

// busyState gives every part of a CPU's state values of its own.
func busyState(t *testing.T, m *machine) vcpu.State {
	t.Helper()
	s := m.long64(1, []byte{0xeb, 0xfe})
	fresh := m.state()
	s.XCRs, s.XSAVE, s.MSRs, s.LAPIC = fresh.XCRs, fresh.XSAVE, fresh.MSRs, fresh.LAPIC
	s.TSC, s.TSCHz = fresh.TSC+5e9, fresh.TSCHz

	r := &s.Regs
	for i, p := range []*uint64{
		&r.RAX, &r.RBX, &r.RCX, &r.RDX, &r.RSI, &r.RDI, &r.RBP, &r.R8,
		&r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15,
	} {
		*p = 0x1111_2222_3333_0000*uint64(i) + 7
	}
	r.RFLAGS = 2 | 1<<0 | 1<<6 | 1<<9 | 1<<11 | 1<<21 // CF ZF IF OF ID
	s.Segments.FS.Base, s.Segments.GS.Base = 0x7fff12345678, 0xffff888012340000
	s.GDT = vcpu.Table{Base: 0xffffffff81000000, Limit: 0x7f}
	s.IDT = vcpu.Table{Base: 0xfffffe0000000000, Limit: 0xfff}
	s.Control.CR2, s.Control.CR8 = 0xffffc90000001000, 3
	s.Control.EFER |= vcpu.EFERSCE | vcpu.EFERNXE
	s.Debug = vcpu.DebugRegisters{DR: [4]uint64{0x1000, 0xffffffff81234567, 3, 4}, DR6: 0xffff0ff1, DR7: 0x400}

	for i := range s.MSRs {
		msr := &s.MSRs[i]
		switch msr.Index {
		case 0x174: // IA32_SYSENTER_CS
			msr.Value = 0x10
		case 0x175, 0x176: // SYSENTER_ESP and _EIP: AMD has 32 bits
			msr.Value = 0x81000000 + uint64(msr.Index)
		case 0xc0000082, 0xc0000083, 0xc0000102: // LSTAR, CSTAR, KERNEL_GS_BASE
			msr.Value = 0xffffffff81000000 + uint64(msr.Index)
		case 0xc0000081: // STAR
			msr.Value = 0x0023001000000000
		case 0xc0000084: // SFMASK
			msr.Value = 0x47700
		case 0x277: // PAT
			msr.Value = 0x0007040600070406
		case 0x2ff: // MTRR_DEF_TYPE
			msr.Value = 0xc06
		case 0x3b: // TSC_ADJUST
			msr.Value = 12345
		}
	}

	// x87 and SSE registers, and AVX where XCR0 allows it.
	x := s.XSAVE
	binary.LittleEndian.PutUint16(x[0:], 0x27f)   // FCW
	binary.LittleEndian.PutUint32(x[24:], 0x1fa0) // MXCSR
	for i := 32; i < 288; i++ {
		x[i] = byte(i * 7)
	}
	for i := 32; i < 160; i += 16 { // x87 registers have 10 bytes each
		clear(x[i+10 : i+16])
	}
	features := uint64(3)
	for i := range s.XCRs {
		if leaf, ok := m.eng.CPUID().Get(0xd, 0); ok && leaf.EAX&4 != 0 && s.XCRs[i].Index == 0 {
			s.XCRs[i].Value = 7
			features |= 4
			for j := 576; j < 832; j++ {
				x[j] = byte(j * 3)
			}
			s.Control.CR4 |= vcpu.CR4SVE
		}
	}
	binary.LittleEndian.PutUint64(x[512:], features)

	if len(s.LAPIC) > 0 {
		put := func(reg int, v uint32) { binary.LittleEndian.PutUint32(s.LAPIC[reg:], v) }
		put(0xf0, 0x1ff)      // SVR
		put(0xd0, 0x02000000) // LDR
		put(0x80, 0x30)       // TPR, that CR8 mirrors
		put(0xa0, 0x30)       // PPR, that follows
		put(0x320, 0x100ec)   // LVT timer, masked
		put(0x370, 0xfe)      // LVT error
		put(0x3e0, 0xb)       // divide
		put(0x210, 1<<5)      // IRR: vector 0x25 waits
	}
	return s
}

// TestStateRoundTrip carries a state through JSON and three CPUs.
func TestStateRoundTrip(t *testing.T) {
	for _, chips := range []Chips{ChipsKernel, ChipsNone, ChipsUser} {
		for _, model := range []vcpu.Model{vcpu.ModelHost, vcpu.ModelV1, vcpu.ModelV2, vcpu.ModelV3} {
			if chips == ChipsNone && model != vcpu.ModelHost {
				continue
			}
			if model > vcpu.ModelV1 && !kvmtest.Native(t, kvmtest.Open(t)) {
				continue // such a KVM hides features that it does not emulate
			}
			a := newMachine(t, 4<<20, Config{Chips: chips, Model: model})
			in := busyState(t, a)
			must(t, in.Validate())
			must(t, a.cpu.SetState(&in))
			first := a.state()
			must(t, first.Validate())
			sameState(t, "first", &in, &first)

			b := newMachine(t, 4<<20, Config{Chips: chips, CPUID: a.eng.CPUID()})
			moved := throughJSON(t, first)
			must(t, b.cpu.SetState(&moved))
			second := b.state()
			sameState(t, "second", &first, &second)
		}
	}
}

// TestRunKeepsState: what SetState gave is there after the guest has run.
func TestRunKeepsState(t *testing.T) {
	for _, chips := range []Chips{ChipsKernel, ChipsNone, ChipsUser} {
		m := newMachine(t, 4<<20, Config{Chips: chips})
		s := m.long64(1, []byte{
			0x44, 0x0f, 0x20, 0xc0, // mov rax, cr8
			0xe6, 0x80, // out 0x80, al
			0xf4,
		})
		s.Control.CR8 = 5
		s.Regs.R15 = 0x1234567890
		m.start(s)
		if e := m.expect(vcpu.ExitIO); e.Data[0] != 5 {
			t.Errorf("the guest sees CR8 %d", e.Data[0])
		}
		if s := m.state(); s.Control.CR8 != 5 || s.Regs.R15 != 0x1234567890 {
			t.Errorf("CR8 %d, R15 %#x", s.Control.CR8, s.Regs.R15)
		}
	}
}

// TestTSCHz: the frequency that a guest can have here is a new CPU's.
func TestTSCHz(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	hz, err := TSCHz(m.eng.sys)
	must(t, err)
	if s := m.state(); hz != s.TSCHz {
		t.Errorf("%d Hz, a CPU has %d", hz, s.TSCHz)
	}
}

// TestTSCOfYoungGuest: a TSC near that of a new machine is not taken for it,
// and the CPUs stay in step.
func TestTSCOfYoungGuest(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	m := newMachine(t, 4<<20, Config{CPUs: 2})
	var s vcpu.State
	must(t, m.cpus[1].State(&s))
	want := s.TSC + s.TSCHz/2
	for i, c := range m.cpus {
		must(t, c.State(&s))
		s.TSC = want + uint64(i)*s.TSCHz/100 // read a little later
		must(t, c.SetState(&s))
	}
	var a, b vcpu.State
	must(t, m.cpus[1].State(&b))
	must(t, m.cpus[0].State(&a))
	if a.TSC < want || a.TSC > want+60*s.TSCHz {
		t.Errorf("TSC %d, want %d", a.TSC, want)
	}
	if a.TSC < b.TSC {
		t.Errorf("CPU 0 at %d is behind CPU 1 at %d, which was read before", a.TSC, b.TSC)
	}
}

// TestEventsRoundTrip carries each kind of event.
func TestEventsRoundTrip(t *testing.T) { eachChips(t, testEventsRoundTrip) }

func testEventsRoundTrip(t *testing.T, chips Chips) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	for name, change := range map[string]func(*vcpu.State){
		"interrupt": func(s *vcpu.State) { s.Events.Interrupt = vcpu.Interrupt{Injected: true, Vector: 0x31} },
		"injected": func(s *vcpu.State) {
			s.Events.Exception = vcpu.Exception{Injected: true, Vector: 13, HasErrorCode: true, ErrorCode: 0x18}
		},
		"pending": func(s *vcpu.State) {
			s.Events.Exception = vcpu.Exception{Pending: true, Vector: 14, HasErrorCode: true, ErrorCode: 2, HasPayload: true, Payload: 0xdead000}
		},
		"nmi":    func(s *vcpu.State) { s.Events.NMI = vcpu.NMI{Pending: 1, Masked: true} },
		"sti":    func(s *vcpu.State) { s.Events.ShadowSTI = true },
		"halted": func(s *vcpu.State) { s.MP = vcpu.MPHalted },
	} {
		t.Run(name, func(t *testing.T) {
			a := newMachine(t, 4<<20, Config{Chips: chips})
			in := a.long64(1, []byte{0xeb, 0xfe})
			change(&in)
			must(t, a.cpu.SetState(&in))
			got := throughJSON(t, a.state())
			if d := cmp.Diff(in.Events, got.Events); d != "" || got.MP != in.MP {
				t.Errorf("MP %v, want %v; -want +got\n%s", got.MP, in.MP, d)
			}
		})
	}
}

// TestMPStates: application processors wait for INIT, also after they ran.
func TestMPStates(t *testing.T) { eachChips(t, testMPStates) }

func testMPStates(t *testing.T, chips Chips) {
	m := newMachine(t, 4<<20, Config{CPUs: 2, Chips: chips})
	var s vcpu.State
	must(t, m.cpus[1].State(&s))
	if s.MP != vcpu.MPWait {
		t.Fatalf("a fresh application processor is %v", s.MP)
	}
	for _, mp := range []vcpu.MPState{vcpu.MPInit, vcpu.MPHalted, vcpu.MPRunning, vcpu.MPWait} {
		s.MP = mp
		must(t, m.cpus[1].SetState(&s))
		var got vcpu.State
		must(t, m.cpus[1].State(&got))
		if got.MP != mp {
			t.Errorf("%v became %v", mp, got.MP)
		}
	}
}

func TestSetStateRefuses(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	for _, c := range []struct {
		want string
		do   func(*vcpu.State)
	}{
		{"RFLAGS", func(s *vcpu.State) { s.Regs.RFLAGS = 0 }},
		{"field of its own", func(s *vcpu.State) { s.MSRs = append(s.MSRs, vcpu.MSR{Index: 0xc0000080, Value: 1}) }},
		{"MSR 0x12345", func(s *vcpu.State) { s.MSRs = append(s.MSRs, vcpu.MSR{Index: 0x12345, Value: 1}) }},
		{"XSAVE", func(s *vcpu.State) { s.XSAVE[512+5] = 0x40 }},
		{"XSAVE", func(s *vcpu.State) { s.XSAVE = append(s.XSAVE, make([]byte, 100)...); s.XSAVE[len(s.XSAVE)-1] = 1 }},
		{"CR4", func(s *vcpu.State) { s.Control.CR4 |= 1 << 31 }},
		{"TSC", func(s *vcpu.State) { s.TSCHz = 1e12 }},
	} {
		s := m.state()
		c.do(&s)
		err := m.cpu.SetState(&s)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("want %q, got %v", c.want, err)
		}
		if c.want == "TSC" && !errors.Is(err, vcpu.ErrMissing) {
			t.Errorf("it is the host that lacks it: %v", err)
		}
	}
}

func TestChipsRoundTrip(t *testing.T) { eachChips(t, testChipsRoundTrip) }

func testChipsRoundTrip(t *testing.T, chips Chips) {
	a := newMachine(t, 4<<20, Config{Chips: chips})
	s, err := a.eng.SaveChips()
	must(t, err)
	s.PICs[0].VectorBase, s.PICs[1].VectorBase = 0x30, 0x38
	s.PICs[0].IMR, s.PICs[1].IMR = 0xfb, 0xff
	s.PICs[1].ELCR = 0x0c
	s.IOAPIC.ID, s.IOAPIC.Select = 2, 0x10
	s.IOAPIC.Redirect[4] = 0x0100000000000034
	s.IOAPIC.Redirect[16] = 0x010000000000a041
	s.PIT.Channels[0] = vcpu.PITChannel{Count: 11932, Mode: 2, RWMode: 3, ReadState: 3, WriteState: 3, Gate: true}
	s.Clock.Nanoseconds = 1e15

	b, err := json.Marshal(&s)
	must(t, err)
	var moved vcpu.ChipState
	must(t, json.Unmarshal(b, &moved))
	m := newMachine(t, 4<<20, Config{Chips: chips})
	must(t, m.eng.LoadChips(moved))
	got, err := m.eng.SaveChips()
	must(t, err)
	if n := got.Clock.Nanoseconds; n < 1e15 || n > 1e15+60e9 {
		t.Errorf("clock %d", n)
	}
	// A running PIT may have raised line 0 meanwhile.
	ignore := cmp.Options{
		cmpopts.IgnoreFields(vcpu.ChipState{}, "Clock"),
		cmpopts.IgnoreFields(vcpu.PITChannel{}, "Elapsed"),
		cmpopts.IgnoreFields(vcpu.PIC{}, "IRR", "LastIRR"),
		cmpopts.IgnoreFields(vcpu.IOAPIC{}, "IRR"),
	}
	if d := cmp.Diff(s, got, ignore); d != "" {
		t.Errorf("-want +got\n%s", d)
	}

	none := newMachine(t, 4<<20, Config{Chips: ChipsNone})
	if err := none.eng.LoadChips(s); !errors.Is(err, vcpu.ErrState) {
		t.Errorf("chips for a machine without: %v", err)
	}
	if err := m.eng.LoadChips(vcpu.ChipState{}); !errors.Is(err, vcpu.ErrState) {
		t.Errorf("no chips for a machine with: %v", err)
	}
}

// TestMoveRunningGuest stops a computation anywhere, moves it to another
// machine, and has it come out right.
func TestMoveRunningGuest(t *testing.T) {
	// The sum of 1 to 200, a step for each port write.
	code := []byte{
		0xb9, 0xc8, 0x00, 0x00, 0x00, // mov ecx, 200
		0x31, 0xdb, // xor ebx, ebx
		0x01, 0xcb, // 1: add ebx, ecx
		0xe6, 0x80, // out 0x80, al
		0xff, 0xc9, // dec ecx
		0x75, 0xf8, // jnz 1b
		0x89, 0xd8, // mov eax, ebx
		0xe7, 0x81, // out 0x81, eax
		0xf4,
	}
	m := newMachine(t, 4<<20, Config{})
	m.start(m.long64(1, code))
	const moves = 10
	for i, steps := 0, 0; ; {
		e := m.run()
		switch {
		case e.Reason == vcpu.ExitIO && e.Port == 0x81:
			if sum := binary.LittleEndian.Uint32(e.Data); sum != 20100 {
				t.Fatalf("the sum is %d after %d moves", sum, i)
			}
			if i < moves {
				t.Fatalf("only %d moves", i)
			}
			return
		case e.Reason != vcpu.ExitIO:
			t.Fatalf("%+v", e)
		}
		if steps++; i < moves && steps%7 == i%7 {
			i++
			s, old := m.state(), m
			m = newMachine(t, 4<<20, Config{CPUID: old.eng.CPUID()})
			must(t, m.mem.Write(0, old.mem.Regions()[0].Host))
			moved := throughJSON(t, s)
			must(t, m.cpu.SetState(&moved))
		}
	}
}
