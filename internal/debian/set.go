package debian

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Release is the code name of the Debian release that this machine runs, such
// as bookworm.
func Release() (string, error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", fmt.Errorf("%w: /etc/os-release names no release", ErrUnavailable)
}

// Closure returns the packages names and all that they depend on, each as
// NAME=VERSION, in the order in which apt would install them on a machine that
// has nothing. If release is not empty, versions are those of that release
// without its updates, and otherwise the newest.
func Closure(ctx context.Context, names []string, release string, log io.Writer) ([]string, error) {
	a, err := openArchive(ctx, log)
	if err != nil {
		return nil, err
	}
	args := append([]string{}, a.opts...)
	args = append(args, "-q", "--simulate", "-o", "Dir::State::Status=/dev/null",
		"-o", "Dir::State::extended_states=/dev/null", "--no-install-recommends")
	if release != "" {
		args = append(args, "-t", release)
	}
	out, err := run(ctx, "", "apt-get", append(append(args, "install"), names...)...)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	var list []string
	for line := range strings.Lines(out) {
		// Inst NAME (VERSION ORIGIN [ARCH]) ...
		f := strings.Fields(line)
		if len(f) > 2 && f[0] == "Inst" && strings.HasPrefix(f[2], "(") {
			list = append(list, f[1]+"="+f[2][1:])
		}
	}
	if len(list) < len(names) {
		return nil, fmt.Errorf("%w: apt-get would install %d packages for %d names", ErrUnavailable, len(list), len(names))
	}
	return list, nil
}

// Unpack downloads packages, each NAME=VERSION, and unpacks them into dir, one
// over another. Downloads are kept in the cache.
func Unpack(ctx context.Context, packages []string, dir string, log io.Writer) error {
	if log == nil {
		log = io.Discard
	}
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	debs := filepath.Join(cache, "debs")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	paths, err := fetchAll(ctx, cache, debs, packages, log)
	if err != nil {
		return err
	}
	fmt.Fprintf(log, "unpacking %d packages\n", len(paths))
	for _, p := range paths {
		if _, err := run(ctx, "", "dpkg-deb", "-x", p, dir); err != nil {
			return err
		}
	}
	return nil
}

// fetchAll returns the paths of the packages' archives, in order.
func fetchAll(ctx context.Context, cache, debs string, packages []string, log io.Writer) ([]string, error) {
	unlock, err := lock(ctx, cache, log)
	if err != nil {
		return nil, err
	}
	defer unlock()
	paths := make([]string, len(packages))
	var missing []string
	for i, p := range packages {
		if paths[i] = findDeb(debs, p); paths[i] == "" {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return paths, nil
	}
	fmt.Fprintf(log, "downloading %d Debian packages\n", len(missing))
	a, err := newArchive(ctx, cache, log)
	if err != nil {
		return nil, err
	}
	// Only whole files get to where the next call looks for them.
	tmp, err := os.MkdirTemp(debs, ".tmp-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := a.download(ctx, tmp, missing...); err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if err := os.Rename(f, filepath.Join(debs, filepath.Base(f))); err != nil {
			return nil, err
		}
	}
	for i, p := range packages {
		if paths[i] = findDeb(debs, p); paths[i] == "" {
			return nil, fmt.Errorf("apt-get download left no file of %s", p)
		}
	}
	return paths, nil
}

// findDeb returns the path of a downloaded package, or "". apt writes a colon
// in a version as %3a.
func findDeb(dir, pkg string) string {
	name, version, _ := strings.Cut(pkg, "=")
	for _, arch := range []string{"amd64", "all"} {
		p := filepath.Join(dir, name+"_"+strings.ReplaceAll(version, ":", "%3a")+"_"+arch+".deb")
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	return ""
}

func openArchive(ctx context.Context, log io.Writer) (*archive, error) {
	if log == nil {
		log = io.Discard
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, cache, log)
	if err != nil {
		return nil, err
	}
	defer unlock()
	a, err := newArchive(ctx, cache, log)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return a, err
}
