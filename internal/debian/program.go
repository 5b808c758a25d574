package debian

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Applets returns the names of the applets of the busybox at path.
func Applets(ctx context.Context, path string) ([]string, error) {
	out, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", path, err)
	}
	return slices.DeleteFunc(strings.Fields(string(out)), func(name string) bool {
		return strings.Contains(name, "/")
	}), nil
}

// Busybox returns the path of a static busybox: the installed one if it is
// static, and otherwise that of the package busybox-static.
func Busybox(ctx context.Context, log io.Writer) (string, error) {
	for _, p := range []string{"/bin/busybox", "/usr/bin/busybox"} {
		if static, err := isStatic(p); err == nil && static {
			return p, nil
		}
	}
	dir, err := Package(ctx, "busybox-static", log)
	if err != nil {
		return "", err
	}
	for _, p := range []string{"bin/busybox", "usr/bin/busybox"} {
		p = filepath.Join(dir, p)
		if static, err := isStatic(p); err == nil && static {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s: no static busybox in it", dir)
}

func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	interp, err := interpreter(f)
	return interp == "", err
}

// interpreter returns the program interpreter (PT_INTERP), or "" if f has none.
func interpreter(f *elf.File) (string, error) {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		if p.Filesz == 0 || p.Filesz > 4096 {
			return "", fmt.Errorf("bad PT_INTERP size %d", p.Filesz)
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return "", err
		}
		return strings.TrimRight(string(b), "\x00"), nil
	}
	return "", nil
}

// LookProgram is [exec.LookPath] that also looks in the sbin directories, and
// whose error names the Debian package to install.
func LookProgram(name, pkg string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%w: program %s is not installed (Debian package %s)", ErrUnavailable, name, pkg)
}

// Libraries returns the paths of the shared libraries that an ELF program or
// library needs to run, the program interpreter included, without the program.
// The result is empty for a static program. Paths are where the dynamic
// linker looks for them.
func Libraries(program string) ([]string, error) {
	c := closure{seen: map[string]bool{}}
	if err := c.add(program); err != nil {
		return nil, err
	}
	return c.paths, nil
}

// libraryDirs are searched after a file's own DT_RUNPATH.
var libraryDirs = []string{
	"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib",
	"/usr/local/lib/x86_64-linux-gnu", "/usr/local/lib",
}

type closure struct {
	seen  map[string]bool
	paths []string
}

func (c *closure) note(path string) bool {
	if c.seen[path] {
		return false
	}
	c.seen[path] = true
	c.paths = append(c.paths, path)
	return true
}

func (c *closure) add(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	interp, err := interpreter(f)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if interp != "" {
		c.note(interp)
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("%s: read DT_NEEDED: %w", path, err)
	}
	dirs := runPath(f, path)
	for _, lib := range needed {
		found, err := findLibrary(lib, append(dirs, libraryDirs...))
		if err != nil {
			return fmt.Errorf("%s needs %s: %w", path, lib, err)
		}
		if c.note(found) {
			if err := c.add(found); err != nil {
				return err
			}
		}
	}
	return nil
}

// runPath is the library search path that a file itself asks for.
func runPath(f *elf.File, path string) []string {
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		values, _ := f.DynString(tag)
		for _, v := range values {
			for _, d := range filepath.SplitList(v) {
				d = strings.NewReplacer("${ORIGIN}", "$ORIGIN").Replace(d)
				d = strings.ReplaceAll(d, "$ORIGIN", filepath.Dir(path))
				dirs = append(dirs, d)
			}
		}
	}
	return dirs
}

func findLibrary(name string, dirs []string) (string, error) {
	for _, d := range dirs {
		p := filepath.Join(d, name)
		if fi, err := os.Stat(p); err == nil && fi.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", errors.New("not found in the library directories")
}
