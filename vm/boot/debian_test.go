package boot

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/vm/boot/acpi"
)

// TestDebianKernel loads Debian's kernel in every way and compares what is in
// guest memory with what slower tools make of the same file.
func TestDebianKernel(t *testing.T) {
	k, err := debian.FetchKernel(t.Context(), os.Stderr)
	if errors.Is(err, debian.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		t.Fatal(err)
	}
	b, err := parseBzImage(image[:elfPrefix], section{r: bytes.NewReader(image), size: int64(len(image))})
	if err != nil {
		t.Fatal(err)
	}
	payload := image[b.payload.off : b.payload.off+b.payload.size]
	if le.Uint32(payload) != lz4Magic {
		t.Skipf("the payload of %s is not LZ4 (it begins % x)", k.Image, payload[:4])
	}
	var vmlinux []byte
	for at := 4; at < len(payload)-4; {
		n := int(le.Uint32(payload[at:]))
		block, err := slowLZ4(payload[at+4:at+4+n], lz4BlockSize)
		if err != nil {
			t.Fatal(err)
		}
		vmlinux = append(vmlinux, block...)
		at += 4 + n
	}
	if lz4, err := exec.LookPath("lz4"); err == nil {
		cmd := exec.Command(lz4, "-dc")
		cmd.Stdin = bytes.NewReader(payload[:len(payload)-4])
		if out, err := cmd.Output(); err != nil || !bytes.Equal(out, vmlinux) {
			t.Errorf("lz4 unpacks something else: %v", err)
		}
	}
	var written bytes.Buffer
	if err := WriteVmlinux(&written, bytes.NewReader(image)); err != nil || !bytes.Equal(written.Bytes(), vmlinux) {
		t.Errorf("WriteVmlinux writes something else: %v", err)
	}

	repack := func(payload []byte) []byte {
		out := append(bytes.Clone(image[:b.payload.off]), payload...)
		out = append(out, make([]byte, 16)...)
		le.PutUint32(out[hdrPayloadLength:], uint32(len(payload)))
		le.PutUint32(out[hdrSysSize:], uint32(int64(len(out))-b.code.off)/16)
		return out
	}
	for name, kernel := range map[string][]byte{
		"bzImage": image, "vmlinux": vmlinux,
		"zstd": repack(packZstd(t, vmlinux)), "gzip": repack(packGzip(t, vmlinux)),
	} {
		for _, p := range []Protocol{Protocol64, ProtocolPVH} {
			mem := newMemory(t, 128<<20)
			e, err := Linux{Kernel: bytes.NewReader(kernel), Protocol: p}.Load(mem, acpi.Config{})
			if err != nil {
				t.Errorf("%s, protocol %d: %v", name, p, err)
				continue
			}
			checkSegments(t, mem, vmlinux)
			if p == Protocol64 && e.RIP != le.Uint64(vmlinux[24:]) {
				t.Errorf("%s: entry at %#x", name, e.RIP)
			}
			mem.Close()
		}
	}
	mem := newMemory(t, 128<<20)
	e, err := Linux{Kernel: bytes.NewReader(image), Unpack: UnpackNever}.Load(mem, acpi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	code := image[b.code.off : b.code.off+b.code.size]
	if !bytes.Equal(read(t, mem, e.RIP-entry64, len(code)), code) {
		t.Error("the protected-mode kernel differs")
	}
}

// BenchmarkLoad loads Debian's kernel into fresh memory. With "guest" the
// kernel is only copied.
func BenchmarkLoad(b *testing.B) {
	k, err := debian.FetchKernel(b.Context(), os.Stderr)
	if err != nil {
		b.Skip(err)
	}
	f, err := os.Open(k.Image)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	for name, l := range map[string]Linux{"host": {Kernel: f}, "guest": {Kernel: f, Unpack: UnpackNever}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				mem := newMemory(b, 128<<20)
				b.StartTimer()
				if _, err := l.Load(mem, acpi.Config{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				mem.Close()
				b.StartTimer()
			}
		})
	}
}
