package boot

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
)

// Protocol is the way in which a kernel is entered.
type Protocol uint8

const (
	// Protocol64 is the 64-bit boot protocol, which bzImage and vmlinux
	// both understand.
	Protocol64 Protocol = iota
	// ProtocolPVH is the PVH entry point of an ELF kernel, or of the one
	// packed in a bzImage.
	ProtocolPVH
)

// Unpack says who unpacks the kernel in a bzImage.
type Unpack uint8

const (
	// UnpackAuto has the host do it where that is faster: for gzip, zstd
	// and LZ4. The kernel is then at its default address: the code that
	// would move it to a random one (KASLR) is in the part left out.
	UnpackAuto Unpack = iota
	// UnpackNever leaves it to the guest.
	UnpackNever
)

// Linux boots a Linux kernel. It implements [Loader].
type Linux struct {
	// Kernel is a 64-bit bzImage of boot protocol 2.12 (Linux 3.8) or newer,
	// or an ELF vmlinux for x86-64. If it has a Size or Stat method, as
	// *os.File and *bytes.Reader do, its size is taken from there.
	Kernel io.ReaderAt
	// Initrd is the initial RAM disk; nil for none.
	Initrd io.ReaderAt
	// Cmdline is the command line. Linux on x86 takes up to 2047 bytes.
	Cmdline string

	Protocol Protocol
	Unpack   Unpack
}

// Defaults for kernels that do not say: an ELF file has no setup header.
const (
	defaultCmdlineMax = 2047
	defaultInitrdMax  = 0x7fff_ffff
)

// kernel is a kernel in guest memory.
type kernel struct {
	entry      uint64 // by the chosen protocol
	end        uint64 // nothing else may be put below this, from 1 MiB on
	header     []byte // the setup header, if it has one
	cmdlineMax int    // bytes, without the NUL
	initrdMax  uint64 // last address that the initrd may have
}

// Load implements [Loader]. Errors wrap [ErrKernel], [ErrInitrd],
// [ErrCmdline] or [ErrMemory], [acpi.ErrConfig] if hw is at fault, or the
// error of reading a file.
func (l Linux) Load(mem *memory.Memory, hw acpi.Config) (Entry, error) {
	if l.Protocol > ProtocolPVH || l.Unpack > UnpackNever {
		return Entry{}, fmt.Errorf("boot: unknown protocol %d or unpacking %d", l.Protocol, l.Unpack)
	}
	ram, err := lowRAM(mem, highBase+1, "a kernel")
	if err != nil {
		return Entry{}, err
	}
	k, err := l.loadKernel(mem, ram)
	if err != nil {
		return Entry{}, err
	}
	if err := l.writeCmdline(mem, k); err != nil {
		return Entry{}, err
	}
	initrd, initrdSize, err := l.loadInitrd(mem, k, ram)
	if err != nil {
		return Entry{}, err
	}
	tables, err := acpi.Build(acpi.Base, hw)
	if err != nil {
		return Entry{}, err
	}
	if err := mem.Write(acpi.Base, tables); err != nil {
		return Entry{}, err
	}
	e := Entry{Mode: Long64, RIP: k.entry}
	info := startInfo{cmdline: cmdlineAddr, initrd: initrd, initrdSize: initrdSize, rsdp: acpi.Base, memory: e820Map(mem, hw)}
	if l.Protocol == ProtocolPVH {
		e.Mode, e.RBX = Protected32, startInfoAddr
		err = info.writePVH(mem)
	} else {
		e.RSI = bootParams
		err = info.writeBootParams(mem, k)
	}
	if err != nil {
		return Entry{}, err
	}
	return e, setUpCPU(mem, &e)
}

// loadKernel finds out what kind of kernel there is and loads it.
func (l Linux) loadKernel(mem *memory.Memory, ram uint64) (*kernel, error) {
	if l.Kernel == nil {
		return nil, fmt.Errorf("%w: none given", ErrKernel)
	}
	file, err := open(l.Kernel)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKernel, err)
	}
	prefix := make([]byte, min(elfPrefix, file.size))
	if err := file.readAt(prefix, 0); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKernel, err)
	}
	switch {
	case len(prefix) >= 4 && string(prefix[:4]) == "\x7fELF":
		return l.loadELF(mem, prefix, file, ram)
	case isBzImage(prefix):
		return l.loadBzImage(mem, prefix, file, ram)
	case len(prefix) <= hdrMagic+4:
		return nil, fmt.Errorf("%w: %d bytes are too few for one", ErrKernel, len(prefix))
	}
	return nil, fmt.Errorf("%w: neither an ELF file (% x at offset 0) nor a bzImage (% x at offset %#x)",
		ErrKernel, prefix[:4], prefix[hdrMagic:hdrMagic+4], hdrMagic)
}

