// Command stream publishes disks for streaming, serves them and shows what is in
// them. Each command is a short main over packages stream/image and stream/fetch.
//
//	stream pack appliance.raw public       publish a disk in a directory
//	stream record public -- COMMAND        record what a guest needs first
//	stream serve public                    let others fetch it over HTTP
//	stream inspect http://host:8000/manifest.json
//	stream keygen me                       make a key pair for pack -sign
//	stream checkout http://host:8000/manifest.json
//	stream checkin -overlay FILE http://host:8000/manifest.json
//	stream rollback -overlay FILE http://host:8000/manifest.json
//
// Every command explains its flags with -h.
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
	"syscall"
)

// command is one of the program's commands.
type command struct {
	name  string
	args  string // what follows the flags
	about string // one line
	help  string // more of it, for -h
	// define adds flags and returns what runs the command with the
	// arguments that follow them.
	define func(f *flag.FlagSet) func(ctx context.Context, args []string) error
}

// commands in the order of the help.
var commands = []command{packCommand, recordCommand, serveCommand, inspectCommand, keygenCommand,
	checkoutCommand, checkinCommand, rollbackCommand}

// errUsage makes the program end with status 2.
var errUsage = errors.New("bad usage")

func usage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errUsage, fmt.Sprintf(format, args...))
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:]))
}

// run returns the exit status: 0, 1 for a failure, 2 for bad usage.
func run(ctx context.Context, args []string) int {
	if len(args) == 0 || args[0] == "-h" || args[0] == "-help" || args[0] == "--help" || args[0] == "help" {
		out := os.Stdout
		if len(args) == 0 {
			out = os.Stderr
		}
		fmt.Fprint(out, "usage: stream COMMAND [FLAGS] ARGUMENTS\n\n")
		for _, c := range commands {
			fmt.Fprintf(out, "  %-9s %s\n", c.name, c.about)
		}
		fmt.Fprint(out, "\nstream COMMAND -h shows a command's flags.\n")
		if len(args) == 0 {
			return 2
		}
		return 0
	}
	for _, c := range commands {
		if c.name == args[0] {
			return c.run(ctx, args[1:])
		}
	}
	fmt.Fprintf(os.Stderr, "stream: no command %q; stream -h lists them\n", args[0])
	return 2
}

func (c command) run(ctx context.Context, args []string) int {
	f := flag.NewFlagSet(c.name, flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	do := c.define(f)
	err := f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Printf("usage: stream %s [FLAGS] %s\n\n%s.\n%s\n", c.name, c.args, c.about, c.help)
		f.SetOutput(os.Stdout)
		f.PrintDefaults()
		return 0
	case err != nil:
		err = usage("%v", err)
	default:
		err = do(ctx, f.Args())
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = errors.New("interrupted")
	}
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(os.Stderr, "stream %s: %v; stream %s -h explains\n", c.name, err, c.name)
		return 2
	}
	fmt.Fprintf(os.Stderr, "stream %s: %v\n", c.name, err)
	return 1
}

// isDir reports whether path is a directory.
func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// manifestIn is where pack puts the manifest of a directory.
func manifestIn(dir string) string { return filepath.Join(dir, "manifest.json") }
