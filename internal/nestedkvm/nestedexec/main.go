// Command nestedexec runs a program on a real KVM inside a nested host (see
// package nestedkvm). It is meant for go test -exec:
//
//	go build -o /tmp/nestedexec ./internal/nestedkvm/nestedexec
//	go test -exec /tmp/nestedexec ./kvm/
//
// The test binary, its shared libraries and the testdata directory of its
// package are carried in; new fuzz inputs, profiles and coverage data are
// carried out. Any other program works, too, which helps with debugging:
//
//	nestedexec -- /bin/sh -c 'ls -l /dev/kvm; dmesg | tail'
//	nestedexec -in ./vmm -in guest.img -- ./vmm run -disk guest.img
//	nestedexec -tty -- sh
//
// A boot takes a few seconds; a served host is booted once for many programs:
//
//	nestedexec -serve /tmp/nested.sock &
//	VMKIT_NESTED_SOCK=/tmp/nested.sock go test -exec /tmp/nestedexec ./...
//
// Run it with -h for all flags.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmkit-go/vmkit/internal/nestedkvm"
	"github.com/vmkit-go/vmkit/internal/nestedkvm/agent"
)

// socketEnv names the socket of a served host.
const socketEnv = "VMKIT_NESTED_SOCK"

const usage = `usage: nestedexec [flags] PROGRAM [ARGS...]
       nestedexec [flags] -serve SOCKET

Runs PROGRAM as root on a real kvm-amd inside a nested host: Debian's cloud
kernel under QEMU's TCG. With go test:

  go build -o /tmp/nestedexec ./internal/nestedkvm/nestedexec
  go test -exec /tmp/nestedexec ./kvm/

Any command, with files carried in at their own paths:

  nestedexec -in ./vmm -in disk.img -- ./vmm run -disk disk.img
  nestedexec -- sh -c 'ls -l /dev/kvm; dmesg | tail'
  nestedexec -tty -- sh

One boot for many programs:

  nestedexec -serve /tmp/nested.sock &
  VMKIT_NESTED_SOCK=/tmp/nested.sock go test -exec /tmp/nestedexec ./...

A PROGRAM that is a file here is carried in with its shared libraries; others
are looked for inside. The working directory and its testdata are the same
inside. VMKIT_*, GO* and TERM variables are passed on. Inside, VMKIT_NESTED=1
and VMKIT_REQUIRE_KVM=1 are set, /tmp is a scratch disk, and VMKIT_CACHE names
a cache with Debian's kernel, its modules and busybox.

Exit status: the program's; 128+N for signal N; 125 if the nested host failed.

`

func main() {
	agent.Main()
	os.Exit(run())
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

type options struct {
	in, out, programs, modules list
	serve, append              string
	cpus, memory               int
	qemu, verbose, tty, noSock bool
	timeout                    time.Duration
}

func run() int {
	var o options
	flag.Var(&o.in, "in", "carry this file or directory in (repeatable); HERE=INSIDE gives it another path")
	flag.Var(&o.out, "out", "carry this file, directory or pattern out, to the same path (repeatable)")
	flag.Var(&o.programs, "program", "have this program of the outer machine inside (repeatable; not with a served host)")
	flag.Var(&o.modules, "module", "load this kernel module (repeatable; not with a served host)")
	flag.StringVar(&o.serve, "serve", "", "boot a host and serve it on this unix socket until a signal comes")
	flag.StringVar(&o.append, "append", "", "add to the nested kernel's command line")
	flag.IntVar(&o.cpus, "cpus", 2, "processors of the nested host")
	flag.IntVar(&o.memory, "m", 2048, "memory of the nested host in MiB")
	flag.BoolVar(&o.qemu, "qemu", false, "have qemu-system-x86_64 inside")
	flag.BoolVar(&o.verbose, "v", false, "show progress and the nested kernel's console")
	flag.BoolVar(&o.tty, "tty", false, "give the program a terminal")
	flag.BoolVar(&o.noSock, "own", false, "boot a host even if "+socketEnv+" names a served one")
	flag.DurationVar(&o.timeout, "timeout", 0, "kill the program after this time")
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage); flag.PrintDefaults() }
	flag.Parse()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if o.timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, o.timeout)
		defer cancel()
	}
	var err error
	switch {
	case o.serve != "" && flag.NArg() == 0:
		err = serve(ctx, &o)
	case o.serve == "" && flag.NArg() > 0:
		err = runProgram(ctx, &o, flag.Args())
	default:
		flag.Usage()
		return 2
	}
	var exit *nestedkvm.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.Signal != 0:
		fmt.Fprintf(os.Stderr, "nestedexec: %v (%v)\n", err, syscall.Signal(exit.Signal))
		return 128 + exit.Signal
	case errors.As(err, &exit):
		return exit.Code
	}
	fmt.Fprintf(os.Stderr, "nestedexec: %v\n", err)
	return 125
}

func (o *options) config() nestedkvm.Config {
	cfg := nestedkvm.Config{
		CPUs: o.cpus, Memory: uint64(o.memory) << 20, Modules: o.modules, Programs: o.programs,
		QEMU: o.qemu, Append: o.append, Log: os.Stderr,
	}
	if o.verbose {
		cfg.Console = os.Stderr
	}
	return cfg
}

func runProgram(ctx context.Context, o *options, args []string) error {
	cmd, finish, err := command(o, args)
	if err != nil {
		return err
	}
	defer finish()
	var runner interface {
		Run(context.Context, nestedkvm.Cmd) error
	}
	if sock := os.Getenv(socketEnv); sock != "" && !o.noSock {
		runner = nestedkvm.NewRemote(sock)
	} else {
		cfg := o.config()
		if !o.verbose {
			cfg.Log = &quiet{w: os.Stderr}
		}
		// A signal during the boot must not leave its files behind.
		bootCtx, booted := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
		h, err := nestedkvm.Start(bootCtx, cfg)
		booted()
		if err != nil {
			return err
		}
		defer h.Close()
		runner = h
	}
	sigs := make(chan os.Signal, 8)
	signal.Notify(sigs, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(sigs)
	pass := make(chan syscall.Signal, 8)
	go func() {
		for s := range sigs {
			pass <- s.(syscall.Signal)
		}
	}()
	cmd.Signals = pass
	return runner.Run(ctx, cmd)
}

// quiet drops the line that every start prints.
type quiet struct{ w io.Writer }

func (q *quiet) Write(p []byte) (int, error) {
	if strings.HasPrefix(string(p), "nested host is up") {
		return len(p), nil
	}
	return q.w.Write(p)
}

func serve(ctx context.Context, o *options) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	h, err := nestedkvm.Start(ctx, o.config())
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := listen(o.serve)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "serving on %s\n", o.serve)
	err = h.Serve(ctx, l)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// absPath is filepath.Abs whose error needs no check at each use.
func absPath(p string) string {
	if abs, err := filepath.Abs(p); err == nil {
		return abs
	}
	return p
}
