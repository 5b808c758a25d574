package vm_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/vmkit-go/vmkit/internal/kvmtest"
	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
)

// flat is a loader of a few instructions of 64-bit code at 1 MiB. It maps the
// first 2 MiB to themselves, and the 2 MiB page that holds the last of RAM to
// where that is.
type flat struct {
	code []byte
	last uint64 // the guest-physical address of the last page of RAM
}

func (f flat) Load(mem *memory.Memory, _ acpi.Config) (boot.Entry, error) {
	const (
		pml4, pdptLow, pdLow, pdptHigh, pdHigh = 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
		gdt, code                              = 0x6000, 0x10_0000
		table, page                            = 0x3, 0x83 // present, writable; a 2 MiB page
	)
	index := func(shift uint) uint64 { return f.last >> shift & 511 }
	high, pd := uint64(pdptHigh), uint64(pdHigh)
	puts := [][2]uint64{{pml4, pdptLow | table}, {pdptLow, pdLow | table}, {pdLow, page}}
	if index(39) == 0 {
		high = pdptLow
	} else {
		puts = append(puts, [2]uint64{pml4 + 8*index(39), high | table})
	}
	puts = append(puts,
		[2]uint64{high + 8*index(30), pd | table},
		[2]uint64{pd + 8*index(21), f.last&^(2<<20-1) | page},
		[2]uint64{gdt + boot.CodeSelector, 0x00af_9b00_0000_ffff},
		[2]uint64{gdt + boot.DataSelector, 0x00cf_9300_0000_ffff})
	for _, p := range puts {
		if err := mem.PutUint64(p[0], p[1]); err != nil {
			return boot.Entry{}, err
		}
	}
	if err := mem.Write(code, f.code); err != nil {
		return boot.Entry{}, err
	}
	return boot.Entry{Mode: boot.Long64, RIP: code, RSP: 0x8000, CR3: pml4, GDTBase: gdt, GDTLimit: 0x1f}, nil
}

// A machine with far more memory than the host has: its guest writes and reads
// back its first and its last page, says so and powers off.
func TestSparseMemory(t *testing.T) {
	kvmtest.NeedNative(t, kvmtest.Open(t))
	const size = 256 << 30
	last := uint64(platform.HighRAMBase) + size - platform.LowRAMEnd - memory.PageSize
	code := []byte{0x48, 0xbb} // mov rbx, last
	code = binary.LittleEndian.AppendUint64(code, last)
	code = append(code,
		0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, // mov rax, 0x0807060504030201
		0x48, 0x89, 0x03, // mov [rbx], rax
		0x48, 0x89, 0x83, 0xf8, 0x0f, 0, 0, // mov [rbx+0xff8], rax
		0x48, 0x89, 0x04, 0x25, 0, 0, 0, 0, // mov [0], rax
		0x48, 0x3b, 0x03, // cmp rax, [rbx]
		0x75, 0x1b, // jne bad
		0x48, 0x3b, 0x83, 0xf8, 0x0f, 0, 0, // cmp rax, [rbx+0xff8]
		0x75, 0x12, // jne bad
		0x48, 0x3b, 0x04, 0x25, 0, 0, 0, 0, // cmp rax, [0]
		0x75, 0x08, // jne bad
		0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, 'k', // mov al, 'k'
		0xee, // out dx, al
		0x90, // nop
		// bad:
		0x66, 0xba, 0x04, 0x06, // mov dx, PM1a control
		0x66, 0xb8, 0x00, 0x34, // mov ax, SLP_EN | 5<<10
		0x66, 0xef, // out dx, ax
		0xf4, // hlt
	)
	var out bytes.Buffer
	m, err := vm.New(vm.Config{Memory: size, Boot: flat{code, last}, Serial: vm.Serial{Out: &out}})
	require.NoError(t, err)
	require.NoError(t, m.Run(t.Context()))
	got, err := m.Memory().Uint64(last)
	require.NoError(t, err)
	require.Equal(t, uint64(0x0807060504030201), got)
	require.NoError(t, m.Close())
	require.Equal(t, "k", out.String())
}
