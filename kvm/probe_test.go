package kvm_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

func TestProbe(t *testing.T) {
	sys := kvmtest.Open(t)
	before := openFDs(t)
	for c := kvm.Cap(0); c < 260; c++ {
		n, err := sys.CheckExtension(c)
		if err != nil {
			t.Fatal(err)
		}
		switch err := sys.Probe(c); {
		case isUnsupported(err):
			var missing *kvm.UnsupportedError
			if !errors.As(err, &missing) || missing.Cap != c {
				t.Errorf("%v does not name %v", err, c)
			}
			if n != 0 && kvmtest.Native(t, sys) {
				t.Errorf("%v is announced, yet %v", c, err)
			} else if n != 0 {
				t.Logf("announced, yet: %v", err)
			}
		case err != nil:
			t.Errorf("Probe(%v) = %v", c, err)
		}
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
	for _, c := range []kvm.Cap{kvm.CapIRQChip, kvm.CapIRQFD, kvm.CapIOEventFD, kvm.CapImmediateExit, kvm.CapUserMemory} {
		if err := sys.Probe(c); err != nil {
			t.Error(err)
		}
	}
}

// TestProbeInconclusive makes sure that a failure for another reason is not taken for
// an answer.
func TestProbeInconclusive(t *testing.T) {
	sys := kvmtest.Open(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	err := sys.Probe(kvm.CapIRQFD)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || isUnsupported(err) {
		t.Errorf("Probe without descriptors = %v", err)
	}
	if err := sys.Probe(kvm.CapIRQFD); err != nil {
		t.Errorf("Probe with descriptors again = %v", err)
	}
}
