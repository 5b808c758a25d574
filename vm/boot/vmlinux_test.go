package boot

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestWriteVmlinux(t *testing.T) {
	large := append(smallELF(), texture(lz4BlockSize+12345, 7)...)
	for _, elf := range [][]byte{smallELF(), large} {
		for name, payload := range map[string][]byte{"gzip": packGzip(t, elf), "zstd": packZstd(t, elf), "LZ4": packLZ4(elf)} {
			var out bytes.Buffer
			if err := WriteVmlinux(&out, bytes.NewReader(makeBzImage(payload))); err != nil {
				t.Errorf("%s: %v", name, err)
			} else if !bytes.Equal(out.Bytes(), elf) {
				t.Errorf("%s: %d bytes, which are not the %d that were packed", name, out.Len(), len(elf))
			}
		}
	}
}

type fullWriter struct{}

var errFull = errors.New("disk full")

func (fullWriter) Write([]byte) (int, error) { return 0, errFull }

func TestWriteVmlinuxErrors(t *testing.T) {
	elf := smallELF()
	lie := func(payload []byte, size uint32) []byte {
		payload = bytes.Clone(payload)
		le.PutUint32(payload[len(payload)-4:], size)
		return makeBzImage(payload)
	}
	for _, tt := range []struct {
		name  string
		image []byte
		text  string
	}{
		{"nothing", nil, "not a bzImage"},
		{"an ELF file", elf, "not a bzImage"},
		{"no payload", makeBzImage(nil), "payload of 0 bytes"},
		{"foreign", makeBzImage([]byte("\xfd7zXZ\x00..........\x00\x01\x00\x00")), errForeign.Error()},
		{"LZ4 of less", lie(packLZ4(elf), uint32(len(elf)+1)), "unpacks to"},
		{"LZ4 of more", lie(packLZ4(elf), uint32(len(elf)-1)), "unpacks to"},
		{"zstd of less", lie(packZstd(t, elf), uint32(len(elf)+1)), "want"},
		{"zstd of more", lie(packZstd(t, elf), uint32(len(elf)-1)), "unpacks to more"},
		{"gzip of more", lie(packGzip(t, elf), uint32(len(elf)-1)), "unpacks to more"},
		{"cut", makeBzImage(packLZ4(elf))[:3000], "truncated"},
	} {
		var out bytes.Buffer
		err := WriteVmlinux(&out, bytes.NewReader(tt.image))
		if !errors.Is(err, ErrKernel) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v; want ErrKernel with %q", tt.name, err, tt.text)
		}
	}
	if err := WriteVmlinux(fullWriter{}, bytes.NewReader(makeBzImage(packLZ4(elf)))); !errors.Is(err, errFull) || errors.Is(err, ErrKernel) {
		t.Errorf("a writer that fails: %v", err)
	}
}
