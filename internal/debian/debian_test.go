package debian

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// fakeApt puts an apt-get in front of PATH that "downloads" packages with the
// file etc/NAME, notes its calls, and fails while a file named fail exists.
func fakeApt(t *testing.T) (calls func() string, dir string) {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("no dpkg-deb: this is no Debian machine")
	}
	dir = t.TempDir()
	log := filepath.Join(dir, "calls")
	script := `#!/bin/sh
set -e
for name; do :; done
echo "$1 $2 $3" | sed 's/-q //' >>` + log + `
case "$*" in *update*) rm -f ` + dir + `/fail; exit 0;; esac
if [ -e ` + dir + `/fail ]; then echo "E: 404 Not Found" >&2; exit 100; fi
tmp=$(mktemp -d)
mkdir -p $tmp/DEBIAN $tmp/etc
echo hello >$tmp/etc/$name
printf 'Package: %s\nVersion: 1\nArchitecture: amd64\nMaintainer: x\nDescription: x\n' $name >$tmp/DEBIAN/control
dpkg-deb -b $tmp ${name}_1_amd64.deb >/dev/null
rm -r $tmp
`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "apt-get"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("VMKIT_CACHE", filepath.Join(dir, "cache"))
	return func() string {
		data, _ := os.ReadFile(log)
		return string(data)
	}, dir
}

func TestPackage(t *testing.T) {
	calls, _ := fakeApt(t)
	var wg sync.WaitGroup
	dirs := make([]string, 8)
	for i := range dirs {
		wg.Go(func() {
			dir, err := Package(t.Context(), "thing", nil)
			if err != nil {
				t.Error(err)
			}
			dirs[i] = dir
		})
	}
	wg.Wait()
	for _, d := range dirs {
		require.Equal(t, dirs[0], d)
	}
	data, err := os.ReadFile(filepath.Join(dirs[0], "etc/thing"))
	require.NoError(t, err)
	require.Equal(t, "hello\n", string(data))
	require.Equal(t, 1, strings.Count(calls(), "download"), calls())
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dirs[0]), ".tmp*"))
	require.NoError(t, err)
	require.Empty(t, left, "temporary directories stay behind")
}

func TestPackageAfterUpdate(t *testing.T) {
	calls, dir := fakeApt(t)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "fail"), nil, 0o644))
	var log bytes.Buffer
	_, err := Package(t.Context(), "thing", &log)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(calls(), "update"), calls())
	require.Contains(t, log.String(), "apt-get update")
}

func TestPackageErrors(t *testing.T) {
	for _, name := range []string{"", "a/b", "-o", "../x", "a_b", "a*"} {
		_, err := Package(t.Context(), name, nil)
		require.Error(t, err, "name %q", name)
	}
	t.Setenv("VMKIT_CACHE", "relative")
	_, err := Package(t.Context(), "thing", nil)
	require.ErrorContains(t, err, "VMKIT_CACHE")

	t.Setenv("VMKIT_CACHE", t.TempDir())
	t.Setenv("PATH", t.TempDir())
	_, err = Package(t.Context(), "thing", nil)
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "apt-get")
}

func TestLockWait(t *testing.T) {
	cache := t.TempDir()
	unlock, err := lock(t.Context(), cache, &bytes.Buffer{})
	require.NoError(t, err)
	var log bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = lock(ctx, cache, &log)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Contains(t, log.String(), "waiting")
	unlock()
	unlock, err = lock(t.Context(), cache, &log)
	require.NoError(t, err)
	unlock()
}

// kernel is the real one, from the cache or the archive.
func kernel(t *testing.T) *Kernel {
	t.Helper()
	k, err := FetchKernel(t.Context(), os.Stderr)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	require.NoError(t, err)
	return k
}

func TestKernel(t *testing.T) {
	k := kernel(t)
	require.Contains(t, k.Release, "-cloud-amd64")
	image, err := os.ReadFile(k.Image)
	require.NoError(t, err)
	require.Equal(t, "HdrS", string(image[0x202:0x206]), "no bzImage")

	mods, err := k.Modules("kvm-amd", "virtio_blk", "kvm_amd", "ext4")
	require.NoError(t, err)
	pos := map[string]int{}
	for i, m := range mods {
		name := moduleName(strings.TrimSuffix(filepath.Base(m), ".ko"))
		require.NotContains(t, pos, name, "listed twice")
		pos[name] = i
		require.FileExists(t, m)
	}
	require.Less(t, pos["irqbypass"], pos["kvm"])
	require.Less(t, pos["kvm"], pos["kvm_amd"])
	require.Less(t, pos["virtio_ring"], pos["virtio_blk"])
	require.NotContains(t, pos, "ext4", "it is built in")

	_, err = k.Modules("no_such_thing")
	require.ErrorIs(t, err, ErrNoModule)
	require.ErrorContains(t, err, "no_such_thing")
}

