package boot

import (
	"fmt"

	"github.com/vmkit-go/vmkit/memory"
)

// startInfo is what both protocols tell a kernel about where things are.
type startInfo struct {
	cmdline            uint64
	initrd, initrdSize uint64
	rsdp               uint64
	memory             []e820Entry
}

// Offsets in boot_params besides the setup header (Linux,
// Documentation/arch/x86/zero-page.rst).
const (
	zpRSDP        = 0x070 // acpi_rsdp_addr
	zpE820Entries = 0x1e8
	zpE820Table   = 0x2d0
	zpE820Max     = 128
)

// writeBootParams writes the zero page.
func (i startInfo) writeBootParams(mem *memory.Memory, k *kernel) error {
	if len(i.memory) > zpE820Max {
		return fmt.Errorf("boot: %d memory ranges: the zero page holds %d", len(i.memory), zpE820Max)
	}
	p := make([]byte, pageSize)
	if k.header != nil {
		copy(p[hdrStart:hdrEnd], k.header)
	} else {
		le.PutUint16(p[hdrBootFlag:], magicBoot)
		le.PutUint32(p[hdrMagic:], magicHdrS)
		le.PutUint16(p[hdrVersion:], protocol212)
		p[hdrLoadFlags] = loadedHigh
		le.PutUint32(p[hdrAlignment:], 1<<21)
	}
	p[hdrLoader] = 0xff // no assigned number
	le.PutUint16(p[hdrVidMode:], 0xffff)
	le.PutUint32(p[hdrCmdline:], uint32(i.cmdline))
	le.PutUint32(p[hdrInitrd:], uint32(i.initrd))
	le.PutUint32(p[hdrInitrdSize:], uint32(i.initrdSize))
	le.PutUint64(p[zpRSDP:], i.rsdp)
	p[zpE820Entries] = byte(len(i.memory))
	for n, e := range i.memory {
		d := p[zpE820Table+20*n:]
		le.PutUint64(d, e.base)
		le.PutUint64(d[8:], e.size)
		le.PutUint32(d[16:], e.kind)
	}
	return mem.Write(bootParams, p)
}

const (
	pvhMagic      = 0x336ec578 // XEN_HVM_START_MAGIC_VALUE
	pvhModuleAddr = startInfoAddr + 0x100
	pvhMaxMemory  = (bootParams - memmapAddr) / 24
)

// writePVH writes hvm_start_info, version 1, with its module list and memory
// map (Xen, xen/include/public/arch-x86/hvm/start_info.h).
func (i startInfo) writePVH(mem *memory.Memory) error {
	if len(i.memory) > pvhMaxMemory {
		return fmt.Errorf("boot: %d memory ranges: the PVH memory map holds %d", len(i.memory), pvhMaxMemory)
	}
	b := make([]byte, 56)
	le.PutUint32(b, pvhMagic)
	le.PutUint32(b[4:], 1)
	if i.initrdSize > 0 {
		le.PutUint32(b[12:], 1)
		le.PutUint64(b[16:], pvhModuleAddr)
		m := le.AppendUint64(nil, i.initrd)
		m = le.AppendUint64(m, i.initrdSize)
		m = le.AppendUint64(m, 0) // no command line
		m = le.AppendUint64(m, 0)
		if err := mem.Write(pvhModuleAddr, m); err != nil {
			return err
		}
	}
	le.PutUint64(b[24:], i.cmdline)
	le.PutUint64(b[32:], i.rsdp)
	le.PutUint64(b[40:], memmapAddr)
	le.PutUint32(b[48:], uint32(len(i.memory)))
	if err := mem.Write(startInfoAddr, b); err != nil {
		return err
	}
	var m []byte
	for _, e := range i.memory {
		m = le.AppendUint64(m, e.base)
		m = le.AppendUint64(m, e.size)
		m = le.AppendUint32(m, e.kind)
		m = le.AppendUint32(m, 0)
	}
	return mem.Write(memmapAddr, m)
}
