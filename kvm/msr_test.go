package kvm_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

func TestMSRs(t *testing.T) {
	g := newGuest(t, nil)
	g.hostCPUID()
	list, err := g.sys.MSRIndexList()
	g.ok(err)
	all := make([]kvm.MSREntry, len(list))
	for i, m := range list {
		all[i].Index = m
	}
	if n, err := g.cpu.GetMSRs(all); n == 0 || err != nil && !isMSRError(err) {
		t.Errorf("GetMSRs = %d of %d, %v", n, len(all), err)
	}

	const sysenterCS, star, lstar = 0x174, 0xc0000081, 0xc0000082
	want := []kvm.MSREntry{{Index: sysenterCS, Data: 0x10}, {Index: star, Data: 0x23001000000000}, {Index: lstar, Data: 0xffffffff81000000}}
	if n, err := g.cpu.SetMSRs(want); n != 3 || err != nil {
		t.Fatalf("SetMSRs = %d, %v", n, err)
	}
	got := []kvm.MSREntry{{Index: sysenterCS}, {Index: star}, {Index: lstar}}
	if n, err := g.cpu.GetMSRs(got); n != 3 || err != nil {
		t.Fatalf("GetMSRs = %d, %v", n, err)
	}
	diff(t, got, want)

	// The one that fails is named, and those before it are done.
	var bad *kvm.MSRError
	n, err := g.cpu.SetMSRs([]kvm.MSREntry{{Index: sysenterCS, Data: 0x20}, {Index: lstar, Data: 1 << 63}, {Index: star}})
	if n != 1 || !errors.As(err, &bad) || bad.Index != lstar || !strings.Contains(err.Error(), "0xc0000082") {
		t.Errorf("SetMSRs with a bad value = %d, %v", n, err)
	}
	n, err = g.cpu.GetMSRs([]kvm.MSREntry{{Index: sysenterCS}, {Index: 0x12345678}})
	if n != 1 || !errors.As(err, &bad) || bad.Index != 0x12345678 {
		t.Errorf("GetMSRs of none = %d, %v", n, err)
	}
	if n, err := g.cpu.GetMSRs(nil); n != 0 || err != nil {
		t.Errorf("GetMSRs(nil) = %d, %v", n, err)
	}
	// More than the kernel takes at once.
	many := make([]kvm.MSREntry, 600)
	for i := range many {
		many[i].Index = lstar
	}
	if n, err := g.cpu.GetMSRs(many); n != len(many) || err != nil || many[599].Data != want[2].Data {
		t.Errorf("GetMSRs of many = %d, %v", n, err)
	}
}

func isMSRError(err error) bool {
	var e *kvm.MSRError
	return errors.As(err, &e)
}

// msrCode reads an MSR, writes the low byte to port 0xe9, then writes 0x99 to the MSR.
var msrCode = []byte{
	0x66, 0xb9, 0x74, 0x01, 0x00, 0x00, // mov $0x174, %ecx
	0x0f, 0x32, // rdmsr
	0xe6, 0xe9, // out %al, $0xe9
	0x66, 0xb8, 0x99, 0x00, 0x00, 0x00, // mov $0x99, %eax
	0x66, 0x31, 0xd2, // xor %edx, %edx
	0x0f, 0x30, // wrmsr
	0xe6, 0xea, // out %al, $0xea
	0xf4,
}

func TestMSRFilter(t *testing.T) {
	g := newGuest(t, func(vm *kvm.VM) {
		kvmtest.Need(t, vm.EnableUserSpaceMSR(kvm.MSRExitFilter))
		kvmtest.Need(t, vm.SetMSRFilter(kvm.MSRFilter{Ranges: []kvm.MSRFilterRange{
			{Flags: kvm.MSRFilterRead | kvm.MSRFilterWrite, Base: 0x170, Count: 8, Bitmap: []byte{0xef}}, // not 0x174
		}}))
	}, msrCode...)
	m := g.run(kvm.ExitRDMSR).MSR()
	if m.Index != 0x174 || m.Reason != kvm.MSRExitFilter {
		t.Errorf("read: %+v", *m)
	}
	m.Data = 0x55
	g.wantOut(0xe9, 0x55)
	m = g.run(kvm.ExitWRMSR).MSR()
	if m.Index != 0x174 || m.Reason != kvm.MSRExitFilter || m.Data != 0x99 {
		t.Errorf("write: %+v", *m)
	}
	g.wantOut(0xea, 0x99)

	g.ok(g.vm.SetMSRFilter(kvm.MSRFilter{})) // allows all again
	g.ok(g.cpu.SetRegs(&kvm.Regs{RIP: entry, RFLAGS: 2}))
	g.wantOut(0xe9, 0)

	for _, f := range []kvm.MSRFilter{
		{Ranges: make([]kvm.MSRFilterRange, 17)},
		{Ranges: []kvm.MSRFilterRange{{Flags: kvm.MSRFilterRead, Count: 0}}},
		{Ranges: []kvm.MSRFilterRange{{Flags: kvm.MSRFilterRead, Count: 9, Bitmap: []byte{1}}}},
		{Ranges: []kvm.MSRFilterRange{{Flags: kvm.MSRFilterRead, Count: 1 << 31, Bitmap: make([]byte, 1)}}},
	} {
		if err := g.vm.SetMSRFilter(f); !errors.Is(err, kvm.ErrInvalid) {
			t.Errorf("SetMSRFilter of %d ranges = %v", len(f.Ranges), err)
		}
	}
}

func TestUserSpaceMSRUnknown(t *testing.T) {
	g := newGuest(t, func(vm *kvm.VM) {
		kvmtest.Need(t, vm.EnableUserSpaceMSR(kvm.MSRExitUnknown|kvm.MSRExitInval))
	}, msrCode...)
	copy(g.mem[entry+2:], "\x78\x56\x34\x12") // the MSR
	m := g.run(kvm.ExitRDMSR).MSR()
	if m.Index != 0x12345678 || m.Reason&(kvm.MSRExitUnknown|kvm.MSRExitInval) == 0 {
		t.Errorf("read: %+v", *m)
	}
	m.Error = 1 // #GP
	g.vectors(outHandler...)
	g.wantOut(0xe9, '!')
}
