// Command vmm is the machine that the benchmarks measure: the least that runs a
// kernel with package vm, as any program would.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/pprof"
	"time"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

// options are the flags.
type options struct {
	kernel, initrd, cmdline, disk, profile, engine string
	memory                                         uint64
	mmio, verbose                                  bool
}

func main() {
	began := time.Now()
	var o options
	flag.StringVar(&o.kernel, "kernel", "", "kernel image")
	flag.StringVar(&o.initrd, "initrd", "", "initial RAM disk")
	flag.StringVar(&o.cmdline, "append", "", "kernel command line")
	flag.StringVar(&o.disk, "disk", "", "raw disk image, if any")
	flag.Uint64Var(&o.memory, "memory", 256<<20, "guest memory in bytes")
	flag.BoolVar(&o.mmio, "mmio", false, "attach devices by MMIO instead of PCI")
	flag.StringVar(&o.engine, "engine", vm.EngineKVM, "engine that runs the CPUs")
	flag.BoolVar(&o.verbose, "v", false, "say on standard error when what is done")
	flag.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile up to the guest's first result")
	flag.Parse()
	if err := run(o, began); err != nil {
		fmt.Fprintln(os.Stderr, "vmm:", err)
		os.Exit(1)
	}
}

func run(o options, began time.Time) error {
	stamp := func(what string) {
		if o.verbose {
			fmt.Fprintf(os.Stderr, "%8.1f ms %s\n", float64(time.Since(began).Microseconds())/1000, what)
		}
	}
	var out io.Writer = os.Stdout
	first := &until{Writer: out}
	out = first
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		first.stop = pprof.StopCPUProfile
	}
	kernel, err := os.Open(o.kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initrd, err := os.Open(o.initrd)
	if err != nil {
		return err
	}
	defer initrd.Close()
	cfg := vm.Config{
		Memory: o.memory,
		Engine: o.engine,
		Boot:   boot.Linux{Kernel: kernel, Initrd: initrd, Cmdline: o.cmdline},
		Serial: vm.Serial{Out: out},
	}
	if o.mmio {
		cfg.Transport = vm.MMIO
	}
	if o.verbose {
		cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if o.disk != "" {
		image, err := disk.Open(o.disk, disk.FileConfig{NoLock: true})
		if err != nil {
			return err
		}
		defer image.Close()
		dev, err := disk.NewDevice(image, disk.Config{})
		if err != nil {
			return err
		}
		cfg.Devices = []virtio.Device{dev}
	}
	stamp("files are open")
	m, err := vm.New(cfg)
	if err != nil {
		return err
	}
	stamp("the machine is ready")
	if n, ok := m.Instructions(); ok {
		ready := time.Now()
		stop := first.stop
		first.stop = func() {
			now, _ := m.Instructions()
			passed := time.Since(ready)
			if stop != nil {
				stop() // the reader may end this process after the last line
			}
			fmt.Printf("result mips %g\n", float64(now-n)/float64(passed.Microseconds()))
			fmt.Printf("result instructions %d\n", now-n)
		}
	}
	runtime.GOMAXPROCS(runtime.NumCPU() + m.Threads())
	return errors.Join(m.Run(context.Background()), m.Close())
}

// until calls stop after the first line with a result in it.
type until struct {
	io.Writer
	stop func()
	line []byte
}

func (u *until) Write(p []byte) (int, error) {
	n, err := u.Writer.Write(p)
	if u.stop == nil {
		return n, err
	}
	u.line = append(u.line, p...)
	if i := bytes.LastIndexByte(u.line, '\n'); i >= 0 {
		if bytes.Contains(u.line[:i], []byte("result ")) {
			u.stop()
			u.stop = nil
		}
		u.line = u.line[i+1:]
	}
	return n, err
}
