package kvmcpu

import (
	"errors"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/vcpu"
)

const (
	msiAddress = 0xfee00000 // to APIC ID 0, fixed
	lapicSVR   = 0xf0
	lapicOn    = 0x1ff
)

// interruptGuest waits in HLT with interrupts on and writes the vector of each
// to port 0x80; the local APIC is on. Vector 0x40 comes by MSI, 0x24 from line
// 4 of the PIC.
func interruptGuest(m *machine) vcpu.State {
	s := m.real16([]byte{
		0xfb,       // 1: sti
		0xf4,       // hlt
		0xeb, 0xfc, // jmp 1b
	})
	handler := func(at uint64, vector byte) {
		must(m.t, m.mem.Write(at, []byte{
			0x50,         // push ax
			0xb0, vector, // mov al, vector
			0xe6, 0x80, // out 0x80, al
			0xb0, 0x20, // mov al, 0x20
			0xe6, 0x20, // out 0x20, al: end of interrupt, PIC
			0x58, // pop ax
			0xcf, // iret
		}))
		must(m.t, m.mem.PutUint32(uint64(vector)*4, uint32(at)))
	}
	handler(0x9000, 0x40)
	handler(0x9100, 0x24)
	handler(0x9200, 0x51) // of a higher priority class
	fresh := m.state()
	s.LAPIC = fresh.LAPIC
	s.LAPIC[lapicSVR], s.LAPIC[lapicSVR+1] = lapicOn&0xff, lapicOn>>8
	return s
}

// guestLoop starts the CPU and stops it when the test ends.
func (m *machine) guestLoop(ports, mem vcpu.Bus) *vcpu.Loop {
	l := vcpu.NewLoop(m.cpu, vcpu.LoopConfig{Ports: ports, Memory: mem})
	done := startLoop(m.t, l)
	m.t.Cleanup(func() {
		l.Stop()
		if err := <-done; err != nil {
			m.t.Error(err)
		}
	})
	return l
}

// eachChips runs a test with the chips in the kernel and in user space.
func eachChips(t *testing.T, test func(t *testing.T, chips Chips)) {
	t.Run("kernel", func(t *testing.T) { test(t, ChipsKernel) })
	t.Run("user", func(t *testing.T) { test(t, ChipsUser) })
}

func TestMSI(t *testing.T) { eachChips(t, testMSI) }

func testMSI(t *testing.T, chips Chips) {
	m := newMachine(t, 1<<20, Config{Chips: chips})
	m.start(interruptGuest(m))
	out := newRecorder()
	m.guestLoop(out, nil)
	time.Sleep(20 * time.Millisecond) // let it halt
	must(t, m.eng.Signal(msiAddress, 0x40))
	out.want(t, 0x8040)
	must(t, m.eng.Signal(msiAddress, 0x51)) // the local APIC has had no EOI
	out.want(t, 0x8051)
}

