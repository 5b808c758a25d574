package kvmcpu

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

var kicks = flag.Int("kicks", 0, "kicks of each kick test; 0 is as many as a second allows")

func TestPorts(t *testing.T) {
	for _, chips := range []Chips{ChipsKernel, ChipsNone} {
		m := newMachine(t, 1<<20, Config{Chips: chips})
		must(t, m.mem.Write(dataBase, []byte("abcd")))
		m.start(m.real16([]byte{
			0xb0, 0x41, // mov al, 'A'
			0xe6, 0x80, // out 0x80, al
			0xba, 0x34, 0x12, // mov dx, 0x1234
			0xed,       // in ax, dx
			0xe7, 0x82, // out 0x82, ax
			0xbe, 0x00, 0xa0, // mov si, 0xa000
			0xb9, 0x04, 0x00, // mov cx, 4
			0xf3, 0x6e, // rep outsb
			0xf4, // hlt
		}))
		if e := m.expect(vcpu.ExitIO); e.Port != 0x80 || !e.Write || string(e.Data) != "A" {
			t.Fatalf("%+v", e)
		}
		e := m.expect(vcpu.ExitIO)
		if e.Port != 0x1234 || e.Write || e.Size != 2 || len(e.Data) != 2 {
			t.Fatalf("%+v", e)
		}
		copy(e.Data, "xy")
		if e := m.expect(vcpu.ExitIO); e.Port != 0x82 || string(e.Data) != "xy" {
			t.Fatalf("%+v", e)
		}
		var got []byte
		for len(got) < 4 {
			e := m.expect(vcpu.ExitIO)
			if e.Port != 0x1234 || !e.Write || e.Size != 1 || int(e.Count) != len(e.Data) {
				t.Fatalf("%+v", e)
			}
			got = append(got, e.Data...)
		}
		if string(got) != "abcd" {
			t.Fatalf("rep outsb wrote %q", got)
		}
		if chips == ChipsNone {
			m.expect(vcpu.ExitHalt)
		}
	}
}

func TestMMIO(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	m.start(m.long64(4, []byte{
		0xbe, 0x00, 0x10, 0x00, 0xd0, // mov esi, 0xd0001000
		0x8b, 0x06, // mov eax, [rsi]
		0x48, 0x89, 0x46, 0x08, // mov [rsi+8], rax
		0x66, 0x89, 0x46, 0x11, // mov [rsi+0x11], ax
		0x88, 0x46, 0x10, // mov [rsi+0x10], al
		0xf4,
	}))
	e := m.expect(vcpu.ExitMMIO)
	if e.Write || e.Addr != 0xd0001000 || len(e.Data) != 4 {
		t.Fatalf("%+v", e)
	}
	binary.LittleEndian.PutUint32(e.Data, 0x87654321)
	for _, want := range []struct {
		addr uint64
		data string
	}{{0xd0001008, "\x21\x43\x65\x87\x00\x00\x00\x00"}, {0xd0001011, "\x21\x43"}, {0xd0001010, "\x21"}} {
		if e := m.expect(vcpu.ExitMMIO); !e.Write || e.Addr != want.addr || string(e.Data) != want.data {
			t.Fatalf("%+v, want %+v", e, want)
		}
	}
}

func TestTripleFault(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	s := m.long64(1, []byte{0x0f, 0x0b}) // ud2
	s.IDT = vcpu.Table{}                 // no handler, nor for what follows
	m.start(s)
	m.expect(vcpu.ExitShutdown)
}

func TestSingleStep(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	m := newMachine(t, 4<<20, Config{})
	m.start(m.long64(1, []byte{
		0x90,       // nop
		0xff, 0xc0, // inc eax
		0xe6, 0x80, // out 0x80, al
		0x90,       // nop
		0xeb, 0xfe, // jmp .
	}))
	l := vcpu.NewLoop(m.cpu, vcpu.LoopConfig{Ports: newRecorder()})
	for _, want := range []uint64{1, 3, 5, 6, 6} {
		e, err := l.Step(t.Context())
		if err != nil || e.Reason != vcpu.ExitDebug || e.Addr != codeBase+want {
			t.Fatalf("%+v, %v; want a stop at +%d", e, err, want)
		}
	}
	// And on its way again.
	l2 := startLoop(t, l)
	must(t, l.Do(func(c vcpu.CPU) error { return nil }))
	l.Stop()
	must(t, <-l2)
}

