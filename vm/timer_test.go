package vm_test

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
)

// ticker is a loader of a guest that a timer interrupts every some milliseconds,
// and that writes a letter to the serial port at each interrupt: 'a' and on for
// the inputs of the I/O APIC, 'A' and on for those of the master PIC, 'y' for the
// local APIC's timer. Its value says which: the PIT by the I/O APIC ("c") or the
// PICs ("A"), or the TSC deadline ("y").
type ticker string

func (k ticker) Load(mem *memory.Memory, hw acpi.Config) (boot.Entry, error) {
	const (
		idt, idtr, stubs, stubSize = 0x9000, 0x8ff0, 0xa000, 64
		pic, io, timer             = 0x20, 0x30, 0x48 // vectors, of the first inputs
	)
	arm := []byte{
		0xb9, 0xe0, 0x06, 0, 0, // mov ecx, IA32_TSC_DEADLINE
		0x0f, 0x31, // rdtsc
		0x05, 0x00, 0x00, 0x80, 0, // add eax, 1<<23
		0x83, 0xd2, 0, // adc edx, 0
		0x0f, 0x30, // wrmsr
	}
	masks, apicMask := byte(0xff), byte(0)
	if k == "A" {
		masks, apicMask = 0, 1
	}
	code := []byte{
		0x0f, 0x01, 0x1c, 0x25, 0xf0, 0x8f, 0, 0, // lidt [idtr]
		0xb9, 0x1b, 0, 0, 0, // mov ecx, IA32_APIC_BASE
		0x0f, 0x32, // rdmsr
		0x0d, 0x00, 0x0c, 0, 0, // or eax, x2APIC mode
		0x0f, 0x30, // wrmsr
		0xb9, 0x0f, 0x08, 0, 0, // mov ecx, SVR
		0xb8, 0xff, 0x01, 0, 0, // mov eax, on
		0x31, 0xd2, // xor edx, edx
		0x0f, 0x30, // wrmsr
		0xb9, 0x35, 0x08, 0, 0, // mov ecx, LVT LINT0
		0xb8, 0x00, 0x07, 0, 0, // mov eax, ExtINT
		0x0f, 0x30, // wrmsr
		// Each input of the I/O APIC has its vector.
		0xbb, 0x00, 0x00, 0xc0, 0xfe, // mov ebx, the I/O APIC
		0x31, 0xc9, // xor ecx, ecx
		0x8d, 0x04, 0x4d, 0x10, 0, 0, 0, // 1: lea eax, [rcx*2+0x10]
		0x89, 0x03, // mov [rbx], eax
		0x8d, 0x91, io, 0, apicMask, 0, // lea edx, [rcx+entry]
		0x89, 0x53, 0x10, // mov [rbx+0x10], edx
		0xff, 0xc0, // inc eax
		0x89, 0x03, // mov [rbx], eax
		0xc7, 0x43, 0x10, 0, 0, 0, 0, // mov dword [rbx+0x10], 0
		0xff, 0xc1, // inc ecx
		0x83, 0xf9, platform.IOAPICPins, // cmp ecx, inputs
		0x72, 0xdc, // jb 1b
	}
	for _, w := range [][2]byte{
		{platform.PortPIC1, 0x11}, {platform.PortPIC1 + 1, pic}, {platform.PortPIC1 + 1, 4}, {platform.PortPIC1 + 1, 1},
		{platform.PortPIC1 + 1, masks},
		{platform.PortPITControl, 0x34}, {platform.PortPIT, 0x9c}, {platform.PortPIT, 0x2e}, // channel 0, mode 2, 11932
	} {
		if k == "y" && w[0] == platform.PortPITControl {
			break
		}
		code = append(code, 0xb0, w[1], 0xe6, w[0]) // mov al, value; out port, al
	}
	if k == "y" {
		code = append(code,
			0xb9, 0x32, 0x08, 0, 0, // mov ecx, LVT timer
			0xb8, timer, 0, 4, 0, // mov eax, TSC deadline mode
			0x31, 0xd2, // xor edx, edx
			0x0f, 0x30, // wrmsr
			0x0f, 0xae, 0xf0, // mfence
		)
		code = append(code, arm...)
	}
	code = append(code,
		0xfb,       // sti
		0xf4,       // 1: hlt
		0xeb, 0xfd, // jmp 1b
	)
	for vector := uint64(pic); vector <= timer; vector++ {
		letter, end := 'a'+byte(vector-io), []byte{
			0xb9, 0x0b, 0x08, 0, 0, // mov ecx, EOI of the local APIC
			0x31, 0xc0, // xor eax, eax
			0x31, 0xd2, // xor edx, edx
			0x0f, 0x30, // wrmsr
		}
		switch {
		case vector == timer:
			end = append(end, arm...)
		case vector < io:
			letter, end = 'A'+byte(vector-pic), []byte{0xb0, 0x20, 0xe6, platform.PortPIC1} // mov al, EOI; out PIC, al
		}
		at := stubs + stubSize*vector
		stub := slices.Concat(out8(platform.PortCOM1, letter), end, []byte{0x48, 0xcf}) // iretq
		if err := mem.Write(at, stub); err != nil {
			return boot.Entry{}, err
		}
		gate := at&0xffff | boot.CodeSelector<<16 | 0x8e00<<32 | at>>16<<48
		if err := mem.PutUint64(idt+16*vector, gate); err != nil {
			return boot.Entry{}, err
		}
	}
	if err := mem.Write(idtr, []byte{0xff, 0x0f, byte(idt & 0xff), idt >> 8, 0, 0, 0, 0, 0, 0}); err != nil {
		return boot.Entry{}, err
	}
	return flat{code, platform.IOAPICBase}.Load(mem, hw)
}

