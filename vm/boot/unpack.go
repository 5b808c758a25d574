package boot

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
	"syscall"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/vmkit-go/vmkit/memory"
)

const (
	maxUnpackers = 4         // goroutines for one kernel
	lz4InBuffer  = 128 << 10 // bytes that each reads at once
	lz4Window    = 512 << 10 // for blocks that are not decoded in place
)

// errForeign says that a payload is left to the guest.
var errForeign = errors.New("payload is not gzip, zstd or LZ4")

// unpack puts the ELF kernel in payload p into mem and returns its headers
// and the end of all memory that was written. RAM ends at ram.
func unpack(mem *memory.Memory, p section, ram uint64) (*elfImage, uint64, error) {
	var magic [4]byte
	if p.size < int64(len(magic)) {
		return nil, 0, errForeign
	}
	if err := p.readAt(magic[:], 0); err != nil {
		return nil, 0, fmt.Errorf("%w: bzImage: %w", ErrKernel, err)
	}
	var how func(mem *memory.Memory, p section, size, ram uint64) (*elfImage, uint64, error)
	var name string
	switch {
	case le.Uint32(magic[:]) == lz4Magic:
		how, name = unpackLZ4, "LZ4"
	case bytes.HasPrefix(magic[:], []byte{0x1f, 0x8b}):
		how, name = unpackGzip, "gzip"
	case le.Uint32(magic[:]) == 0xfd2fb528:
		how, name = unpackZstd, "zstd"
	default:
		return nil, 0, errForeign
	}
	var img *elfImage
	var end uint64
	size, err := unpackedSize(p, ram)
	if err == nil {
		img, end, err = how(mem, p, size, ram)
	}
	if err != nil && !errors.Is(err, ErrKernel) && !errors.Is(err, ErrMemory) {
		err = fmt.Errorf("%w: %s payload at offset %#x: %w", ErrKernel, name, p.off, err)
	}
	return img, end, err
}

// scratch returns n bytes of zeroed memory outside the Go heap, so that it is
// given back at once, and a function that does that.
func scratch(n int) ([]byte, func(), error) {
	b, err := syscall.Mmap(-1, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		return nil, nil, fmt.Errorf("no memory to unpack in: mmap of %d bytes: %w", n, err)
	}
	return b, func() { syscall.Munmap(b) }, nil
}

// unpackedSize reads the size that ends a payload, and checks that it is one
// for which there can be room.
func unpackedSize(p section, ram uint64) (uint64, error) {
	var b [4]byte
	if err := p.readAt(b[:], p.size-4); err != nil {
		return 0, err
	}
	size := uint64(le.Uint32(b[:]))
	if size > ram {
		return 0, fmt.Errorf("%w: the kernel unpacks to %s, RAM below 4 GiB ends at %#x", ErrMemory, mib(size), ram)
	}
	if uint64(p.size) > size+size/64+4096 {
		return 0, fmt.Errorf("claims to unpack from %d to %d bytes", p.size, size)
	}
	return size, nil
}

// job is one LZ4 block on its way to guest memory.
type job struct {
	lz4Block
	off  uint64 // of its content in the ELF file
	base uint64 // guest-physical address of the content, or 0: take a detour
}

