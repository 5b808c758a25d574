package kvmcpu

import (
	"runtime"
	"testing"
	"time"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Test guests are a few instructions at codeBase, in real mode or in long mode
// at CPL 0 with memory mapped one to one.
const (
	codeBase  = 0x8000
	stackTop  = 0x7000
	dataBase  = 0xa000
	tableBase = 0x100000 // page tables of long64
)

type machine struct {
	t    testing.TB
	mem  *memory.Memory
	eng  *Engine
	cpus []*CPU
	cpu  *CPU // the first
}

func newMachine(t testing.TB, size uint64, cfg Config) *machine {
	t.Helper()
	cfg.KVM = kvmtest.Open(t)
	mem, err := memory.New(memory.Config{Size: size})
	must(t, err)
	t.Cleanup(func() { must(t, mem.Close()) })
	eng, err := New(mem, cfg)
	must(t, err)
	t.Cleanup(func() { must(t, eng.Close()) })
	m := &machine{t: t, mem: mem, eng: eng}
	for i := range eng.CPUs() {
		c, err := eng.NewCPU(i)
		must(t, err)
		m.cpus = append(m.cpus, c.(*CPU))
	}
	m.cpu = m.cpus[0]
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// real16 is the state in which code in real mode starts.
func (m *machine) real16(code []byte) vcpu.State {
	m.t.Helper()
	must(m.t, m.mem.Write(codeBase, code))
	s := vcpu.PowerUp(true)
	s.Control.CR0 = vcpu.CR0ET
	s.Segments.CS.Base, s.Segments.CS.Selector = 0, 0
	s.Regs.RIP, s.Regs.RSP = codeBase, stackTop
	return s
}

// long64 is the state in which code in long mode starts, with the first gib GiB
// mapped one to one.
func (m *machine) long64(gib int, code []byte) vcpu.State {
	m.t.Helper()
	must(m.t, m.mem.Write(codeBase, code))
	pml4, pdpt, pd := uint64(tableBase), uint64(tableBase+0x1000), uint64(tableBase+0x2000)
	must(m.t, m.mem.PutUint64(pml4, pdpt|3))
	for i := range uint64(gib) {
		must(m.t, m.mem.PutUint64(pdpt+8*i, pd+i<<12|3))
		for j := range uint64(512) {
			must(m.t, m.mem.PutUint64(pd+i<<12+8*j, i<<30|j<<21|0x83))
		}
	}
	s := longMode(codeBase)
	s.Control.CR3 = pml4
	return s
}

func (m *machine) start(s vcpu.State) {
	m.t.Helper()
	must(m.t, m.cpu.SetState(&s))
}

// run is one Run of the first CPU, with a limit.
func (m *machine) run() vcpu.Exit {
	m.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	watchdog := time.AfterFunc(20*time.Second, m.cpu.Kick)
	defer watchdog.Stop()
	var e vcpu.Exit
	must(m.t, m.cpu.Run(&e))
	return e
}

// expect runs up to an exit of the given reason.
func (m *machine) expect(want vcpu.Reason) vcpu.Exit {
	m.t.Helper()
	e := m.run()
	if e.Reason != want {
		m.t.Fatalf("exit %+v, want reason %d", e, want)
	}
	return e
}

func (m *machine) state() vcpu.State {
	m.t.Helper()
	var s vcpu.State
	must(m.t, m.cpu.State(&s))
	return s
}

// recorder is a bus that keeps what is written and tells when.
type recorder struct {
	ch chan uint64 // address<<8 | first byte
}

func newRecorder() *recorder { return &recorder{make(chan uint64, 1000)} }

func (r *recorder) Read(_ uint64, p []byte) { clear(p) }
func (r *recorder) Write(addr uint64, p []byte) {
	select {
	case r.ch <- addr<<8 | uint64(p[0]):
	default:
	}
}

func (r *recorder) want(t testing.TB, v uint64) {
	t.Helper()
	select {
	case got := <-r.ch:
		if got != v {
			t.Fatalf("the guest wrote %#x, want %#x", got, v)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("the guest does not write %#x", v)
	}
}
