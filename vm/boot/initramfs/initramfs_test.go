package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

type item struct {
	Name         string
	Mode         uint32
	Ino          uint32
	Major, Minor uint32
	Data         string
}

// parse reads an archive the way Linux's init/initramfs.c does.
func parse(t testing.TB, b []byte) []item {
	t.Helper()
	var items []item
	for at := 0; ; {
		for at < len(b) && b[at] == 0 {
			at++
		}
		if at == len(b) {
			return items
		}
		if at%4 != 0 || len(b)-at < 110 || string(b[at:at+6]) != "070701" {
			t.Fatalf("no header at offset %d", at)
		}
		var f [13]uint32
		for i := range f {
			v, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			f[i] = uint32(v)
		}
		if f[2]|f[3]|f[5]|f[7]|f[8]|f[12] != 0 || f[4] != 1 {
			t.Fatalf("fields that should be constant: %x", f)
		}
		name := b[at+110 : at+110+int(f[11])]
		if name[len(name)-1] != 0 {
			t.Fatalf("name %q is not terminated", name)
		}
		at = (at + 110 + len(name) + 3) &^ 3
		data := b[at : at+int(f[6])]
		at = (at + len(data) + 3) &^ 3
		if string(name) == "TRAILER!!!\x00" {
			continue
		}
		items = append(items, item{string(name[:len(name)-1]), f[1], f[0], f[9], f[10], string(data)})
	}
}

