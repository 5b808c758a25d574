package boot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmkit-go/vmkit/internal/platform"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
)

func newMemory(t testing.TB, size uint64) *memory.Memory {
	t.Helper()
	mem, err := memory.New(memory.Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return mem
}

func read(t testing.TB, mem *memory.Memory, gpa uint64, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := mem.Read(gpa, b); err != nil {
		t.Fatal(err)
	}
	return b
}

// readE820 reads n entries of the given size, of either protocol.
func readE820(b []byte, n, size int) []e820Entry {
	var m []e820Entry
	for i := range n {
		d := b[i*size:]
		m = append(m, e820Entry{le.Uint64(d), le.Uint64(d[8:]), le.Uint32(d[16:])})
	}
	return m
}

// checkSegments compares guest memory with the segments of ELF file want, up
// to where they end in memory.
func checkSegments(t testing.TB, mem *memory.Memory, want []byte) {
	t.Helper()
	img, err := parseELF(want[:min(len(want), elfPrefix)], uint64(len(want)), 1<<32)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range img.segments {
		got := read(t, mem, s.base, int(s.mem))
		if !bytes.Equal(got[:s.size], want[s.off:s.off+s.size]) {
			t.Errorf("segment at %#x differs", s.base)
		}
		if !allZero(got[s.size:]) {
			t.Errorf("segment at %#x: memory past its content is not zero", s.base)
		}
	}
}

var testHardware = acpi.Config{
	CPUs: 2, Serial: true,
	PCI: &acpi.PCI{ECAM: platform.ECAMBase, Windows: []acpi.Window{{Base: platform.PCIWindowBase, Size: platform.PCIWindowSize}}},
}

func TestLinux(t *testing.T) {
	small := smallELF()
	kernels := map[string][]byte{
		"ELF":     small,
		"gzip":    makeBzImage(packGzip(t, small)),
		"zstd":    makeBzImage(packZstd(t, small)),
		"LZ4":     makeBzImage(packLZ4(small)),
		"foreign": makeBzImage([]byte("\xfd7zXZ\x00and so on")),
	}
	const size = 64 << 20
	memoryMap := []e820Entry{
		{0, 0xa0000, e820RAM}, {0xe0000, 0x20000, e820ACPI}, {0x100000, size - 0x100000, e820RAM},
		{platform.ECAMBase, 1 << 20, e820Reserved}, {0xfeffb000, 0x4000, e820Reserved},
	}
	initrd := bytes.Repeat([]byte("initrd "), 1000)
	const initrdBase = (size - 7000) &^ 0xfff
	for name, k := range kernels {
		for _, l := range []Linux{{}, {Unpack: UnpackNever}, {Protocol: ProtocolPVH}} {
			if name == "foreign" && l.Protocol == ProtocolPVH {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d/%d", name, l.Protocol, l.Unpack), func(t *testing.T) {
				mem := newMemory(t, size)
				l.Kernel, l.Initrd, l.Cmdline = bytes.NewReader(k), bytes.NewReader(initrd), "console=ttyS0 quiet"
				e, err := l.Load(mem, testHardware)
				if err != nil {
					t.Fatal(err)
				}
				want := Entry{Mode: Long64, RIP: 0x200000, RSP: stackTop, RSI: bootParams, CR3: pageTables, GDTBase: gdtAddr, GDTLimit: 31}
				guestUnpacks := name == "foreign" || name != "ELF" && l.Unpack == UnpackNever
				if guestUnpacks {
					want.RIP = 0x200200
				}
				if l.Protocol == ProtocolPVH {
					want = Entry{Mode: Protected32, RIP: 0x200040, RSP: stackTop, RBX: startInfoAddr, GDTBase: gdtAddr, GDTLimit: 31}
				}
				if d := cmp.Diff(want, e); d != "" {
					t.Error(d)
				}
				if s := e.State(); s.Validate() != nil {
					t.Error(s.Validate())
				}
				if guestUnpacks {
					if !bytes.Equal(read(t, mem, 0x200000, len(k)-2560), k[2560:]) {
						t.Error("the protected-mode kernel differs")
					}
				} else {
					checkSegments(t, mem, small)
				}
				if !bytes.Equal(read(t, mem, initrdBase, len(initrd)), initrd) {
					t.Error("the initrd differs")
				}
				if got := read(t, mem, cmdlineAddr, len(l.Cmdline)+1); string(got) != l.Cmdline+"\x00" {
					t.Errorf("command line %q", got)
				}
				if tables, _ := acpi.Build(acpi.Base, testHardware); !bytes.Equal(read(t, mem, acpi.Base, len(tables)), tables) {
					t.Error("the ACPI tables differ")
				}
				if l.Protocol == ProtocolPVH {
					checkStartInfo(t, mem, memoryMap, initrdBase, uint64(len(initrd)))
					return
				}
				zp := read(t, mem, bootParams, pageSize)
				if d := cmp.Diff(memoryMap, readE820(zp[zpE820Table:], int(zp[zpE820Entries]), 20), cmp.AllowUnexported(e820Entry{})); d != "" {
					t.Error(d)
				}
				for off, want := range map[int]uint32{
					hdrMagic: magicHdrS, hdrCmdline: cmdlineAddr, hdrInitrd: initrdBase, hdrInitrdSize: uint32(len(initrd)), zpRSDP: acpi.Base,
				} {
					if got := le.Uint32(zp[off:]); got != want {
						t.Errorf("boot_params+%#x: %#x, want %#x", off, got, want)
					}
				}
				if zp[hdrLoader] != 0xff || zp[0x1ef] != 0 {
					t.Errorf("type_of_loader %#x, sentinel %#x", zp[hdrLoader], zp[0x1ef])
				}
				if name != "ELF" {
					got, want := bytes.Clone(zp[hdrStart:0x26c]), bytes.Clone(k[hdrStart:0x26c])
					for _, f := range []struct{ off, n int }{{hdrVidMode, 2}, {hdrLoader, 1}, {hdrInitrd, 8}, {hdrCmdline, 4}} {
						clear(got[f.off-hdrStart:][:f.n])
						clear(want[f.off-hdrStart:][:f.n])
					}
					if !bytes.Equal(got, want) {
						t.Error("the setup header was not passed on")
					}
				}
				checkPaging(t, mem, e.CR3)
			})
		}
	}
}

