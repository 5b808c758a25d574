package kvm_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
)

// irqGuest waits for interrupts with chips in the kernel, its local APIC and PICs set
// up; each interrupt writes '!' to port 0xe9.
func irqGuest(t *testing.T) *guest {
	t.Helper()
	g := newGuest(t, func(vm *kvm.VM) { kvmtest.Need(t, vm.CreateIRQChip()) }, haltForever...)
	g.vectors(outHandler...)
	g.enableLAPIC()
	pic, err := g.vm.GetIRQChip(kvm.ChipPICMaster)
	g.ok(err)
	s := pic.PIC()
	s.IRQBase, s.IMR, s.AutoEOI, s.Init4 = 0x20, 0, 1, 1
	g.ok(g.vm.SetIRQChip(&pic))
	return g
}

// enableLAPIC sets the software enable bit of the spurious vector register, and
// virtual wire mode.
func (g *guest) enableLAPIC() {
	g.t.Helper()
	l, err := g.cpu.LAPIC()
	g.ok(err)
	binary.LittleEndian.PutUint32(l.Regs[0xf0:], 0x1ff)
	binary.LittleEndian.PutUint32(l.Regs[0x350:], 0x700) // LINT0: ExtINT
	g.ok(g.cpu.SetLAPIC(&l))
	got, err := g.cpu.LAPIC()
	g.ok(err)
	if v := binary.LittleEndian.Uint32(got.Regs[0xf0:]); v != 0x1ff {
		g.t.Errorf("the spurious vector register reads %#x", v)
	}
}

var msi = kvm.MSI{AddressLo: 0xfee00000, Data: 0x30}

func (g *guest) eoi() {
	g.t.Helper()
	// Nothing in the guest ends interrupts of the local APIC: clear its ISR.
	l, err := g.cpu.LAPIC()
	g.ok(err)
	clear(l.Regs[0x100:0x180])
	g.ok(g.cpu.SetLAPIC(&l))
}

func TestIRQLine(t *testing.T) {
	g := irqGuest(t)
	g.ok(g.vm.IRQLine(5, true))
	g.wantOut(0xe9, '!')
	g.ok(g.vm.IRQLine(5, false))
	// A second edge works too; the status says that it was delivered.
	n, err := g.vm.IRQLineStatus(5, true)
	g.ok(err)
	if n <= 0 {
		t.Errorf("IRQLineStatus = %d", n)
	}
	g.wantOut(0xe9, '!')
}

func TestIRQLineMasked(t *testing.T) {
	g := irqGuest(t)
	pic, err := g.vm.GetIRQChip(kvm.ChipPICMaster)
	g.ok(err)
	if p := pic.PIC(); p.IRQBase != 0x20 || p.IMR != 0 || p.AutoEOI != 1 {
		t.Errorf("the PIC does not keep its state: %+v", *p)
	}
	pic.PIC().IMR = 0xff
	g.ok(g.vm.SetIRQChip(&pic))
	g.ok(g.vm.IRQLine(5, true))
	if err := kvmtest.RunErr(g.cpu, 50*time.Millisecond); err != kvmtest.ErrTimeout {
		t.Errorf("a masked interrupt got through: %v", err)
	}
}

func TestIOAPIC(t *testing.T) {
	g := irqGuest(t)
	chip, err := g.vm.GetIRQChip(kvm.ChipIOAPIC)
	g.ok(err)
	if a := chip.IOAPIC().BaseAddress; a != 0xfec00000 {
		t.Errorf("the IOAPIC is at %#x", a)
	}
	chip.IOAPIC().RedirTbl[20] = 0x41 // edge, fixed, to APIC 0
	g.ok(g.vm.SetIRQChip(&chip))
	g.ok(g.vm.IRQLine(20, true))
	g.wantOut(0xe9, '!')
	chip, err = g.vm.GetIRQChip(kvm.ChipIOAPIC)
	g.ok(err)
	if e := chip.IOAPIC().RedirTbl[20]; e&0xff != 0x41 {
		t.Errorf("redirection entry 20 reads %#x", e)
	}
}

func TestSignalMSI(t *testing.T) {
	g := irqGuest(t)
	delivered, err := g.vm.SignalMSI(msi)
	g.ok(err)
	if !delivered {
		t.Error("the message was blocked")
	}
	l, err := g.cpu.LAPIC()
	g.ok(err)
	if irr := binary.LittleEndian.Uint32(l.Regs[0x210:]); irr != 1<<16 { // vectors 0x20 to 0x3f
		t.Errorf("IRR is %#x", irr)
	}
	g.wantOut(0xe9, '!')
	delivered, err = g.vm.SignalMSI(kvm.MSI{AddressLo: 0xfee07000, Data: 0x30})
	if delivered && err == nil {
		t.Error("a message to an APIC that does not exist was delivered")
	}
}

