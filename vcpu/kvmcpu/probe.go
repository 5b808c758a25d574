package kvmcpu

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
)

// Report says what a host's KVM can do, found out by trying.
type Report struct {
	// Native says that code at CPL 0 runs on the processor, so that a
	// kernel can boot.
	Native bool
	// MIPS is how many million instructions a second a loop at CPL 0 ran:
	// hundreds or more on a processor, about one under an emulator.
	MIPS float64
	// Reason says in plain words why Native is false: the first thing that
	// was found.
	Reason string
}

// String is one line about the host.
func (r Report) String() string {
	if r.Native {
		return fmt.Sprintf("KVM runs kernel code natively (%.0f million instructions a second)", r.MIPS)
	}
	return "KVM cannot run a kernel here: " + r.Reason
}

const (
	nativeMIPS = 20
	probeLimit = 2 * time.Second // for one program
)

// probePrograms are instructions that every kernel uses and some KVMs lack.
var probePrograms = []struct {
	name string
	code []byte
}{
	{"CMPXCHG16B", []byte{
		0xbe, 0x00, 0xa0, 0x00, 0x00, // mov esi, 0xa000
		0x31, 0xc0, 0x31, 0xd2, // xor eax, eax; xor edx, edx
		0x48, 0x0f, 0xc7, 0x0e, // cmpxchg16b [rsi]
		0xf4, // hlt
	}},
	{"FXRSTOR", []byte{
		0xbe, 0x00, 0xa0, 0x00, 0x00, // mov esi, 0xa000
		0x0f, 0xae, 0x06, // fxsave [rsi]
		0x0f, 0xae, 0x0e, // fxrstor [rsi]
		0xf4, // hlt
	}},
	{"INVLPG", []byte{
		0xbe, 0x00, 0xa0, 0x00, 0x00, // mov esi, 0xa000
		0x0f, 0x01, 0x3e, // invlpg [rsi]
		0xf4, // hlt
	}},
}

// Probe finds out whether the KVM at path (/dev/kvm if empty) can run a kernel,
// by running kernel code: a loop, which it times, and instructions that
// kernels need, up to the first clear no. It takes some milliseconds, or some
// tens of them where kernel code is emulated. The error says that there is no KVM
// to ask; it wraps fs.ErrNotExist or fs.ErrPermission where that is the cause.
func Probe(path string) (Report, error) {
	if path == "" {
		path = kvm.DevicePath
	}
	sys, err := kvm.OpenPath(path)
	if err != nil {
		return Report{}, err
	}
	defer sys.Close()
	speed, err := sys.KernelSpeed()
	r := Report{MIPS: speed / 1e6}
	switch {
	case err != nil:
		r.Reason = fmt.Sprintf("a loop at CPL 0 failed: %v", err)
		return r, nil
	case r.MIPS < nativeMIPS:
		r.Reason = fmt.Sprintf("code at CPL 0 runs at %.1f million instructions a second, so it is emulated", r.MIPS)
		return r, nil
	}
	if err := probeInstructions(sys); err != nil {
		r.Reason = err.Error()
		return r, nil
	}
	r.Native = true
	return r, nil
}

// probeInstructions runs the probe programs up to the first that fails.
func probeInstructions(sys *kvm.System) error {
	mem, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		return err
	}
	defer mem.Close()
	eng, err := New(mem, Config{KVM: sys, Chips: ChipsNone})
	if err != nil {
		return err
	}
	defer eng.Close()
	cpu, err := eng.NewCPU(0)
	if err != nil {
		return err
	}
	if err := writeTables(mem); err != nil {
		return err
	}
	for _, p := range probePrograms {
		if err := probeRun(mem, cpu, p.code); err != nil {
			return fmt.Errorf("%s failed: %w", p.name, err)
		}
	}
	return nil
}

// probeRun runs code at CPL 0 up to its HLT.
func probeRun(mem *memory.Memory, cpu vcpu.CPU, code []byte) error {
	const entry = 0x8000
	if err := mem.Write(entry, code); err != nil {
		return err
	}
	s := longMode(entry)
	if err := cpu.SetState(&s); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	timer := time.AfterFunc(probeLimit, cpu.Kick)
	defer timer.Stop()
	var exit vcpu.Exit
	if err := cpu.Run(&exit); err != nil {
		return err
	}
	switch exit.Reason {
	case vcpu.ExitHalt:
		return nil
	case vcpu.ExitKick:
		return fmt.Errorf("it does not end within %v", probeLimit)
	case vcpu.ExitShutdown:
		return errors.New("it ends in a triple fault")
	}
	return fmt.Errorf("it ends in exit %d", exit.Reason)
}

// The page tables that writeTables makes: one page of each level.
const (
	tablePML4 = 0x1000
	tablePDPT = 0x2000
	tablePD   = 0x3000
)

// writeTables maps the first 2 MiB one to one, writable.
func writeTables(mem *memory.Memory) error {
	return errors.Join(
		mem.PutUint64(tablePML4, tablePDPT|3),
		mem.PutUint64(tablePDPT, tablePD|3),
		mem.PutUint64(tablePD, 0x83)) // a large page
}

// longMode is the state of a CPU in 64-bit mode at CPL 0, with those tables.
func longMode(rip uint64) vcpu.State {
	s := vcpu.PowerUp(true)
	s.Control.CR0 = vcpu.CR0PE | vcpu.CR0ET | vcpu.CR0PG | 1<<1 | 1<<5 | 1<<16 // MP, NE, WP
	s.Control.CR3 = tablePML4
	s.Control.CR4 = vcpu.CR4PAE | 1<<9 | 1<<10 // SSE
	s.Control.EFER = vcpu.EFERLME | vcpu.EFERLMA
	s.Segments.CS = vcpu.Segment{Selector: 8, Limit: 0xffffffff, Type: 11, Present: true, Long: true, Granularity: true}
	data := vcpu.Segment{Selector: 16, Limit: 0xffffffff, Type: 3, Present: true, Big: true, Granularity: true}
	s.Segments.DS, s.Segments.ES, s.Segments.FS, s.Segments.GS, s.Segments.SS = data, data, data, data, data
	s.Regs.RIP, s.Regs.RSP = rip, 0x7000
	return s
}
