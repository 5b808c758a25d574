// Package kvmtest helps tests that need KVM: it opens the device, skips with a
// reason where the host cannot run a test, and gives guests memory and a
// watchdog.
//
//	sys := kvmtest.Open(t)
//	vm, err := sys.CreateVM(0)
//	kvmtest.Need(t, err) // a missing capability is a skip that names it
//
// With VMKIT_REQUIRE_KVM=1 in the environment, as inside the nested KVM host,
// there is no such excuse: what would be a skip fails the test.
package kvmtest

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/kvm"
)

// RequireEnv is the environment variable that turns skips into failures when
// it is "1".
const RequireEnv = "VMKIT_REQUIRE_KVM"

// Required reports whether a test must not be skipped for lack of KVM.
func Required() bool { return os.Getenv(RequireEnv) == "1" }

// Skipf skips the test for a reason that lies in the host's KVM, or fails it
// where KVM is required.
func Skipf(t testing.TB, format string, args ...any) {
	t.Helper()
	if Required() {
		t.Fatalf(RequireEnv+"=1, yet: "+format, args...)
	}
	t.Skipf(format, args...)
}

// Open opens /dev/kvm and closes it when the test ends. Without a device,
// permission to use it, or a processor that runs x86-64 guests, the test is skipped.
func Open(t testing.TB) *kvm.System {
	t.Helper()
	sys, err := kvm.Open()
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENODEV) ||
		errors.Is(err, kvm.ErrUnsupported) {
		Skipf(t, "no KVM on this host: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sys.Close() })
	return sys
}

// Need fails the test on any error but those wrapping kvm.ErrUnsupported, which
// skip it.
func Need(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, kvm.ErrUnsupported) {
		Skipf(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// nativeSpeed divides hosts whose KVM emulates kernel code, at a million or two
// instructions a second, from those that run it, at hundreds of millions.
const nativeSpeed = 20e6

var native struct {
	sync.Mutex
	known bool
	speed float64
}

// Native reports whether the host's KVM runs guest code at CPL 0 at native
// speed, which a guest kernel needs. It measures that, once.
func Native(t testing.TB, sys *kvm.System) bool {
	t.Helper()
	native.Lock()
	defer native.Unlock()
	if !native.known {
		speed, err := sys.KernelSpeed()
		if err != nil {
			t.Fatal(err)
		}
		native.speed, native.known = speed, true
	}
	return native.speed >= nativeSpeed
}

// NeedNative skips the test unless Native.
func NeedNative(t testing.TB, sys *kvm.System) {
	t.Helper()
	if !Native(t, sys) {
		Skipf(t, "this host's KVM emulates code at CPL 0 (%.1f million instructions a second)", native.speed/1e6)
	}
}

// Run calls cpu.Run until it returns something other than EINTR and EAGAIN. A guest that
// does not leave within limit fails the test.
func Run(t testing.TB, cpu *kvm.VCPU, limit time.Duration) *kvm.Run {
	t.Helper()
	err := RunErr(cpu, limit)
	if err != nil {
		t.Fatal(err)
	}
	return cpu.RunData()
}

// ErrTimeout is the error of RunErr when the guest did not leave in time.
var ErrTimeout = errors.New("kvmtest: the guest does not leave KVM_RUN in time")

// RunErr is Run that returns the error.
func RunErr(cpu *kvm.VCPU, limit time.Duration) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stop := Watchdog(cpu, limit)
	for {
		err := cpu.Run()
		if err == unix.EINTR || err == unix.EAGAIN {
			if cpu.RunData().ImmediateExit() {
				stop()
				cpu.SetImmediateExit(false)
				return ErrTimeout
			}
			continue
		}
		if !stop() && err == nil {
			cpu.SetImmediateExit(false)
		}
		return err
	}
}

// Watchdog makes the calling thread leave cpu.Run after limit, with immediate exit
// set, unless stop is called before. Stop returns when it is certain that no more
// signal comes, and reports whether it was in time. The caller must be locked to
// its thread.
func Watchdog(cpu *kvm.VCPU, limit time.Duration) (stop func() bool) {
	tid := unix.Gettid()
	done, gone := make(chan struct{}), make(chan bool)
	go func() {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		select {
		case <-done:
			gone <- true
			return
		case <-timer.C:
		}
		// With the flag set first, the signal cannot be lost: it arrives
		// either before KVM_RUN looks at the flag, or interrupts it after.
		// SIGURG is what Go's runtime preempts with, so it has a handler.
		cpu.SetImmediateExit(true)
		_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		<-done
		gone <- false
	}()
	return func() bool { close(done); return <-gone }
}
