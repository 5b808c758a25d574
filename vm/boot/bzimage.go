package boot

import (
	"fmt"

	"github.com/vmkit-go/vmkit/memory"
)

// Offsets of the setup header's fields in a bzImage and in boot_params, which
// agree (Linux x86 boot protocol, "The Real-Mode Kernel Header").
const (
	hdrStart         = 0x1f1
	hdrSetupSects    = 0x1f1
	hdrSysSize       = 0x1f4
	hdrVidMode       = 0x1fa
	hdrBootFlag      = 0x1fe
	hdrJump          = 0x200 // its second byte says where the header ends
	hdrMagic         = 0x202
	hdrVersion       = 0x206
	hdrLoader        = 0x210
	hdrLoadFlags     = 0x211
	hdrInitrd        = 0x218
	hdrInitrdSize    = 0x21c
	hdrCmdline       = 0x228
	hdrInitrdMax     = 0x22c
	hdrAlignment     = 0x230
	hdrRelocatable   = 0x234
	hdrXLoadFlags    = 0x236
	hdrCmdlineSize   = 0x238
	hdrPayloadOffset = 0x248
	hdrPayloadLength = 0x24c
	hdrPrefAddress   = 0x258
	hdrInitSize      = 0x260
	hdrEnd           = 0x290 // boot_params has other things from here on

	hdrSize = hdrInitSize + 4 - hdrStart // what version 2.12 has at least

	magicHdrS   = 0x53726448
	magicBoot   = 0xaa55
	protocol212 = 0x020c // the first with xloadflags

	loadedHigh  = 1 << 0 // loadflags
	xlfKernel64 = 1 << 0 // xloadflags

	// entry64 is where, from the load address on, the 64-bit entry point is.
	entry64 = 0x200
)

// bzImage is a kernel in the form of the boot protocol.
type bzImage struct {
	header  []byte  // from hdrStart on
	code    section // the protected-mode kernel
	payload section // in code; empty when there is none
}

func (b *bzImage) u8(off int) uint8   { return b.header[off-hdrStart] }
func (b *bzImage) u32(off int) uint32 { return le.Uint32(b.header[off-hdrStart:]) }
func (b *bzImage) u64(off int) uint64 { return le.Uint64(b.header[off-hdrStart:]) }

// isBzImage reports whether prefix begins a kernel image of any version.
func isBzImage(prefix []byte) bool {
	return len(prefix) >= hdrVersion+2 && le.Uint16(prefix[hdrBootFlag:]) == magicBoot && le.Uint32(prefix[hdrMagic:]) == magicHdrS
}

// parseBzImage checks the setup header in prefix, the first bytes of file.
func parseBzImage(prefix []byte, file section) (*bzImage, error) {
	bad := func(format string, args ...any) (*bzImage, error) {
		return nil, fmt.Errorf("%w: bzImage: %w", ErrKernel, fmt.Errorf(format, args...))
	}
	if v := le.Uint16(prefix[hdrVersion:]); v < protocol212 {
		return bad("boot protocol %d.%02d at offset %#x: want 2.12 or newer, for the 64-bit entry", v>>8, v&0xff, hdrVersion)
	}
	end := hdrMagic + int(prefix[hdrJump+1])
	if end < hdrStart+hdrSize || end > hdrEnd {
		return bad("the setup header ends at %#x: want %#x to %#x", end, hdrStart+hdrSize, hdrEnd)
	}
	if len(prefix) < end {
		return bad("the setup header is truncated at offset %#x", len(prefix))
	}
	b := &bzImage{header: append([]byte(nil), prefix[hdrStart:end]...)}
	if x := le.Uint16(b.header[hdrXLoadFlags-hdrStart:]); x&xlfKernel64 == 0 {
		return bad("no 64-bit entry point (xloadflags %#x at offset %#x)", x, hdrXLoadFlags)
	}
	if b.u8(hdrLoadFlags)&loadedHigh == 0 {
		return bad("a zImage, which loads below 1 MiB (loadflags %#x at offset %#x)", b.u8(hdrLoadFlags), hdrLoadFlags)
	}
	setup := int64(b.u8(hdrSetupSects))
	if setup == 0 {
		setup = 4
	}
	codeAt, codeSize := (setup+1)*512, int64(b.u32(hdrSysSize))*16
	if codeSize <= entry64 {
		return bad("protected-mode code of %#x bytes (syssize at offset %#x)", codeSize, hdrSysSize)
	}
	// syssize counts in units of 16 bytes and may round up past the end.
	if codeAt+codeSize-15 > file.size {
		return bad("truncated: %d bytes, its header tells of %d", file.size, codeAt+codeSize)
	}
	var err error
	if b.code, err = file.section(codeAt, min(codeSize, file.size-codeAt)); err != nil {
		return bad("%w", err)
	}
	if n := int64(b.u32(hdrPayloadLength)); n > 0 {
		if b.payload, err = b.code.section(int64(b.u32(hdrPayloadOffset)), n); err != nil {
			return bad("payload: %w", err)
		}
	}
	return b, nil
}

// load copies the protected-mode kernel to where it wants to be. It unpacks
// itself there.
func (b *bzImage) load(mem *memory.Memory, ram uint64) (*kernel, error) {
	base, size := b.u64(hdrPrefAddress), max(uint64(b.u32(hdrInitSize)), uint64(b.code.size))
	if base < highBase || base%pageSize != 0 {
		return nil, fmt.Errorf("%w: bzImage: preferred address %#x at offset %#x: want a page from 1 MiB on", ErrKernel, base, hdrPrefAddress)
	}
	if base > ram || size > ram-base {
		return nil, fmt.Errorf("%w: the kernel needs %s at %#x to unpack itself, RAM below 4 GiB ends at %#x", ErrMemory, mib(size), base, ram)
	}
	dst, err := mem.Slice(base, uint64(b.code.size))
	if err != nil {
		return nil, err
	}
	if err := b.code.readAt(dst, 0); err != nil {
		return nil, fmt.Errorf("%w: bzImage: %w", ErrKernel, err)
	}
	mem.MarkDirty(base, uint64(len(dst)))
	k := &kernel{entry: base + entry64, end: base + size}
	b.describe(k)
	return k, nil
}

// describe takes over what the header says whoever unpacks the kernel.
func (b *bzImage) describe(k *kernel) {
	k.header = b.header
	k.cmdlineMax = int(min(b.u32(hdrCmdlineSize), cmdlineEnd-cmdlineAddr-1))
	k.initrdMax = uint64(b.u32(hdrInitrdMax))
}
