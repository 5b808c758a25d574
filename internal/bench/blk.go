package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
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

// diskArgs are QEMU's options for the disk on PCI, with its defaults for
// cache and AIO. queues=1 is what vmkit has with one CPU.
func qemuDisk(device string) []string {
	return []string{"-drive", "if=none,id=d,format=raw,file=" + diskImage, "-device", device + ",drive=d"}
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
	for range o.roundsOr(3) {
		for _, m := range machines {
			// Nothing dirty is left for the next machine.
			unix.Sync()
			rs, err := m.run(ctx, o, "done", nil)
			if err != nil {
				return err
			}
			for _, r := range rs {
				if r.name != "done" {
					t.add(m.name, r.name, r.value)
				}
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
