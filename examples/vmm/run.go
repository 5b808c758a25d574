package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/vmkit-go/vmkit/vm"
)

// errRestart asks for the same guest once more, after a reset.
var errRestart = errors.New("restart")

func runCommand(ctx context.Context, args []string) error {
	o, rest, err := parseOptions("run", args)
	if err != nil {
		return err
	}
	o.command = rest
	if len(o.command) > 0 && o.initrd != "" {
		return usageError("a COMMAND is run by vmm's own initramfs: leave out -initrd or the command")
	}
	if o.nested {
		return runNested(ctx, o, "run", args)
	}
	if err := o.chooseEngine(); err != nil {
		return err
	}
	return runUntilOff(ctx, o, "")
}

// runUntilOff runs a guest, saved in dir if that is not empty, and boots it
// again whenever it resets.
func runUntilOff(ctx context.Context, o *options, dir string) error {
	for {
		err := runOnce(ctx, o, dir)
		if !errors.Is(err, errRestart) {
			return err
		}
		fmt.Fprintln(os.Stderr, "vmm: the guest rebooted")
		dir = ""
	}
}

// runOnce runs a guest to its end: one that boots, or one saved in dir. When
// ctx is done a command gets a signal first; a guest without one is turned off.
func runOnce(ctx context.Context, options *options, dir string) (err error) {
	o := *options
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s := &session{o: &o, serial: &tail{}, cancel: cancel}
	ctx, lost := s.streams.untilLost(ctx)
	defer func() { err = lost(err) }()
	s.ctx = ctx
	if o.verbose {
		s.serial.w = os.Stderr
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	if len(o.command) == 0 {
		if s.term, err = openTerminal(os.Stdin); err != nil {
			return err
		}
		defer s.term.restore()
		e := &escapeReader{
			r:      os.Stdin,
			onExit: func() { s.left = true; cancel() },
			onHelp: func() { fmt.Fprint(os.Stderr, escapeHelp) },
		}
		if s.term == nil {
			e.repeatEnd = time.Second
		}
		s.input = e
	}
	if dir == "" {
		err = s.start(ctx)
	} else {
		err = s.load(dir)
	}
	if err != nil {
		return err
	}
	s.term.resized(running, s.console.Resize)
	if o.control != "" {
		c, err := serveControl(o.control, s.save)
		if err != nil {
			return err
		}
		defer c.Close()
	}
	options.explain()
	defer context.AfterFunc(ctx, func() {
		if len(o.command) > 0 {
			s.signal("TERM")
		} else {
			cancel()
		}
	})()
	runtime.GOMAXPROCS(runtime.NumCPU() + s.machine.Threads())
	err = s.machine.Run(running)
	s.term.restore()
	return s.outcome(running, err)
}

// outcome turns the end of the machine into vmm's.
func (s *session) outcome(ctx context.Context, err error) error {
	if s.saved != "" {
		fmt.Fprintf(os.Stderr, "vmm: the guest was saved to %s\n", s.saved)
		return nil
	}
	if len(s.o.command) > 0 {
		// The command's status counts however the machine ended after it.
		status, serr := s.result.Status()
		if serr == nil {
			if status != 0 {
				return exitStatus(status)
			}
			return nil
		}
		if err == nil {
			err = serr
		}
	}
	switch {
	case err == nil:
		return nil
	case s.left:
		return nil
	case errors.Is(err, vm.ErrReset) && len(s.o.command) == 0:
		return errRestart
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted")
	}
	if text := s.serial.text(); len(text) > 0 && !s.o.verbose {
		fmt.Fprintf(os.Stderr, "vmm: the guest's last words on its serial port:\n%s\n", text)
	}
	return err
}

// save serves vmm save: dir gets the machine, the options to load it with,
// and the root disk if it was made for this run.
func (s *session) save(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("%q is not an absolute path", dir)
	}
	// One that failed beside another would let the guest go on while it is saved.
	s.saveMu.Lock()
	defer s.saveMu.Unlock()
	if s.saved != "" {
		return fmt.Errorf("the guest was saved to %s", s.saved)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err // it names dir
	}
	if err := s.machine.Pause(); err != nil {
		return err
	}
	err := s.saveTo(dir)
	if err != nil {
		err = errors.Join(err, os.RemoveAll(dir), s.machine.Resume())
		return err
	}
	s.saved = dir
	s.cancel()
	return nil
}

func (s *session) saveTo(dir string) error {
	o := *s.o
	if s.tempDir != "" {
		kept := filepath.Join(dir, "root.img")
		if err := copySparse(kept, o.disks[0].path); err != nil {
			return err
		}
		o.disks = append([]diskOption{{path: kept}}, o.disks[1:]...)
	}
	if err := writeOptions(filepath.Join(dir, "options.json"), &o); err != nil {
		return err
	}
	return s.machine.SaveFile(filepath.Join(dir, "machine"))
}

// load makes a machine from what save left.
func (s *session) load(dir string) error {
	if s.o.noDisk() {
		s.o.disks = nil
	}
	cfg, err := s.config()
	if err != nil {
		return err
	}
	s.machine, err = vm.LoadFile(cfg, filepath.Join(dir, "machine"))
	return err
}

// copySparse copies a file without its holes.
func copySparse(dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Sync(), out.Close()) }()
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	return eachData(in, st.Size(), func(off, n int64) error {
		_, err := io.Copy(io.NewOffsetWriter(out, off), io.NewSectionReader(in, off, n))
		return err
	})
}