func TestWriter(t *testing.T) {
	host := filepath.Join(t.TempDir(), "host")
	if err := os.WriteFile(host, []byte("from the host"), 0o640); err != nil {
		t.Fatal(err)
	}
	build := func() []byte {
		var b bytes.Buffer
		w := NewWriter(&b)
		for _, err := range []error{
			w.Dir("tmp", 0o777|fs.ModeSticky),
			w.Dir("/tmp/", 0o700), // it is there already
			w.WriteFile("init", []byte("#!/bin/sh\n"), 0o755),
			w.HostFile("/usr/share/doc/host", host),
			w.Copy("usr/empty", nil, 0, 0o400),
			w.Symlink("bin/sh", "/bin/busybox"),
			w.Device("dev/console", fs.ModeDevice|fs.ModeCharDevice|0o600, 5, 1),
			w.Device("dev/vda", fs.ModeDevice|0o660, 254, 0),
			w.Device("dev/pipe", fs.ModeNamedPipe|0o666, 9, 9),
			w.AddFS("fs", fstest.MapFS{
				"a/b":  {Data: []byte("bb"), Mode: 0o644},
				"a/to": {Data: []byte("b"), Mode: fs.ModeSymlink | 0o777},
				"c":    {Data: []byte("c"), Mode: 0o755 | fs.ModeSetuid},
			}),
			w.AddFS("", fstest.MapFS{"top": {Data: []byte("t"), Mode: 0o600}}),
			w.Close(),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	got := build()
	if len(got)%512 != 0 {
		t.Errorf("%d bytes are no multiple of 512", len(got))
	}
	if !bytes.Equal(got, build()) {
		t.Error("two archives of the same entries differ")
	}
	want := []item{
		{Name: "tmp", Mode: 0o41777}, {Name: "init", Mode: 0o100755, Data: "#!/bin/sh\n"},
		{Name: "usr", Mode: 0o40755}, {Name: "usr/share", Mode: 0o40755}, {Name: "usr/share/doc", Mode: 0o40755},
		{Name: "usr/share/doc/host", Mode: 0o100640, Data: "from the host"}, {Name: "usr/empty", Mode: 0o100400},
		{Name: "bin", Mode: 0o40755}, {Name: "bin/sh", Mode: 0o120777, Data: "/bin/busybox"},
		{Name: "dev", Mode: 0o40755}, {Name: "dev/console", Mode: 0o20600, Major: 5, Minor: 1},
		{Name: "dev/vda", Mode: 0o60660, Major: 254}, {Name: "dev/pipe", Mode: 0o10666},
		{Name: "fs", Mode: 0o40555}, {Name: "fs/a", Mode: 0o40555}, {Name: "fs/a/b", Mode: 0o100644, Data: "bb"},
		{Name: "fs/a/to", Mode: 0o120777, Data: "b"}, {Name: "fs/c", Mode: 0o104755, Data: "c"},
		{Name: "top", Mode: 0o100600, Data: "t"},
	}
	for i := range want {
		want[i].Ino = uint32(i + 1)
	}
	if d := cmp.Diff(want, parse(t, got)); d != "" {
		t.Error(d)
	}
}

func TestWriterRefuses(t *testing.T) {
	w := NewWriter(io.Discard)
	if err := w.WriteFile("file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 4096)
	for _, c := range []struct {
		err  error
		want error
	}{
		{w.WriteFile("", nil, 0), ErrName},
		{w.WriteFile("/..", nil, 0), ErrName},
		{w.WriteFile("a\x00b", nil, 0), ErrName},
		{w.WriteFile(long, nil, 0), ErrName},
		{w.WriteFile("file/below", nil, 0), ErrName},
		{w.WriteFile("file", nil, 0), fs.ErrExist},
		{w.Dir("file", 0), fs.ErrExist},
		{w.Symlink("link", ""), ErrName},
		{w.Symlink("link", long), ErrName},
		{w.HostFile("x", filepath.Join(t.TempDir(), "none")), fs.ErrNotExist},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("got %v, want %v", c.err, c.want)
		}
	}
	if err := w.HostFile("x", t.TempDir()); err == nil {
		t.Error("a directory passed as a file")
	}
	for _, size := range []int64{-1, 1 << 32} {
		if err := w.Copy("x", nil, size, 0); err == nil {
			t.Errorf("a size of %d passed", size)
		}
	}
	if err := w.Close(); err != nil {
		t.Errorf("refused entries spoiled the archive: %v", err)
	}
	if err := w.Dir("late", 0); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := w.Close(); !errors.Is(err, ErrClosed) {
		t.Errorf("second Close: %v", err)
	}

	w = NewWriter(io.Discard)
	if err := w.Copy("short", strings.NewReader("abc"), 4, 0); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a short file: %v", err)
	}
	if err := w.Close(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Close after a short file: %v", err)
	}
	broken := errors.New("broken")
	w = NewWriter(iotestWriter{broken})
	if err := w.Dir("d", 0); !errors.Is(err, broken) {
		t.Errorf("a broken writer: %v", err)
	}
	if err := Join(io.Discard, iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("Join of a broken reader: %v", err)
	}
}

type iotestWriter struct{ err error }

func (w iotestWriter) Write([]byte) (int, error) { return 0, w.err }

func TestJoin(t *testing.T) {
	one := func(name string) io.Reader {
		var b bytes.Buffer
		w := NewWriter(&b)
		w.WriteFile(name, []byte(name), 0o600)
		w.Close()
		return bytes.NewReader(bytes.TrimRight(b.Bytes(), "\x00"))
	}
	var b bytes.Buffer
	if err := Join(&b, one("first"), one("second")); err != nil {
		t.Fatal(err)
	}
	items := parse(t, b.Bytes())
	if len(items) != 2 || items[0].Data != "first" || items[1].Data != "second" {
		t.Errorf("got %v", items)
	}
}

// FuzzWriter checks that whatever names are given, the archive stays
// readable and holds what was accepted.
func FuzzWriter(f *testing.F) {
	f.Add("a/b", "../c", []byte("data"))
	f.Add("TRAILER!!!", "dev//x/", []byte{})
	f.Fuzz(func(t *testing.T, a, b string, data []byte) {
		var buf bytes.Buffer
		w := NewWriter(&buf)
		want := 0
		if w.WriteFile(a, data, 0o644) == nil {
			want++
		}
		if w.Symlink(b, "target") == nil {
			want++
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got := 0
		for _, i := range parse(t, buf.Bytes()) {
			if i.Mode&0o170000 != typeDir {
				got++
			}
		}
		if got != want {
			t.Fatalf("%d entries, want %d", got, want)
		}
	})
}

func Example() {
	var b bytes.Buffer
	w := NewWriter(&b)
	err := errors.Join(
		w.WriteFile("init", []byte("#!/bin/sh\nexec sh\n"), 0o755),
		w.Symlink("bin/sh", "busybox"),
		w.Device("dev/console", fs.ModeCharDevice|0o600, 5, 1),
		w.Close(),
	)
	fmt.Println(b.Len(), err)
	// Output: 1024 <nil>
}
