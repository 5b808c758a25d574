package kvm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

// fill sets every field to a pattern.
func fill(p any) {
	n := uint64(0x1111111111111111)
	v := reflect.ValueOf(p).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Uint64 {
			f.SetUint(n * uint64(i%15+1))
		}
	}
}

func diff[T any](t *testing.T, got, want T) {
	t.Helper()
	// Blank fields are the kernel's.
	blank := cmp.FilterPath(func(p cmp.Path) bool {
		f, ok := p.Last().(cmp.StructField)
		return ok && f.Name() == "_"
	}, cmp.Ignore())
	if d := cmp.Diff(want, got, blank); d != "" {
		t.Errorf("it does not keep its state (-want +got):\n%s", d)
	}
}

func TestRegs(t *testing.T) {
	g := newGuest(t, nil)
	var want kvm.Regs
	fill(&want)
	want.RFLAGS = 0x246
	g.ok(g.cpu.SetRegs(&want))
	got, err := g.cpu.Regs()
	g.ok(err)
	diff(t, got, want)
}

func TestSregs(t *testing.T) {
	g := newGuest(t, nil)
	g.longMode()
	want, err := g.cpu.Sregs()
	g.ok(err)
	if want.CR3 != 0x10000 || want.CS.L != 1 || want.EFER&(1<<10) == 0 {
		t.Errorf("not in long mode: %+v", want)
	}
	want.CR2, want.CR3, want.CR8 = 0x123456789, 0x10000, 5
	want.GDT.Base, want.GDT.Limit = 0x3000, 0x47
	want.IDT.Base, want.IDT.Limit = 0x4000, 0xfff
	want.FS.Base, want.GS.Base = 0x7f0000001000, 0xffff888000000000
	g.ok(g.cpu.SetSregs(&want))
	got, err := g.cpu.Sregs()
	g.ok(err)
	diff(t, got, want)

	// Both forms agree.
	two, err := g.cpu.Sregs2()
	g.ok(err)
	if two.CR3 != want.CR3 || two.FS != want.FS || two.IDT != want.IDT || two.EFER != want.EFER {
		t.Errorf("Sregs2 differs: %+v", two)
	}
	two.CR2, two.GS.Base = 0x987654321, 0xffff888000001000
	g.ok(g.cpu.SetSregs2(&two))
	gotTwo, err := g.cpu.Sregs2()
	g.ok(err)
	diff(t, gotTwo, two)

	bad := want
	bad.EFER &^= 1 << 10 // paging in long mode without LMA
	if err := g.cpu.SetSregs(&bad); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SetSregs of an impossible state = %v", err)
	}
}

func TestSregs2PDPTRs(t *testing.T) {
	g := newGuest(t, nil)
	s, err := g.cpu.Sregs2()
	g.ok(err)
	// Protected mode with PAE paging.
	s.CR0 |= 1<<31 | 1
	s.CR3, s.CR4 = 0x10000, 1<<5
	s.CS = kvm.Segment{Selector: 8, Limit: 0xffffffff, Type: 11, Present: 1, S: 1, DB: 1, G: 1}
	s.Flags, s.PDPTRs = kvm.Sregs2PDPTRsValid, [4]uint64{0x11001, 0x12001, 0x13001, 0x14001}
	g.ok(g.cpu.SetSregs2(&s))
	got, err := g.cpu.Sregs2()
	g.ok(err)
	if got.Flags == 0 && !kvmtest.Native(t, g.sys) {
		kvmtest.Skipf(t, "this host's KVM, which emulates code at CPL 0, keeps no PDPTRs")
	}
	if got.Flags&kvm.Sregs2PDPTRsValid == 0 || got.PDPTRs != s.PDPTRs {
		t.Errorf("flags %#x, PDPTRs %#x", got.Flags, got.PDPTRs)
	}
}

func TestFPU(t *testing.T) {
	g := newGuest(t, nil)
	want, err := g.cpu.FPU()
	g.ok(err)
	want.FCW, want.FTWX = 0x27f, 0xff
	for i := range want.XMM {
		for j := range want.XMM[i] {
			want.XMM[i][j] = byte(16*i + j)
		}
	}
	copy(want.FPR[3][:10], "0123456789")
	g.ok(g.cpu.SetFPU(&want))
	got, err := g.cpu.FPU()
	g.ok(err)
	diff(t, got, want)
}

