package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// root is the repository's root directory, seen from this package.
const root = "../.."

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir = root
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for dec := json.NewDecoder(bytes.NewReader(out)); ; n++ {
		var p struct {
			ImportPath string
			Imports    []string
		}
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range p.Imports {
			if err := checkImport(strings.TrimPrefix(p.ImportPath, Module+"/"), imp); err != nil {
				t.Error(err)
			}
		}
	}
	if n < 10 {
		t.Errorf("go list found %d packages", n)
	}
}

func TestCheckImport(t *testing.T) {
	for _, tc := range []struct {
		pkg, imp string
		ok       bool
	}{
		{"kvm", "fmt", true},
		{"kvm", "golang.org/x/sys/unix", true},
		{"kvm", "C", false},
		{"kvm", Module + "/vcpu", false},
		{"memory", Module + "/kvm", false},
		{"vcpu", Module + "/vcpu/kvmcpu", false},
		{"disk", "github.com/stretchr/testify/require", false},
		{"disk/disktest", "github.com/stretchr/testify/require", true},
		{"vcpu/kvmcpu", Module + "/kvm", true},
		{"vcpu/kvmcpu", Module + "/vcpu/soft", false},
		{"vcpu/soft", Module + "/kvm", false},
		{"disk", Module + "/vm", false},
		{"disk", Module + "/vm/virtio", true},
		{"vm", Module + "/vm/virtio", true},
		{"vm", Module + "/examples/vmm", false},
		{"vm", "github.com/other/module", false},
		{"vm/boot", "github.com/klauspost/compress/zstd", true},
		{"internal/serial", Module + "/vm/device", true},
		{"internal/serial", Module + "/vm", false},
		{"replay", Module + "/vm", false},
		{"examples/vmm", Module + "/vm", true},
		{"newcomer", Module + "/vm", false},
	} {
		if err := checkImport(tc.pkg, tc.imp); (err == nil) != tc.ok {
			t.Errorf("checkImport(%q, %q) = %v", tc.pkg, tc.imp, err)
		}
	}
}

// maxLines is the length at which a file has more than one job.
const maxLines = 800

// topLevel are the directories that the root may have.
var topLevel = []string{
	"vm", "kvm", "vcpu", "memory", "disk", "netdev", "replay", "migrate", "stream",
	"examples", "internal", "docs", ".ci", ".github",
}

func TestFiles(t *testing.T) {
	for _, name := range trackedFiles(t) {
		path := filepath.Join(root, name)
		fi, err := os.Lstat(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		if dir, _, ok := strings.Cut(name, "/"); ok && !contains(topLevel, dir) {
			t.Errorf("%s: %s is no directory of the repository's root", name, dir)
		}
		if !fi.Mode().IsRegular() {
			continue
		}
		if fi.Size() > 1<<20 {
			t.Errorf("%s has %d bytes: nothing so big is committed", name, fi.Size())
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// Inputs that fuzzing found are quoted text.
		if bytes.IndexByte(data, 0) >= 0 || bytes.HasPrefix(data, []byte("\x7fELF")) {
			t.Errorf("%s is a binary: tests and examples make or fetch what they need", name)
		}
		if strings.HasSuffix(name, ".go") {
			if n := bytes.Count(data, []byte("\n")); n > maxLines {
				t.Errorf("%s has %d lines, more than %d", name, n, maxLines)
			}
		}
	}
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// trackedFiles lists what git tracks or would track; outside a clone, all files.
func trackedFiles(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err == nil {
		return strings.Split(strings.TrimRight(string(out), "\x00"), "\x00")
	}
	var names []string
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		names = append(names, rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}