func startLoop(t testing.TB, l *vcpu.Loop) <-chan error {
	done := make(chan error, 1)
	go func() {
		r, err := l.Run(context.Background()) // t.Context ends before clean-ups
		if err == nil && r != vcpu.ExitNone {
			err = errors.New("the guest ended by itself")
		}
		done <- err
	}()
	return done
}

// TestExitAllocs holds the exit path to zero allocations.
func TestExitAllocs(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	m.start(m.long64(4, []byte{
		0xbe, 0x00, 0x10, 0x00, 0xd0, // mov esi, 0xd0001000
		0xe6, 0x80, // 1: out 0x80, al
		0x89, 0x06, // mov [rsi], eax
		0xeb, 0xfa, // jmp 1b
	}))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var e vcpu.Exit
	if n := testing.AllocsPerRun(200, func() {
		if err := m.cpu.Run(&e); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations in Run", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		m.cpu.Kick()
		for e.Reason = vcpu.ExitNone; e.Reason != vcpu.ExitKick; {
			if err := m.cpu.Run(&e); err != nil {
				t.Fatal(err)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations in Kick", n)
	}
}

// TestNoKickLost kicks at every possible moment: the guest spins, exits all the
// time, or sleeps in HLT.
func TestNoKickLost(t *testing.T) { eachChips(t, testNoKickLost) }

func testNoKickLost(t *testing.T, chips Chips) {
	for _, g := range []struct {
		name string
		code []byte
	}{
		{"spin", []byte{0xeb, 0xfe}},                          // jmp .
		{"exits", []byte{0xe6, 0x80, 0xeb, 0xfc}},             // out 0x80, al; jmp
		{"halted", []byte{0xfa, 0xf4, 0xeb, 0xfd}},            // cli; hlt; jmp
		{"mixed", []byte{0x90, 0x90, 0xe6, 0x80, 0xeb, 0xfa}}, // nop; nop; out; jmp
	} {
		t.Run(g.name, func(t *testing.T) {
			m := newMachine(t, 4<<20, Config{Chips: chips})
			m.start(m.long64(1, g.code))
			acks := make(chan struct{}, 1)
			var stop atomic.Bool
			done := make(chan error, 1)
			go func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				m.cpu.Attach()
				defer m.cpu.Detach()
				var e vcpu.Exit
				for !stop.Load() {
					if err := m.cpu.Run(&e); err != nil {
						done <- err
						return
					}
					if e.Reason == vcpu.ExitKick {
						acks <- struct{}{}
					}
				}
				done <- nil
			}()
			start := time.Now()
			i := 0
			for ; i < *kicks || *kicks == 0 && time.Since(start) < time.Second; i++ {
				m.cpu.Kick()
				select {
				case <-acks:
				case err := <-done:
					t.Fatal(err)
				case <-time.After(10 * time.Second):
					t.Fatalf("kick %d was lost", i)
				}
			}
			t.Logf("%d kicks, %v each", i, time.Since(start)/time.Duration(i))
			stop.Store(true)
			m.cpu.Kick()
			must(t, <-done) // the last ack may stay in the channel
		})
	}
}

// TestStateCompletesAccess reads the state right after an exit, before the
// next Run: the IN must have happened.
func TestStateCompletesAccess(t *testing.T) {
	m := newMachine(t, 1<<20, Config{})
	m.start(m.real16([]byte{
		0xe4, 0x60, // in al, 0x60
		0xe6, 0x80, // out 0x80, al
		0xf4,
	}))
	e := m.expect(vcpu.ExitIO)
	e.Data[0] = 0x5a
	m.cpu.Kick() // must survive
	s := m.state()
	if s.Regs.RAX&0xff != 0x5a || s.Regs.RIP != codeBase+2 {
		t.Fatalf("RAX %#x, RIP %#x", s.Regs.RAX, s.Regs.RIP)
	}
	m.expect(vcpu.ExitKick)
	if e := m.expect(vcpu.ExitIO); e.Data[0] != 0x5a {
		t.Fatalf("%+v", e)
	}
	if s := m.state(); s.Regs.RIP != codeBase+4 {
		t.Fatalf("RIP %#x", s.Regs.RIP)
	}
}

// TestStateSplitAccess: an access across two pages without memory comes in two
// exits, and there is no state between them.
func TestStateSplitAccess(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	m.start(m.long64(4, []byte{
		0xbe, 0xfe, 0x1f, 0x00, 0xd0, // mov esi, 0xd0001ffe
		0x89, 0x06, // mov [rsi], eax
		0xf4,
	}))
	m.expect(vcpu.ExitMMIO)
	var s vcpu.State
	if err := m.cpu.State(&s); !errors.Is(err, ErrPending) {
		t.Fatalf("State between two halves: %v", err)
	}
}

func TestLoopOnKVM(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	must(t, m.mem.PutUint64(dataBase, 0))
	m.start(m.long64(1, []byte{
		0xbe, 0x00, 0xa0, 0x00, 0x00, // mov esi, 0xa000
		0x48, 0xff, 0x06, // 1: inc qword [rsi]
		0xe6, 0x80, // out 0x80, al
		0xeb, 0xf9, // jmp 1b
	}))
	l := vcpu.NewLoop(m.cpu, vcpu.LoopConfig{})
	done := startLoop(t, l)
	var last uint64
	for range 300 {
		l.Pause()
		a, err := m.mem.Uint64(dataBase)
		must(t, err)
		must(t, l.Do(func(c vcpu.CPU) error {
			var s vcpu.State
			if err := c.State(&s); err != nil {
				return err
			}
			return c.SetState(&s)
		}))
		b, err := m.mem.Uint64(dataBase)
		must(t, err)
		if a != b || a < last {
			t.Fatalf("it ran while paused: %d, %d after %d", a, b, last)
		}
		last = a
		l.Resume()
	}
	for a := last; a == last; { // it still goes
		time.Sleep(time.Millisecond)
		var err error
		a, err = m.mem.Uint64(dataBase)
		must(t, err)
	}
	l.Stop()
	must(t, <-done)
}

func TestGuestErrorNamesInstruction(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	// Run from where there is no memory: KVM would have to emulate.
	m.start(m.long64(4, []byte{
		0xb8, 0x00, 0x00, 0x00, 0xd0, // mov eax, 0xd0000000
		0xff, 0xe0, // jmp rax
	}))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	watchdog := time.AfterFunc(20*time.Second, m.cpu.Kick)
	defer watchdog.Stop()
	var e vcpu.Exit
	err := m.cpu.Run(&e)
	var g *GuestError
	if !errors.As(err, &g) || g.Exit != kvm.ExitInternalError || g.RIP != 0xd0000000 {
		t.Fatalf("exit %+v, error %v", e, err)
	}
	if !strings.Contains(err.Error(), "suberror 1") || !strings.Contains(err.Error(), "RIP 0xd0000000") {
		t.Error(err)
	}
}

func TestHotAdd(t *testing.T) {
	m := newMachine(t, 4<<20, Config{})
	const base = 0x40000000
	m.start(m.long64(2, []byte{
		0xbe, 0x00, 0x00, 0x00, 0x40, // mov esi, base
		0x8b, 0x06, // mov eax, [rsi]: none there yet
		0xe6, 0x80, // out 0x80, al
		0x8b, 0x06, // mov eax, [rsi]
		0xe6, 0x80, // out 0x80, al
		0xf4,
	}))
	e := m.expect(vcpu.ExitMMIO)
	copy(e.Data, "xxxx")
	m.expect(vcpu.ExitIO)
	_, err := m.mem.AddRegion(base, 1<<20)
	must(t, err)
	must(t, m.mem.PutUint32(base, 0x77))
	if e := m.expect(vcpu.ExitIO); e.Data[0] != 0x77 {
		t.Fatalf("%+v", e)
	}
	if _, err := m.mem.AddRegion(identityMapBase, memory.PageSize); !errors.Is(err, ErrConfig) {
		t.Errorf("memory over KVM's own pages: %v", err)
	}
}

// TestHugeMemory has a guest write and read the first and the last page of
// 256 GiB of sparse memory.
func TestHugeMemory(t *testing.T) {
	const gib = 256
	m := newMachine(t, gib<<30, Config{})
	regions := m.mem.Regions()
	last := regions[len(regions)-1].End() - 8
	code := []byte{
		0x48, 0xbe, 0, 0, 0, 0, 0, 0, 0, 0, // mov rsi, last
		0x31, 0xff, // xor edi, edi
		0x48, 0xff, 0x06, // inc qword [rsi]
		0x48, 0xff, 0x07, // inc qword [rdi]
		0x8b, 0x06, // mov eax, [rsi]
		0x03, 0x07, // add eax, [rdi]
		0xe6, 0x80, // out 0x80, al
		0xf4,
	}
	binary.LittleEndian.PutUint64(code[2:], last)
	must(t, m.mem.PutUint64(last, 40))
	must(t, m.mem.PutUint64(0, 50))
	m.start(m.long64(gib+1, code))
	if e := m.expect(vcpu.ExitIO); e.Data[0] != 92 {
		t.Fatalf("%+v", e)
	}
	if v, err := m.mem.Uint64(last); v != 41 || err != nil {
		t.Fatal(v, err)
	}
}

func TestDirtyLog(t *testing.T) {
	m := newMachine(t, 64<<20, Config{})
	s := m.long64(1, []byte{
		0xc6, 0x06, 0x01, // 1: mov byte [rsi], 1
		0xe6, 0x80, // out 0x80, al
		0xeb, 0xf9, // jmp 1b
	})
	m.start(s)
	write := func(addr uint64) {
		t.Helper()
		s := m.state()
		s.Regs.RSI = addr
		m.start(s)
		m.expect(vcpu.ExitIO)
	}
	write(0x200000)
	must(t, m.mem.StartDirty())
	for round := range 3 {
		want := map[uint64]bool{}
		for _, page := range []uint64{0x300, 0x301, 0x33f, 0x340, 0x1000, 0x3fff} {
			addr := (page + uint64(round)%2) << 12 % (64 << 20)
			write(addr + 5)
			want[addr] = true
		}
		var b memory.Bitmap
		must(t, m.mem.CollectDirty(&b))
		if n := countDirty(&b); n != uint64(len(want)) {
			t.Errorf("round %d: %d pages dirty, want %d", round, n, len(want))
		}
		for addr := range want {
			if !b.Test(addr) {
				t.Errorf("round %d: page %#x is not dirty", round, addr)
			}
		}
	}
	// A region added meanwhile is logged from the start.
	const base = 0x10000000
	_, err := m.mem.AddRegion(base, 1<<20)
	must(t, err)
	write(base + 0x5000)
	var b memory.Bitmap
	must(t, m.mem.CollectDirty(&b))
	if n := countDirty(&b); n != 1 || !b.Test(base+0x5000) {
		t.Errorf("%d dirty pages, one is the new region's: %v", n, b.Test(base+0x5000))
	}
	must(t, m.mem.StopDirty())
	write(0x200000)
	must(t, m.mem.StartDirty())
	b.Clear()
	must(t, m.mem.CollectDirty(&b))
	if countDirty(&b) != 0 {
		t.Errorf("%d pages left from before", b.Count())
	}
	must(t, m.mem.StopDirty())
}

// countDirty leaves out the page tables, in which the processor itself sets
// accessed and dirty bits.
func countDirty(b *memory.Bitmap) uint64 {
	b.Unset(tableBase, 0x4000)
	return b.Count()
}

func TestProbe(t *testing.T) {
	sys := kvmtest.Open(t)
	r, err := Probe("")
	must(t, err)
	t.Log(r)
	if r.MIPS <= 0 || r.Native != (r.Reason == "") || r.Native != kvmtest.Native(t, sys) {
		t.Errorf("%+v", r)
	}
	if _, err := Probe("/nonexistent"); err == nil {
		t.Error("no error for no KVM")
	}
}
