package main

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vmkit-go/vmkit/disk"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm"
)

// options are the flags of run and load.
type options struct {
	kernel, initrd string
	disks          []diskOption
	cpus           int
	memory         uint64
	model          vcpu.Model
	append         string
	transport      vm.Transport
	engine         string
	nets           []netOption
	control        string
	nested         string
	verbose        bool
	command        []string
}

// diskOption is one -disk flag: FILE[,ro].
type diskOption struct {
	path     string
	readOnly bool
}

// netOption is one -net flag: tap=NAME[,mac=M][,guest=CIDR][,gateway=IP][,queues=N].
type netOption struct {
	tap            string
	mac            net.HardwareAddr
	guest, gateway string
	queues         int
}

// parseOptions reads the flags of the subcommand name. What follows the flags
// is left in the returned slice.
func parseOptions(name string, args []string) (*options, []string, error) {
	o := &options{memory: 512 << 20, model: vcpu.ModelHost}
	fs := flag.NewFlagSet("vmm "+name, flag.ContinueOnError)
	fs.StringVar(&o.kernel, "kernel", "", "kernel `file`: bzImage or ELF vmlinux (default: Debian's cloud kernel, fetched if needed)")
	fs.StringVar(&o.initrd, "initrd", "", "initial RAM disk `file` (default: one that mounts the first disk and runs the command)")
	fs.Func("disk", "disk `image`, raw; \",ro\" after it makes it read-only; repeatable; the first is the root. \"none\": no disk\n(default: a new small ext4 file system with busybox, dropped at the end)", o.addDisk)
	fs.IntVar(&o.cpus, "cpus", 1, "number of CPUs")
	fs.Func("memory", "guest memory, such as 768M or 4G (default 512M)", func(s string) (err error) {
		o.memory, err = parseSize(s)
		return err
	})
	fs.Func("cpu", "CPU `model`: host, x86-64-v1, x86-64-v2 or x86-64-v3 (default host)", func(s string) (err error) {
		o.model, err = vcpu.ParseModel(s)
		return err
	})
	fs.StringVar(&o.append, "append", "", "`words` to add to the kernel's command line")
	fs.Func("transport", "attach devices over pci or mmio (default pci)", func(s string) error {
		switch s {
		case "pci":
			o.transport = vm.PCI
		case "mmio":
			o.transport = vm.MMIO
		default:
			return errors.New("want pci or mmio")
		}
		return nil
	})
	fs.StringVar(&o.engine, "engine", "auto", "engine to run on: auto or kvm")
	fs.Func("net", "network card: `tap=NAME`[,mac=M][,guest=ADDR/BITS][,gateway=ADDR][,queues=N]; repeatable", o.addNet)
	fs.StringVar(&o.control, "control", "", "listen on this Unix `socket` for vmm save")
	fs.StringVar(&o.nested, "nested", "auto", "run in the nested KVM host: auto (when this host's KVM cannot run a kernel), always or never")
	fs.BoolVar(&o.verbose, "v", false, "show the guest's serial port and what vmm does on standard error")
	fs.Usage = func() {
		fmt.Fprintf(fs.Output(), "usage: vmm %s [flags]%s\n\n", name, map[string]string{"run": " [-- COMMAND ARGS...]", "load": " FILE"}[name])
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, nil, err
		}
		return nil, nil, exitStatus(statusUsage)
	}
	if o.engine == "auto" {
		o.engine = ""
	}
	switch o.nested {
	case "auto", "always", "never":
	default:
		return nil, nil, fmt.Errorf("-nested %s: want auto, always or never", o.nested)
	}
	return o, fs.Args(), nil
}

func (o *options) addDisk(s string) error {
	d := diskOption{path: s}
	if p, ok := strings.CutSuffix(s, ",ro"); ok {
		d = diskOption{path: p, readOnly: true}
	}
	if d.path == "" {
		return errors.New("want a file name")
	}
	o.disks = append(o.disks, d)
	return nil
}

// noDisk reports whether "-disk none" was given.
func (o *options) noDisk() bool { return len(o.disks) == 1 && o.disks[0].path == "none" }

func (o *options) addNet(s string) error {
	n := netOption{queues: 1}
	for _, kv := range strings.Split(s, ",") {
		k, v, _ := strings.Cut(kv, "=")
		var err error
		switch k {
		case "tap":
			n.tap = v
		case "mac":
			n.mac, err = net.ParseMAC(v)
		case "guest":
			_, err = netip.ParsePrefix(v)
			n.guest = v
		case "gateway":
			_, err = netip.ParseAddr(v)
			n.gateway = v
		case "queues":
			n.queues, err = strconv.Atoi(v)
		default:
			err = fmt.Errorf("unknown setting %q", k)
		}
		if err != nil {
			return err
		}
	}
	if n.tap == "" {
		return errors.New("want tap=NAME")
	}
	if n.queues < 1 {
		return errors.New("want at least one queue")
	}
	o.nets = append(o.nets, n)
	return nil
}

// parseSize reads a number of bytes with an optional suffix K, M, G or T.
func parseSize(s string) (uint64, error) {
	shift := 0
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
			shift = 10 * (i + 1)
			s = s[:len(s)-1]
		}
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, errors.New("want a number of bytes, such as 512M")
	}
	return n << shift, nil
}

// checkFile says, in terms of what it is wanted for, why a file cannot be read.
func checkFile(what, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return f.Close()
}

// checkDisk says why a disk cannot be used, before somebody else finds out.
func checkDisk(d diskOption) error {
	image, err := disk.Open(d.path, disk.FileConfig{ReadOnly: d.readOnly})
	if err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	return image.Close()
}
