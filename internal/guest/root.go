package guest

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vmkit-go/vmkit/internal/debian"
)

// RootDisk makes the raw image path, size bytes long and sparse: an ext4 file
// system with busybox under all its names. The file must not exist.
func RootDisk(ctx context.Context, path string, size int64, log io.Writer) (err error) {
	mke2fs, err := debian.LookProgram("mke2fs", "e2fsprogs")
	if err != nil {
		return err
	}
	busybox, err := debian.Busybox(ctx, log)
	if err != nil {
		return err
	}
	tree, err := os.MkdirTemp(filepath.Dir(path), "root-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	if err := rootTree(ctx, tree, busybox); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		// No lazy initialisation: it would write in the background of every guest.
		cmd := exec.CommandContext(ctx, mke2fs, "-q", "-F", "-t", "ext4", "-L", "vmkit-root", "-m", "0",
			"-E", "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0", "-d", tree, path)
		if out, e := cmd.CombinedOutput(); e != nil {
			err = fmt.Errorf("mke2fs: %w: %s", e, strings.TrimSpace(string(out)))
		}
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

// rootTree fills dir with a small root file system.
func rootTree(ctx context.Context, dir, busybox string) error {
	for _, d := range []string{"bin", "dev", "proc", "sys", "run", "tmp", "root", "etc", "usr", "sbin", "var", "mnt"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(dir, "tmp"), os.ModeSticky|0o777); err != nil {
		return err
	}
	box, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), box, 0o755); err != nil {
		return err
	}
	applets, err := debian.Applets(ctx, busybox)
	if err != nil {
		return err
	}
	for _, a := range applets {
		if a == "busybox" {
			continue
		}
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/passwd":   "root:x:0:0:root:/root:/bin/sh\n",
		"etc/group":    "root:x:0:\n",
		"etc/hostname": "vmkit\n",
		"etc/profile":  "export PS1='\\u@vmkit:\\w\\$ '\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
