package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vmkit-go/vmkit/internal/bench/turns"
)

const (
	diskImage = "/tmp/bench.img"
	diskSize  = 128 << 20
)

// makeDisk fills the disk image, so that all of it is in the page cache.
func makeDisk() (err error) {
	f, err := os.Create(diskImage)
	if err != nil {
		return err
	}
	defer f.Close()
	p := make([]byte, 1<<20)
	for i := range p {
		p[i] = byte(i * 7)
	}
	for range diskSize / len(p) {
		if _, err := f.Write(p); err != nil {
			return err
		}
	}
	return f.Sync()
}

// qemuDisk are QEMU's options for the disk on PCI, with its defaults for
// cache and AIO. All machines have the image open and take turns, so nobody locks it.
func qemuDisk(device string) []string {
	return []string{"-drive", "if=none,id=d,format=raw,file.locking=off,file=" + diskImage, "-device", device + ",drive=d"}
}

var diskWorkloads = []struct{ name, title, unit string }{
	{"rand-1", "4 KiB random reads, depth 1", "1/s"},
	{"rand-32", "4 KiB random reads, depth 32", "1/s"},
	{"read-1m", "1 MiB sequential reads", "MiB/s"},
	{"write-1m", "1 MiB sequential writes", "MiB/s"},
}

// blk measures virtio-blk.
func blk(ctx context.Context, o options) error {
	if err := makeDisk(); err != nil {
		return err
	}
	args := []string{"-initrd", diskInitrd, "-append", fmt.Sprintf("%s -- %g", o.cmdline, o.seconds)}
	const (
		lean = ",pit=off,pic=off,rtc=off,pcie="
		pci  = "virtio-blk-pci-non-transitional"
		mmio = "virtio-blk-device"
	)
	machines := o.pick([]machine{
		vmkit("vmkit", append(args, "-disk", diskImage)...),
		qemu("qemu", lean+"on", append(args, qemuDisk(pci)...)...),
		qemu("qemu-iothread", lean+"on", append(args, append(qemuDisk(pci+",iothread=t"), "-object", "iothread,id=t")...)...),
		extra(vmkit("vmkit-mmio", append(args, "-disk", diskImage, "-mmio")...)),
		extra(qemu("qemu-mmio", lean+"off", append(args, qemuDisk(mmio)...)...)),
	})
	t := newTable("virtio-blk", "4 KiB: 1/s, 1 MiB: MiB/s")
	var running []*turns.Machine
	for _, m := range machines {
		var report io.Writer
		if o.verbose {
			report = os.Stdout
		}
		r, err := turns.Start(m.name, exec.CommandContext(ctx, m.vmm, m.args...), report)
		if err != nil {
			return err
		}
		defer r.Close()
		running = append(running, r)
	}
	for range o.roundsOr(9) {
		for _, w := range diskWorkloads {
			for _, m := range running {
				// Nothing dirty is left for the next machine.
				unix.Sync()
				v, err := m.Turn(w.name)
				if err != nil {
					return err
				}
				t.add(m.Name, w.name, v)
			}
		}
	}
	t.print()
	for _, w := range diskWorkloads {
		best := 0.0
		for _, r := range t.rows {
			if slices.Contains([]string{"qemu", "qemu-iothread"}, r) {
				best = max(best, t.median(r, w.name))
			}
		}
		figure("blk-"+w.name+"-vmkit", t.median("vmkit", w.name), w.unit)
		figure("blk-"+w.name+"-qemu", best, w.unit)
		ratio("blk-"+w.name+"-ratio", t.median("vmkit", w.name), best)
	}
	return nil
}