func TestXSave(t *testing.T) {
	g := newGuest(t, nil)
	size, err := g.cpu.XSaveSize()
	g.ok(err)
	if size < kvm.XSaveMinSize {
		t.Errorf("XSaveSize = %d", size)
	}
	area := make([]byte, size)
	g.ok(g.cpu.XSave(area))
	copy(area[160:], "XMM0 has 16 byte")
	binary.LittleEndian.PutUint64(area[512:], 3) // XSTATE_BV: x87 and SSE
	g.ok(g.cpu.SetXSave(area))
	for _, get := range []func([]byte) error{g.cpu.XSave, g.cpu.XSave2} {
		got := make([]byte, size)
		err := get(got)
		g.ok(err)
		if !bytes.Equal(got[160:176], area[160:176]) || binary.LittleEndian.Uint64(got[512:])&2 == 0 {
			t.Errorf("XMM0 is %q, XSTATE_BV %x", got[160:176], got[512:520])
		}
		if err := get(make([]byte, 4095)); !errors.Is(err, kvm.ErrInvalid) {
			t.Errorf("a buffer that is too short: %v", err)
		}
	}
	if err := g.cpu.SetXSave(nil); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("SetXSave(nil) = %v", err)
	}
	fpu, err := g.cpu.FPU()
	g.ok(err)
	if !bytes.Equal(fpu.XMM[0][:], area[160:176]) {
		t.Errorf("FPU has XMM0 %q", fpu.XMM[0])
	}
}

func TestXCRs(t *testing.T) {
	g := newGuest(t, nil)
	g.hostCPUID()
	x, err := g.cpu.XCRs()
	g.ok(err)
	if x.Count != 1 || x.XCRs[0].XCR != 0 || x.XCRs[0].Value != 1 {
		t.Fatalf("XCRs after reset: %+v", x)
	}
	x.XCRs[0].Value = 3
	g.ok(g.cpu.SetXCRs(&x))
	got, err := g.cpu.XCRs()
	g.ok(err)
	diff(t, got, x)
	x.XCRs[0].Value = 2 // x87 cannot be off
	if err := g.cpu.SetXCRs(&x); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SetXCRs of an impossible value = %v", err)
	}
}

// hostCPUID gives the vCPU all that the host supports.
func (g *guest) hostCPUID() []kvm.CPUIDEntry {
	g.t.Helper()
	entries, err := g.sys.SupportedCPUID()
	g.ok(err)
	g.ok(g.cpu.SetCPUID2(entries))
	return entries
}

func TestCPUID(t *testing.T) {
	g := newGuest(t, nil,
		0x66, 0xb8, 0x00, 0x00, 0x00, 0x40, // mov $0x40000000, %eax
		0x0f, 0xa2, // cpuid
		0x66, 0x89, 0xd8, // mov %ebx, %eax
		0x66, 0xe7, 0x50, // out %eax, $0x50
		0xf4)
	entries := g.hostCPUID()
	for i := range entries {
		if entries[i].Function == 0x40000000 {
			entries[i].EBX = 0x74696b76 // "vkit"
		}
	}
	g.ok(g.cpu.SetCPUID2(entries))
	g.run(kvm.ExitIO)
	if s := string(g.cpu.IOData()); s != "vkit" {
		t.Errorf("the guest sees %q", s)
	}
	got, err := g.cpu.GetCPUID2()
	g.ok(err)
	if len(got) == 0 || len(got) > len(entries) || got[0].EBX != entries[0].EBX {
		t.Errorf("%d entries, not %d: %+v", len(got), len(entries), got)
	}
	if !slices.ContainsFunc(got, func(e kvm.CPUIDEntry) bool { return e.Function == 0x40000000 && e.EBX == 0x74696b76 }) {
		t.Errorf("the change is not in %+v", got)
	}
	if err := g.cpu.SetCPUID2(make([]kvm.CPUIDEntry, 257)); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("SetCPUID2 of 257 entries = %v", err)
	}
}

func TestLAPICWithoutChip(t *testing.T) {
	g := newGuest(t, nil)
	if _, err := g.cpu.LAPIC(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("LAPIC without one = %v", err)
	}
}

func TestEvents(t *testing.T) {
	g := newGuest(t, nil)
	want, err := g.cpu.VCPUEvents()
	g.ok(err)
	want.Exception.Injected, want.Exception.Nr, want.Exception.HasErrorCode, want.Exception.ErrorCode = 1, 13, 1, 0x28
	want.NMI.Pending, want.NMI.Masked = 1, 1
	want.Interrupt.Shadow = kvm.ShadowSTI
	want.Flags |= kvm.EventValidNMIPending | kvm.EventValidShadow
	g.ok(g.cpu.SetVCPUEvents(&want))
	got, err := g.cpu.VCPUEvents()
	g.ok(err)
	if got.Interrupt.Shadow == 0 { // SVM does not tell the two kinds apart
		t.Error("the interrupt shadow is lost")
	}
	got.Interrupt.Shadow = want.Interrupt.Shadow
	diff(t, got, want)
	want.Exception.Nr = 77
	if err := g.cpu.SetVCPUEvents(&want); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SetVCPUEvents with exception 77 = %v", err)
	}
}