func TestGSIRouting(t *testing.T) {
	g := irqGuest(t)
	g.ok(g.vm.SetGSIRouting([]kvm.IRQRoutingEntry{
		kvm.RouteToMSI(40, msi), kvm.RouteToChip(3, kvm.ChipPICMaster, 6),
	}))
	g.ok(g.vm.IRQLine(40, true))
	g.wantOut(0xe9, '!')
	g.eoi()
	g.ok(g.vm.IRQLine(3, true))
	g.wantOut(0xe9, '!')

	err := g.vm.SetGSIRouting([]kvm.IRQRoutingEntry{kvm.RouteToChip(3, 77, 0)})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("routing to a chip that does not exist = %v", err)
	}
	if err := g.vm.SetGSIRouting(make([]kvm.IRQRoutingEntry, 5000)); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("5000 routes = %v", err)
	}
	g.ok(g.vm.SetGSIRouting(nil))
}

func eventfd(t *testing.T) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

var one = []byte{1, 0, 0, 0, 0, 0, 0, 0}

func TestIRQFD(t *testing.T) {
	g := irqGuest(t)
	g.ok(g.vm.SetGSIRouting([]kvm.IRQRoutingEntry{kvm.RouteToMSI(40, msi)}))
	fd := eventfd(t)
	irqfd := kvm.IRQFD{FD: uint32(fd), GSI: 40}
	g.ok(g.vm.IRQFD(irqfd))
	go func() {
		time.Sleep(20 * time.Millisecond) // while the guest halts
		unix.Write(fd, one)
	}()
	g.wantOut(0xe9, '!')
	g.eoi()

	irqfd.Flags = kvm.IRQFDDeassign
	g.ok(g.vm.IRQFD(irqfd))
	unix.Write(fd, one)
	if err := kvmtest.RunErr(g.cpu, 50*time.Millisecond); err != kvmtest.ErrTimeout {
		t.Errorf("an interrupt came from a disconnected eventfd: %v", err)
	}
	if err := g.vm.IRQFD(kvm.IRQFD{FD: 1 << 20, GSI: 40}); !errors.Is(err, unix.EBADF) {
		t.Errorf("IRQFD of a bad descriptor = %v", err)
	}
}

func TestIRQFDResample(t *testing.T) {
	g := irqGuest(t)
	chip, err := g.vm.GetIRQChip(kvm.ChipIOAPIC)
	g.ok(err)
	chip.IOAPIC().RedirTbl[20] = 1<<15 | 0x41 // level
	g.ok(g.vm.SetIRQChip(&chip))
	raise, resample := eventfd(t), eventfd(t)
	g.ok(g.vm.IRQFD(kvm.IRQFD{FD: uint32(raise), GSI: 20, Flags: kvm.IRQFDResample, ResampleFD: uint32(resample)}))
	unix.Write(raise, one)
	// The handler ends the interrupt by DS:0xb0, the EOI register.
	copy(g.mem[handler:], []byte{
		0xb0, '!', 0xe6, 0xe9, // mov $'!', %al; out %al, $0xe9
		0x66, 0xa3, 0xb0, 0x00, // mov %eax, 0xb0
		0xe6, 0xea, // out %al, $0xea
		0xcf})
	g.dataAt(0xfee00000)
	g.wantOut(0xe9, '!')
	if counter(resample) != 0 {
		if !kvmtest.Native(t, g.sys) {
			kvmtest.Skipf(t, "this host's KVM, which emulates code at CPL 0, does not wait for the end of an interrupt")
		}
		t.Error("resampled before the guest ended the interrupt")
	}
	g.wantOut(0xea, '!')
	if n := counter(resample); n != 1 {
		t.Errorf("resampled %d times", n)
	}
}

// dataAt sets the base of DS.
func (g *guest) dataAt(base uint64) {
	g.t.Helper()
	sregs, err := g.cpu.Sregs()
	g.ok(err)
	sregs.DS.Base = base
	g.ok(g.cpu.SetSregs(&sregs))
}

