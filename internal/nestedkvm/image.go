package nestedkvm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/nestedkvm/agent"
	"github.com/vmkit-go/vmkit/vm/boot/initramfs"
)

const (
	kernelArgs = "console=ttyS0 loglevel=4 panic=-1 oops=panic rdinit=/init mitigations=off " +
		"tsc=reliable no_timer_check random.trust_cpu=on systemd.unified_cgroup_hierarchy=1 " +
		agent.EnvMarker + "=1"

	cacheSerial   = "vmkit-cache"
	scratchSerial = "vmkit-scratch"

	// guestCache is where the nested host has the cache of package debian.
	guestCache = "/var/cache/vmkit"
)

// Modules that are always loaded, and those that may be missing from a kernel.
var (
	baseModules     = []string{"virtio_pci", "virtio_blk", "virtio_console", "irqbypass", "kvm", "kvm_amd"}
	optionalModules = []string{"virtio_rng", "tun", "nbd", "vhost_net", "loop", "veth", "bridge"}
)

// basePrograms are the programs of the outer machine in every nested host,
// with their Debian packages.
var basePrograms = map[string]string{
	"mke2fs": "e2fsprogs", "e2fsck": "e2fsprogs", "debugfs": "e2fsprogs", "resize2fs": "e2fsprogs",
	"ip": "iproute2", "dash": "dash",
}

// qemuFiles are what QEMU needs with -accel kvm; patterns that match nothing
// are for other releases of it.
var qemuFiles = []string{
	"/usr/share/qemu/bios-microvm.bin", "/usr/share/qemu/qboot.rom", "/usr/share/qemu/pvh.bin",
	"/usr/share/qemu/linuxboot_dma.bin", "/usr/share/qemu/linuxboot.bin", "/usr/share/qemu/kvmvapic.bin",
	"/usr/share/qemu/multiboot_dma.bin", "/usr/share/qemu/efi-virtio.rom", "/usr/share/qemu/bios-256k.bin",
	"/usr/share/qemu/bios.bin", "/usr/share/qemu/keymaps/en-us",
	"/usr/share/seabios/*.bin", "/usr/lib/ipxe/qemu/efi-virtio.rom",
	"/usr/lib/x86_64-linux-gnu/qemu/accel-*x86_64.so",
}

// images are the files that QEMU boots from.
type images struct{ kernel, initrd, cache, scratch string }

// prepare makes the machine's files; those not worth keeping are in dir.
func prepare(ctx context.Context, cfg *Config, dir string) (*images, error) {
	k, err := debian.FetchKernel(ctx, cfg.Log)
	if err != nil {
		return nil, err
	}
	busybox, err := debian.Busybox(ctx, cfg.Log)
	if err != nil {
		return nil, err
	}
	img := &images{kernel: k.Image, initrd: filepath.Join(dir, "initrd")}
	if err := writeInitrd(ctx, cfg, k, busybox, img.initrd); err != nil {
		return nil, fmt.Errorf("make the initramfs: %w", err)
	}
	if img.cache, err = cacheImage(ctx, cfg, k); err != nil {
		return nil, fmt.Errorf("make the cache disk: %w", err)
	}
	if img.scratch, err = scratchFile(ctx, dir, cfg.Scratch); err != nil {
		return nil, fmt.Errorf("make the scratch disk: %w", err)
	}
	return img, nil
}

// initrd collects the entries of the initramfs.
type initrd struct {
	w    *initramfs.Writer
	seen map[string]bool
}

func writeInitrd(ctx context.Context, cfg *Config, k *debian.Kernel, busybox, path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	bw := bufio.NewWriterSize(f, 1<<20)
	rd := &initrd{w: initramfs.NewWriter(bw), seen: map[string]bool{}}

	// Debian's merged /usr.
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := rd.w.Dir("usr/"+d, 0o755); err != nil {
			return err
		}
		if err := rd.w.Symlink(d, "usr/"+d); err != nil {
			return err
		}
	}
	// The console must be there before devtmpfs is.
	if err := rd.w.Device("dev/console", fs.ModeDevice|fs.ModeCharDevice|0o600, 5, 1); err != nil {
		return err
	}
	if err := rd.program(cfg.Init, "/init"); err != nil {
		return err
	}
	if err := rd.programs(cfg); err != nil {
		return err
	}
	// Busybox's own shell prefers its applets (an ip, an mke2fs) to programs in
	// PATH, so /bin/sh is Debian's usual one.
	rd.seen["/usr/bin/sh"] = true
	if err := rd.w.Symlink("/usr/bin/sh", "dash"); err != nil {
		return err
	}
	if err := rd.busybox(ctx, busybox); err != nil {
		return err
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
		"etc/hosts":  "127.0.0.1 localhost nested\n::1 localhost\n",
	} {
		if err := rd.w.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	for _, d := range []string{"root", "tmp", "run/netns", guestCache} {
		if err := rd.w.Dir(d, 0o755); err != nil {
			return err
		}
	}
	mods, err := rd.modules(cfg, k)
	if err != nil {
		return err
	}
	data, err := json.Marshal(agentConfig(mods))
	if err != nil {
		return err
	}
	if err := rd.w.WriteFile(agent.ConfigPath, data, 0o644); err != nil {
		return err
	}
	if err := rd.w.Close(); err != nil {
		return err
	}
	return bw.Flush()
}

func agentConfig(modules []string) agent.Config {
	return agent.Config{
		Modules: modules,
		Ports:   numPorts + 1,
		Mounts: []agent.Mount{
			{Source: "serial=" + cacheSerial, Target: guestCache, Type: "ext4", ReadOnly: true},
			{Source: "serial=" + scratchSerial, Target: "/tmp", Type: "ext4"},
		},
		Env: []string{
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"HOME=/root", "USER=root", "SHELL=/bin/sh", "TMPDIR=/tmp", "LANG=C.UTF-8",
			"VMKIT_NESTED=1", "VMKIT_REQUIRE_KVM=1", "VMKIT_CACHE=" + guestCache,
		},
	}
}

