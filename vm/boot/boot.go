// Package boot puts a guest's first program into memory and says how a CPU
// starts it. [Linux] loads a kernel: a bzImage by the 64-bit boot protocol, an
// ELF vmlinux by its 64-bit or its PVH entry. Firmware tables come from
// package vm/boot/acpi, a first root file system from vm/boot/initramfs.
//
//	k, err := os.Open("/boot/vmlinuz")
//	l := boot.Linux{Kernel: k, Cmdline: "console=ttyS0"}
//	entry, err := l.Load(mem, acpi.Config{CPUs: 2, Serial: true})
//
// A program of another kind is a [Loader] of your own.
//
// Kernels and initrds are taken as hostile: whatever they contain, loading
// writes only to guest memory, and what is wrong with them is one error.
package boot

import (
	"errors"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
)

// Errors that those of this package wrap.
var (
	// ErrKernel: the kernel is truncated, damaged or of an unknown kind.
	ErrKernel = errors.New("bad kernel image")
	// ErrInitrd: the initrd cannot be read.
	ErrInitrd = errors.New("bad initrd")
	// ErrCmdline: the command line is too long or contains a NUL.
	ErrCmdline = errors.New("bad kernel command line")
	// ErrMemory: guest memory is too small.
	ErrMemory = errors.New("guest memory is too small")
)

// Loader puts a program into guest memory.
type Loader interface {
	// Load fills mem, all of which reads as zero when it is called, and
	// returns how CPU 0 is to start. hw is the machine as its firmware
	// tables shall describe it. Load touches nothing but mem, so it may
	// run while the rest of a machine is being set up.
	Load(mem *memory.Memory, hw acpi.Config) (Entry, error)
}

// Mode is the processor mode in which a program starts.
type Mode uint8

const (
	// Long64 is 64-bit mode with the first 4 GiB mapped to themselves
	// (Linux x86 boot protocol, section "64-bit Boot Protocol").
	Long64 Mode = iota
	// Protected32 is 32-bit protected mode without paging (the "PVH
	// direct boot" ABI of Xen's x86-hvm documentation).
	Protected32
)

// Selectors of the descriptor table that Load leaves in guest memory.
const (
	CodeSelector = 0x10
	DataSelector = 0x18
)

// Entry is where and how CPU 0 starts the program; [Entry.State] makes it a CPU
// state. Every register that it does not name is zero, interrupts are off, and
// the segments are flat.
type Entry struct {
	Mode Mode
	RIP  uint64
	RSP  uint64
	RSI  uint64 // boot_params, for Linux's 64-bit entry
	RBX  uint64 // hvm_start_info, for PVH
	CR3  uint64 // the root of the page tables; 0 when paging is off

	// The global descriptor table in guest memory.
	GDTBase  uint64
	GDTLimit uint16
}