// counter reads an eventfd: how often it was signalled.
func counter(fd int) uint64 {
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

func TestIOEventFD(t *testing.T) {
	g := newGuest(t, nil,
		0xb8, 0x01, 0x00, // mov $1, %ax
		0xe7, 0x50, // out %ax, $0x50: matches
		0x40,       // inc %ax
		0xe7, 0x50, // out %ax, $0x50: other data
		0xa3, 0x10, 0x00, // mov %ax, 0x10: matches
		0xa3, 0x10, 0x00,
		0xe6, 0xe9) // out %al, $0xe9
	g.dataAt(noMemory)
	port, mem := eventfd(t), eventfd(t)
	onPort := kvm.IOEventFD{Addr: 0x50, Len: 2, FD: port, Flags: kvm.IOEventFDPIO | kvm.IOEventFDDatamatch, Datamatch: 1}
	g.ok(g.vm.IOEventFD(onPort))
	g.ok(g.vm.IOEventFD(kvm.IOEventFD{Addr: noMemory + 0x10, Len: 2, FD: mem}))

	if io := g.run(kvm.ExitIO).IO(); io.Port != 0x50 || string(g.cpu.IOData()) != "\x02\x00" {
		t.Fatalf("%+v", *io)
	}
	if n := counter(port); n != 1 {
		t.Errorf("the port signalled %d times", n)
	}
	g.wantOut(0xe9, 2)
	if n := counter(mem); n != 2 {
		t.Errorf("memory signalled %d times", n)
	}

	if err := g.vm.IOEventFD(onPort); !errors.Is(err, unix.EEXIST) {
		t.Errorf("the same again = %v", err)
	}
	onPort.Flags |= kvm.IOEventFDDeassign
	g.ok(g.vm.IOEventFD(onPort))
	if err := g.vm.IOEventFD(onPort); !errors.Is(err, unix.ENOENT) {
		t.Errorf("removing it twice = %v", err)
	}
	if err := g.vm.IOEventFD(kvm.IOEventFD{Len: 3, FD: mem}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("three bytes = %v", err)
	}
}

func TestSplitIRQChip(t *testing.T) {
	const pins = 24
	g := newGuest(t, func(vm *kvm.VM) { kvmtest.Need(t, vm.SplitIRQChip(pins)) }, haltForever...)
	g.vectors(
		0xb0, '!', 0xe6, 0xe9, // mov $'!', %al; out %al, $0xe9
		0x66, 0xa3, 0xb0, 0x00, // mov %eax, 0xb0
		0xcf)
	g.enableLAPIC()
	g.dataAt(0xfee00000)
	// Pin 20 is level-triggered, so that its end of interrupt leaves Run.
	level := kvm.MSI{AddressLo: 0xfee00000, Data: 1<<15 | 1<<14 | 0x41}
	g.ok(g.vm.SetGSIRouting([]kvm.IRQRoutingEntry{kvm.RouteToMSI(20, level), kvm.RouteToMSI(40, msi)}))
	delivered, err := g.vm.SignalMSI(level)
	g.ok(err)
	if !delivered {
		t.Error("the message was blocked")
	}
	g.wantOut(0xe9, '!')
	if v := g.run(kvm.ExitIOAPICEOI).EOI().Vector; v != 0x41 {
		t.Errorf("end of interrupt %#x", v)
	}
	fd := eventfd(t)
	g.ok(g.vm.IRQFD(kvm.IRQFD{FD: uint32(fd), GSI: 40}))
	unix.Write(fd, one)
	g.wantOut(0xe9, '!')

	if _, err := g.vm.GetIRQChip(kvm.ChipIOAPIC); !errors.Is(err, unix.ENXIO) {
		t.Errorf("GetIRQChip without one = %v", err)
	}
	if err := g.vm.SplitIRQChip(-1); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("SplitIRQChip(-1) = %v", err)
	}
}