func checkStartInfo(t *testing.T, mem *memory.Memory, memoryMap []e820Entry, initrd, initrdSize uint64) {
	b := read(t, mem, startInfoAddr, 56)
	if le.Uint32(b) != 0x336ec578 || le.Uint32(b[4:]) != 1 || le.Uint32(b[12:]) != 1 {
		t.Fatalf("start info % x", b)
	}
	m := read(t, mem, le.Uint64(b[16:]), 32)
	if le.Uint64(m) != initrd || le.Uint64(m[8:]) != initrdSize {
		t.Errorf("module % x", m)
	}
	if le.Uint64(b[24:]) != cmdlineAddr || le.Uint64(b[32:]) != acpi.Base {
		t.Errorf("command line at %#x, RSDP at %#x", le.Uint64(b[24:]), le.Uint64(b[32:]))
	}
	n := int(le.Uint32(b[48:]))
	got := readE820(read(t, mem, le.Uint64(b[40:]), 24*n), n, 24)
	if d := cmp.Diff(memoryMap, got, cmp.AllowUnexported(e820Entry{})); d != "" {
		t.Error(d)
	}
}

// checkPaging walks the page tables as a CPU does.
func checkPaging(t *testing.T, mem *memory.Memory, cr3 uint64) {
	for _, va := range []uint64{0, 0x200000, 0x12345678, 0xbfe00000, 0xfee00000, 0xffffffff} {
		entry := cr3
		for _, shift := range []uint{39, 30, 21} {
			var err error
			if entry, err = mem.Uint64(entry&^0xfff + va>>shift&511*8); err != nil {
				t.Fatal(err)
			}
			if entry&3 != 3 {
				t.Fatalf("%#x: entry %#x at level %d is not a writable one", va, entry, shift)
			}
		}
		if entry&0x80 == 0 || entry&^0x1fffff != va&^0x1fffff {
			t.Errorf("%#x: maps to entry %#x", va, entry)
		}
	}
}

func TestE820AboveFourGiB(t *testing.T) {
	mem := newMemory(t, 5<<30)
	want := []e820Entry{
		{0, 0xa0000, e820RAM}, {0xe0000, 0x20000, e820ACPI}, {0x100000, 3<<30 - 0x100000, e820RAM},
		{4 << 30, 2 << 30, e820RAM}, {0xfeffb000, 0x4000, e820Reserved},
	}
	if d := cmp.Diff(want, e820Map(mem, acpi.Config{}), cmp.AllowUnexported(e820Entry{})); d != "" {
		t.Error(d)
	}
}

