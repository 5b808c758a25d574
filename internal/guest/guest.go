// Package guest makes the guests of examples, tests and benchmarks: an
// initramfs around Debian's busybox and kernel modules that mounts a root disk
// and runs one command, and the root disk itself.
//
//	k, err := debian.FetchKernel(ctx, os.Stderr)
//	initrd, err := guest.Initramfs(ctx, guest.Config{Kernel: k, Command: []string{"uname", "-r"}})
//	console, result, err := guest.Console(guest.Streams{Stdout: os.Stdout})
//	... run a machine with them ...
//	status, err := result.Status()
package guest

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/vm/boot/initramfs"
)

//go:embed init.sh
var initScript []byte

// Modules are the kernel modules that a guest needs for vmkit's devices.
var Modules = []string{
	"virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng", "pvpanic_mmio",
}

// Config describes the guest's side of a run.
type Config struct {
	// Kernel is where the modules come from; nil means no modules.
	Kernel *debian.Kernel
	// Modules to load; nil means all of Modules.
	Modules []string
	// Root is the device to mount as root, such as /dev/vda; empty means
	// that the initramfs stays the root.
	Root string
	// RootFlags are mount options; empty means "rw".
	RootFlags string
	// Command is run with the root as its root; empty means a shell on the
	// console.
	Command []string
	// Term is the guest's TERM.
	Term string
	// Net and Gateway are eth0's address with its prefix length, and the
	// default route; empty means none.
	Net, Gateway string
	// Files are added to the initramfs: path in the guest to file content.
	Files map[string]File
	// Log gets progress; nil drops it.
	Log io.Writer
}

// File is a file to add to an initramfs.
type File struct {
	Mode fs.FileMode
	Data []byte
}

// Initramfs returns the guest's initial RAM disk, a cpio archive.
func Initramfs(ctx context.Context, cfg Config) ([]byte, error) {
	busybox, err := debian.Busybox(ctx, cfg.Log)
	if err != nil {
		return nil, err
	}
	box, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := initramfs.NewWriter(&out)
	for _, d := range []string{"dev", "proc", "sys", "run", "tmp", "root", "sysroot", "etc"} {
		if err := w.Dir(d, 0o755); err != nil {
			return nil, err
		}
	}
	// The kernel opens /dev/console for PID 1 before anything is mounted.
	if err := w.Device("dev/console", fs.ModeDevice|fs.ModeCharDevice|0o600, 5, 1); err != nil {
		return nil, err
	}
	var list strings.Builder
	if cfg.Kernel != nil {
		names := cfg.Modules
		if names == nil {
			names = Modules
		}
		paths, err := cfg.Kernel.Modules(names...)
		if err != nil {
			return nil, err
		}
		for _, p := range paths {
			data, err := debian.ReadModule(p)
			if err != nil {
				return nil, err
			}
			name, _, _ := strings.Cut(filepath.Base(p), ".ko")
			fmt.Fprintf(&list, "%s.ko\n", name)
			if err := w.WriteFile("vmkit/"+name+".ko", data, 0o644); err != nil {
				return nil, err
			}
		}
	}
	files := map[string]File{
		"init":          {0o755, initScript},
		"bin/busybox":   {0o755, box},
		"vmkit/modules": {0o644, []byte(list.String())},
		"vmkit/config":  {0o644, cfg.script()},
		"vmkit/command": {0o644, []byte("set -- " + quote(cfg.Command...) + "\n")},
	}
	for name, f := range cfg.Files {
		files[strings.TrimPrefix(name, "/")] = f
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteFile(name, files[name].Data, files[name].Mode); err != nil {
			return nil, err
		}
	}
	applets := []string{"sh"}
	if cfg.Root == "" {
		if applets, err = debian.Applets(ctx, busybox); err != nil {
			return nil, err
		}
	}
	for _, a := range applets {
		if a == "busybox" {
			continue
		}
		if err := w.Symlink("bin/"+a, "busybox"); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// script is the file of settings that init.sh sources.
func (c Config) script() []byte {
	var b bytes.Buffer
	command := ""
	if len(c.Command) > 0 {
		command = "yes"
	}
	term := c.Term
	if term == "" {
		term = "linux"
	}
	for _, kv := range [][2]string{
		{"root", c.Root}, {"rootflags", c.RootFlags}, {"command", command},
		{"net", c.Net}, {"gateway", c.Gateway}, {"export TERM", term},
	} {
		fmt.Fprintf(&b, "%s=%s\n", kv[0], quote(kv[1]))
	}
	return b.Bytes()
}

// quote makes words that a shell reads back as they are.
func quote(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return strings.Join(quoted, " ")
}
