// Package debian obtains the Debian artifacts that tests and examples need (a
// guest kernel and its modules, a static busybox, programs with their shared
// libraries) and keeps them unpacked in a cache, so that nothing of them has to
// be committed:
//
//	k, err := debian.FetchKernel(ctx, os.Stderr)
//	if err != nil {
//		return err
//	}
//	mods, err := k.Modules("virtio_blk", "virtio_pci")
//	fmt.Println(k.Release, k.Image, mods)
//
// The cache is $VMKIT_CACHE or vmkit under [os.UserCacheDir]. What is in it is
// used without asking the archive again; delete the directory to get newer
// packages. All functions may be called concurrently, also from several
// processes: a package is unpacked under a lock and appears by a rename.
package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrUnavailable is wrapped by errors for an artifact that is neither in the
// cache nor to be had from this machine's package archive.
var ErrUnavailable = errors.New("artifact not available")

// CacheDir returns the cache directory without creating it: $VMKIT_CACHE if
// that is set, and otherwise vmkit under [os.UserCacheDir].
func CacheDir() (string, error) {
	if dir := os.Getenv("VMKIT_CACHE"); dir != "" {
		if !filepath.IsAbs(dir) {
			return "", fmt.Errorf("VMKIT_CACHE is %q: want an absolute path", dir)
		}
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		// A service or an init script may run without HOME.
		return filepath.Join(os.TempDir(), fmt.Sprintf("vmkit-cache-%d", os.Getuid())), nil
	}
	return filepath.Join(dir, "vmkit"), nil
}

// Package returns the directory with the unpacked files of the Debian binary
// package name, which it downloads if the cache lacks it. Progress goes to log,
// which may be nil. The directory belongs to the cache: read it only.
func Package(ctx context.Context, name string, log io.Writer) (string, error) {
	if name == "" || strings.ContainsAny(name, "/_*?[ ") || name[0] == '-' || name[0] == '.' {
		return "", fmt.Errorf("bad package name %q", name)
	}
	if log == nil {
		log = io.Discard
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	root := filepath.Join(cache, "debian")
	if dir := newest(root, name+"_*"); dir != "" {
		return dir, nil
	}
	unlock, err := lock(ctx, cache, log)
	if err != nil {
		return "", err
	}
	defer unlock()
	if dir := newest(root, name+"_*"); dir != "" {
		return dir, nil // another process was faster
	}
	dir, err := download(ctx, cache, name, log)
	if err != nil {
		return "", fmt.Errorf("package %s: %w", name, err)
	}
	return dir, nil
}

// newest returns the most recently unpacked package directory that matches.
func newest(root, pattern string) string {
	found, _ := filepath.Glob(filepath.Join(root, pattern))
	best, bestTime := "", int64(0)
	sort.Strings(found)
	for _, dir := range found {
		fi, err := os.Stat(dir)
		if err != nil || !fi.IsDir() {
			continue
		}
		if t := fi.ModTime().UnixNano(); best == "" || t > bestTime {
			best, bestTime = dir, t
		}
	}
	return best
}

// lock takes the cache's lock, which serialises downloads between processes.
func lock(ctx context.Context, cache string, log io.Writer) (unlock func(), err error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make cache directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open cache lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		fmt.Fprintf(log, "waiting for another process that fills %s\n", cache)
		err = waitLock(ctx, f)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

// download gets one package and unpacks it; the caller holds the lock.
func download(ctx context.Context, cache, name string, log io.Writer) (string, error) {
	for _, tool := range []string{"apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("%w: %s is not in PATH; run on Debian, or put the unpacked package in %s",
				ErrUnavailable, tool, filepath.Join(cache, "debian", name+"_VERSION"))
		}
	}
	root := filepath.Join(cache, "debian")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(root, ".tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)

	fmt.Fprintf(log, "downloading Debian package %s\n", name)
	apt, err := newArchive(ctx, cache, log)
	if err != nil {
		return "", err
	}
	if err := apt.download(ctx, tmp, name); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download left %d .deb files", len(debs))
	}
	fmt.Fprintf(log, "unpacking %s\n", filepath.Base(debs[0]))
	tree := filepath.Join(tmp, "tree")
	if _, err := run(ctx, "", "dpkg-deb", "-x", debs[0], tree); err != nil {
		return "", err
	}
	// mkdtemp and dpkg-deb take the mode from different places; the cache is
	// to be readable by any user of this directory.
	if err := os.Chmod(tree, 0o755); err != nil {
		return "", err
	}
	dst := filepath.Join(root, strings.TrimSuffix(filepath.Base(debs[0]), ".deb"))
	if err := os.Rename(tree, dst); err != nil {
		return "", err
	}
	return dst, nil
}

// run runs a command to its end and returns its standard output; the error
// holds what it said on standard error.
func run(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, msg bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(msg.String())
		if len(text) > 2000 {
			text = "..." + text[len(text)-2000:]
		}
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, text)
	}
	return out.String(), nil
}
