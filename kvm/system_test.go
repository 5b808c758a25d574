package kvm_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

func TestOpenErrors(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "kvm")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := openFDs(t)
	for _, c := range []struct {
		path string
		want error
	}{
		{missing, fs.ErrNotExist},
		{file, unix.ENOTTY},
		{"/dev/null", unix.ENOTTY},
		{filepath.Dir(file), unix.EISDIR},
	} {
		if c.want == unix.ENOTTY && runtime.GOARCH != "amd64" {
			c.want = kvm.ErrUnsupported // it is not even asked
		}
		sys, err := kvm.OpenPath(c.path)
		if sys != nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.path) {
			t.Errorf("OpenPath(%q) = %v, not %v", c.path, err, c.want)
		}
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func TestSystem(t *testing.T) {
	sys := kvmtest.Open(t)
	if v, err := sys.APIVersion(); v != kvm.APIVersion || err != nil {
		t.Errorf("APIVersion = %d, %v", v, err)
	}
	if n, err := sys.VCPUMmapSize(); n < 4096 || n%4096 != 0 || err != nil {
		t.Errorf("VCPUMmapSize = %d, %v", n, err)
	}
	if n, err := sys.CheckExtension(kvm.CapUserMemory); n < 1 || err != nil {
		t.Errorf("CheckExtension(%v) = %d, %v", kvm.CapUserMemory, n, err)
	}
	if n, err := sys.CheckExtension(1 << 20); n != 0 || err != nil {
		t.Errorf("CheckExtension of none = %d, %v", n, err)
	}
	cpuid, err := sys.SupportedCPUID()
	if err != nil {
		t.Fatal(err)
	}
	if len(cpuid) < 5 || cpuid[0].Function != 0 || cpuid[0].EBX == 0 {
		t.Errorf("SupportedCPUID = %+v", cpuid)
	}
	emulated, err := sys.EmulatedCPUID()
	if err != nil || len(emulated) == 0 {
		t.Errorf("EmulatedCPUID = %v, %v", emulated, err)
	}
	msrs, err := sys.MSRIndexList()
	if err != nil {
		t.Fatal(err)
	}
	found := map[uint32]bool{}
	for _, m := range msrs {
		found[m] = true
	}
	for _, m := range []uint32{0x174, 0x175, 0x176, 0xc0000081, 0xc0000082} {
		if !found[m] {
			t.Errorf("MSR %#x is not in MSRIndexList %#x", m, msrs)
		}
	}
	features, err := sys.MSRFeatureIndexList()
	if err != nil || len(features) == 0 {
		t.Fatalf("MSRFeatureIndexList = %#x, %v", features, err)
	}
	entries := make([]kvm.MSREntry, len(features))
	for i, m := range features {
		entries[i].Index = m
	}
	if n, err := sys.FeatureMSRs(entries); n != len(entries) || err != nil {
		t.Errorf("FeatureMSRs = %d of %d, %v", n, len(entries), err)
	}
	entries = append(entries[:1], kvm.MSREntry{Index: 0x12345678})
	var bad *kvm.MSRError
	if n, err := sys.FeatureMSRs(entries); n != 1 || !errors.As(err, &bad) || bad.Index != 0x12345678 {
		t.Errorf("FeatureMSRs = %d, %v", n, err)
	}
	if _, err := sys.CreateVM(-1); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("CreateVM(-1) = %v", err)
	}
	var e *kvm.Error
	if _, err := sys.CreateVM(1 << 30); !errors.As(err, &e) || e.Op != "KVM_CREATE_VM" || e.Errno != unix.EINVAL {
		t.Errorf("CreateVM of a type that does not exist = %v", err)
	}
}

func TestSystemClose(t *testing.T) {
	sys, err := kvm.Open()
	if err != nil {
		kvmtest.Open(t) // skips
	}
	vm, err := sys.CreateVM(0)
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if err := sys.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := sys.APIVersion(); !errors.Is(err, kvm.ErrClosed) || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("APIVersion of a closed system = %v", err)
	}
	if err := sys.Close(); !errors.Is(err, kvm.ErrClosed) {
		t.Errorf("second Close = %v", err)
	}
	cpu, err := vm.CreateVCPU(0) // VMs live on
	if err != nil {
		t.Fatal(err)
	}
	cpu.Close()
}

func TestEnableCapErrors(t *testing.T) {
	g := newGuest(t, nil)
	err := g.vm.EnableCap(kvm.Cap(9999))
	var missing *kvm.UnsupportedError
	if !isUnsupported(err) || !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &missing) || missing.Cap != 9999 {
		t.Errorf("EnableCap of none = %v", err)
	}
	if want := "KVM_CAP(9999)"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v does not name %s", err, want)
	}
	if err := g.cpu.EnableCap(kvm.Cap(9999)); !isUnsupported(err) {
		t.Errorf("EnableCap of none on a vCPU = %v", err)
	}
	if err := g.vm.EnableCap(kvm.CapDisableQuirks, 1, 2, 3, 4, 5); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("EnableCap with five arguments = %v", err)
	}
	if _, err := g.vm.CreateVCPU(-1); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("CreateVCPU(-1) = %v", err)
	}
	var e *kvm.Error
	if _, err := g.vm.CreateVCPU(0); !errors.As(err, &e) || e.Errno != unix.EEXIST || e.Detail != "vCPU 0" {
		t.Errorf("CreateVCPU(0) again = %v", err)
	}
	if g.cpu.ID() != 0 || g.cpu.VM() != g.vm {
		t.Error("the vCPU does not know where it belongs")
	}
}

func TestKernelSpeed(t *testing.T) {
	sys := kvmtest.Open(t)
	before := openFDs(t)
	speed, err := sys.KernelSpeed()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f million instructions a second", speed/1e6)
	if speed < 1e3 || speed > 1e12 {
		t.Error("which cannot be")
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}
