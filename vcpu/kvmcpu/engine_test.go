package kvmcpu

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// TestSMP starts seven processors by INIT and SIPI, pauses all eight, moves
// each one's state out and in, and stops them.
func TestSMP(t *testing.T) { eachChips(t, testSMP) }

func testSMP(t *testing.T, chips Chips) {
	const cpus = 8
	m := newMachine(t, 4<<20, Config{CPUs: cpus, Chips: chips})
	s := m.long64(1, []byte{
		0xb9, 0x30, 0x08, 0x00, 0x00, // mov ecx, 0x830 (x2APIC ICR)
		0x31, 0xd2, // xor edx, edx
		0xb8, 0x00, 0x45, 0x0c, 0x00, // mov eax, 0xc4500: INIT, all but self
		0x0f, 0x30, // wrmsr
		0xb8, 0x09, 0x46, 0x0c, 0x00, // mov eax, 0xc4609: SIPI, page 9
		0x0f, 0x30, // wrmsr
		0xbe, 0x00, 0xa0, 0x00, 0x00, // mov esi, 0xa000
		0xf3, 0x90, // 1: pause
		0x80, 0x3e, cpus - 1, // cmp byte [rsi], cpus-1
		0x75, 0xf9, // jne 1b
		0xe6, 0x80, // out 0x80, al
		0xf4,       // 2: hlt
		0xeb, 0xfd, // jmp 2b
	})
	must(t, m.mem.Write(0x9000, []byte{
		0xf0, 0xfe, 0x06, 0x00, 0xa0, // lock inc byte [0xa000]
		0xf4,       // 1: hlt
		0xeb, 0xfd, // jmp 1b
	}))
	s.Control.APICBase |= vcpu.APICBaseX2APIC
	m.start(s)
	out := newRecorder()
	var loops []*vcpu.Loop
	var done []<-chan error
	for _, c := range m.cpus {
		l := vcpu.NewLoop(c, vcpu.LoopConfig{Ports: out})
		loops, done = append(loops, l), append(done, startLoop(t, l))
	}
	out.want(t, 0x8009)
	vcpu.PauseAll(loops...)
	for i, l := range loops {
		must(t, l.Do(func(c vcpu.CPU) error {
			var s vcpu.State
			if err := c.State(&s); err != nil {
				return err
			}
			if i > 0 && (s.Regs.RIP < 5 || s.Regs.RIP > 8 || s.Segments.CS.Base != 0x9000) {
				t.Errorf("CPU %d is %v at %#x:%#x", i, s.MP, s.Segments.CS.Base, s.Regs.RIP)
			}
			if got := s.LAPIC[0x23]; int(got) != i {
				t.Errorf("CPU %d has APIC ID %d", i, got)
			}
			return c.SetState(&s)
		}))
	}
	for _, l := range loops {
		l.Resume()
	}
	for i, l := range loops {
		l.Stop()
		must(t, <-done[i])
	}
}

func TestConfigRefused(t *testing.T) {
	sys := kvmtest.Open(t)
	mem, err := memory.New(memory.Config{Size: 1 << 20})
	must(t, err)
	defer mem.Close()
	for _, c := range []struct {
		cfg  Config
		want error
		text string
	}{
		{Config{CPUs: -1}, ErrConfig, "-1 CPUs"},
		{Config{CPUs: MaxCPUs + 1}, ErrConfig, "255 CPUs"},
		{Config{Chips: 9}, ErrConfig, "chips 9"},
		{Config{CPUs: 2, Chips: ChipsNone}, ErrConfig, "need interrupt chips"},
		{Config{Model: 77}, vcpu.ErrModel, "77"},
		{Config{CPUID: vcpu.CPUID{{Function: 1}, {Function: 1}}}, vcpu.ErrState, "twice"},
		{Config{CPUID: vcpu.CPUID{{Function: 7, Indexed: true, EDX: 1}}}, vcpu.ErrMissing, "CPUID 7.0 EDX bit 0"},
		{Config{Path: "/nonexistent"}, fs.ErrNotExist, "/nonexistent"},
		{Config{Path: os.DevNull}, nil, "/dev/null"},
	} {
		if c.cfg.Path == "" {
			c.cfg.KVM = sys
		}
		e, err := New(mem, c.cfg)
		if err == nil {
			e.Close()
		}
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%+v: %v", c.cfg, err)
		}
	}
	if _, err := New(nil, Config{}); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
	m := newMachine(t, 1<<20, Config{})
	for _, id := range []int{-1, 1} {
		if _, err := m.eng.NewCPU(id); !errors.Is(err, ErrConfig) {
			t.Errorf("CPU %d: %v", id, err)
		}
	}
}

// TestNothingLeaks makes and closes engines, whole ones and ones that fail,
// and counts what is left.
func TestNothingLeaks(t *testing.T) {
	sys := kvmtest.Open(t)
	chips := ChipsKernel
	once := func() {
		mem, err := memory.New(memory.Config{Size: 1 << 20})
		must(t, err)
		chips ^= ChipsKernel ^ ChipsUser // one and the other
		e, err := New(mem, Config{CPUs: 3, Chips: chips})
		must(t, err)
		c, err := e.NewCPU(0)
		must(t, err)
		_, err = e.NewCPU(1)
		must(t, err)
		must(t, c.Close())
		must(t, c.Close())
		d, err := e.Doorbell(0xd0000000, 4, nil)
		must(t, err)
		waiter := make(chan error)
		go func() { waiter <- d.Wait() }()
		must(t, mem.Close()) // held by the engine
		must(t, e.Close())
		must(t, e.Close())
		if err := <-waiter; !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
		if _, err := e.NewCPU(2); err == nil {
			t.Error("a CPU of a closed engine")
		}
		if _, err := e.Doorbell(0xd0000000, 4, nil); err == nil {
			t.Error("a doorbell of a closed engine")
		}
		if _, err := New(mem, Config{KVM: sys}); !errors.Is(err, memory.ErrClosed) {
			t.Errorf("closed memory: %v", err)
		}
	}
	count := func() (goroutines, fds, maps int) {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		b, err := os.ReadFile("/proc/self/maps")
		must(t, err)
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, "kvm") || strings.Contains(line, "memfd") {
				maps++
			}
		}
		return runtime.NumGoroutine(), len(entries), maps
	}
	once()
	g0, f0, m0 := count()
	for range 20 {
		once()
	}
	for range 100 { // goroutines take a moment to end
		if runtime.NumGoroutine() <= g0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if g, f, m := count(); g > g0 || f > f0 || m > m0 {
		t.Errorf("goroutines %d, was %d; descriptors %d, was %d; mappings %d, was %d", g, g0, f, f0, m, m0)
	}
}

// TestPlatform holds the pages that KVM takes and the timer's interrupt to what
// the rest of a machine knows of them.
func TestPlatform(t *testing.T) {
	if identityMapBase != platform.KVMIdentityMapBase || tssBase != platform.KVMTSSBase {
		t.Errorf("identity map %#x, TSS %#x", identityMapBase, tssBase)
	}
	if timerGSI != platform.GSITimer {
		t.Errorf("timer at input %d of the I/O APIC, want %d", timerGSI, platform.GSITimer)
	}
}
