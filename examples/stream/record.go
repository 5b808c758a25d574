package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/disk/nbd"
	"github.com/vmkit-go/vmkit/disk/qcow2"
	streamed "github.com/vmkit-go/vmkit/stream"
	"github.com/vmkit-go/vmkit/stream/profile"
)

var recordCommand = command{
	name: "record", args: "MANIFEST -- COMMAND [ARG]...",
	about: "record which chunks of an image a guest needs first",
	help: `
COMMAND is any program that boots a guest from an NBD disk; {} in its arguments
stands for the disk's URI, which is in the variable STREAM_DISK too. What the
guest writes is dropped at the end. For example:

  stream record -until "login:" public -- qemu-system-x86_64 -nographic \
      -drive format=raw,if=virtio,file={} -kernel vmlinuz -append "root=/dev/vda console=ttyS0"

Recording ends when COMMAND does, or prints the text of -until. A profile that
is there already is merged with what was recorded. "stream pack -profile" puts a
profile into an image.
`,
	define: func(f *flag.FlagSet) func(context.Context, []string) error {
		out := f.String("o", "boot.profile", "`file` to merge the profile into")
		until := f.String("until", "", "end when COMMAND prints this `text`")
		phase := f.String("phase", "boot", "`name` of the phase to record")
		var t trust
		t.define(f)
		return func(ctx context.Context, args []string) error {
			if len(args) < 2 {
				return usage("want a manifest and a command")
			}
			location := args[0]
			if isDir(location) {
				location = manifestIn(location)
			}
			if args = args[1:]; args[0] == "--" {
				args = args[1:]
			}
			if len(args) == 0 {
				return usage("want a command")
			}
			d, err := streamed.Open(ctx, location, streamed.Config{Image: t.config(), Memory: 512 << 20, NoPrefetch: true})
			if err != nil {
				return err
			}
			defer d.Close()
			rec := profile.NewRecorder(d)
			if err := rec.Mark(*phase); err != nil {
				return err
			}
			if err := recordRun(ctx, rec, *until, args); err != nil {
				return err
			}
			p, err := rec.Profile(streamed.Layout(ctx, d.Image()))
			if err != nil {
				return err
			}
			if err := profile.AddToFile(*out, p); err != nil {
				return err
			}
			fmt.Printf("%d of %d chunks in %s\n", len(p.Entries), d.Image().Chunks(), *out)
			return nil
		}
	},
}

// recordRun runs the command with an overlay over rec as its disk.
func recordRun(ctx context.Context, rec *profile.Recorder, until string, args []string) (err error) {
	dir, err := os.MkdirTemp("", "stream-record")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	file, err := disk.Create(filepath.Join(dir, "overlay"), 0, disk.FileConfig{})
	if err != nil {
		return err
	}
	defer file.Close()
	// Small clusters: what the guest does not read is not to be recorded.
	if err := qcow2.Create(file, qcow2.CreateConfig{Size: rec.Size(), ClusterSize: 4 << 10, BackingName: "image", BackingFormat: "raw"}); err != nil {
		return err
	}
	overlay, err := qcow2.Open(file, qcow2.Config{Backing: rec})
	if err != nil {
		return err
	}
	defer overlay.Close()
	socket := filepath.Join(dir, "nbd")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &nbd.Server{Exports: []nbd.Export{{Name: "disk", Backend: overlay}}}
	go server.Serve(l)
	defer server.Close()

	uri := "nbd+unix:///disk?socket=" + socket
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "{}", uri)
	}
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(running, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "STREAM_DISK="+uri)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	w := &watcher{w: os.Stdout, text: until, found: cancel}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, w, os.Stderr
	rec.Restart()
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case until != "" && !w.seen:
		return fmt.Errorf("%s ended without %q: %w", args[0], until, errors.Join(err, io.ErrUnexpectedEOF))
	case w.seen:
		return nil // it was ended
	}
	return err
}

// watcher passes output on and looks for a text.
type watcher struct {
	w     io.Writer
	text  string
	last  []byte
	seen  bool
	found func()
}

func (w *watcher) Write(p []byte) (int, error) {
	if w.text != "" && !w.seen {
		w.last = append(w.last, p...)
		if bytes.Contains(w.last, []byte(w.text)) {
			w.seen = true
			w.found()
		}
		w.last = w.last[max(0, len(w.last)-len(w.text)):]
	}
	return w.w.Write(p)
}
