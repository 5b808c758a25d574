// Command bench measures vmkit against QEMU with the same kernel, guest and
// files, in alternating runs inside one nested host.
//
//	go run ./internal/bench [flags] [NAME]...
//
// The last lines it prints are one per figure: bench NAME VALUE UNIT. What they
// mean is in docs/benchmarks.md.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/nestedkvm"
	"github.com/vmkit-go/vmkit/internal/nestedkvm/agent"
	"github.com/vmkit-go/vmkit/vm/boot/initramfs"
)

//go:embed testdata/init.c
var initSource []byte

//go:embed testdata/pio.c
var pioSource []byte

// all are the benchmarks in their order: those of the nested host, then those
// of hostOrder.
var all = append([]string{"boot", "blk", "net", "pio", "memory"}, hostOrder...)

// options are the flags, the same outside and inside.
type options struct {
	rounds  int
	seconds float64
	only    string
	out     string
	keep    string
	cmdline string
	verbose bool
	inside  bool
}

func (o *options) register(f *flag.FlagSet) {
	f.IntVar(&o.rounds, "rounds", 0, "how often each thing is measured; 0 is each benchmark's own number")
	f.Float64Var(&o.seconds, "seconds", 1, "how long one measurement of a disk takes")
	f.StringVar(&o.only, "only", "", "measure only the machines, or parts of the stream benchmark (profile, boot, replay, latency), with these names, separated by commas")
	f.StringVar(&o.keep, "keep", "", "directory in which the stream benchmark keeps what it publishes for its next run")
	f.StringVar(&o.out, "out", "", "directory for CPU profiles of vmkit's machines")
	f.StringVar(&o.cmdline, "append", "quiet", "kernel command line of the guests")
	f.BoolVar(&o.verbose, "v", false, "print what the machines say")
	f.BoolVar(&o.inside, "inside", false, "used inside the nested host")
}

func (o *options) args() []string {
	return []string{"-inside", fmt.Sprint("-rounds=", o.rounds), fmt.Sprint("-seconds=", o.seconds),
		"-only=" + o.only, "-out=" + o.out, "-append=" + o.cmdline, fmt.Sprint("-v=", o.verbose)}
}