// TestUnpackPlacement unpacks kernels of several blocks whose segments do not
// lie as in the file, or leave memory between them that must stay zero.
func TestUnpackPlacement(t *testing.T) {
	mib := func(n int) uint64 { return uint64(n) << 20 }
	data := func(n int, seed uint64) []byte { return texture(n<<20, seed) }
	junk := bytes.Repeat([]byte("junk"), 1<<18)
	for name, k := range map[string][]byte{
		"one displacement": makeELF(mib(16), 21<<20,
			testSegment{base: mib(16), off: mib(2), data: data(10, 1)},
			testSegment{base: mib(27), off: mib(13), data: data(7, 2)}),
		"several": makeELF(mib(16), 30<<20,
			testSegment{base: mib(16), off: mib(1), data: data(9, 3)},
			testSegment{base: mib(25), off: mib(11), data: data(2, 4)},
			testSegment{base: mib(40), off: mib(13), data: data(3, 5)},
			testSegment{base: mib(30), off: mib(17), data: data(8, 6)}),
		"reversed": makeELF(mib(2), 20<<20,
			testSegment{base: mib(20), off: mib(1), data: data(9, 7)},
			testSegment{base: mib(2), off: mib(10), data: data(9, 8)}),
		"zeros follow": makeELF(mib(16), 0,
			testSegment{base: mib(16), off: mib(1), data: data(9, 9), mem: mib(20)},
			testSegment{base: mib(40), off: mib(30), data: data(1, 10)},
			testSegment{base: mib(48), off: mib(10), data: junk}),
		"up to the end of RAM": makeELF(mib(60), 0,
			testSegment{base: mib(60), off: mib(1), data: data(4, 11)},
			testSegment{base: mib(2), off: mib(5), data: data(4, 12)}),
		"down to 1 MiB":     makeELF(mib(1), 0, testSegment{base: mib(1), off: mib(4), data: data(10, 13)}),
		"far into the file": makeELF(mib(16), 0, testSegment{base: mib(16), off: mib(25), data: data(4, 14)}),
	} {
		t.Run(name, func(t *testing.T) {
			payloads := map[string][]byte{"LZ4": packLZ4(k)}
			if name == "several" || name == "reversed" {
				payloads["gzip"], payloads["zstd"] = packGzip(t, k), packZstd(t, k)
			}
			for how, payload := range payloads {
				mem := newMemory(t, 64<<20)
				if _, err := (Linux{Kernel: bytes.NewReader(makeBzImage(payload))}).Load(mem, acpi.Config{}); err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				checkSegments(t, mem, k)
			}
		})
	}
}

