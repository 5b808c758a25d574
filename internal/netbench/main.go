// Command netbench measures virtio-net over a tap against QEMU's, with the same
// kernel and initramfs, inside one nested host: TCP request-response of one byte, and TCP
// streams both ways, between a static program in the guest and one on the host of the
// tap, both of plain blocking sockets.
//
//	go run ./internal/netbench -rounds 15
//
// All machines are booted, each on a tap of its own, and stopped (SIGSTOP). Then they are
// measured in turn, a second or so each: the speed of the emulated host changes by a factor of two
// within minutes, so that what is compared must be close in time.
//
// Guests have one CPU, 256 MiB and one queue pair. QEMU runs as -M microvm with an
// in-process device (vhost=off) and the offloads that it has by default, on PCI
// and on MMIO; the better median of the two counts, for each figure on its own.
// vmkit's machine is package vm with netdev over PCI.
//
// The last lines are one per figure: bench NAME VALUE UNIT.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"github.com/vmkit-go/vmkit/internal/debian"
	"github.com/vmkit-go/vmkit/internal/guest"
	"github.com/vmkit-go/vmkit/internal/nestedkvm"
	"github.com/vmkit-go/vmkit/internal/nestedkvm/agent"
)

//go:embed testdata/peer.c
var peerSource []byte

// options are the benchmark's flags, the same outside and inside.
type options struct {
	rounds  int
	seconds float64
	queues  int
	cpus    int
	only    string
	figures string
	kernel  string
	initrd  string
	peer    string
	inside  bool
	vmm     string // vmkit's transport: run the machine
	net     int    // the number of its network
	verbose bool
}

// minSegments is how many segments TCP sends at once, at least, on both sides: as
// many as fit 64 KiB. Otherwise it sends what the present rate brings in a
// millisecond, and on an emulated CPU that makes a slow stream slower still.
const minSegments = 44

const initScript = `#!/bin/busybox sh
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec </dev/ttyS0 >/dev/ttyS0 2>&1
while read -r m; do insmod "/vmkit/$m"; done </vmkit/modules
until [ -e /sys/class/net/eth0 ]; do usleep 1000; done
echo $segments >/proc/sys/net/ipv4/tcp_min_tso_segs
read -r line </proc/cmdline; net=${line##*net=}
ip addr add 10.0.$net.2/24 dev eth0; ip link set eth0 up
echo result ready 0; usleep 500000
/bin/peer client 10.0.$net.1 $seconds $figures
echo result failed $?
while :; do sleep 60; done
`

func (o *options) script() string {
	return strings.NewReplacer("$seconds", fmt.Sprint(o.seconds), "$segments", fmt.Sprint(minSegments),
		"$figures", o.figures).Replace(initScript)
}

func main() {
	agent.Main()
	var o options
	flag.IntVar(&o.rounds, "rounds", 9, "how often each machine is measured")
	flag.Float64Var(&o.seconds, "seconds", 0.7, "how long each measurement takes")
	flag.IntVar(&o.queues, "queues", 1, "queue pairs")
	flag.IntVar(&o.cpus, "cpus", 1, "CPUs of the guest")
	flag.StringVar(&o.only, "only", "", "measure only these machines: vmkit-pci, vmkit-mmio, qemu-pci, qemu-mmio, and vmkit-pci@N with GOMAXPROCS=N")
	flag.StringVar(&o.figures, "figures", "rr,tx,rx", "measure only these")
	flag.BoolVar(&o.verbose, "v", false, "print what the guests say, and what each thread used until then")
	flag.StringVar(&o.kernel, "kernel", "", "used inside the nested host")
	flag.StringVar(&o.initrd, "initrd", "", "used inside the nested host")
	flag.StringVar(&o.peer, "peer", "", "used inside the nested host")
	flag.BoolVar(&o.inside, "inside", false, "used inside the nested host")
	flag.StringVar(&o.vmm, "vmm", "", "used inside the nested host")
	flag.IntVar(&o.net, "net", 0, "used inside the nested host")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := outside
	switch {
	case o.vmm != "":
		run = machine
	case o.inside:
		run = inside
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "netbench:", err)
		os.Exit(1)
	}
}

// outside prepares the guest and runs this program in a nested host.
func outside(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "netbench")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	o.peer = filepath.Join(dir, "peer")
	gcc, err := debian.LookProgram("gcc", "gcc")
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, gcc, "-O2", "-static", "-x", "c", "-o", o.peer, "-")
	build.Stdin, build.Stderr = bytes.NewReader(peerSource), os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the guest's program: %w", err)
	}
	k, err := debian.FetchKernel(ctx, os.Stderr)
	if err != nil {
		return err
	}
	peer, err := os.ReadFile(o.peer)
	if err != nil {
		return err
	}
	initrd, err := guest.Initramfs(ctx, guest.Config{
		Kernel:  k,
		Modules: []string{"virtio_pci", "virtio_mmio", "virtio_net"},
		Files: map[string]guest.File{
			"init":     {Mode: 0o755, Data: []byte(o.script())},
			"bin/peer": {Mode: 0o755, Data: peer},
		},
		Log: os.Stderr,
	})
	if err != nil {
		return err
	}
	o.initrd = filepath.Join(dir, "initrd")
	if err := os.WriteFile(o.initrd, initrd, 0o644); err != nil {
		return err
	}
	h, err := nestedkvm.Start(ctx, nestedkvm.Config{QEMU: true, Log: os.Stderr})
	if err != nil {
		return err
	}
	defer h.Close()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{
		"-inside", "-rounds", fmt.Sprint(o.rounds), "-seconds", fmt.Sprint(o.seconds), "-only", o.only, "-figures", o.figures,
		"-queues", fmt.Sprint(o.queues), "-cpus", fmt.Sprint(o.cpus),
		"-kernel", "/bench/kernel", "-initrd", "/bench/initrd", "-peer", "/bench/peer",
	}
	if o.verbose {
		args = append(args, "-v")
	}
	return h.Run(ctx, nestedkvm.Cmd{
		Path: "/bench/netbench", Args: args,
		Files: []nestedkvm.File{
			{Path: self, Name: "/bench/netbench", Libraries: true},
			{Path: o.peer, Name: "/bench/peer"},
			{Path: k.Image, Name: "/bench/kernel"},
			{Path: o.initrd, Name: "/bench/initrd"},
		},
		Stdout: os.Stdout, Stderr: os.Stderr,
	})
}