// unpackLZ4 decodes the blocks of a legacy frame, which do not depend on each
// other, in parallel and, where the headers allow, in place.
func unpackLZ4(mem *memory.Memory, p section, size, ram uint64) (*elfImage, uint64, error) {
	frame, err := readLZ4Frame(p, size)
	if err != nil {
		return nil, 0, err
	}
	prefix := make([]byte, min(elfPrefix, frame.size))
	first, err := p.section(frame.blocks[0].off, int64(frame.blocks[0].len))
	if err != nil {
		return nil, 0, err
	}
	z := lz4Decoder{in: first, buf: make([]byte, elfPrefix), prefix: true}
	if n, err := z.decode(prefix); n < len(prefix) {
		return nil, 0, fmt.Errorf("block at offset %#x: %w", first.off, cmp.Or(err, errLZ4Short))
	}
	img, err := parseELF(prefix, frame.size, ram)
	if err != nil {
		return nil, 0, err
	}
	jobs, end := img.plan(frame, ram)

	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		next int
		fail error
	)
	take := func(err error) (job, bool) {
		mu.Lock()
		defer mu.Unlock()
		if fail == nil {
			fail = err
		}
		if fail != nil || next == len(jobs) {
			return job{}, false
		}
		next++
		return jobs[next-1], true
	}
	for range min(runtime.GOMAXPROCS(0), maxUnpackers, len(jobs)) {
		wg.Go(func() {
			buf := make([]byte, lz4InBuffer)
			var err error
			for {
				j, ok := take(err)
				if !ok {
					return
				}
				err = j.run(mem, p, img, buf)
			}
		})
	}
	wg.Wait()
	return img, end, fail
}

// plan decides where each block of frame is decoded. A block goes straight to
// guest memory if every segment in it does with the same displacement, and
// what lies between them there is free RAM. Blocks without a segment are left
// out. The hardest come first, so that the goroutines end together.
func (img *elfImage) plan(frame lz4Frame, ram uint64) (jobs []job, end uint64) {
	type span struct{ base, end uint64 }
	var taken []span
	end = img.end()
	for i, b := range frame.blocks {
		j := job{lz4Block: b, off: uint64(i) * lz4BlockSize}
		size := uint64(b.size)
		var delta int64
		inside, straight := false, true
		for _, s := range img.segments {
			if s.off >= j.off+size || s.off+s.size <= j.off {
				continue
			}
			d := int64(s.base) - int64(s.off)
			straight = straight && (!inside || d == delta)
			inside, delta = true, d
		}
		if !inside {
			continue
		}
		base := int64(j.off) + delta
		straight = straight && base >= highBase && base+int64(size) <= int64(ram)
		if straight {
			at := span{uint64(base), uint64(base) + size}
			for _, s := range img.segments {
				if at.base >= s.end() || at.end <= s.base {
					continue
				}
				same := int64(s.base)-int64(s.off) == delta
				straight = straight && same && min(at.end, s.end()) <= s.base+s.size
			}
			for _, t := range taken {
				straight = straight && (at.base >= t.end || at.end <= t.base)
			}
			if straight {
				taken = append(taken, at)
				j.base = at.base
				end = max(end, at.end)
			}
		}
		jobs = append(jobs, j)
	}
	slices.SortStableFunc(jobs, func(a, b job) int { return cmp.Compare(b.len, a.len) })
	return jobs, end
}

// run decodes block j, using buf for its packed form.
func (j job) run(mem *memory.Memory, p section, img *elfImage, buf []byte) error {
	in, err := p.section(j.lz4Block.off, int64(j.len))
	if err != nil {
		return err
	}
	z := lz4Decoder{in: in, buf: buf}
	var dst []byte
	if j.base != 0 {
		z.sparse = true
		if dst, err = mem.Slice(j.base, uint64(j.size)); err != nil {
			return err
		}
	} else {
		dst = make([]byte, lz4Window)
		at, end := j.off, j.off+uint64(j.size)
		z.emit = func(content []byte) error {
			if uint64(len(content)) > end-at {
				return errLZ4Long
			}
			err := img.scatter(mem, content, at)
			at += uint64(len(content))
			return err
		}
	}
	n, err := z.decode(dst)
	if err == nil && n != j.size {
		err = fmt.Errorf("unpacks to %d bytes: want %d", n, j.size)
	}
	if err != nil {
		return fmt.Errorf("block at offset %#x: %w", in.off, err)
	}
	if j.base != 0 {
		mem.MarkDirty(j.base, uint64(j.size))
	}
	return nil
}