func TestLinuxRefuses(t *testing.T) {
	small := smallELF()
	lz4 := makeBzImage(packLZ4(small))
	change := func(b []byte, off int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[off:], v)
		return b
	}
	rd := func(b []byte) io.ReaderAt { return bytes.NewReader(b) }
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	broken := errors.New("broken")
	payloadAt := 2560 + 0x400
	for name, c := range map[string]struct {
		l      Linux
		memory uint64
		hw     acpi.Config
		want   error
		text   string
	}{
		"no kernel":             {l: Linux{}, want: ErrKernel, text: "none given"},
		"empty kernel":          {l: Linux{Kernel: rd(nil)}, want: ErrKernel, text: "0 bytes"},
		"text":                  {l: Linux{Kernel: strings.NewReader(strings.Repeat("text ", 1000))}, want: ErrKernel, text: "neither an ELF file (74 65 78 74 at offset 0)"},
		"a directory":           {l: Linux{Kernel: dir}, want: ErrKernel, text: "is a directory"},
		"broken reader":         {l: Linux{Kernel: brokenReader{broken}}, want: broken},
		"old protocol":          {l: Linux{Kernel: rd(change(lz4, hdrVersion, 0x0b, 2))}, want: ErrKernel, text: "2.11"},
		"32-bit kernel":         {l: Linux{Kernel: rd(change(lz4, hdrXLoadFlags, 0))}, want: ErrKernel, text: "64-bit"},
		"zImage":                {l: Linux{Kernel: rd(change(lz4, hdrLoadFlags, 0))}, want: ErrKernel, text: "zImage"},
		"short header":          {l: Linux{Kernel: rd(change(lz4, hdrJump+1, 0x20))}, want: ErrKernel, text: "header"},
		"long header":           {l: Linux{Kernel: rd(change(lz4, hdrJump+1, 0xff))}, want: ErrKernel, text: "header"},
		"payload out of range":  {l: Linux{Kernel: rd(change(lz4, hdrPayloadOffset, 0, 0, 0, 0x7f))}, want: ErrKernel, text: "payload"},
		"low address":           {l: Linux{Kernel: rd(change(lz4, hdrPrefAddress, 0, 0, 0)), Unpack: UnpackNever}, want: ErrKernel, text: "preferred address"},
		"high address":          {l: Linux{Kernel: rd(change(lz4, hdrPrefAddress+4, 1)), Unpack: UnpackNever}, want: ErrMemory},
		"huge init size":        {l: Linux{Kernel: rd(change(lz4, hdrInitSize, 0xff, 0xff, 0xff, 0xff)), Unpack: UnpackNever}, want: ErrMemory},
		"damaged LZ4":           {l: Linux{Kernel: rd(change(lz4, payloadAt+8+100, 0xff, 0xff, 0xff, 0xff))}, want: ErrKernel, text: "LZ4 payload at offset"},
		"gzip damaged":          {l: Linux{Kernel: rd(makeBzImage(change(packGzip(t, small), 40, 0xff, 0xff, 0xff, 0xff)))}, want: ErrKernel, text: "gzip payload"},
		"gzip checksum":         {l: Linux{Kernel: rd(makeBzImage(change(packGzip(t, small), len(packGzip(t, small))-8, 1, 2, 3)))}, want: ErrKernel, text: "checksum"},
		"zstd damaged":          {l: Linux{Kernel: rd(makeBzImage(change(packZstd(t, small), 40, 0xff, 0xff, 0xff, 0xff)))}, want: ErrKernel, text: "zstd payload"},
		"zstd larger than said": {l: Linux{Kernel: rd(makeBzImage(change(packZstd(t, small), len(packZstd(t, small))-4, 0, 1, 0, 0)))}, want: ErrKernel, text: "zstd payload"},
		"zstd larger than RAM":  {l: Linux{Kernel: rd(makeBzImage(change(packZstd(t, small), len(packZstd(t, small))-4, 0, 0, 0, 0xff)))}, want: ErrMemory},
		"packed text":           {l: Linux{Kernel: rd(makeBzImage(packGzip(t, bytes.Repeat([]byte("text"), 100))))}, want: ErrKernel, text: "no magic number"},
		"PVH, but foreign":      {l: Linux{Kernel: rd(makeBzImage([]byte("\xfd7zXZ\x00"))), Protocol: ProtocolPVH}, want: ErrKernel, text: "PVH"},
		"32-bit ELF":            {l: Linux{Kernel: rd(change(small, 4, 1))}, want: ErrKernel, text: "ELFCLASS32"},
		"ELF for another CPU":   {l: Linux{Kernel: rd(change(small, 18, 183))}, want: ErrKernel, text: "EM_AARCH64"},
		"object file":           {l: Linux{Kernel: rd(change(small, 16, 1))}, want: ErrKernel, text: "ET_REL"},
		"no headers":            {l: Linux{Kernel: rd(change(small, 56, 0))}, want: ErrKernel, text: "program headers"},
		"many headers":          {l: Linux{Kernel: rd(change(small, 56, 0xff, 0xff))}, want: ErrKernel, text: "program headers"},
		"headers far away":      {l: Linux{Kernel: rd(change(small, 32, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))}, want: ErrKernel, text: "program headers"},
		"entry nowhere":         {l: Linux{Kernel: rd(change(small, 24, 0, 0, 0, 0x77))}, want: ErrKernel, text: "entry point"},
		"segment at 0":          {l: Linux{Kernel: rd(change(small, 64+24, 0, 0, 0))}, want: ErrKernel, text: "below 1 MiB"},
		"segment above RAM":     {l: Linux{Kernel: rd(change(small, 64+24+7, 0x80))}, want: ErrMemory},
		"segment too large":     {l: Linux{Kernel: rd(change(small, 64+40+7, 0xff))}, want: ErrMemory},
		"more file than memory": {l: Linux{Kernel: rd(change(small, 64+40, 1, 0))}, want: ErrKernel, text: "bytes of memory"},
		"overlap":               {l: Linux{Kernel: rd(makeELF(2<<20, 0, testSegment{base: 2 << 20, off: 4096, data: make([]byte, 8192)}, testSegment{base: 2<<20 + 4096, off: 16384, data: make([]byte, 10)}))}, want: ErrKernel, text: "overlap"},
		"no PVH note":           {l: Linux{Kernel: rd(change(small, 0x4000+36+8, 17)), Protocol: ProtocolPVH}, want: ErrKernel, text: "no PVH entry"},
		"PVH entry nowhere":     {l: Linux{Kernel: rd(change(small, 0x4000+36+16, 0, 0, 0, 0x77)), Protocol: ProtocolPVH}, want: ErrKernel, text: "PVH entry point"},
		"long command line":     {l: Linux{Kernel: rd(small), Cmdline: strings.Repeat("x", 2048)}, want: ErrCmdline, text: "2048 bytes, the kernel takes 2047"},
		"NUL in command line":   {l: Linux{Kernel: rd(small), Cmdline: "a\x00b"}, want: ErrCmdline, text: "byte 1"},
		"unreadable initrd":     {l: Linux{Kernel: rd(small), Initrd: dir}, want: ErrInitrd},
		"large initrd":          {l: Linux{Kernel: rd(small), Initrd: rd(make([]byte, 30<<20))}, want: ErrMemory, text: "initrd takes 30 MiB"},
		"no memory":             {l: Linux{Kernel: rd(small)}, memory: 4096, want: ErrMemory},
		"little memory":         {l: Linux{Kernel: rd(small)}, memory: 2 << 20, want: ErrMemory},
		"bad machine":           {l: Linux{Kernel: rd(small)}, hw: acpi.Config{CPUs: -1}, want: acpi.ErrConfig},
		"bad protocol":          {l: Linux{Kernel: rd(small), Protocol: 9}, text: "protocol 9"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.memory == 0 {
				c.memory = 32 << 20
			}
			_, err := c.l.Load(newMemory(t, c.memory), c.hw)
			if err == nil {
				t.Fatal("accepted")
			}
			if c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got %q, want one line with %q that wraps %v", err, c.text, c.want)
			}
			if testing.Verbose() {
				t.Log(err)
			}
		})
	}
}