// TestTimerWiring: the PIT's interrupt arrives where a PC's firmware tables say,
// at input 2 of the I/O APIC and at input 0 of the PICs, and nowhere else. The
// local APIC's own timer interrupts, too.
func TestTimerWiring(t *testing.T) { onEngines(t, testTimerWiring) }

func testTimerWiring(t *testing.T, engine string) {
	for _, tt := range []struct {
		name, want string
		guest      ticker
	}{{"I/O APIC", "ccccc", "c"}, {"PIC", "AAAAA", "A"}, {"deadline", "yyyyy", "y"}} {
		t.Run(tt.name, func(t *testing.T) {
			out := new(console)
			m, err := vm.New(vm.Config{Engine: engine, Memory: 16 << 20, Boot: tt.guest, Serial: vm.Serial{Out: out}})
			require.NoError(t, err)
			defer m.Close()
			runUntil(t, m, func() bool { return len(out.String()) >= len(tt.want) })
			require.Equal(t, tt.want, out.String()[:len(tt.want)])
		})
	}
}

// TestTimerHop: such a guest moves from one engine to the other and back, either
// way, and is interrupted as before.
func TestTimerHop(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	for _, engines := range [][]string{
		{vm.EngineSoft, vm.EngineKVM, vm.EngineSoft, vm.EngineKVM},
		{vm.EngineKVM, vm.EngineSoft, vm.EngineKVM, vm.EngineSoft},
	} {
		for _, guest := range []ticker{"c", "A", "y"} {
			t.Run(engines[0]+" "+string(guest), func(t *testing.T) {
				out := new(console)
				var saved bytes.Buffer
				for i, engine := range engines {
					cfg := vm.Config{Engine: engine, Portable: true, Memory: 16 << 20, Serial: vm.Serial{Out: out}}
					var m *vm.Machine
					var err error
					if i == 0 {
						cfg.Boot = guest
						m, err = vm.New(cfg)
					} else {
						m, err = vm.Load(cfg, &saved)
					}
					require.NoError(t, err)
					before := len(out.String())
					runUntil(t, m, func() bool { return len(out.String()) >= before+5 })
					saved.Reset()
					require.NoError(t, m.Save(&saved))
					require.NoError(t, m.Close())
				}
				require.Empty(t, strings.Trim(out.String(), string(guest)))
			})
		}
	}
}

// TestRefused: KVM refuses a machine that began in software and was not made for
// it, names what it lacks, and does no harm: in software the machine goes on.
func TestRefused(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	out := new(console)
	cfg := vm.Config{Engine: vm.EngineSoft, Memory: 16 << 20, Serial: vm.Serial{Out: out}, Boot: ticker("c")}
	m, err := vm.New(cfg)
	require.NoError(t, err)
	runUntil(t, m, func() bool { return out.has("c") })
	var saved bytes.Buffer
	require.NoError(t, m.Save(&saved))
	require.NoError(t, m.Close())

	cfg.Boot, cfg.Engine = nil, vm.EngineKVM
	_, err = vm.Load(cfg, bytes.NewReader(saved.Bytes()))
	require.ErrorIs(t, err, vcpu.ErrMissing)
	require.NotErrorIs(t, err, vm.ErrBadState)
	require.ErrorContains(t, err, "Portable")
	t.Log(err)

	cfg.Engine = vm.EngineSoft
	m, err = vm.Load(cfg, &saved)
	require.NoError(t, err)
	defer m.Close()
	before := len(out.String())
	runUntil(t, m, func() bool { return len(out.String()) > before })
}
