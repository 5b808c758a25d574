package boot

import (
	"bytes"
	"cmp"
	"debug/elf"
	"fmt"
	"slices"
)

// elfPrefix is how much of a file holds its ELF and program headers.
const elfPrefix = 4096

// maxSegments bounds the loadable segments of a kernel; Linux has five.
const maxSegments = 64

// segment is a part of the file that goes to guest memory at base. Memory
// past size, up to mem, stays zero.
type segment struct {
	base, mem uint64 // guest-physical
	off, size uint64 // in the file
	virt      uint64
}

func (s segment) end() uint64 { return s.base + s.mem }

// elfImage is what the headers of a kernel say.
type elfImage struct {
	entry    uint64
	segments []segment // by place in the file
	notes    []segment // off and size alone
}

// parseELF reads the headers of the ELF file that begins with prefix. size
// is the whole file's, so that no segment reaches past its end; ram the end of
// guest RAM.
func parseELF(prefix []byte, size, ram uint64) (*elfImage, error) {
	const ehsize, phsize = 64, 56 // ELF-64 Object File Format, figures 3 and 6
	bad := func(format string, args ...any) (*elfImage, error) {
		return nil, fmt.Errorf("%w: ELF: %w", ErrKernel, fmt.Errorf(format, args...))
	}
	if len(prefix) < ehsize {
		return bad("the header is truncated at offset %#x", len(prefix))
	}
	if !bytes.HasPrefix(prefix, []byte(elf.ELFMAG)) {
		return bad("no magic number at offset 0 (% x)", prefix[:4])
	}
	if c, d := elf.Class(prefix[elf.EI_CLASS]), elf.Data(prefix[elf.EI_DATA]); c != elf.ELFCLASS64 || d != elf.ELFDATA2LSB {
		return bad("%v, %v: want a 64-bit little-endian file", c, d)
	}
	if m := elf.Machine(le.Uint16(prefix[18:])); m != elf.EM_X86_64 {
		return bad("for %v: want %v", m, elf.EM_X86_64)
	}
	if t := elf.Type(le.Uint16(prefix[16:])); t != elf.ET_EXEC && t != elf.ET_DYN {
		return bad("%v: want an executable", t)
	}
	phoff, phentsize, phnum := le.Uint64(prefix[32:]), le.Uint16(prefix[54:]), int(le.Uint16(prefix[56:]))
	if phentsize != phsize || phnum == 0 {
		return bad("%d program headers of %d bytes: want at least one, of %d", phnum, phentsize, phsize)
	}
	if phoff > uint64(len(prefix)) || uint64(phnum*phsize) > uint64(len(prefix))-phoff {
		return bad("%d program headers at offset %#x: not within the first %#x bytes", phnum, phoff, len(prefix))
	}
	img := &elfImage{}
	for i := range phnum {
		h := prefix[phoff+uint64(i*phsize):]
		s := segment{off: le.Uint64(h[8:]), virt: le.Uint64(h[16:]), base: le.Uint64(h[24:]), size: le.Uint64(h[32:]), mem: le.Uint64(h[40:])}
		t := elf.ProgType(le.Uint32(h))
		if t != elf.PT_LOAD && t != elf.PT_NOTE {
			continue
		}
		if s.off > size || s.size > size-s.off {
			return bad("program header %d: [%#x, +%#x) reaches past the end of the file at %#x: it is truncated", i, s.off, s.size, size)
		}
		if t == elf.PT_NOTE {
			if len(img.notes) < maxSegments {
				img.notes = append(img.notes, s)
			}
			continue
		}
		if s.mem == 0 {
			continue
		}
		if s.size > s.mem {
			return bad("program header %d: %#x bytes for %#x bytes of memory", i, s.size, s.mem)
		}
		if s.base < highBase {
			return bad("program header %d: address %#x is below 1 MiB", i, s.base)
		}
		if s.base > ram || s.mem > ram-s.base {
			return nil, fmt.Errorf("%w: the kernel's segment %d is at [%#x, +%#x), RAM below 4 GiB ends at %#x", ErrMemory, i, s.base, s.mem, ram)
		}
		if len(img.segments) == maxSegments {
			return bad("more than %d segments", maxSegments)
		}
		img.segments = append(img.segments, s)
	}
	if len(img.segments) == 0 {
		return bad("nothing to load")
	}
	byBase := slices.SortedFunc(slices.Values(img.segments), func(a, b segment) int { return cmp.Compare(a.base, b.base) })
	for i := range byBase[1:] {
		if byBase[i].end() > byBase[i+1].base {
			return bad("segments at %#x and %#x overlap", byBase[i].base, byBase[i+1].base)
		}
	}
	slices.SortFunc(img.segments, func(a, b segment) int { return cmp.Compare(a.off, b.off) })
	entry, ok := img.physical(le.Uint64(prefix[24:]))
	if !ok {
		return bad("the entry point %#x lies in no segment", le.Uint64(prefix[24:]))
	}
	img.entry = entry
	return img, nil
}

// physical finds an entry point. Linux gives it as a physical address, other
// kernels as a virtual one.
func (img *elfImage) physical(entry uint64) (uint64, bool) {
	for _, s := range img.segments {
		if entry >= s.base && entry-s.base < s.mem {
			return entry, true
		}
	}
	for _, s := range img.segments {
		if entry >= s.virt && entry-s.virt < s.mem {
			return s.base + entry - s.virt, true
		}
	}
	return 0, false
}

// end is the first address past every segment.
func (img *elfImage) end() uint64 {
	var end uint64
	for _, s := range img.segments {
		end = max(end, s.end())
	}
	return end
}

const (
	maxNotes = 1 << 20 // bytes of a note segment that are looked at

	// xenPhys32Entry is XEN_ELFNOTE_PHYS32_ENTRY (Xen's
	// xen/include/public/elfnote.h).
	xenPhys32Entry = 18
)

// pvhEntry looks for the PVH entry point in the notes that b holds.
func pvhEntry(b []byte) (addr uint64, ok bool) {
	for len(b) >= 12 {
		name, desc, kind := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), le.Uint32(b[8:])
		b = b[12:]
		nameEnd := (name + 3) &^ 3
		end := nameEnd + (desc+3)&^3
		if nameEnd+desc > uint64(len(b)) {
			return 0, false
		}
		d := b[nameEnd : nameEnd+desc]
		if string(b[:name]) == "Xen\x00" && kind == xenPhys32Entry {
			switch desc {
			case 4:
				return uint64(le.Uint32(d)), true
			case 8:
				return le.Uint64(d), true
			}
		}
		b = b[min(end, uint64(len(b))):]
	}
	return 0, false
}

// findPVH searches every note segment; read fills p from a place in the file.
func (img *elfImage) findPVH(read func(p []byte, off uint64) error) (uint64, error) {
	for _, n := range img.notes {
		b := make([]byte, min(n.size, maxNotes))
		if err := read(b, n.off); err != nil {
			return 0, fmt.Errorf("%w: ELF: notes at offset %#x: %w", ErrKernel, n.off, err)
		}
		addr, ok := pvhEntry(b)
		if !ok {
			continue
		}
		for _, s := range img.segments {
			if addr >= s.base && addr-s.base < s.mem {
				return addr, nil
			}
		}
		return 0, fmt.Errorf("%w: ELF: the PVH entry point %#x lies in no segment", ErrKernel, addr)
	}
	return 0, fmt.Errorf("%w: ELF: no PVH entry point (a Xen note of type %d)", ErrKernel, xenPhys32Entry)
}
