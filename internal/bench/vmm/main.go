// Command vmm is the machine that the benchmarks measure: the least that runs a
// kernel with package vm, as any program would.
package main

import (
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
	kernel, initrd, cmdline, disk, profile string
	memory                                 uint64
	mmio, verbose                          bool
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
	flag.BoolVar(&o.verbose, "v", false, "say on standard error when what is done")
	flag.StringVar(&o.profile, "cpuprofile", "", "write a CPU profile up to the guest's first output")
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
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		out = &until{Writer: out, stop: pprof.StopCPUProfile}
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
	runtime.GOMAXPROCS(runtime.NumCPU() + m.Threads())
	return errors.Join(m.Run(context.Background()), m.Close())
}

// until calls stop before the first write.
type until struct {
	io.Writer
	stop func()
}

func (u *until) Write(p []byte) (int, error) {
	if u.stop != nil {
		u.stop()
		u.stop = nil
	}
	return u.Writer.Write(p)
}
