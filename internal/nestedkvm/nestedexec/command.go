package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/nestedkvm"
)

// command makes the Cmd for a program and its arguments; finish restores the
// terminal.
func command(o *options, args []string) (cmd nestedkvm.Cmd, finish func(), err error) {
	finish = func() {}
	cwd, err := os.Getwd()
	if err != nil {
		return cmd, finish, err
	}
	cmd = nestedkvm.Cmd{
		Path: args[0], Args: args[1:], Dir: cwd, Env: environ(),
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	if path, ok := localProgram(args[0]); ok {
		cmd.Path = path
		cmd.Files = append(cmd.Files, nestedkvm.File{Path: path, Libraries: true})
	}
	if fi, err := os.Stat(filepath.Join(cwd, "testdata")); err == nil && fi.IsDir() {
		cmd.Files = append(cmd.Files, nestedkvm.File{Path: filepath.Join(cwd, "testdata"), Replace: true})
	}
	for _, in := range o.in {
		here, inside, ok := strings.Cut(in, "=")
		if !ok {
			inside = here
		}
		cmd.Files = append(cmd.Files, nestedkvm.File{Path: here, Name: absPath(inside), Libraries: true})
	}
	for _, out := range o.out {
		cmd.Collect = append(cmd.Collect, absPath(out))
	}
	cmd.Collect = append(cmd.Collect, testOutputs(cwd, args[1:])...)
	if dir := os.Getenv("GOCOVERDIR"); dir != "" {
		dir = absPath(dir)
		cmd.Env = append(cmd.Env, "GOCOVERDIR="+dir)
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
			cmd.Files = append(cmd.Files, nestedkvm.File{Path: dir})
		}
		cmd.Collect = append(cmd.Collect, dir)
	}
	collect := cmd.Collect
	cmd.Collected = func(tr *tar.Reader) error { return extract(tr, collect) }
	if o.tty {
		finish, err = terminal(&cmd)
	}
	return cmd, finish, err
}

// localProgram says whether the program is a file of this machine to carry in:
// a path to one that is not part of the system. Those of the system have their
// counterpart inside.
func localProgram(name string) (string, bool) {
	if !strings.Contains(name, "/") {
		return "", false
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", false
	}
	path = absPath(path)
	for _, dir := range []string{"/bin/", "/sbin/", "/usr/bin/", "/usr/sbin/"} {
		if strings.HasPrefix(path, dir) {
			return "", false
		}
	}
	return path, true
}

// environ returns the variables that are passed on.
func environ() []string {
	var env []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case name == "VMKIT_CACHE" || name == socketEnv || name == "GOCOVERDIR" ||
			name == "GOPATH" || name == "GOROOT" || name == "GOCACHE" || name == "GOMODCACHE":
			// Paths of the outer machine.
		case strings.HasPrefix(name, "VMKIT_") || strings.HasPrefix(name, "GO") || name == "TERM":
			env = append(env, v)
		}
	}
	return env
}

// testOutputs returns the files that a test binary writes for its caller.
func testOutputs(cwd string, args []string) []string {
	out := []string{filepath.Join(cwd, "testdata", "fuzz")}
	dir := cwd
	value := func(i int, name string) (string, bool) {
		arg := strings.TrimLeft(args[i], "-")
		if v, ok := strings.CutPrefix(arg, name+"="); ok {
			return v, true
		}
		if arg == name && i+1 < len(args) && strings.HasPrefix(args[i], "-") {
			return args[i+1], true
		}
		return "", false
	}
	for i := range args {
		if v, ok := value(i, "test.outputdir"); ok {
			dir = absPath(v)
		}
	}
	for i := range args {
		for _, name := range []string{"coverprofile", "cpuprofile", "memprofile", "blockprofile", "mutexprofile", "trace"} {
			v, ok := value(i, "test."+name)
			if !ok || v == "" {
				continue
			}
			if !filepath.IsAbs(v) {
				v = filepath.Join(dir, v)
			}
			out = append(out, v)
		}
		if v, ok := value(i, "test.gocoverdir"); ok && v != "" {
			out = append(out, absPath(v))
		}
	}
	return out
}

// extract writes collected files to the same paths here. Files that are as
// before are left alone, and nothing is written but what was asked for.
func extract(tr *tar.Reader, patterns []string) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		path := filepath.Join("/", h.Name)
		if !wanted(path, patterns) {
			return fmt.Errorf("%s was not asked for", path)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeReg:
			err = replace(path, fs.FileMode(h.Mode).Perm(), tr)
		}
		if err != nil {
			return err
		}
	}
}

// wanted reports whether path or a directory above it matches a pattern.
func wanted(path string, patterns []string) bool {
	for p := path; p != "/"; p = filepath.Dir(p) {
		for _, pat := range patterns {
			if ok, _ := filepath.Match(pat, p); ok {
				return true
			}
		}
	}
	return false
}

func replace(path string, perm fs.FileMode, r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, perm)
}

// listen listens on a unix socket, in place of one that nobody serves.
func listen(path string) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if errors.Is(err, unix.EADDRINUSE) {
		if c, derr := net.Dial("unix", path); derr == nil {
			c.Close()
			return nil, fmt.Errorf("%s is served already", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		l, err = net.Listen("unix", path)
	}
	return l, err
}

// terminal makes the program's terminal, and puts ours into raw mode until
// finish is called.
func terminal(cmd *nestedkvm.Cmd) (finish func(), err error) {
	cmd.Terminal = &nestedkvm.Size{Rows: 24, Columns: 80}
	fd := int(os.Stdin.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return func() {}, nil //nolint:nilerr // our input is a file or a pipe
	}
	sizes := make(chan nestedkvm.Size, 1)
	size := func() {
		ws, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil && ws.Row > 0 && ws.Col > 0 {
			sizes <- nestedkvm.Size{Rows: ws.Row, Columns: ws.Col}
		}
	}
	size()
	select {
	case s := <-sizes:
		cmd.Terminal = &s
	default:
	}
	cmd.Resized = sizes
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	go func() {
		for range changed {
			size()
		}
	}()
	raw := *old
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return func() {}, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, old) }, nil
}
