package x86diff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
)

// KVM runs cases at CPL 3 on hardware: registers pass through the page that the
// kernel shares, so that a case costs three system calls. One
// goroutine at a time may use it.
type KVM struct {
	*guest
	eng   *kvmcpu.Engine
	cpu   *kvmcpu.CPU
	v     *kvm.VCPU
	sregs kvm.Sregs
	xsave []byte

	count atomic.Uint64 // cases begun, for the watchdog
	tid   atomic.Int64
	stop  chan struct{}
}

// caseTime is how long a case may take: it is a few instructions.
const caseTime = 2 * time.Second

// NewKVM makes a machine for cases.
func NewKVM(sys *kvm.System) (_ *KVM, err error) {
	mem, err := memory.New(memory.Config{Size: MemorySize})
	if err != nil {
		return nil, err
	}
	k := &KVM{}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.Close(), mem.Close())
		}
	}()
	if k.guest, err = newGuest(mem); err != nil {
		return nil, err
	}
	if k.eng, err = kvmcpu.New(mem, kvmcpu.Config{KVM: sys, Chips: kvmcpu.ChipsNone}); err != nil {
		return nil, err
	}
	cpu, err := k.eng.NewCPU(0)
	if err != nil {
		return nil, err
	}
	k.cpu = cpu.(*kvmcpu.CPU)
	k.v = k.cpu.VCPU()
	s := startState(3)
	if err := k.cpu.SetState(&s); err != nil {
		return nil, err
	}
	if k.sregs, err = k.v.Sregs(); err != nil {
		return nil, err
	}
	n, err := k.v.XSaveSize()
	if err != nil {
		return nil, err
	}
	k.xsave = make([]byte, n)
	k.stop = make(chan struct{})
	go k.watch(k.stop)
	return k, nil
}

// watch interrupts a case that does not end, until stop is closed.
func (k *KVM) watch(stop <-chan struct{}) {
	tick := time.NewTicker(caseTime)
	defer tick.Stop()
	last := uint64(0)
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		n := k.count.Load()
		if n == last && n&1 != 0 {
			k.v.SetImmediateExit(true)
			_ = unix.Tgkill(unix.Getpid(), int(k.tid.Load()), unix.SIGURG)
		}
		last = n
	}
}

// Close releases the machine.
func (k *KVM) Close() error {
	if k.stop != nil {
		close(k.stop)
		k.stop = nil
	}
	var errs []error
	if k.eng != nil {
		errs = append(errs, k.eng.Close())
	}
	if k.guest != nil {
		errs = append(errs, k.mem.Close())
	}
	return errors.Join(errs...)
}

// Run runs a case.
func (k *KVM) Run(c *Case, out *Outcome) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := k.place(c); err != nil {
		return err
	}
	in := c.Input()
	r := k.v.RunData()
	r.Sync.Regs = kvm.Regs(in.Regs)
	r.Sync.Sregs = k.sregs
	r.Sync.Sregs.FS.Base, r.Sync.Sregs.GS.Base = in.FSBase, in.GSBase
	r.DirtyRegs = kvm.SyncRegsRegs | kvm.SyncRegsSregs
	r.ValidRegs = kvm.SyncRegsRegs | kvm.SyncRegsSregs
	copy(k.xsave, in.FX[:])
	clear(k.xsave[512:])
	binary.LittleEndian.PutUint64(k.xsave[512:], 3)
	if err := k.v.SetXSave(k.xsave); err != nil {
		return err
	}
	k.tid.Store(int64(unix.Gettid()))
	k.count.Add(1)
	err := k.v.Run()
	for err == unix.EINTR && !r.ImmediateExit() {
		err = k.v.Run()
	}
	k.count.Add(1)
	hung := err == unix.EINTR
	if hung {
		r.SetImmediateExit(false)
	} else if err != nil {
		return err
	}
	regs := vcpu.Registers(r.Sync.Regs)
	k.finish(c, out, &regs, r.Sync.Sregs.CR2)
	switch {
	case hung:
		out.Vector = Hung
	case r.ExitReason == kvm.ExitIO:
	case r.ExitReason == kvm.ExitShutdown:
		out.Vector = Shutdown
	default:
		out.Vector, out.Err = Failed, fmt.Errorf("%v at %#x", r.ExitReason, regs.RIP)
	}
	if err := k.v.XSave2(k.xsave); err != nil {
		return err
	}
	fromXSAVE(&out.FX, k.xsave)
	out.Doubtful = doubtful(c, out)
	if err := k.changes(out); err != nil {
		return err
	}
	return k.clean(c)
}

// fromXSAVE takes the legacy region of an XSAVE area, with the components that
// are in their initial state filled in.
func fromXSAVE(fx *[512]byte, area []byte) {
	copy(fx[:], area)
	bv := binary.LittleEndian.Uint64(area[512:])
	if bv&1 == 0 {
		mxcsr := [8]byte(fx[24:32])
		clear(fx[:160])
		copy(fx[24:], mxcsr[:])
		binary.LittleEndian.PutUint16(fx[:], 0x37f)
	}
	if bv&2 == 0 {
		clear(fx[160:416])
	}
}
