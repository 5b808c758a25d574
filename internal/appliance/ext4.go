package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmkit-go/vmkit/internal/debian"
)

// Fixed values, so that the same tree gives the same image.
const (
	fsTime = "1700000000"
	fsUUID = "7b0d4d2e-6f1c-4a7e-9a51-2f4c0e9b6a11"
	fsSeed = "0f0e0d0c-0b0a-4908-8706-050403020100"
)

// writeFS makes an ext4 image of the files below tree. mke2fs -d would take
// files in the order in which the host's file system lists them, and their
// change times, which nobody can set; debugfs does as its script says.
func writeFS(ctx context.Context, path, tree string) error {
	mke2fs, err := debian.LookProgram("mke2fs", "e2fsprogs")
	if err != nil {
		return err
	}
	debugfs, err := debian.LookProgram("debugfs", "e2fsprogs")
	if err != nil {
		return err
	}
	e2fsck, err := debian.LookProgram("e2fsck", "e2fsprogs")
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(Size), f.Close()); err != nil {
		return err
	}
	var script bytes.Buffer
	if err := list(&script, tree, "/"); err != nil {
		return err
	}
	tool := func(stdin []byte, name string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = []string{"E2FSPROGS_FAKE_TIME=" + fsTime, "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Dir = tree
		cmd.Stdin = bytes.NewReader(stdin)
		var msg bytes.Buffer
		cmd.Stderr = &msg
		err := cmd.Run()
		text := strings.TrimSpace(msg.String())
		if err != nil {
			return text, fmt.Errorf("%s: %w: %s", filepath.Base(name), err, text[max(0, len(text)-500):])
		}
		return text, nil
	}
	if _, err := tool(nil, mke2fs, "-q", "-F", "-t", "ext4", "-b", "4096", "-L", "appliance", "-m", "0", "-U", fsUUID, "-J", "size=16",
		"-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0,hash_seed="+fsSeed, path); err != nil {
		return err
	}
	// debugfs goes on after an error and ends with 0: what it says counts.
	said, err := tool(script.Bytes(), debugfs, "-w", "-f", "-", path)
	if err != nil {
		return err
	}
	if _, said, _ = strings.Cut(said, "\n"); said != "" { // the first line is its version
		return fmt.Errorf("debugfs: %s", said[:min(len(said), 500)])
	}
	_, err = tool(nil, e2fsck, "-f", "-n", path)
	return err
}

// list writes debugfs commands that make the files of dir, a path below tree
// that starts with a slash.
func list(w *bytes.Buffer, tree, dir string) error {
	entries, err := os.ReadDir(filepath.Join(tree, dir)) // sorted
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "cd %s\n", quoted(dir))
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		// A control character could end a command and begin another.
		if strings.ContainsFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return fmt.Errorf("file name %q", path)
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		switch mode := fi.Mode(); {
		case mode.IsRegular():
			fmt.Fprintf(w, "write %s %s\n", quoted("."+path), quoted(e.Name()))
		case mode&fs.ModeSymlink != 0:
			to, err := os.Readlink(filepath.Join(tree, path))
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "symlink %s %s\n", quoted(e.Name()), quoted(to))
		case mode.IsDir():
			fmt.Fprintf(w, "mkdir %s\n", quoted(e.Name()))
			if perm := unixMode(mode); perm != 0o755 {
				fmt.Fprintf(w, "sif %s mode 0%o\n", quoted(e.Name()), 0o040000|perm)
			}
		default:
			return fmt.Errorf("%s is a %v", path, mode.Type())
		}
	}
	for _, e := range slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() }) {
		if err := list(w, tree, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// unixMode is the permission bits with those that Go keeps elsewhere.
func unixMode(m fs.FileMode) uint32 {
	n := uint32(m.Perm())
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&flag != 0 {
			n |= bit
		}
	}
	return n
}

// quoted is a word of a debugfs command.
func quoted(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }
