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

// kernelMeta is the package whose dependency is the current cloud kernel.
const kernelMeta = "linux-image-cloud-amd64"

// kernelPattern matches the cache's directories of cloud kernels.
const kernelPattern = "linux-image-*-cloud-amd64_*"

// Kernel is an unpacked Debian kernel. Its files belong to the cache.
type Kernel struct {
	// Release is what uname -r prints under this kernel.
	Release string
	// Image is the path of its bzImage.
	Image string
	// ModulesDir is the path of its module tree, lib/modules/RELEASE.
	ModulesDir string
	// Dir is the directory of the whole unpacked package.
	Dir string
}

// FetchKernel returns Debian's current cloud kernel for amd64, downloading it
// (27 MB) if the cache has none. Progress goes to log, which may be nil.
func FetchKernel(ctx context.Context, log io.Writer) (*Kernel, error) {
	if log == nil {
		log = io.Discard
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	if dir := newest(filepath.Join(cache, "debian"), kernelPattern); dir != "" {
		return openKernel(dir)
	}
	name, err := kernelPackage(ctx, cache, log)
	if err != nil {
		return nil, fmt.Errorf("find the cloud kernel: %w", err)
	}
	dir, err := Package(ctx, name, log)
	if err != nil {
		return nil, err
	}
	return openKernel(dir)
}

// kernelPackage asks apt which package holds the current cloud kernel.
func kernelPackage(ctx context.Context, cache string, log io.Writer) (string, error) {
	unlock, err := lock(ctx, cache, log)
	if err != nil {
		return "", err
	}
	defer unlock()
	apt, err := newArchive(ctx, cache, log)
	if err != nil {
		return "", err
	}
	deps, err := apt.depends(ctx, kernelMeta)
	if err != nil {
		return "", err
	}
	for _, d := range deps {
		if strings.HasPrefix(d, "linux-image-") {
			return d, nil
		}
	}
	return "", fmt.Errorf("%w: %s depends on no linux-image package: %q", ErrUnavailable, kernelMeta, deps)
}

// openKernel checks what an unpacked kernel package holds. Debian 13 unpacks
// modules below usr/lib.
func openKernel(dir string) (*Kernel, error) {
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if len(images) != 1 {
		return nil, fmt.Errorf("%s: %d files boot/vmlinuz-*, want 1; delete the directory to fetch it again", dir, len(images))
	}
	k := &Kernel{
		Release: strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-"),
		Image:   images[0],
		Dir:     dir,
	}
	for _, lib := range []string{"lib", "usr/lib"} {
		d := filepath.Join(dir, lib, "modules", k.Release)
		if fi, err := os.Stat(d); err == nil && fi.IsDir() {
			k.ModulesDir = d
			return k, nil
		} else if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s: no modules of release %s; delete the directory to fetch it again", dir, k.Release)
}
