// Command vmm is vmkit's reference VMM: it composes the public packages into
// a program that boots Linux, runs a command in it, and saves and loads it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/vmkit-go/vmkit/internal/nestedkvm/agent"
)

const usage = `vmm runs virtual machines.

usage:
  vmm run [flags] [-- COMMAND ARGS...]   boot a guest; run COMMAND in it and exit with its status
  vmm save -control SOCKET DIR           save a running guest to DIR and end it
  vmm load [flags] DIR                   go on with a saved guest
  vmm clone [-format F] BASE CLONE...    make linked clones of a disk
  vmm probe                              say what this host can run, and why not

Without a command, run gives the guest's console; Ctrl-A x leaves it.
"vmm run -h" lists the flags. vmm exits with the guest command's status, with
125 when something went wrong outside the guest, and with 2 on wrong usage.
`

// Exit statuses of vmm's own.
const (
	statusUsage  = 2
	statusFailed = 125
)

// exitStatus is an error that only carries an exit status: everything there
// was to say has been said.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is what is wrong with vmm's arguments.
type usageError string

func (e usageError) Error() string { return string(e) }

func main() {
	agent.Main() // returns at once, unless this is PID 1 of the nested host
	// Without this, writing to a closed standard output would kill vmm.
	signal.Ignore(syscall.SIGPIPE)
	// The first signal is for the command in the guest, or ends the guest;
	// the second one kills.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	err := dispatch(ctx, os.Args[1:])
	stop()
	os.Exit(report(err))
}

// report says what went wrong, in one line, and returns the exit status.
func report(err error) int {
	var (
		status exitStatus
		usage  usageError
	)
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, &status):
		return int(status)
	}
	// Joined errors come a line each.
	fmt.Fprintf(os.Stderr, "vmm: %s\n", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "))
	if errors.As(err, &usage) {
		return statusUsage
	}
	return statusFailed
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return exitStatus(statusUsage)
	}
	switch args[0] {
	case "run":
		return runCommand(ctx, args[1:])
	case "load":
		return loadCommand(ctx, args[1:])
	case "save":
		return saveCommand(ctx, args[1:])
	case "clone":
		return cloneCommand(ctx, args[1:])
	case "probe":
		return probeCommand(ctx, args[1:])
	case "help", "-h", "-help", "--help":
		fmt.Print(usage)
		return nil
	}
	return usageError(fmt.Sprintf("unknown command %q (vmm help lists them)", args[0]))
}
