package kvm_test

import (
	"errors"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

func TestRunIO(t *testing.T) {
	g := newGuest(t, nil,
		0xba, 0x34, 0x12, // mov $0x1234, %dx
		0xed,             // in %dx, %ax
		0xef,             // out %ax, %dx
		0xbe, 0x00, 0x30, // mov $0x3000, %si
		0xb9, 0x04, 0x00, // mov $4, %cx
		0xf3, 0x6e, // rep outsb
		0xf4) // hlt
	copy(g.mem[0x3000:], "abcd")

	io := *g.run(kvm.ExitIO).IO()
	if io.Direction != kvm.IOIn || io.Port != 0x1234 || io.Size != 2 || io.Count != 1 {
		t.Fatalf("in: %+v", io)
	}
	copy(g.cpu.IOData(), []byte{0xcd, 0xab})
	io = *g.run(kvm.ExitIO).IO()
	if data := g.cpu.IOData(); io.Direction != kvm.IOOut || string(data) != "\xcd\xab" {
		t.Fatalf("out: %+v, %x", io, data)
	}
	var got []byte
	for len(got) < 4 { // KVM may split it
		g.run(kvm.ExitIO)
		got = append(got, g.cpu.IOData()...)
	}
	if string(got) != "abcd" {
		t.Fatalf("rep outsb: %q", got)
	}
	g.run(kvm.ExitHLT)
}

func TestRunMMIO(t *testing.T) {
	g := newGuest(t, nil,
		0x66, 0xa1, 0x00, 0x00, // mov 0, %eax
		0x66, 0xa3, 0x04, 0x00, // mov %eax, 4
		0xf4)
	sregs, err := g.cpu.Sregs()
	g.ok(err)
	sregs.DS.Base = noMemory
	g.ok(g.cpu.SetSregs(&sregs))

	m := g.run(kvm.ExitMMIO).MMIO()
	if m.PhysAddr != noMemory || m.IsWrite != 0 || len(m.Bytes()) != 4 {
		t.Fatalf("read: %+v", *m)
	}
	copy(m.Bytes(), "\x11\x22\x33\x44")
	m = g.run(kvm.ExitMMIO).MMIO()
	if m.PhysAddr != noMemory+4 || m.IsWrite != 1 || string(m.Bytes()) != "\x11\x22\x33\x44" {
		t.Fatalf("write: %+v", *m)
	}
	g.run(kvm.ExitHLT)
}

func TestRunShutdown(t *testing.T) {
	g := newGuest(t, nil, 0x0f, 0x0b) // ud2
	g.longMode()                      // without an IDT: nothing can be delivered
	g.run(kvm.ExitShutdown)
}

func TestRunAllocs(t *testing.T) {
	g := newGuest(t, nil,
		0xe6, 0xe9, // 1: out %al, $0xe9
		0xeb, 0xfc) // jmp 1b
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if n := testing.AllocsPerRun(500, func() {
		err := g.cpu.Run()
		if err == unix.EINTR {
			return
		}
		if err != nil || g.cpu.RunData().ExitReason != kvm.ExitIO || len(g.cpu.IOData()) != 1 {
			t.Fatal(err, g.cpu.RunData().ExitReason)
		}
	}); n != 0 {
		t.Errorf("an exit allocates %v times", n)
	}
	g.cpu.SetImmediateExit(true)
	if n := testing.AllocsPerRun(500, func() {
		if err := g.cpu.Run(); err != unix.EINTR {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("a return with EINTR allocates %v times", n)
	}
}

func TestImmediateExit(t *testing.T) {
	g := newGuest(t, nil, loopForever...)
	run := g.cpu.RunData()
	run.SetRequestInterruptWindow(true)
	g.cpu.SetImmediateExit(true)
	if !run.ImmediateExit() || !run.RequestInterruptWindow() {
		t.Fatal("the flags are not independent")
	}
	run.SetRequestInterruptWindow(false)
	for range 3 {
		if err := g.cpu.Run(); err != unix.EINTR {
			t.Fatalf("Run = %v, not EINTR", err)
		}
	}
	g.cpu.SetImmediateExit(false)
	if run.ImmediateExit() {
		t.Fatal("the flag stays on")
	}
	// A running guest is stopped by the flag and a signal.
	if err := kvmtest.RunErr(g.cpu, 50*time.Millisecond); err != kvmtest.ErrTimeout {
		t.Fatalf("a loop ended with %v", err)
	}
}

func TestSignalMask(t *testing.T) {
	g := newGuest(t, nil, loopForever...)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A pending signal that the thread blocks, and KVM_RUN does not.
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGUSR2)
	defer signal.Stop(c)
	var mask, old unix.Sigset_t
	mask.Val[0] = 1 << (unix.SIGUSR2 - 1)
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &mask, &old); err != nil {
		t.Fatal(err)
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	if err := unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	g.ok(g.cpu.SetSignalMask(&unix.Sigset_t{}))
	stop := kvmtest.Watchdog(g.cpu, limit)
	err := g.cpu.Run()
	if !stop() || err != unix.EINTR {
		t.Fatalf("Run = %v, not EINTR for the signal", err)
	}
	g.ok(g.cpu.SetSignalMask(nil))
}

func TestSyncRegs(t *testing.T) {
	g := newGuest(t, nil,
		0xe6, 0xe9, // out %al, $0xe9
		0xe6, 0xea, // out %al, $0xea
		0xf4)
	n, err := g.vm.CheckExtension(kvm.CapSyncRegs)
	g.ok(err)
	all := kvm.SyncRegsRegs | kvm.SyncRegsSregs | kvm.SyncRegsEvents
	if uint64(n)&all != all {
		kvmtest.Skipf(t, "%v has classes %#x only", kvm.CapSyncRegs, n)
	}
	run := g.cpu.RunData()
	run.ValidRegs = all
	g.wantOut(0xe9, 0)
	if run.Sync.Regs.RSP != 0x8000 || run.Sync.Sregs.CS.Base != 0 || run.Sync.Sregs.CR0&1 != 0 {
		t.Fatalf("%+v", run.Sync)
	}
	run.Sync.Regs.RAX = 0x77
	run.DirtyRegs = kvm.SyncRegsRegs
	g.wantOut(0xea, 0x77)
	if run.DirtyRegs != 0 {
		t.Errorf("DirtyRegs = %#x after Run", run.DirtyRegs)
	}
	run.ValidRegs = 1 << 63
	if err := g.cpu.Run(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("Run with an unknown class = %v", err)
	}
	run.ValidRegs = 0
}

func TestInterruptWindow(t *testing.T) {
	g := newGuest(t, nil, 0xfb, 0x90, 0xeb, 0xfd) // sti; 1: nop; jmp 1b
	g.vectors(outHandler...)
	run := g.cpu.RunData()
	run.SetRequestInterruptWindow(true)
	g.run(kvm.ExitIRQWindowOpen)
	if run.ReadyForInterruptInjection == 0 || run.IfFlag == 0 {
		t.Fatalf("ready %d, IF %d with an open window", run.ReadyForInterruptInjection, run.IfFlag)
	}
	run.SetRequestInterruptWindow(false)
	g.ok(g.cpu.Interrupt(0x21))
	g.wantOut(0xe9, '!')
}

func TestNMI(t *testing.T) {
	g := newGuest(t, nil, loopForever...)
	g.vectors(outHandler...)
	g.ok(g.cpu.NMI())
	events, err := g.cpu.VCPUEvents()
	g.ok(err)
	if events.NMI.Pending == 0 {
		t.Errorf("no NMI is pending: %+v", events)
	}
	g.wantOut(0xe9, '!')
}

// TestCloseWhileRunning closes everything under a running guest.
func TestCloseWhileRunning(t *testing.T) {
	g := newGuest(t, nil, loopForever...)
	var wg sync.WaitGroup
	started := make(chan int)
	var err error
	wg.Go(func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		started <- unix.Gettid()
		for {
			err = g.cpu.Run()
			if err != unix.EINTR || g.cpu.RunData().ImmediateExit() {
				return
			}
		}
	})
	tid := <-started
	time.Sleep(20 * time.Millisecond)
	g.cpu.SetImmediateExit(true)
	g.ok(g.vm.Close())
	g.ok(unix.Tgkill(unix.Getpid(), tid, unix.SIGURG))
	wg.Wait()
	if err != unix.EINTR {
		t.Fatal(err)
	}
	g.ok(g.cpu.Close())
	if err := g.cpu.Run(); !errors.Is(err, kvm.ErrClosed) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("Run of a closed vCPU = %v", err)
	}
	g.cpu.SetImmediateExit(true) // must not touch the unmapped page
	if _, err := g.cpu.Regs(); !errors.Is(err, kvm.ErrClosed) {
		t.Errorf("Regs of a closed vCPU = %v", err)
	}
	if _, err := g.vm.CreateVCPU(1); !errors.Is(err, kvm.ErrClosed) {
		t.Errorf("CreateVCPU of a closed VM = %v", err)
	}
	if err := g.cpu.Close(); !errors.Is(err, kvm.ErrClosed) {
		t.Errorf("second Close = %v", err)
	}
}

// TestCloseWaitsForRun makes sure that the descriptor number is not free for reuse
// while a call is in progress, and is afterwards.
func TestCloseWaitsForRun(t *testing.T) {
	g := newGuest(t, nil, loopForever...)
	before := openFDs(t)
	done := make(chan error)
	tids := make(chan int)
	go func() {
		runtime.LockOSThread()
		tids <- unix.Gettid()
		done <- g.cpu.Run()
	}()
	tid := <-tids
	time.Sleep(50 * time.Millisecond)
	select {
	case err := <-done:
		if err != unix.EINTR { // Go's own preemption signal may come first
			t.Fatal(err)
		}
		t.Skip("a signal came before Close could")
	default:
	}
	g.ok(g.cpu.Close())
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors while the guest runs, %d before", n, before)
	}
	for {
		_ = unix.Tgkill(unix.Getpid(), tid, unix.SIGURG)
		select {
		case err := <-done:
			if err != unix.EINTR {
				t.Errorf("Run = %v", err)
			}
			if n := openFDs(t); n != before-1 {
				t.Errorf("%d descriptors after it, not %d", n, before-1)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