func TestPIT(t *testing.T) {
	g := newGuest(t, func(vm *kvm.VM) {
		kvmtest.Need(t, vm.CreateIRQChip())
		kvmtest.Need(t, vm.CreatePIT2(kvm.PITSpeakerDummy))
	}, append([]byte{
		0xb0, 0x34, 0xe6, 0x43, // channel 0, both bytes, mode 2
		0xb0, 0x00, 0xe6, 0x40,
		0xb0, 0x10, 0xe6, 0x40, // count 0x1000
	}, haltForever...)...)
	g.vectors(outHandler...)
	g.enableLAPIC()
	pic, err := g.vm.GetIRQChip(kvm.ChipPICMaster)
	g.ok(err)
	s := pic.PIC()
	s.IRQBase, s.IMR, s.AutoEOI, s.Init4 = 0x20, 0, 1, 1
	g.ok(g.vm.SetIRQChip(&pic))
	g.ok(g.vm.ReinjectControl(false))
	for range 3 {
		g.wantOut(0xe9, '!')
	}
	pit, err := g.vm.GetPIT2()
	g.ok(err)
	if c := pit.Channels[0]; c.Count != 0x1000 || c.Mode != 2 || c.RWMode != 3 {
		t.Errorf("channel 0: %+v", c)
	}
	pit.Channels[0].Count = 0x2000
	pit.Channels[2].Mode = 3
	g.ok(g.vm.SetPIT2(&pit))
	got, err := g.vm.GetPIT2()
	g.ok(err)
	if got.Channels[0].Count != 0x2000 || got.Channels[2].Mode != 3 {
		t.Errorf("it does not keep its state: %+v", got)
	}
	g.wantOut(0xe9, '!')
}

func TestClock(t *testing.T) {
	g := newGuest(t, nil)
	const second = uint64(time.Second)
	g.ok(g.vm.SetClock(&kvm.ClockData{Clock: 1000 * second}))
	c, err := g.vm.GetClock()
	g.ok(err)
	if c.Clock < 999*second || c.Clock > 1060*second {
		t.Errorf("the clock is at %d s, after being set to 1000", c.Clock/second)
	}
	if err := g.vm.SetClock(&kvm.ClockData{Flags: 1 << 31}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("SetClock with an unknown flag = %v", err)
	}
}

func TestPlacement(t *testing.T) {
	g := newGuest(t, func(vm *kvm.VM) {
		kvmtest.Need(t, vm.SetIdentityMapAddr(0xfeffb000))
		kvmtest.Need(t, vm.SetTSSAddr(0xfeffc000))
		kvmtest.Need(t, vm.CreateIRQChip())
		kvmtest.Need(t, vm.SetBootCPUID(1))
	})
	if err := g.vm.SetBootCPUID(0); !errors.Is(err, unix.EBUSY) {
		t.Errorf("SetBootCPUID after a vCPU = %v", err)
	}
	if err := g.vm.SetBootCPUID(-1); !errors.Is(err, kvm.ErrInvalid) {
		t.Errorf("SetBootCPUID(-1) = %v", err)
	}
	const bsp = 1 << 8
	var got []bool
	for _, cpu := range []*kvm.VCPU{g.cpu, g.vcpu(1)} {
		s, err := cpu.Sregs()
		g.ok(err)
		got = append(got, s.APICBase&bsp != 0)
	}
	if !slices.Equal(got, []bool{false, true}) {
		t.Errorf("bootstrap processor bits: %v", got)
	}
}

// TestAllocs covers what a machine calls often, beside Run.
func TestAllocs(t *testing.T) {
	g := irqGuest(t)
	g.ok(g.vm.RegisterCoalescedMMIO(kvm.CoalescedZone{Addr: noMemory, Size: 0x1000}))
	regs, err := g.cpu.Regs()
	g.ok(err)
	var w kvm.CoalescedWrite
	area := make([]byte, kvm.XSaveMinSize)
	bitmap := make([]uint64, words)
	g.slot(kvm.MemLogDirtyPages)
	for name, f := range map[string]func() error{
		"IRQLine":       func() error { return g.vm.IRQLine(5, false) },
		"SignalMSI":     func() error { _, err := g.vm.SignalMSI(msi); return err },
		"NextCoalesced": func() error { _, err := g.cpu.NextCoalesced(&w); return err },
		"Regs":          func() error { _, err := g.cpu.Regs(); return err },
		"SetRegs":       func() error { return g.cpu.SetRegs(&regs) },
		"Sregs":         func() error { _, err := g.cpu.Sregs(); return err },
		"VCPUEvents":    func() error { _, err := g.cpu.VCPUEvents(); return err },
		"MPState":       func() error { _, err := g.cpu.MPState(); return err },
		"XSave":         func() error { return g.cpu.XSave(area) },
		"GetDirtyLog":   func() error { return g.vm.GetDirtyLog(0, bitmap) },
		"SetImmediateExit": func() error {
			g.cpu.SetImmediateExit(true)
			g.cpu.SetImmediateExit(false)
			return nil
		},
	} {
		g.ok(f())
		if n := testing.AllocsPerRun(20, func() { err = f() }); n != 0 || err != nil {
			t.Errorf("%s allocates %v times, %v", name, n, err)
		}
	}
}