type brokenReader struct{ err error }

func (r brokenReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

// TestTruncated cuts every kind of kernel at many places.
func TestTruncated(t *testing.T) {
	small := smallELF()
	for name, k := range map[string][]byte{
		"ELF": small, "gzip": makeBzImage(packGzip(t, small)), "zstd": makeBzImage(packZstd(t, small)), "LZ4": makeBzImage(packLZ4(small)),
	} {
		for n := 0; n < len(k)-16; n += 1 + n/97 {
			mem, err := memory.New(memory.Config{Size: 16 << 20})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := (Linux{Kernel: bytes.NewReader(k[:n])}).Load(mem, acpi.Config{}); !errors.Is(err, ErrKernel) {
				t.Errorf("%s: %d bytes of %d: %v", name, n, len(k), err)
			}
			mem.Close()
		}
	}
}

// TestShrinkingKernel has the file end earlier than its size said.
func TestShrinkingKernel(t *testing.T) {
	small := smallELF()
	for _, k := range [][]byte{small, makeBzImage(packGzip(t, small)), makeBzImage(packZstd(t, small)), makeBzImage(packLZ4(small))} {
		for _, l := range []Linux{{}, {Unpack: UnpackNever}} {
			l.Kernel = shrunk{bytes.NewReader(k[:len(k)*2/3]), int64(len(k))}
			if _, err := l.Load(newMemory(t, 16<<20), acpi.Config{}); !errors.Is(err, ErrKernel) || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("got %v", err)
			}
		}
	}
}

type shrunk struct {
	io.ReaderAt
	size int64
}

func (s shrunk) Size() int64 { return s.size }

func TestOpen(t *testing.T) {
	for _, n := range []int64{0, 1, 2, 3, 511, 512, 513, 100_000} {
		b := make([]byte, n)
		for _, r := range []io.ReaderAt{bytes.NewReader(b), struct{ io.ReaderAt }{bytes.NewReader(b)}} {
			if s, err := open(r); err != nil || s.size != n {
				t.Errorf("%T of %d bytes: got %d, %v", r, n, s.size, err)
			}
		}
	}
	if _, err := open(endless{}); err == nil {
		t.Error("a reader without an end was accepted")
	}
	if _, err := open(shrunk{bytes.NewReader(nil), -1}); err == nil {
		t.Error("a negative size was accepted")
	}
}

type endless struct{}

func (endless) ReadAt(p []byte, off int64) (int, error) { return len(p), nil }

func ExampleLinux() {
	mem, err := memory.New(memory.Config{Size: 64 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer mem.Close()
	l := Linux{Kernel: strings.NewReader("not a kernel"), Cmdline: "console=ttyS0"}
	_, err = l.Load(mem, acpi.Config{CPUs: 1, Serial: true})
	fmt.Println(err)
	// Output: bad kernel image: 12 bytes are too few for one
}
