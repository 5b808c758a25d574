package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
)

var le = binary.LittleEndian

// What Load puts below 640 KiB. Page 0 stays empty.
const (
	gdtAddr       = 0x1000
	startInfoAddr = 0x2000 // hvm_start_info and the module list
	memmapAddr    = 0x3000 // hvm_memmap_table_entry
	bootParams    = 0x7000 // boot_params, the "zero page"
	stackTop      = 0x9000
	pageTables    = 0x9000 // PML4, PDPT and four page directories
	cmdlineAddr   = 0x20000
	cmdlineEnd    = 0x90000

	lowEnd   = 0xa0000 // the VGA window and ROMs of a PC follow
	highBase = 0x100000
)

// Types of memory in the E820 map.
const (
	e820RAM      = 1
	e820Reserved = 2
	e820ACPI     = 3
)

type e820Entry struct {
	base, size uint64
	kind       uint32
}

// e820Map describes mem, the ACPI area, and what must stay free of BARs.
func e820Map(mem *memory.Memory, hw acpi.Config) []e820Entry {
	var m []e820Entry
	add := func(base, end uint64, kind uint32) {
		if base < end {
			m = append(m, e820Entry{base, end - base, kind})
		}
	}
	for _, r := range mem.Regions() {
		end := r.Base + r.Size
		add(r.Base, min(end, lowEnd), e820RAM)
		if r.Base <= acpi.Base && end >= highBase {
			add(acpi.Base, highBase, e820ACPI)
		}
		add(max(r.Base, highBase), end, e820RAM)
	}
	if p := hw.PCI; p != nil {
		m = append(m, e820Entry{p.ECAM, uint64(max(p.Buses, 1)) << 20, e820Reserved})
	}
	return append(m, e820Entry{platform.KVMIdentityMapBase, platform.KVMTSSBase + 0x3000 - platform.KVMIdentityMapBase, e820Reserved})
}

// lowRAM returns the end of the RAM that starts at address 0. Less than need
// bytes is an error.
func lowRAM(mem *memory.Memory, need uint64, what string) (uint64, error) {
	var end uint64
	if r, ok := mem.Lookup(0); ok {
		end = r.Base + r.Size
	}
	if end < need {
		return 0, fmt.Errorf("%w: %s needs %s below 4 GiB, there are %s", ErrMemory, what, mib(need), mib(end))
	}
	return end, nil
}

func mib(n uint64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

// Descriptors of flat segments (Intel SDM volume 3, section 3.4.5).
const (
	descriptorCode64 = 0x00af_9b00_0000_ffff
	descriptorCode32 = 0x00cf_9b00_0000_ffff
	descriptorData   = 0x00cf_9300_0000_ffff
)

// setUpCPU writes the descriptor table and, for 64-bit mode, page tables that
// map the first 4 GiB to themselves, and completes e with them.
func setUpCPU(mem *memory.Memory, e *Entry) error {
	code := uint64(descriptorCode64)
	if e.Mode == Protected32 {
		code = descriptorCode32
	}
	var gdt []byte
	for _, d := range []uint64{0, 0, code, descriptorData} {
		gdt = le.AppendUint64(gdt, d)
	}
	if err := mem.Write(gdtAddr, gdt); err != nil {
		return err
	}
	e.GDTBase, e.GDTLimit = gdtAddr, uint16(len(gdt)-1)
	e.RSP = stackTop
	if e.Mode == Protected32 {
		return nil
	}
	const (
		writable = 1<<0 | 1<<1 // and present
		large    = 1 << 7
	)
	t := make([]byte, 6*pageSize)
	le.PutUint64(t, (pageTables+pageSize)|writable)
	for i := range uint64(4) {
		le.PutUint64(t[pageSize+8*i:], (pageTables+(2+i)*pageSize)|writable)
	}
	for i := range uint64(4 * 512) {
		le.PutUint64(t[2*pageSize+8*i:], i<<21|writable|large)
	}
	e.CR3 = pageTables
	return mem.Write(pageTables, t)
}
