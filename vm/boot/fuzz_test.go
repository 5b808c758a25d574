package boot

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
)

// fuzzLoad loads file in every way. It may fail, but only in the ways that
// Load documents, and a state that it returns is a valid one.
func fuzzLoad(t *testing.T, file []byte) {
	for _, l := range []Linux{{}, {Unpack: UnpackNever}, {Protocol: ProtocolPVH}} {
		mem, err := memory.New(memory.Config{Size: 8 << 20})
		if err != nil {
			t.Fatal(err)
		}
		l.Kernel = bytes.NewReader(file)
		l.Initrd = bytes.NewReader([]byte("initrd"))
		e, err := l.Load(mem, acpi.Config{})
		if err == nil {
			s := e.State()
			if err := s.Validate(); err != nil {
				t.Error(err)
			}
			if !mem.Contains(e.RIP, 1) || e.RIP < highBase {
				t.Errorf("entry at %#x", e.RIP)
			}
		} else if !errors.Is(err, ErrKernel) && !errors.Is(err, ErrMemory) {
			t.Errorf("undocumented error: %v", err)
		}
		mem.Close()
	}
}

func FuzzBzImage(f *testing.F) {
	small := smallELF()
	for _, p := range [][]byte{packGzip(f, small), packZstd(f, small), packLZ4(small), []byte("\xfd7zXZ\x00")} {
		f.Add(makeBzImage(p))
	}
	f.Fuzz(fuzzLoad)
}

// FuzzPayload puts arbitrary bytes where the kernel's are.
func FuzzPayload(f *testing.F) {
	small := smallELF()
	for _, p := range [][]byte{packGzip(f, small), packZstd(f, small), packLZ4(small)} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, payload []byte) { fuzzLoad(t, makeBzImage(payload)) })
}

// FuzzELF loads arbitrary ELF files, and the same ones through LZ4, whose
// blocks are placed by what the headers say: guest memory must be the same.
func FuzzELF(f *testing.F) {
	f.Add(smallELF())
	f.Add(makeELF(2<<20, 0,
		testSegment{base: 3 << 20, off: 0x2000, data: texture(3000, 1), mem: 5000},
		testSegment{base: 2 << 20, off: 0x1000, data: texture(3000, 2)}))
	f.Fuzz(func(t *testing.T, file []byte) {
		fuzzLoad(t, file)
		var got [2]error
		var mems [2]*memory.Memory
		for i, k := range [][]byte{file, makeBzImage(packLZ4(file))} {
			mem, err := memory.New(memory.Config{Size: 8 << 20})
			if err != nil {
				t.Fatal(err)
			}
			defer mem.Close()
			mems[i] = mem
			_, got[i] = Linux{Kernel: bytes.NewReader(k)}.Load(mem, acpi.Config{})
		}
		if !bytes.HasPrefix(file, []byte("\x7fELF")) {
			return
		}
		if (got[0] == nil) != (got[1] == nil) {
			t.Fatalf("ELF: %v, in a bzImage: %v", got[0], got[1])
		}
		if got[0] != nil {
			return
		}
		img, err := parseELF(file[:min(len(file), elfPrefix)], uint64(len(file)), 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range img.segments {
			a, b := make([]byte, s.mem), make([]byte, s.mem)
			if err := errors.Join(mems[0].Read(s.base, a), mems[1].Read(s.base, b)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(a, b) {
				t.Fatalf("segment at %#x differs", s.base)
			}
		}
	})
}

func FuzzNotes(f *testing.F) {
	f.Add(append(note("GNU\x00", 3, make([]byte, 20)), xenNote(0x1000)...))
	f.Add(note("Xen\x00", xenPhys32Entry, make([]byte, 8)))
	f.Add(note("Xen", 1, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		addr, ok := pvhEntry(b)
		if !ok && addr != 0 {
			t.Errorf("no entry, yet %#x", addr)
		}
		// Complete notes before it change nothing.
		if got, ok2 := pvhEntry(append(note("Linux\x00", 257, []byte("abc")), b...)); got != addr || ok2 != ok {
			t.Errorf("%#x, %v behind another note; alone %#x, %v", got, ok2, addr, ok)
		}
	})
}
