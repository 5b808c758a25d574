package debian

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxModule bounds the size of an unpacked module.
const maxModule = 64 << 20

// ErrNoModule is wrapped by the error for a module that a kernel does not have.
var ErrNoModule = errors.New("no such kernel module")

// Modules returns the paths of the named modules and of all that they depend
// on, each once and after its dependencies: the order in which to load them.
// Dashes and underscores in names are the same. A name that is built into the
// kernel adds nothing.
//
// The order is read from the modules themselves (the depends= line of
// .modinfo), because modules.dep does not exist before a package's
// installation script has run.
func (k *Kernel) Modules(names ...string) ([]string, error) {
	files, err := moduleFiles(k.ModulesDir)
	if err != nil {
		return nil, err
	}
	builtin, err := builtinModules(k.ModulesDir)
	if err != nil {
		return nil, err
	}
	var order []string
	done := map[string]bool{}
	var add func(name, by string) error
	add = func(name, by string) error {
		key := moduleName(name)
		if done[key] {
			return nil
		}
		done[key] = true
		path, ok := files[key]
		if !ok {
			if builtin[key] {
				return nil
			}
			return fmt.Errorf("%w: %s%s in %s", ErrNoModule, name, by, k.ModulesDir)
		}
		data, err := ReadModule(path)
		if err != nil {
			return err
		}
		deps, err := moduleDepends(data)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		for _, d := range deps {
			if err := add(d, " (needed by "+name+")"); err != nil {
				return err
			}
		}
		order = append(order, path)
		return nil
	}
	for _, n := range names {
		if err := add(n, ""); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName is a module's name as the kernel writes it.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// moduleFiles maps module names to the files below dir.
func moduleFiles(dir string) (map[string]string, error) {
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		base, _, ok := strings.Cut(d.Name(), ".ko")
		if ok {
			files[moduleName(base)] = path
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list kernel modules: %w", err)
	}
	return files, nil
}

// builtinModules is the set of modules that are part of the kernel image.
func builtinModules(dir string) (map[string]bool, error) {
	data, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	set := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		base := filepath.Base(strings.TrimSpace(line))
		set[moduleName(strings.TrimSuffix(base, ".ko"))] = true
	}
	return set, nil
}

// ReadModule returns the ELF image of a module file, unpacked if its name
// says that it is compressed.
func ReadModule(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	switch filepath.Ext(path) {
	case ".ko":
		return data, nil
	case ".zst":
		r, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		defer r.Close()
		return readModule(path, r)
	case ".gz":
		r, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return readModule(path, r)
	case ".xz":
		cmd := exec.Command("xz", "-dc")
		cmd.Stdin = bytes.NewReader(data)
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("%s: xz -dc: %w (Debian package xz-utils)", path, err)
		}
		return out, nil
	}
	return nil, fmt.Errorf("%s: unknown kind of module file", path)
}

func readModule(path string, r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(data) > maxModule {
		return nil, fmt.Errorf("%s: more than %d bytes unpacked", path, maxModule)
	}
	return data, nil
}

// moduleDepends returns the names on a module's depends= line.
func moduleDepends(image []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, fmt.Errorf("not a kernel module: %w", err)
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("not a kernel module: no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo: %w", err)
	}
	for _, entry := range strings.Split(string(info), "\x00") {
		list, ok := strings.CutPrefix(entry, "depends=")
		if ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