// modules adds the kernel modules and returns the lines for the agent.
func (rd *initrd) modules(cfg *Config, k *debian.Kernel) ([]string, error) {
	var lines []string
	add := func(names []string, optional bool) error {
		for _, name := range names {
			files, err := k.Modules(name)
			if optional && errors.Is(err, debian.ErrNoModule) {
				continue
			}
			if err != nil {
				return err
			}
			for _, file := range files {
				base, _, _ := strings.Cut(filepath.Base(file), ".ko")
				name := "/lib/modules/" + base + ".ko"
				if rd.seen[name] {
					continue
				}
				rd.seen[name] = true
				data, err := debian.ReadModule(file)
				if err != nil {
					return err
				}
				if err := rd.w.WriteFile("usr"+name, data, 0o644); err != nil {
					return err
				}
				if optional {
					name += " ?"
				}
				lines = append(lines, name)
			}
		}
		return nil
	}
	if err := add(append(append([]string{}, baseModules...), cfg.Modules...), false); err != nil {
		return nil, err
	}
	if err := add(optionalModules, true); err != nil {
		return nil, err
	}
	return lines, nil
}

// programs adds the programs of the outer machine.
func (rd *initrd) programs(cfg *Config) error {
	want := map[string]string{}
	for name, pkg := range basePrograms {
		want[name] = pkg
	}
	for _, name := range cfg.Programs {
		want[name] = "?"
	}
	if cfg.QEMU {
		want["qemu-system-x86_64"] = "qemu-system-x86"
		for _, pat := range qemuFiles {
			found, err := filepath.Glob(pat)
			if err != nil {
				return err
			}
			for _, file := range found {
				if err := rd.program(file, file); err != nil {
					return err
				}
			}
		}
	}
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		path, err := debian.LookProgram(name, want[name])
		if err != nil {
			return err
		}
		if err := rd.program(path, "/usr/bin/"+filepath.Base(name)); err != nil {
			return err
		}
	}
	return nil
}

// program adds a file under a name, and the shared libraries it needs if it is
// an ELF file.
func (rd *initrd) program(path, name string) error {
	if err := rd.file(path, name); err != nil {
		return err
	}
	libs, err := debian.Libraries(path)
	if err != nil {
		return nil //nolint:nilerr // not an ELF file: a script or a firmware image
	}
	for _, lib := range libs {
		if err := rd.file(lib, lib); err != nil {
			return err
		}
	}
	return nil
}

// file adds one file, once, with symbolic links followed.
func (rd *initrd) file(path, name string) error {
	name = mergedUsr(name)
	if rd.seen[name] {
		return nil
	}
	rd.seen[name] = true
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	return rd.w.Copy(name, f, fi.Size(), fi.Mode().Perm()|0o444)
}

// mergedUsr maps /bin and the like to below /usr, where the initramfs has them.
func mergedUsr(name string) string {
	for _, d := range []string{"/bin/", "/sbin/", "/lib/", "/lib64/"} {
		if strings.HasPrefix(name, d) {
			return "/usr" + name
		}
	}
	return name
}

// busybox adds busybox and a link for each applet that no program stands for.
func (rd *initrd) busybox(ctx context.Context, path string) error {
	if err := rd.file(path, "/usr/bin/busybox"); err != nil {
		return err
	}
	applets, err := debian.Applets(ctx, path)
	if err != nil {
		return err
	}
	for _, applet := range applets {
		name := "/usr/bin/" + applet
		if rd.seen[name] {
			continue
		}
		rd.seen[name] = true
		if err := rd.w.Symlink(name, "busybox"); err != nil {
			return err
		}
	}
	return nil
}

// cacheImage returns an ext4 image with the kernel and its modules and busybox
// in the layout of package debian's cache. It is made once and kept.
func cacheImage(ctx context.Context, cfg *Config, k *debian.Kernel) (string, error) {
	cache, err := debian.CacheDir()
	if err != nil {
		return "", err
	}
	busybox, err := debian.Package(ctx, "busybox-static", cfg.Log)
	if err != nil {
		return "", err
	}
	dirs := []string{k.Dir, busybox}
	key := sha256.Sum256([]byte(strings.Join(append([]string{"v1"}, dirs...), "\x00")))
	path := filepath.Join(cache, fmt.Sprintf("nested-cache-%x.ext4", key[:8]))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	mke2fs, err := debian.LookProgram("mke2fs", "e2fsprogs")
	if err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, ".tmp-image-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(cfg.Log, "making the nested host's cache disk %s\n", path)
	tree := filepath.Join(tmp, "tree")
	if err := os.MkdirAll(filepath.Join(tree, "debian"), 0o755); err != nil {
		return "", err
	}
	for _, d := range dirs {
		// Hard links: the files are only read.
		out, err := exec.CommandContext(ctx, "cp", "-al", d, filepath.Join(tree, "debian")).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("cp: %w: %s", err, out)
		}
	}
	// The lock file must exist where nothing can be written.
	if err := os.WriteFile(filepath.Join(tree, "lock"), nil, 0o644); err != nil {
		return "", err
	}
	img := filepath.Join(tmp, "image")
	out, err := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-O", "^has_journal",
		"-m", "0", "-E", "root_owner=0:0", "-d", tree, img, "256M").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("mke2fs: %w: %s", err, out)
	}
	if err := os.Rename(img, path); err != nil {
		return "", err
	}
	return path, nil
}