func main() {
	agent.Main()
	var o options
	o.register(flag.CommandLine)
	flag.Parse()
	names := flag.Args()
	if len(names) == 0 {
		names = all
	}
	for _, n := range names {
		if !slices.Contains(all, n) {
			fmt.Fprintf(os.Stderr, "bench: no benchmark %q: there are %s\n", n, strings.Join(all, ", "))
			os.Exit(2)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := outside
	if o.inside {
		run = inside
	}
	if err := run(ctx, o, names); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// outside prepares guests and programs and runs this one in a nested host.
func outside(ctx context.Context, o options, names []string) (err error) {
	out := &figures{w: os.Stdout}
	var nested, host []string
	for _, n := range names {
		switch {
		case onHost[n] != nil:
			host = append(host, n)
		case n != "net":
			nested = append(nested, n)
		}
	}
	if len(nested) > 0 {
		err = outsideNested(ctx, o, nested, out)
	}
	if err == nil && slices.Contains(names, "net") {
		err = netbench(ctx, o, out)
	}
	if err == nil {
		err = runOnHost(ctx, o, host, out)
	}
	return errors.Join(err, out.print())
}

func outsideNested(ctx context.Context, o options, names []string, out *figures) (err error) {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := prepare(ctx, dir); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	files := []nestedkvm.File{{Path: self, Name: filepath.Join(insideDir, "bench"), Libraries: true}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		files = append(files, nestedkvm.File{Path: filepath.Join(dir, e.Name()), Name: filepath.Join(insideDir, e.Name())})
	}
	for _, n := range names {
		cmd := nestedkvm.Cmd{
			Path: filepath.Join(insideDir, "bench"), Args: append(o.args(), n),
			Files: files, Stdout: out, Stderr: os.Stderr,
		}
		if o.out != "" {
			cmd.Collect = []string{filepath.Join(insideDir, "*.pprof")}
			cmd.Collected = saveTo(o.out)
		}
		if err := runNested(ctx, cmd, out); err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// runNested runs a benchmark in a nested host of its own. QEMU's emulator with two
// processors sometimes breaks or stops the kernel in it, which says nothing
// about what is measured: the benchmark then starts again in a new one.
func runNested(ctx context.Context, cmd nestedkvm.Cmd, out *figures) (err error) {
	const (
		attempts = 3
		limit    = 15 * time.Minute
	)
	kept := len(out.kept)
	for i := range attempts {
		if err = once(ctx, cmd, limit); err == nil || ctx.Err() != nil {
			return err
		}
		out.kept = out.kept[:kept]
		if i < attempts-1 {
			fmt.Fprintln(os.Stderr, "bench:", err, "- once more, in a new nested host")
		}
	}
	return err
}

// once runs cmd in a new nested host for at most limit.
func once(ctx context.Context, cmd nestedkvm.Cmd, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	h, err := nestedkvm.Start(ctx, nestedkvm.Config{QEMU: true, Log: os.Stderr})
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Run(ctx, cmd)
}

// netbench runs the network's benchmark, which is a program of its own.
func netbench(ctx context.Context, o options, out *figures) error {
	args := []string{"run", "github.com/vmkit-go/vmkit/internal/netbench"}
	if o.rounds > 0 {
		args = append(args, "-rounds", fmt.Sprint(o.rounds))
	}
	if o.verbose {
		args = append(args, "-v")
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	fmt.Fprint(out, "\nnet\n\n")
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("net: %w", err)
	}
	return nil
}

// Names of files in the nested host.
const (
	insideDir  = "/bench"
	kernelFile = insideDir + "/kernel"
	bootInitrd = insideDir + "/boot.initrd"
	diskInitrd = insideDir + "/disk.initrd"
	vmmProgram = insideDir + "/vmm"
	pioProgram = insideDir + "/pio"
)

// prepare makes all files that the benchmarks need in dir.
func prepare(ctx context.Context, dir string) error {
	at := func(name string) string { return filepath.Join(dir, filepath.Base(name)) }
	k, err := debian.FetchKernel(ctx, os.Stderr)
	if err != nil {
		return err
	}
	image, err := os.ReadFile(k.Image)
	if err != nil {
		return err
	}
	if err := os.WriteFile(at(kernelFile), image, 0o644); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "bench-build")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	guest, first := filepath.Join(work, "guest"), filepath.Join(work, "init")
	for out, pkg := range map[string]string{at(vmmProgram): "vmm", guest: "guest"} {
		build := exec.CommandContext(ctx, "go", "build", "-o", out, "github.com/vmkit-go/vmkit/internal/bench/"+pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build %s: %w: %s", pkg, err, msg)
		}
	}
	if err := compile(ctx, first, initSource, "-Os", "-static", "-nostdlib", "-ffreestanding"); err != nil {
		return err
	}
	if err := compile(ctx, at(pioProgram), pioSource, "-O2", "-static"); err != nil {
		return err
	}
	if err := writeInitrd(at(bootInitrd), first, nil); err != nil {
		return err
	}
	modules, err := k.Modules("virtio_pci", "virtio_mmio", "virtio_blk")
	if err != nil {
		return err
	}
	return writeInitrd(at(diskInitrd), guest, modules)
}

// compile builds a C program.
func compile(ctx context.Context, out string, source []byte, flags ...string) error {
	gcc, err := debian.LookProgram("gcc", "gcc")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, gcc, append(flags, "-x", "c", "-o", out, "-")...)
	cmd.Stdin = bytes.NewReader(source)
	if msg, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w: %s", err, msg)
	}
	return nil
}

// writeInitrd makes an initramfs of one program and the kernel modules that it
// is to load.
func writeInitrd(path, program string, modules []string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := initramfs.NewWriter(f)
	errs := []error{
		w.Device("dev/console", fs.ModeDevice|fs.ModeCharDevice|0o600, 5, 1),
		w.Device("dev/ttyS0", fs.ModeDevice|fs.ModeCharDevice|0o600, 4, 64),
		w.HostFile("init", program),
	}
	var list strings.Builder
	for _, m := range modules {
		data, err := debian.ReadModule(m)
		if err != nil {
			return err
		}
		name, _, _ := strings.Cut(filepath.Base(m), ".ko")
		fmt.Fprintln(&list, name)
		errs = append(errs, w.WriteFile(name, data, 0o644))
	}
	errs = append(errs, w.WriteFile("modules", []byte(list.String()), 0o644), w.Close())
	return errors.Join(errs...)
}

// figures passes a benchmark's output on, except for its figures, which it keeps
// for the end.
type figures struct {
	w    io.Writer
	line []byte
	kept []byte
}

func (f *figures) Write(p []byte) (int, error) {
	f.line = append(f.line, p...)
	for {
		i := bytes.IndexByte(f.line, '\n')
		if i < 0 {
			return len(p), nil
		}
		l := f.line[:i+1]
		if bytes.HasPrefix(l, []byte("bench ")) {
			f.kept = append(f.kept, l...)
		} else if _, err := f.w.Write(l); err != nil {
			return 0, err
		}
		f.line = f.line[i+1:]
	}
}

func (f *figures) print() error {
	if len(f.kept) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(f.w, "%s\n%s", f.line, f.kept)
	return err
}