func TestLine(t *testing.T) {
	eachChips(t, testLine)
	none := newMachine(t, 1<<20, Config{Chips: ChipsNone})
	if err := none.eng.Line(4).Set(true); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if err := none.eng.Signal(msiAddress, 0x40); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func testLine(t *testing.T, chips Chips) {
	m := newMachine(t, 1<<20, Config{Chips: chips})
	m.start(interruptGuest(m))
	s, err := m.eng.SaveChips()
	must(t, err)
	s.PICs[0].VectorBase, s.PICs[0].IMR = 0x20, 0xef // line 4 only
	must(t, m.eng.LoadChips(s))
	out := newRecorder()
	m.guestLoop(out, nil)
	line := m.eng.Line(4)
	for range 3 { // edge-triggered
		must(t, line.Set(true))
		out.want(t, 0x8024)
		must(t, line.Set(false))
	}
	for _, gsi := range []int{-1, pitGSI, timerGSI, 24} {
		if err := m.eng.Line(gsi).Set(true); err == nil {
			t.Errorf("line %d: no error", gsi)
		}
	}
}

// TestInterruptAllocs holds interrupts, which a block request ends with, to
// zero allocations.
func TestInterruptAllocs(t *testing.T) { eachChips(t, testInterruptAllocs) }

func testInterruptAllocs(t *testing.T, chips Chips) {
	m := newMachine(t, 1<<20, Config{Chips: chips})
	m.start(interruptGuest(m))
	line := m.eng.Line(5)
	if n := testing.AllocsPerRun(100, func() {
		if m.eng.Signal(msiAddress, 0x40) != nil || line.Set(true) != nil || line.Set(false) != nil {
			t.Fatal("failed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestDoorbell(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	m.start(m.long64(4, []byte{
		0xbe, 0x50, 0x00, 0x00, 0xd0, // mov esi, 0xd0000050
		0xe4, 0x60, // 1: in al, 0x60
		0x0f, 0xb6, 0xc0, // movzx eax, al
		0x89, 0x06, // mov [rsi], eax
		0xeb, 0xf7, // jmp 1b
	}))
	one, two := uint64(1), uint64(2)
	d1, err := m.eng.Doorbell(0xd0000050, 4, &one)
	must(t, err)
	d2, err := m.eng.Doorbell(0xd0000050, 4, &two)
	must(t, err)
	if _, err := m.eng.Doorbell(0xd0000050, 4, &two); err == nil {
		t.Error("the same doorbell twice")
	}
	if _, err := m.eng.Doorbell(0xd0000050, 3, nil); err == nil {
		t.Error("a doorbell of 3 bytes")
	}
	write := func(v byte) {
		t.Helper()
		e := m.expect(vcpu.ExitIO)
		e.Data[0] = v
	}
	write(1)
	write(2)
	write(1)
	write(3)
	if e := m.expect(vcpu.ExitMMIO); e.Addr != 0xd0000050 || e.Data[0] != 3 {
		t.Errorf("a value that no doorbell claims: %+v", e)
	}
	must(t, d1.Wait())
	must(t, d2.Wait())
	d1.Ring()
	must(t, d1.Wait())

	waiting := make(chan error, 3)
	for range 3 {
		go func() { waiting <- d1.Wait() }()
	}
	time.Sleep(10 * time.Millisecond)
	must(t, d1.Close())
	must(t, d1.Close())
	for range 3 {
		if err := <-waiting; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Wait after Close: %v", err)
		}
	}
	d1.Ring()
	write(1)
	if e := m.expect(vcpu.ExitMMIO); e.Data[0] != 1 {
		t.Errorf("the address is not free: %+v", e)
	}
	// An eventfd of the caller's counts rings and writes, and stays open.
	event, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	must(t, err)
	defer unix.Close(event)
	d3, err := m.eng.DoorbellTo(event, 0xd0000050, 4, &one)
	must(t, err)
	write(1)
	write(3)
	if e := m.expect(vcpu.ExitMMIO); e.Data[0] != 3 {
		t.Errorf("a value that no doorbell claims: %+v", e)
	}
	d3.Ring()
	must(t, d3.Close())
	count := make([]byte, 8)
	if _, err := unix.Read(event, count); err != nil || count[0] != 2 {
		t.Errorf("a write and a ring: %v, %v", count, err)
	}
	if n := testing.AllocsPerRun(100, func() {
		d2.Ring()
		if err := d2.Wait(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations in Ring and Wait", n)
	}
	must(t, m.eng.Close())
	if err := d2.Wait(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Wait after the engine's Close: %v", err)
	}
}

// BenchmarkExit is the round trip of a port access.
func BenchmarkExit(b *testing.B) {
	m := newMachine(b, 4<<20, Config{})
	m.start(m.long64(1, []byte{0xe6, 0x80, 0xeb, 0xfc})) // 1: out 0x80, al; jmp 1b
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	m.cpu.Attach()
	defer m.cpu.Detach()
	var e vcpu.Exit
	for b.Loop() {
		if err := m.cpu.Run(&e); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRawExit is the same by package kvm alone.
func BenchmarkRawExit(b *testing.B) {
	m := newMachine(b, 4<<20, Config{})
	m.start(m.long64(1, []byte{0xe6, 0x80, 0xeb, 0xfc}))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for b.Loop() {
		if err := m.cpu.v.Run(); err != nil && !errors.Is(err, unix.EINTR) {
			b.Fatal(err)
		}
	}
}

// BenchmarkKick is the time from Kick to the return of Run.
func BenchmarkKick(b *testing.B) {
	for _, g := range []struct {
		name string
		code []byte
	}{{"spin", []byte{0xeb, 0xfe}}, {"halted", []byte{0xfa, 0xf4}}} {
		b.Run(g.name, func(b *testing.B) {
			m := newMachine(b, 4<<20, Config{})
			m.start(m.long64(1, g.code))
			l := m.guestLoop(nil, nil)
			for i := 0; i < b.N; i++ {
				b.StopTimer()
				time.Sleep(200 * time.Microsecond) // let it enter the guest
				b.StartTimer()
				l.Pause()
				l.Resume()
			}
		})
	}
}

// BenchmarkMSI is the time from Signal to a halted guest's answer by a port.
func BenchmarkMSI(b *testing.B) {
	m := newMachine(b, 4<<20, Config{})
	s := interruptGuest(m)
	// The handler ends the interrupt by the x2APIC, which real mode reaches.
	must(b, m.mem.Write(0x9000, []byte{
		0x66, 0x60, // pushad
		0x66, 0xb9, 0x0b, 0x08, 0x00, 0x00, // mov ecx, 0x80b (x2APIC EOI)
		0x66, 0x31, 0xc0, // xor eax, eax
		0x66, 0x31, 0xd2, // xor edx, edx
		0x0f, 0x30, // wrmsr
		0xe6, 0x80, // out 0x80, al
		0x66, 0x61, // popad
		0xcf, // iret
	}))
	s.Control.APICBase |= vcpu.APICBaseX2APIC
	m.start(s)
	out := make(chan struct{}, 1)
	m.guestLoop(busFunc(func() { out <- struct{}{} }), nil)
	time.Sleep(20 * time.Millisecond)
	for b.Loop() {
		if err := m.eng.Signal(msiAddress, 0x40); err != nil {
			b.Fatal(err)
		}
		<-out
	}
}

type busFunc func()

func (f busFunc) Read(uint64, []byte)  {}
func (f busFunc) Write(uint64, []byte) { f() }

// TestTicks: the PIT's interrupts come, one after the other, to a guest that waits in
// HLT and to one that spins.
func TestTicks(t *testing.T) { eachChips(t, testTicks) }

func testTicks(t *testing.T, chips Chips) {
	for name, wait := range map[string]byte{"halted": 0xf4, "spinning": 0x90} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t, 1<<20, Config{Chips: chips})
			s := interruptGuest(m)
			must(t, m.mem.Write(codeBase+1, []byte{wait}))
			must(t, m.mem.PutUint32(0x20*4, 0x9100)) // IRQ 0: as 4
			m.start(s)
			c, err := m.eng.SaveChips()
			must(t, err)
			c.PICs[0].VectorBase, c.PICs[0].IMR = 0x20, 0xfe
			c.PIT.Channels[0] = vcpu.PITChannel{Count: 1193, Mode: 2, RWMode: 3, ReadState: 3, WriteState: 3, Gate: true}
			must(t, m.eng.LoadChips(c))
			out := newRecorder()
			m.guestLoop(out, nil)
			begin := time.Now()
			for range 50 {
				out.want(t, 0x8024)
			}
			t.Logf("50 ticks of 1 ms in %v", time.Since(begin))
		})
	}
}

// TestUserChipsAllocs holds accesses to chips in user space to zero allocations: the
// deadline timer, an end of interrupt, ports, the I/O APIC.
func TestUserChipsAllocs(t *testing.T) {
	m := newMachine(t, 8<<20, Config{Chips: ChipsUser})
	s := m.long64(4, []byte{
		0xb9, 0xe0, 0x06, 0x00, 0x00, // 1: mov ecx, 0x6e0 (IA32_TSC_DEADLINE)
		0x0f, 0x31, // rdtsc
		0xff, 0xc2, // inc edx: far away
		0x0f, 0x30, // wrmsr
		0xbe, 0xb0, 0x00, 0xe0, 0xfe, // mov esi, 0xfee000b0
		0x89, 0x06, // mov [rsi], eax: end of interrupt
		0xbe, 0x10, 0x00, 0xc0, 0xfe, // mov esi, 0xfec00010
		0x8b, 0x06, // mov eax, [rsi]
		0xe4, 0x40, // in al, 0x40
		0xe6, 0x80, // out 0x80, al
		0xeb, 0xde, // jmp 1b
	})
	s.LAPIC = m.state().LAPIC
	s.LAPIC[lapicSVR], s.LAPIC[lapicSVR+1] = lapicOn&0xff, lapicOn>>8
	s.LAPIC[0x322] = 4 // LVT timer: TSC deadline, not masked
	m.start(s)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var e vcpu.Exit
	var due int64
	if n := testing.AllocsPerRun(200, func() {
		if err := m.cpu.Run(&e); err != nil || e.Reason != vcpu.ExitIO {
			t.Fatal(err, e)
		}
		if next := m.eng.user.Next(); next == due || next > 1<<60 {
			t.Fatalf("the timer is due at %d, before at %d", next, due)
		} else {
			due = next
		}
	}); n != 0 {
		t.Errorf("%v allocations in Run", n)
	}
}
