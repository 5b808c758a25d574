package kvm_test

import (
	"os"
	"testing"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

func TestSingleStep(t *testing.T) {
	g := newGuest(t, nil, 0x90, 0x90, 0xeb, 0xfe) // nop; nop; 1: jmp 1b
	g.longMode()
	g.ok(g.cpu.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugSingleStep}))
	for _, pc := range []uint64{entry + 1, entry + 2, entry + 2} {
		d := g.run(kvm.ExitDebug).Debug()
		if d.Exception != 1 || d.PC != pc || d.DR6&(1<<14) == 0 {
			t.Fatalf("%+v, not a step to %#x", *d, pc)
		}
	}
	g.ok(g.cpu.SetGuestDebug(&kvm.GuestDebug{}))
}

// underTCG skips what QEMU's emulation of SVM lacks, in the nested KVM host.
func underTCG(t *testing.T, lacks string) {
	t.Helper()
	if os.Getenv("VMKIT_NESTED") == "1" {
		t.Skipf("the nested KVM host's processor, QEMU's TCG, %s; this runs on a host with KVM of its own", lacks)
	}
}

func TestHardwareBreakpoint(t *testing.T) {
	underTCG(t, "does not arm the debug registers that VMRUN loads")
	g := newGuest(t, nil, 0x90, 0x90, 0xeb, 0xfe)
	g.longMode()
	d := kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseHWBP}
	d.DebugReg[0], d.DebugReg[7] = entry+2, 0x401|1<<1 // execution of one byte
	g.ok(g.cpu.SetGuestDebug(&d))
	exit := g.run(kvm.ExitDebug).Debug()
	if exit.Exception != 1 || exit.PC != entry+2 || exit.DR6&1 == 0 {
		t.Errorf("%+v", *exit)
	}
}

func TestSoftwareBreakpoint(t *testing.T) {
	g := newGuest(t, nil, 0x90, 0xcc) // nop; int3
	if os.Getenv("VMKIT_NESTED") == "1" {
		// The nested KVM host's processor, QEMU's TCG, does not intercept #BP of
		// the instruction int3: the guest keeps its own breakpoints.
		g.vectors(outHandler...)
		g.ok(g.cpu.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseSWBP}))
		g.wantOut(0xe9, '!')
		return
	}
	if !kvmtest.Native(t, g.sys) {
		kvmtest.Skipf(t, "this host's KVM, which emulates code at CPL 0, has no software breakpoints")
	}
	g.longMode()
	g.ok(g.cpu.SetGuestDebug(&kvm.GuestDebug{Control: kvm.GuestDebugEnable | kvm.GuestDebugUseSWBP}))
	d := g.run(kvm.ExitDebug).Debug()
	if d.Exception != 3 || d.PC != entry+1 {
		t.Errorf("%+v", *d)
	}
}
