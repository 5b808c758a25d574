package kvmcpu

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"testing"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Test guests are a few instructions in real mode at codeBase, or in long
// mode with the first 2 MiB mapped one to one; see longMode.
const codeBase = 0x8000

// needKVM skips where there is no KVM to test on. Under the nested host that
// is a failure.
func needKVM(t testing.TB) *kvm.System {
	t.Helper()
	sys, err := kvm.Open()
	if err != nil {
		if os.Getenv("VMKIT_NESTED") == "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			t.Skipf("needs KVM: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { sys.Close() })
	return sys
}

// native reports whether the host runs kernel code on the processor.
func needNative(t testing.TB) {
	t.Helper()
	r, err := Probe("")
	if err != nil {
		t.Fatal(err)
	}
	if !r.Native {
		t.Skipf("needs a KVM that runs kernel code natively: %s", r)
	}
}

type machine struct {
	t   testing.TB
	mem *memory.Memory
	eng *Engine
	cpu *CPU
}

func newMachine(t testing.TB, size uint64, cfg Config) *machine {
	t.Helper()
	cfg.KVM = needKVM(t)
	mem, err := memory.New(memory.Config{Size: size})
	must(t, err)
	t.Cleanup(func() { must(t, mem.Close()) })
	eng, err := New(mem, cfg)
	must(t, err)
	t.Cleanup(func() { must(t, eng.Close()) })
	cpu, err := eng.NewCPU(0)
	must(t, err)
	return &machine{t, mem, eng, cpu.(*CPU)}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// real16 starts code in real mode.
func (m *machine) real16(code []byte) {
	m.t.Helper()
	must(m.t, m.mem.Write(codeBase, code))
	s := vcpu.PowerUp(true)
	s.Control.CR0 = vcpu.CR0ET
	s.Segments.CS.Base, s.Segments.CS.Selector = 0, 0
	s.Regs.RIP, s.Regs.RSP = codeBase, 0x7000
	must(m.t, m.cpu.SetState(&s))
}

// long64 starts code in long mode at CPL 0.
func (m *machine) long64(code []byte) {
	m.t.Helper()
	must(m.t, m.mem.Write(codeBase, code))
	must(m.t, writeTables(m.mem))
	s := longMode(codeBase)
	must(m.t, m.cpu.SetState(&s))
}

func (m *machine) run() vcpu.Exit {
	m.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var e vcpu.Exit
	must(m.t, m.cpu.Run(&e))
	return e
}
