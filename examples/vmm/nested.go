package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmkit-go/vmkit/disk/nbd"
	"github.com/vmkit-go/vmkit/disk/qcow2"
	"github.com/vmkit-go/vmkit/internal/nestedkvm"
)

// runNested runs this program with the same arguments in a nested host, to
// which the files that they name are carried and the disks attached.
func runNested(ctx context.Context, o *options, command string, args []string) (err error) {
	if len(o.nets) > 0 {
		return errors.New("-net: the nested host has no way to this host's network; run on a host with a KVM of its own")
	}
	if o.control != "" {
		return errors.New("-control: the nested host ends with its guest, so there is nothing to save to")
	}
	fmt.Fprintln(os.Stderr, "vmm: running in a nested host (kvm-amd under QEMU's emulator), which takes a while")
	self, err := os.Executable()
	if err != nil {
		return err
	}
	inner := []string{command, "-engine", "kvm", "-cpus", fmt.Sprint(o.cpus), "-memory", fmt.Sprint(o.memory),
		"-cpu", o.model.String(), "-append", o.append, "-transport", o.transport.String(),
		"-protocol", chosen(o.protocol, protocols), "-unpack", chosen(o.unpack, unpackers)}
	if o.verbose {
		inner = append(inner, "-v")
	}
	if o.portable {
		inner = append(inner, "-portable")
	}
	if o.userChips {
		inner = append(inner, "-user-chips")
	}
	cmd := nestedkvm.Cmd{
		Path: "/usr/local/bin/vmm", Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Files: []nestedkvm.File{{Path: self, Name: "/usr/local/bin/vmm", Libraries: true}},
		Env:   []string{"TERM=" + os.Getenv("TERM")},
	}
	for _, f := range []struct{ flag, path string }{{"-kernel", o.kernel}, {"-initrd", o.initrd}} {
		if f.path == "" {
			continue
		}
		if err := checkFile(strings.TrimPrefix(f.flag, "-"), f.path); err != nil {
			return err
		}
		name := "/run/vmm/" + f.flag[1:] + "/" + filepath.Base(f.path)
		cmd.Files = append(cmd.Files, nestedkvm.File{Path: f.path, Name: name})
		inner = append(inner, f.flag, name)
	}
	var ss streams
	ctx, lost := ss.untilLost(ctx)
	defer func() { err = lost(err) }()
	defer func() { err = errors.Join(err, ss.Close()) }()
	cfg := nestedkvm.Config{CPUs: 1, Memory: o.memory + 1<<30, Log: os.Stderr}
	if o.noDisk() {
		inner = append(inner, "-disk", "none")
	} else {
		for i, d := range o.disks {
			if err := checkDisk(d); err != nil {
				return err
			}
			path := d.path
			if nbd.IsURI(path) || d.format == qcow2.FormatQcow2 {
				// It is opened here.
				uri, end, relayErr := relay(ctx, d)
				if relayErr != nil {
					return relayErr
				}
				defer func() { err = errors.Join(err, end()) }()
				path = uri
			}
			if d.stream != nil {
				// It is streamed here, and handed on over NBD.
				s, err := ss.open(ctx, d, true)
				if err != nil {
					return err
				}
				if path, err = ss.export(s); err != nil {
					return err
				}
			}
			cfg.Disks = append(cfg.Disks, nestedkvm.Disk{Path: path, ReadOnly: d.readOnly})
			name := nestedkvm.DiskPath(i)
			if d.readOnly {
				name += ",ro"
			}
			inner = append(inner, "-disk", name)
		}
	}
	if err := ss.report(o.status, o.progressMap); err != nil {
		return err
	}
	if len(o.command) > 0 {
		inner = append(append(inner, "--"), o.command...)
	} else {
		term, err := openTerminal(os.Stdin)
		if err != nil {
			return err
		}
		defer term.restore()
		if term != nil {
			cols, rows := term.size()
			cmd.Terminal = &nestedkvm.Size{Rows: rows, Columns: cols}
			sizes := make(chan nestedkvm.Size)
			cmd.Resized = sizes
			term.resized(ctx, func(cols, rows uint16) {
				select {
				case sizes <- nestedkvm.Size{Rows: rows, Columns: cols}:
				case <-ctx.Done():
				}
			})
		}
	}
	cmd.Args = inner
	host, err := nestedkvm.Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer host.Close()
	// A signal is for the vmm inside, which has its guest end.
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	signals := make(chan syscall.Signal, 1)
	cmd.Signals = signals
	defer context.AfterFunc(ctx, func() {
		signals <- syscall.SIGTERM
		time.AfterFunc(stopGrace+5*time.Second, cancel)
	})()
	for _, s := range ss.disks {
		s.disk.Start()
	}
	err = host.Run(running, cmd)
	var exit *nestedkvm.ExitError
	if errors.As(err, &exit) && exit.Signal == 0 {
		return exitStatus(exit.Code)
	}
	return err
}
