package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// patience bounds one guest's boot and measurements on a busy host.
const patience = 3 * time.Minute

// guestMemory is the memory of every guest.
const guestMemory = 256 << 20

// machine is one way of running a guest.
type machine struct {
	name string
	vmm  string // program
	args []string
	more bool // measured only when asked for by name
}

// vmkit is a machine of ours.
func vmkit(name string, args ...string) machine {
	return machine{name: name, vmm: vmmProgram, args: append([]string{"-kernel", kernelFile, "-memory", fmt.Sprint(guestMemory)}, args...)}
}

// extra marks a machine that is measured only when asked for by name.
func extra(m machine) machine {
	m.more = true
	return m
}

// qemu is a machine of QEMU's with the serial port on standard output.
func qemu(name, options string, args ...string) machine {
	return machine{name: name, vmm: "qemu-system-x86_64", args: append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", fmt.Sprint(guestMemory >> 20),
		"-M", "microvm" + options, "-serial", "stdio", "-kernel", kernelFile,
	}, args...)}
}

// result is one line that a guest has written.
type result struct {
	name  string
	value float64
	after time.Duration // since the process was started
}

// run is try, repeated if the guest did not finish: the emulator of the nested
// host sometimes breaks a guest's kernel, ours and the peer's alike.
func (m machine) run(ctx context.Context, o options, last string, inspect func(pid int) error) (rs []result, err error) {
	for range 3 {
		if rs, err = m.try(ctx, o, last, inspect); err == nil || ctx.Err() != nil {
			return rs, err
		}
		fmt.Fprintln(os.Stderr, "bench:", err, "- once more")
	}
	return nil, err
}

// try starts m and returns what its guest said up to "done" or the result that
// is named last; then, with the machine still there, it calls inspect, if that
// is not nil, with its process ID.
func (m machine) try(ctx context.Context, o options, last string, inspect func(pid int) error) (_ []result, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	args := m.args
	if o.verbose && m.vmm == vmmProgram {
		args = append([]string{"-v"}, args...)
	}
	cmd := exec.CommandContext(ctx, m.vmm, args...)
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if o.verbose {
		fmt.Printf("%s: starts\n", m.name)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	var results []result
	var said strings.Builder
	ok := false
	lines := bufio.NewScanner(out)
	for !ok && lines.Scan() {
		after := time.Since(start)
		line := strings.TrimSpace(lines.Text())
		if o.verbose {
			fmt.Printf("%s: %s\n", m.name, line)
		}
		fmt.Fprintln(&said, line)
		r := result{after: after}
		// The first line may follow what firmware has drawn.
		if i := strings.Index(line, "result "); i >= 0 {
			if n, _ := fmt.Sscanf(line[i:], "result %s %g", &r.name, &r.value); n == 2 {
				results = append(results, r)
				ok = r.name == last
				if r.name == "failed" {
					break
				}
			}
		}
	}
	if ok && inspect != nil {
		err = inspect(cmd.Process.Pid)
	}
	cancel()
	_, _ = io.Copy(io.Discard, out)
	werr := cmd.Wait()
	if !ok {
		return nil, fmt.Errorf("%s: the guest did not finish; it said:\n%s%w", m.name, &said, errors.Join(werr, err))
	}
	return results, err
}

// inside runs the benchmarks in the nested host.
func inside(ctx context.Context, o options, names []string) error {
	if o.verbose {
		for _, c := range [][]string{{"uname", "-a"}, {"qemu-system-x86_64", "--version"}} {
			cmd := exec.CommandContext(ctx, c[0], c[1:]...)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			_ = cmd.Run()
		}
	}
	for _, n := range names {
		fmt.Printf("\n%s\n\n", n)
		var err error
		switch n {
		case "boot":
			err = boot(ctx, o)
		case "blk":
			err = blk(ctx, o)
		case "pio":
			err = pio(ctx, o)
		case "memory":
			err = memoryUse(ctx, o)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
	}
	return nil
}

// pick keeps the machines that the user wants.
func (o options) pick(machines []machine) []machine {
	names := strings.Split(o.only, ",")
	return slices.DeleteFunc(machines, func(m machine) bool {
		if o.only == "" {
			return m.more
		}
		return !slices.Contains(names, m.name)
	})
}

// roundsOr is the number of rounds, by default n.
func (o options) roundsOr(n int) int {
	if o.rounds > 0 {
		return o.rounds
	}
	return n
}
