package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vmkit-go/vmkit/disk/qcow2"
	"github.com/vmkit-go/vmkit/memory"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
)

// options are the flags of run and load.
type options struct {
	kernel, initrd string
	disks          []diskOption
	cpus           int
	memory         uint64
	model          vcpu.Model
	portable       bool
	userChips      bool
	append         string
	transport      vm.Transport
	protocol       boot.Protocol
	unpack         boot.Unpack
	engine         string
	note           string // about the engine, for the user
	nets           []netOption
	control        string
	nested         bool
	verbose        bool
	status         string
	progressMap    bool
	command        []string
}

// diskOption is one -disk flag: FILE[,ro], or a URL and more.
type diskOption struct {
	path     string
	readOnly bool
	stream   *streamOption // nil: a file
	format   string        // of the file: raw if empty
	chain    []qcow2.Layer // below a qcow2 image, the uppermost first
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
	o := &options{cpus: 1, memory: 512 << 20, model: vcpu.ModelHost, engine: vm.EngineAuto}
	fs := newFlags(name)
	if name == "run" {
		o.shapeFlags(fs)
	}
	fs.StringVar(&o.control, "control", "", "listen on this Unix `socket` for vmm save")
	choose(fs, "engine", "`engine` to run on: kvm (this host's processor), soft (an interpreter, which runs anywhere), or\nauto, which is kvm where it runs kernel code natively, and soft otherwise (default auto)", &o.engine, engines)
	fs.StringVar(&o.status, "status", "", "serve the status of streamed disks as JSON on this `address`")
	fs.BoolVar(&o.progressMap, "progress", false, "show on standard error how streamed disks arrive")
	fs.BoolVar(&o.userChips, "user-chips", false, "on KVM, have the interrupt chips in user space rather than in the kernel")
	fs.BoolVar(&o.verbose, "v", false, "show the guest's serial port and what vmm does on standard error")
	rest, err := parseFlags(fs, args, map[string]string{
		"run":  "[flags] [-- COMMAND ARGS...]",
		"load": "[flags] DIR",
	}[name])
	if err != nil {
		return nil, nil, err
	}
	return o, rest, o.check()
}

// check is vm.New's own, said before a nested host is started to find out.
func (o *options) check() error {
	switch {
	case o.cpus < 1 || o.cpus > vm.MaxCPUs:
		return usageError(fmt.Sprintf("%d CPUs: a machine has 1 to %d", o.cpus, vm.MaxCPUs))
	case o.nested && o.engine == vm.EngineSoft:
		return usageError("-engine soft needs no nested host: leave out -nested")
	case o.memory < vm.MinMemory || o.memory%memory.PageSize != 0:
		return usageError(fmt.Sprintf("%d bytes of memory: want at least %d, in pages of %d", o.memory, vm.MinMemory, memory.PageSize))
	}
	return nil
}

var (
	transports = map[string]vm.Transport{"pci": vm.PCI, "mmio": vm.MMIO}
	protocols  = map[string]boot.Protocol{"64": boot.Protocol64, "pvh": boot.ProtocolPVH}
	engines    = map[string]string{vm.EngineAuto: vm.EngineAuto, vm.EngineKVM: vm.EngineKVM, vm.EngineSoft: vm.EngineSoft}
	nesting    = map[string]bool{"always": true, "never": false}
	unpackers  = map[string]boot.Unpack{"host": boot.UnpackAuto, "guest": boot.UnpackNever}
)

// choose adds a flag with a fixed set of values.
func choose[T any](fs *flag.FlagSet, name, help string, p *T, values map[string]T) {
	fs.Func(name, help, func(s string) error {
		v, ok := values[s]
		if !ok {
			return fmt.Errorf("want %s", strings.Join(slices.Sorted(maps.Keys(values)), " or "))
		}
		*p = v
		return nil
	})
}

// chosen is the name of a value.
func chosen[T comparable](v T, values map[string]T) string {
	for name, have := range values {
		if have == v {
			return name
		}
	}
	return ""
}

func newFlags(name string) *flag.FlagSet {
	return flag.NewFlagSet("vmm "+name, flag.ContinueOnError)
}

// parseFlags parses args and returns what follows the flags. Help goes to
// standard output; what is wrong is one line and not all of the help.
func parseFlags(fs *flag.FlagSet, args []string, usage string) ([]string, error) {
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Printf("usage: %s\n\n", strings.TrimSpace(fs.Name()+" "+usage))
		fs.SetOutput(os.Stdout)
		fs.PrintDefaults()
		return nil, err
	case err != nil:
		return nil, usageError(fmt.Sprintf("%v (%s -h lists the flags)", err, fs.Name()))
	}
	return fs.Args(), nil
}

// shapeFlags are those that make a guest what it is; a saved one has them.
func (o *options) shapeFlags(fs *flag.FlagSet) {
	fs.StringVar(&o.kernel, "kernel", "", "kernel `file`: bzImage or ELF vmlinux (default: Debian's cloud kernel, fetched if needed)")
	fs.StringVar(&o.initrd, "initrd", "", "initial RAM disk `file` (default: one that mounts the first disk and runs the command)")
	fs.Func("disk", "disk `image`; \",ro\" after it makes it read-only; repeatable; the first is the root. \"none\": no disk\n,format=qcow2,backing=FILE:FORMAT: a qcow2 image (without format, raw), and each file below it, the uppermost first\nnbd://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH: an NBD server's\nhttp(s)://.../manifest.json streams one: ,cache=DIR,overlay=FILE,key=FILE,record=FILE,fail=DURATION,lease=DURATION,ro\n(default: a new small ext4 file system with busybox, dropped at the end)", o.addDisk)
	fs.IntVar(&o.cpus, "cpus", 1, "`number` of CPUs")
	fs.Func("memory", "`size` of guest memory, such as 768M or 4G (default 512M)", func(s string) (err error) {
		o.memory, err = parseSize(s)
		return err
	})
	fs.Func("cpu", "CPU `model`: host, x86-64-v1, x86-64-v2 or x86-64-v3 (default host)", func(s string) (err error) {
		o.model, err = vcpu.ParseModel(s)
		return err
	})
	fs.BoolVar(&o.portable, "portable", false, "hide from the guest what only one engine has, so that it may be saved on one and loaded on the other")
	fs.StringVar(&o.append, "append", "", "`words` to add to the kernel's command line")
	choose(fs, "transport", "what devices are attached `over`: pci or mmio (default pci)", &o.transport, transports)
	choose(fs, "protocol", "enter the kernel by this boot `protocol`: 64 or pvh (default 64)", &o.protocol, protocols)
	choose(fs, "unpack", "`who` unpacks a bzImage: the host, where it can, or the guest (default host)", &o.unpack, unpackers)
	choose(fs, "nested", "`when` to run on KVM in a nested host (kvm-amd under QEMU's emulator): always or never (default never)", &o.nested, nesting)
	fs.Func("net", "network card: `tap=NAME`[,mac=M][,guest=ADDR/BITS][,gateway=ADDR][,queues=N]; repeatable", o.addNet)
}

func (o *options) addDisk(s string) error {
	if remote(s) {
		return o.addStream(s)
	}
	return o.addImage(s)
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
