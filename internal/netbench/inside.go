package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/bench/turns"
	"github.com/vmkit-go/vmkit/netdev"
	"github.com/vmkit-go/vmkit/vm"
	"github.com/vmkit-go/vmkit/vm/boot"
	"github.com/vmkit-go/vmkit/vm/virtio"
)

const memory = 256 << 20

// figures are what is measured, with their units.
var figures = []struct{ name, title, unit string }{
	{"rr", "request-response, 1/s", "1/s"},
	{"tx", "stream from the guest, MB/s", "MB/s"},
	{"rx", "stream to the guest, MB/s", "MB/s"},
}

// machines are measured unless others are asked for.
var machines = []string{"vmkit-pci", "qemu-pci", "qemu-mmio"}

// inside boots all machines and measures each in turn, over and over.
func inside(ctx context.Context, o options) error {
	server := exec.CommandContext(ctx, o.peer, "server", "0.0.0.0")
	server.Stderr = os.Stderr
	if err := server.Start(); err != nil {
		return err
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	names := machines
	if o.only != "" {
		names = strings.Split(o.only, ",")
	}
	var running []*turns.Machine
	for i, name := range names {
		o.net = i
		if err := makeTap(o); err != nil {
			return fmt.Errorf("tap %s: %w", o.tap(), err)
		}
		cmd, err := command(ctx, o, name)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		m, err := turns.Start(name, cmd, o.report())
		if err != nil {
			return err
		}
		defer m.Close()
		running = append(running, m)
	}
	results := map[string][]float64{} // by machine and figure
	for range o.rounds {
		for _, f := range figures {
			if !strings.Contains(o.figures, f.name) {
				continue
			}
			for _, m := range running {
				v, err := m.Turn(f.name)
				if err != nil {
					return err
				}
				results[m.Name+f.name] = append(results[m.Name+f.name], v)
			}
		}
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "virtio-net")
	for _, f := range figures {
		fmt.Fprintf(w, "\t%s", f.title)
	}
	fmt.Fprintln(w)
	for _, n := range names {
		fmt.Fprint(w, n)
		for _, f := range figures {
			v := results[n+f.name]
			fmt.Fprintf(w, "\t%.1f (%.1f-%.1f)", median(v), slices.Min(v), slices.Max(v))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
	if err := w.Flush(); err != nil {
		return err
	}
	// Each figure is compared with the better of QEMU's transports.
	for _, f := range figures {
		vmkit := median(results["vmkit-pci"+f.name])
		qemu := max(median(results["qemu-pci"+f.name]), median(results["qemu-mmio"+f.name]))
		fmt.Printf("bench net-%s-vmkit %.1f %s\n", f.name, vmkit, f.unit)
		fmt.Printf("bench net-%s-qemu %.1f %s\n", f.name, qemu, f.unit)
		if vmkit > 0 && qemu > 0 {
			fmt.Printf("bench net-%s-ratio %.2f x\n", f.name, vmkit/qemu)
		}
	}
	return nil
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// report is where it is told what each thread used.
func (o *options) report() io.Writer {
	if o.verbose {
		return os.Stdout
	}
	return nil
}

// tap is the name of a machine's tap.
func (o *options) tap() string { return fmt.Sprintf("bench%d", o.net) }

// makeTap makes it.
func makeTap(o options) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(o.tap())
	if err != nil {
		return err
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if o.queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	ifr.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"addr", "add", fmt.Sprintf("10.0.%d.1/24", o.net), "dev", o.tap()}, {"link", "set", o.tap(), "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/tcp_min_tso_segs", fmt.Append(nil, minSegments), 0)
}

// command is the program that runs one machine.
func command(ctx context.Context, o options, name string) (*exec.Cmd, error) {
	vmm, transport, _ := strings.Cut(name, "-")
	transport, procs, _ := strings.Cut(transport, "@")
	if vmm == "vmkit" {
		self, err := os.Executable()
		cmd := exec.CommandContext(ctx, self, "-vmm", transport, "-kernel", o.kernel, "-initrd", o.initrd,
			"-net", fmt.Sprint(o.net), "-queues", fmt.Sprint(o.queues), "-cpus", fmt.Sprint(o.cpus))
		if procs != "" {
			cmd.Env = append(os.Environ(), "GOMAXPROCS="+procs)
		}
		return cmd, err
	}
	pcie, dev := "off", "virtio-net-device"
	if transport == "pci" {
		pcie, dev = "on", "virtio-net-pci-non-transitional"
	}
	netdev := "tap,id=n,script=no,downscript=no,vhost=off,ifname=" + o.tap()
	device := dev + ",netdev=n"
	if o.queues > 1 {
		netdev += fmt.Sprintf(",queues=%d", o.queues)
		device += ",mq=on"
		if transport == "pci" {
			device += fmt.Sprintf(",vectors=%d", 2*o.queues+2)
		}
	}
	return exec.CommandContext(ctx, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
		"-M", "microvm,acpi=on,pit=off,pic=off,rtc=off,pcie="+pcie, "-accel", "kvm", "-cpu", "host",
		"-m", fmt.Sprint(memory>>20), "-smp", fmt.Sprint(o.cpus), "-serial", "stdio", "-no-reboot",
		"-kernel", o.kernel, "-initrd", o.initrd, "-append", o.cmdline(), "-netdev", netdev, "-device", device), nil
}

// cmdline is the guest's kernel command line.
func (o *options) cmdline() string {
	return fmt.Sprint("console=ttyS0 panic=-1 quiet net=", o.net)
}

// machine runs vmkit's machine until it is killed.
func machine(ctx context.Context, o options) error {
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
	tap, err := netdev.OpenTap(netdev.TapConfig{Name: o.tap(), Queues: o.queues})
	if err != nil {
		return err
	}
	defer tap.Close()
	dev, err := netdev.NewDevice(tap, netdev.Config{})
	if err != nil {
		return err
	}
	transport := vm.PCI
	if o.vmm == "mmio" {
		transport = vm.MMIO
	}
	m, err := vm.New(vm.Config{
		CPUs: o.cpus, Memory: memory, Transport: transport, Engine: vm.EngineKVM,
		Boot:    boot.Linux{Kernel: kernel, Initrd: initrd, Cmdline: o.cmdline()},
		Serial:  vm.Serial{Out: os.Stdout},
		Devices: []virtio.Device{dev},
	})
	if err != nil {
		return err
	}
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.NumCPU() + m.Threads())
	}
	return errors.Join(m.Run(ctx), m.Close())
}