func TestMPState(t *testing.T) {
	g := newGuest(t, func(vm *kvm.VM) { kvmtest.Need(t, vm.CreateIRQChip()) })
	second := g.vcpu(1)
	if s, err := second.MPState(); s != kvm.MPStateUninitialized || err != nil {
		t.Errorf("a second vCPU is in state %d, %v", s, err)
	}
	for _, want := range []uint32{kvm.MPStateHalted, kvm.MPStateRunnable, kvm.MPStateInitReceived, kvm.MPStateUninitialized} {
		g.ok(second.SetMPState(want))
		if s, err := second.MPState(); s != want || err != nil {
			t.Errorf("state %d, %v, not %d", s, err, want)
		}
	}
	if err := second.SetMPState(99); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SetMPState(99) = %v", err)
	}
}

func TestDebugRegs(t *testing.T) {
	g := newGuest(t, nil)
	want, err := g.cpu.DebugRegs()
	g.ok(err)
	want.DB = [4]uint64{0x1000, 0x2000, 0x3000, 0x4000}
	want.DR6, want.DR7 = 0xffff0ff0|1<<3, 0x400|0x3
	g.ok(g.cpu.SetDebugRegs(&want))
	got, err := g.cpu.DebugRegs()
	g.ok(err)
	diff(t, got, want)
}

func TestTSC(t *testing.T) {
	g := newGuest(t, nil)
	khz, err := g.cpu.TSCKHz()
	g.ok(err)
	if khz < 100_000 || khz > 10_000_000 {
		t.Errorf("TSCKHz = %d", khz)
	}
	if err := g.cpu.SetTSCKHz(0); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("SetTSCKHz(0) = %v", err)
	}
	g.ok(g.cpu.SetTSCKHz(khz))
	err = g.cpu.SetTSCKHz(khz / 2)
	if scaling, _ := g.vm.CheckExtension(kvm.CapTSCControl); scaling != 0 {
		g.ok(err)
		if got, err := g.cpu.TSCKHz(); got != khz/2 || err != nil {
			t.Errorf("TSCKHz = %d, %v, not %d", got, err, khz/2)
		}
		g.ok(g.cpu.SetTSCKHz(khz))
	} else if err != nil && !isUnsupported(err) {
		t.Errorf("SetTSCKHz without scaling = %v", err)
	}

	if !kvmtest.Native(t, g.sys) {
		kvmtest.Skipf(t, "this host's KVM, which emulates code at CPL 0, has no TSC offset")
	}
	const want = 1 << 50
	g.ok(g.cpu.SetTSCOffset(want))
	if got, err := g.cpu.TSCOffset(); got != want || err != nil {
		t.Errorf("TSCOffset = %#x, %v, not %#x", got, err, want)
	}
	tsc := []kvm.MSREntry{{Index: 0x10}}
	if _, err := g.cpu.GetMSRs(tsc); err != nil || tsc[0].Data < want {
		t.Errorf("the TSC reads %#x, %v, with that offset", tsc[0].Data, err)
	}
}

func TestKVMClockCtrl(t *testing.T) {
	g := newGuest(t, nil)
	if err := g.cpu.KVMClockCtrl(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("KVMClockCtrl of a guest without kvmclock = %v", err)
	}
	g.hostCPUID()
	// MSR_KVM_SYSTEM_TIME_NEW: the guest's clock page, enabled.
	_, err := g.cpu.SetMSRs([]kvm.MSREntry{{Index: 0x4b564d01, Data: 0x5000 | 1}})
	g.ok(err)
	g.ok(g.cpu.KVMClockCtrl())
}

func TestTranslate(t *testing.T) {
	g := newGuest(t, nil)
	g.longMode()
	tr, err := g.cpu.Translate(0x1234)
	g.ok(err)
	if tr.Valid != 1 || tr.PhysicalAddress != 0x1234 {
		t.Errorf("0x1234: %+v", tr)
	}
	tr, err = g.cpu.Translate(0x40000000)
	g.ok(err)
	if tr.Valid != 0 {
		t.Errorf("an address that is not mapped: %+v", tr)
	}
}