// scatter copies the file's content from off on to the segments that it
// belongs to. Pages of zeros are left out: guest memory reads as zero already.
func (img *elfImage) scatter(mem *memory.Memory, content []byte, off uint64) error {
	for _, s := range img.segments {
		from, to := max(s.off, off), min(s.off+s.size, off+uint64(len(content)))
		if from >= to {
			continue
		}
		base := s.base + from - s.off
		dst, err := mem.Slice(base, to-from)
		if err != nil {
			return err
		}
		src := content[from-off : to-off]
		for len(src) > 0 {
			n := min(pageSize, len(src))
			if !bytes.Equal(src[:n], zeroPage[:n]) {
				copy(dst, src[:n])
			}
			dst, src = dst[n:], src[n:]
		}
		mem.MarkDirty(base, to-from)
	}
	return nil
}

var zeroPage [pageSize]byte

// unpackGzip streams the kernel to its place.
func unpackGzip(mem *memory.Memory, p section, size, ram uint64) (*elfImage, uint64, error) {
	r, err := gzip.NewReader(io.NewSectionReader(p.r, p.off, p.size))
	if err != nil {
		return nil, 0, err
	}
	r.Multistream(false)
	img, err := loadStream(mem, r, size, ram)
	if err != nil {
		return nil, 0, err
	}
	return img, img.end(), r.Close()
}

// loadStream loads an ELF file of the given size from a stream, which it reads
// to its end, so that a checksum there is verified.
func loadStream(mem *memory.Memory, r io.Reader, size, ram uint64) (*elfImage, error) {
	prefix := make([]byte, min(elfPrefix, size))
	if _, err := io.ReadFull(r, prefix); err != nil {
		return nil, err
	}
	img, err := parseELF(prefix, size, ram)
	if err != nil {
		return nil, err
	}
	r = io.MultiReader(bytes.NewReader(prefix), r)
	var at uint64
	for _, s := range img.segments {
		if s.off < at {
			return nil, fmt.Errorf("%w: ELF: segment at %#x shares bytes of the file with another", ErrKernel, s.base)
		}
		if _, err := io.CopyN(io.Discard, r, int64(s.off-at)); err != nil {
			return nil, err
		}
		dst, err := mem.Slice(s.base, s.size)
		if err != nil {
			return nil, err
		}
		if n, err := io.ReadFull(r, dst); err != nil {
			return nil, fmt.Errorf("unpacks to %d bytes of %d: %w", s.off+uint64(n), size, err)
		}
		mem.MarkDirty(s.base, s.size)
		at = s.off + s.size
	}
	n, err := io.Copy(io.Discard, io.LimitReader(r, int64(size-at)+1))
	if err == nil && uint64(n) != size-at {
		err = fmt.Errorf("does not unpack to the %d bytes that it ends with", size)
	}
	return img, err
}

// unpackZstd decodes the kernel as a whole, since a window of up to all of it
// has to stay in reach, and copies its segments to their places.
func unpackZstd(mem *memory.Memory, p section, size, ram uint64) (*elfImage, uint64, error) {
	src, freeSrc, err := scratch(int(p.size - 4))
	if err != nil {
		return nil, 0, err
	}
	defer freeSrc()
	if err := p.readAt(src, 0); err != nil {
		return nil, 0, err
	}
	dst, freeDst, err := scratch(int(max(size, 1)))
	if err != nil {
		return nil, 0, err
	}
	defer freeDst()
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		return nil, 0, err
	}
	defer d.Close()
	out, err := d.DecodeAll(src, dst[:0:size])
	if err != nil {
		return nil, 0, err
	}
	if uint64(len(out)) != size {
		return nil, 0, fmt.Errorf("unpacks to %d bytes: want %d", len(out), size)
	}
	img, err := parseELF(out[:min(elfPrefix, size)], size, ram)
	if err != nil {
		return nil, 0, err
	}
	return img, img.end(), img.scatter(mem, out, 0)
}
