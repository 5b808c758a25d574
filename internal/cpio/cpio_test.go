package cpio_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vmkit-go/vmkit/internal/cpio"
)

type entry struct {
	Name  string
	Mode  uint64
	Data  string
	Major uint64
	Minor uint64
}

// parse reads an archive the way the kernel does.
func parse(t *testing.T, b []byte) []entry {
	t.Helper()
	var list []entry
	for {
		if len(b) < 110 || string(b[:6]) != "070701" {
			t.Fatalf("no header where one must be: %.20q", b)
		}
		var f [13]uint64
		for i := range f {
			v, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			f[i] = v
		}
		mode, size, name := f[1], f[6], int(f[11])
		start := (110 + name + 3) &^ 3
		e := entry{Name: string(b[110 : 110+name-1]), Mode: mode, Major: f[9], Minor: f[10]}
		if b[110+name-1] != 0 {
			t.Fatalf("%s: name is not terminated", e.Name)
		}
		if e.Name == "TRAILER!!!" {
			return list
		}
		e.Data = string(b[start : start+int(size)])
		b = b[(start+int(size)+3)&^3:]
		list = append(list, e)
	}
}

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	for _, err := range []error{
		w.File("/init", 0o755, []byte("12345")),
		w.Dir("a/b", 0o700),
		w.Dir("a/b/", 0o755), // is there already
		w.Symlink("a/b/link", "../../init"),
		w.CharDevice("dev/console", 0o600, 5, 1),
		w.Copy("a/b/empty", 0o644, strings.NewReader(""), 0),
		w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []entry{
		{Name: "init", Mode: 0o100755, Data: "12345"},
		{Name: "a", Mode: 0o040755},
		{Name: "a/b", Mode: 0o040700},
		{Name: "a/b/link", Mode: 0o120777, Data: "../../init"},
		{Name: "dev", Mode: 0o040755},
		{Name: "dev/console", Mode: 0o020600, Major: 5, Minor: 1},
		{Name: "a/b/empty", Mode: 0o100644},
	}
	if diff := cmp.Diff(want, parse(t, b.Bytes())); diff != "" {
		t.Error(diff)
	}
	if b.Len()%4 != 0 {
		t.Errorf("length %d is no multiple of 4", b.Len())
	}
}

func TestErrors(t *testing.T) {
	var b bytes.Buffer
	w := cpio.NewWriter(&b)
	if err := w.File("", 0o644, nil); err == nil {
		t.Error("an empty name is accepted")
	}
	if err := w.Close(); err == nil {
		t.Error("Close hides an earlier error")
	}
	w = cpio.NewWriter(&b)
	if err := w.Copy("short", 0o644, strings.NewReader("abc"), 4); err == nil {
		t.Error("a short reader is accepted")
	}
	w = cpio.NewWriter(&b)
	if err := w.Copy("huge", 0o644, strings.NewReader(""), 1<<32); err == nil {
		t.Error("a size past 32 bits is accepted")
	}
	full := errors.New("full")
	w = cpio.NewWriter(failing{full})
	if err := w.File("a", 0o644, nil); !errors.Is(err, full) {
		t.Errorf("error is %v", err)
	}
	w = cpio.NewWriter(&b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.File("a", 0o644, nil); err == nil {
		t.Error("a closed archive takes files")
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func ExampleWriter() {
	f, err := os.CreateTemp("", "initramfs")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()
	w := cpio.NewWriter(f)
	_ = w.File("bin/sh", 0o755, []byte("a static program"))
	_ = w.Symlink("init", "bin/sh")
	fmt.Println(w.Close()) // the first error of any call
	// Output: <nil>
}
