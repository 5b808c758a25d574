// Package appliance makes a large disk with a service on it out of Debian
// packages, in two versions of which the second is an upgrade of the first. The
// benchmarks of package stream publish and boot it.
//
//	path, err := appliance.Disk(ctx, 1, os.Stderr)
//	cfg := guest.Config{Root: "/dev/vda", Command: appliance.Command("once")}
//
// The disk is a raw, sparse ext4 image with what a build server needs: compilers
// for C, Go and Rust, a Java runtime, Node.js, Python, PostgreSQL, fonts, and
// nginx, which serves a page and an API that a Python program answers. Version 1
// has the packages of the machine's Debian release, and version 2 those with all
// later updates, another configuration and other content. Both are built from
// nothing. The same packages give the same image, byte for byte: each file
// system is written in the order of the names, with times, identifiers and
// hash seeds fixed.
//
// Images are kept in the cache of package debian. They take some 2 GiB each and a
// few minutes to make.
package appliance

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/debian"
)

// packages are what the appliance is for; apt adds what they need.
var packages = []string{
	"golang-1.19-go", "openjdk-17-jre-headless", "fonts-noto-cjk", "postgresql-15", "libnode108",
	"gcc-12", "g++-12", "rustc", "python3.11", "nginx-light", "git",
}

// recipe is part of the names of cached images: raise it whenever the disk
// changes.
const recipe = 3

// packageList is the file in the image that names its packages.
const packageList = "srv/packages"

// Size is the size of the disk in bytes.
const Size = 3 << 30

// Ready is the line that the service prints once it has answered a request.
const Ready = "service ready"

// Command returns what to run on the disk. With "once" it ends, with status 0,
// when the service is ready; with "" it serves on port 80 until it is killed.
func Command(mode string) []string {
	if mode == "" {
		return []string{"/srv/start"}
	}
	return []string{"/srv/start", mode}
}

//go:embed app.py
var appSource []byte

//go:embed start.sh
var startScript []byte

// Disk returns the path of the image of version 1 or 2, which it makes if the
// cache does not have it. The file belongs to the cache: open it read-only.
func Disk(ctx context.Context, version int, log io.Writer) (string, error) {
	if version != 1 && version != 2 {
		return "", fmt.Errorf("appliance: version %d: there are 1 and 2", version)
	}
	if log == nil {
		log = io.Discard
	}
	cache, err := debian.CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "appliance")
	path := filepath.Join(dir, fmt.Sprintf("disk-%d-v%d.raw", recipe, version))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil // another process was faster
	}
	tmp, err := os.MkdirTemp(dir, ".tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	fmt.Fprintf(log, "making version %d of the appliance in %s\n", version, dir)
	if err := build(ctx, version, tmp, log); err != nil {
		return "", fmt.Errorf("appliance: %w", err)
	}
	return path, os.Rename(filepath.Join(tmp, "disk"), path)
}

// Packages returns the packages of an image, each NAME=VERSION, as the image
// itself names them.
func Packages(ctx context.Context, path string) ([]string, error) {
	debugfs, err := debian.LookProgram("debugfs", "e2fsprogs")
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, debugfs, "-R", "cat /"+packageList, path).Output()
	list := strings.Fields(string(out))
	if err == nil && len(list) < len(packages) {
		err = fmt.Errorf("%d packages in /%s", len(list), packageList) // debugfs fails with status 0
	}
	if err != nil {
		return nil, fmt.Errorf("appliance: %s: %w", path, err)
	}
	return list, nil
}

// build makes the file disk in tmp.
func build(ctx context.Context, version int, tmp string, log io.Writer) error {
	release := ""
	if version == 1 {
		var err error
		if release, err = debian.Release(); err != nil {
			return err
		}
	}
	list, err := debian.Closure(ctx, packages, release, log)
	if err != nil {
		return err
	}
	tree := filepath.Join(tmp, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		return err
	}
	if err := debian.Unpack(ctx, list, tree, log); err != nil {
		return err
	}
	if err := configure(ctx, version, tree, list, log); err != nil {
		return err
	}
	fmt.Fprintln(log, "writing the file system")
	return writeFS(ctx, filepath.Join(tmp, "disk"), tree)
}

// configure does what the packages' own scripts and an administrator would.
func configure(ctx context.Context, version int, tree string, list []string, log io.Writer) error {
	busybox, err := debian.Busybox(ctx, log)
	if err != nil {
		return err
	}
	box, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	for _, d := range []string{"bin", "dev", "proc", "sys", "run", "tmp", "root", "etc/nginx", "srv/www", "var/log/nginx", "var/lib/nginx"} {
		if err := os.MkdirAll(filepath.Join(tree, d), 0o755); err != nil {
			return err
		}
	}
	page := fmt.Sprintf("<html><h1>Build server, version %d</h1><ul>\n<li>%s</ul></html>\n", version, strings.Join(list, "\n<li>"))
	workers := strconv.Itoa(version)
	for _, f := range []struct {
		name, text string
		mode       fs.FileMode
	}{
		{"bin/busybox", string(box), 0o755},
		{"srv/start", string(startScript), 0o755},
		{"srv/app.py", string(appSource), 0o644},
		{"srv/www/index.html", page, 0o644},
		{packageList, strings.Join(list, "\n") + "\n", 0o644},
		{"etc/nginx/nginx.conf", strings.ReplaceAll(nginxConf, "WORKERS", workers), 0o644},
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/srv/www:/bin/false\n", 0o644},
		{"etc/group", "root:x:0:\nwww-data:x:33:\n", 0o644},
		{"etc/hostname", fmt.Sprintf("build%d\n", version), 0o644},
		{"etc/hosts", "127.0.0.1 localhost\n", 0o644},
	} {
		path := filepath.Join(tree, f.name)
		// A package's symbolic link must not lead the write elsewhere.
		os.Remove(path)
		if err := os.WriteFile(path, []byte(f.text), f.mode); err != nil {
			return err
		}
	}
	return compile(ctx, tree)
}

const nginxConf = `worker_processes WORKERS;
user root;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 256; }
http {
	include /etc/nginx/mime.types;
	access_log off;
	client_body_temp_path /run/nginx-body;
	proxy_temp_path /run/nginx-proxy;
	fastcgi_temp_path /run/nginx-fastcgi;
	uwsgi_temp_path /run/nginx-uwsgi;
	scgi_temp_path /run/nginx-scgi;
	server {
		listen 80;
		root /srv/www;
		location /api/ { proxy_pass http://127.0.0.1:8080; }
	}
}
`

// compile byte-compiles Python's library with the Python in the tree, as the
// packages' scripts do. The files must not depend on when and where.
func compile(ctx context.Context, tree string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(tree, "lib64/ld-linux-x86-64.so.2"),
		"--library-path", filepath.Join(tree, "lib/x86_64-linux-gnu")+":"+filepath.Join(tree, "usr/lib/x86_64-linux-gnu"),
		filepath.Join(tree, "usr/bin/python3.11"), "-m", "compileall", "-q", "-j", "1",
		"--invalidation-mode", "unchecked-hash", "-s", tree, "-p", "/",
		filepath.Join(tree, "usr/lib/python3.11"), filepath.Join(tree, "srv"))
	cmd.Env = []string{"PYTHONHOME=" + filepath.Join(tree, "usr"), "PYTHONHASHSEED=0", "LC_ALL=C.UTF-8"}
	if out, err := cmd.CombinedOutput(); err != nil {
		text := strings.TrimSpace(string(out))
		return fmt.Errorf("compile Python's library: %w: %s", err, text[max(0, len(text)-500):])
	}
	return nil
}