func (l Linux) loadELF(mem *memory.Memory, prefix []byte, file section, ram uint64) (*kernel, error) {
	img, err := parseELF(prefix, uint64(file.size), ram)
	if err != nil {
		return nil, err
	}
	for _, s := range img.segments {
		dst, err := mem.Slice(s.base, s.size)
		if err != nil {
			return nil, err
		}
		if err := file.readAt(dst, int64(s.off)); err != nil {
			return nil, fmt.Errorf("%w: ELF: segment at %#x: %w", ErrKernel, s.base, err)
		}
		mem.MarkDirty(s.base, s.size)
	}
	return l.elfKernel(img, img.end(), func(p []byte, off uint64) error { return file.readAt(p, int64(off)) })
}

// elfKernel picks the entry point of a loaded ELF kernel; read reads its file.
func (l Linux) elfKernel(img *elfImage, end uint64, read func(p []byte, off uint64) error) (*kernel, error) {
	k := &kernel{entry: img.entry, end: end, cmdlineMax: defaultCmdlineMax, initrdMax: defaultInitrdMax}
	if l.Protocol == ProtocolPVH {
		var err error
		if k.entry, err = img.findPVH(read); err != nil {
			return nil, err
		}
	}
	return k, nil
}

func (l Linux) loadBzImage(mem *memory.Memory, prefix []byte, file section, ram uint64) (*kernel, error) {
	b, err := parseBzImage(prefix, file)
	if err != nil {
		return nil, err
	}
	if l.Unpack == UnpackAuto || l.Protocol == ProtocolPVH {
		img, end, err := unpack(mem, b.payload, ram)
		if err == nil {
			k, err := l.elfKernel(img, end, func(p []byte, off uint64) error { return img.readBack(mem, p, off) })
			if err == nil {
				b.describe(k)
			}
			return k, err
		}
		if !errors.Is(err, errForeign) {
			return nil, err
		}
		if l.Protocol == ProtocolPVH {
			return nil, fmt.Errorf("%w: bzImage: %w, and only an unpacked kernel has a PVH entry point", ErrKernel, err)
		}
	}
	return b.load(mem, ram)
}

// readBack reads a part of the ELF file from where its segments were loaded.
func (img *elfImage) readBack(mem *memory.Memory, p []byte, off uint64) error {
	for _, s := range img.segments {
		if off >= s.off && off-s.off <= s.size && uint64(len(p)) <= s.size-(off-s.off) {
			return mem.Read(s.base+off-s.off, p)
		}
	}
	return fmt.Errorf("%d bytes at %#x are not loaded", len(p), off)
}

func (l Linux) writeCmdline(mem *memory.Memory, k *kernel) error {
	if i := strings.IndexByte(l.Cmdline, 0); i >= 0 {
		return fmt.Errorf("%w: NUL at byte %d", ErrCmdline, i)
	}
	if len(l.Cmdline) > k.cmdlineMax {
		return fmt.Errorf("%w: %d bytes, the kernel takes %d", ErrCmdline, len(l.Cmdline), k.cmdlineMax)
	}
	return mem.Write(cmdlineAddr, append([]byte(l.Cmdline), 0))
}

// loadInitrd reads the initrd to the highest place that the kernel can reach.
func (l Linux) loadInitrd(mem *memory.Memory, k *kernel, ram uint64) (base, size uint64, err error) {
	if l.Initrd == nil {
		return 0, 0, nil
	}
	file, err := open(l.Initrd)
	if err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrInitrd, err)
	}
	if file.size == 0 {
		return 0, 0, nil
	}
	size = uint64(file.size)
	top := min(ram, k.initrdMax+1)
	if size > top || (top-size)&^(pageSize-1) < k.end {
		return 0, 0, fmt.Errorf("%w: the initrd takes %s, between the kernel's end at %#x and %#x there is less", ErrMemory, mib(size), k.end, top)
	}
	base = (top - size) &^ (pageSize - 1)
	dst, err := mem.Slice(base, size)
	if err != nil {
		return 0, 0, err
	}
	if err := file.readAt(dst, 0); err != nil {
		return 0, 0, fmt.Errorf("%w: %w", ErrInitrd, err)
	}
	mem.MarkDirty(base, size)
	return base, size, nil
}