func TestCompressedModules(t *testing.T) {
	k := kernel(t)
	files, err := k.Modules("irqbypass")
	require.NoError(t, err)
	plain, err := ReadModule(files[0])
	require.NoError(t, err)

	dir := t.TempDir()
	enc, err := zstd.NewWriter(nil)
	require.NoError(t, err)
	zst := filepath.Join(dir, "irqbypass.ko.zst")
	require.NoError(t, os.WriteFile(zst, enc.EncodeAll(plain, nil), 0o644))
	cmd := exec.Command("xz", "-c", "--check=crc32")
	cmd.Stdin = bytes.NewReader(plain)
	packed, err := cmd.Output()
	require.NoError(t, err)
	xz := filepath.Join(dir, "other.ko.xz")
	require.NoError(t, os.WriteFile(xz, packed, 0o644))

	for _, f := range []string{zst, xz} {
		got, err := ReadModule(f)
		require.NoError(t, err)
		require.True(t, bytes.Equal(plain, got), f)
	}
	small := &Kernel{ModulesDir: dir}
	got, err := small.Modules("irqbypass", "other")
	require.NoError(t, err)
	require.Empty(t, cmp.Diff([]string{zst, xz}, got))
}

func TestBadModules(t *testing.T) {
	dir := t.TempDir()
	for name, data := range map[string]string{
		"text.ko": "hello", "empty.ko": "", "elf.ko": "\x7fELF\x02\x01\x01", "bad.ko.zst": "zstd?", "bad2.ko.xz": "xz?",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644))
	}
	k := &Kernel{ModulesDir: dir}
	for _, name := range []string{"text", "empty", "elf", "bad", "bad2"} {
		_, err := k.Modules(name)
		require.Error(t, err, name)
		require.ErrorContains(t, err, name+".ko")
	}
}

func TestLibraries(t *testing.T) {
	libs, err := Libraries("/bin/dash")
	require.NoError(t, err)
	var names []string
	for _, l := range libs {
		require.FileExists(t, l)
		names = append(names, filepath.Base(l))
	}
	require.Subset(t, names, []string{"ld-linux-x86-64.so.2", "libc.so.6"})

	busybox, err := Busybox(t.Context(), os.Stderr)
	require.NoError(t, err)
	libs, err = Libraries(busybox)
	require.NoError(t, err)
	require.Empty(t, libs)

	_, err = Libraries("/etc/passwd")
	require.Error(t, err)
	_, err = LookProgram("no-such-program", "some-package")
	require.ErrorIs(t, err, ErrUnavailable)
	require.ErrorContains(t, err, "some-package")
}

// TestClosure resolves real packages, if apt can, and unpacks one of them.
func TestClosure(t *testing.T) {
	list, err := Closure(t.Context(), []string{"zlib1g"}, "", os.Stderr)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	require.NoError(t, err)
	names := map[string]bool{}
	for _, p := range list {
		name, version, ok := strings.Cut(p, "=")
		require.True(t, ok && version != "", p)
		names[name] = true
	}
	require.True(t, names["zlib1g"] && names["libc6"], "%v", list)
	_, err = Closure(t.Context(), []string{"no-such-package"}, "", nil)
	require.ErrorIs(t, err, ErrUnavailable)
	release, err := Release()
	require.NoError(t, err)
	_, err = Closure(t.Context(), []string{"zlib1g"}, release, nil)
	require.NoError(t, err)
}

func TestUnpack(t *testing.T) {
	calls, dir := fakeApt(t)
	// Here apt is asked for NAME=VERSION.
	script, err := os.ReadFile(filepath.Join(dir, "apt-get"))
	require.NoError(t, err)
	text := strings.NewReplacer("for name; do :; done", "for name; do name=${name%=*}; done", "${name}_1_amd64", "${name}_1%3a2_amd64").Replace(string(script))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "apt-get"), []byte(text), 0o755))
	for range 2 {
		tree := t.TempDir()
		require.NoError(t, Unpack(t.Context(), []string{"thing=1:2"}, tree, nil))
		require.FileExists(t, filepath.Join(tree, "etc/thing"))
	}
	require.Equal(t, 1, strings.Count(calls(), "download"), calls())
	err = Unpack(t.Context(), []string{"thing=1:3"}, t.TempDir(), nil)
	require.ErrorContains(t, err, "thing=1:3")
}
