package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
)

// memoryUse measures the memory of a VMM's process beside its guest's, with the
// guest at its init process after a read from its disk.
func memoryUse(ctx context.Context, o options) error {
	if err := makeDisk(); err != nil {
		return err
	}
	args := []string{"-initrd", diskInitrd, "-append", o.cmdline + " -- 0"}
	machines := o.pick([]machine{
		vmkit("vmkit", append(args, "-disk", diskImage)...),
		qemu("qemu", ",pit=off,pic=off,rtc=off,pcie=on", append(args, qemuDisk("virtio-blk-pci-non-transitional")...)...),
	})
	t := newTable("beside guest memory", "MiB")
	for range o.roundsOr(3) {
		for _, m := range machines {
			_, err := m.run(ctx, o, "done", func(pid int) error {
				u, err := usage(pid, o.verbose)
				if err == nil {
					t.add(m.name, "Pss", u.pss)
					t.add(m.name, "Rss", u.rss)
					t.add(m.name, "private", u.private)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	t.print()
	figure("memory-vmkit", t.median("vmkit", "Pss"), "MiB")
	figure("memory-qemu", t.median("qemu", "Pss"), "MiB")
	return nil
}

// memoryUsage is in MiB, of all mappings but guest memory.
type memoryUsage struct{ pss, rss, private float64 }

// usage reads /proc/PID/smaps. Guest memory is the one mapping of its size, or
// of more, that is not inaccessible; the largest if there are several.
func usage(pid int, verbose bool) (memoryUsage, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return memoryUsage{}, err
	}
	defer f.Close()
	type area struct {
		head string
		size float64
		memoryUsage
	}
	var areas []area
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		field := strings.Fields(lines.Text())
		if len(field) >= 5 && strings.Contains(field[0], "-") {
			areas = append(areas, area{head: lines.Text()})
			continue
		}
		if len(field) != 3 || field[2] != "kB" || len(areas) == 0 {
			continue
		}
		a := &areas[len(areas)-1]
		var v float64
		if _, err := fmt.Sscan(field[1], &v); err != nil {
			return memoryUsage{}, fmt.Errorf("%s: %q: %w", f.Name(), lines.Text(), err)
		}
		v /= 1024
		switch field[0] {
		case "Size:":
			a.size = v
		case "Rss:":
			a.rss = v
		case "Pss:":
			a.pss = v
		case "Private_Clean:", "Private_Dirty:":
			a.private += v
		}
	}
	if err := lines.Err(); err != nil {
		return memoryUsage{}, err
	}
	guest := -1
	for i, a := range areas {
		// Address space that is only reserved is larger, but has no pages.
		if a.size >= guestMemory>>20 && (guest < 0 || a.rss > areas[guest].rss) {
			guest = i
		}
	}
	if guest < 0 {
		return memoryUsage{}, fmt.Errorf("%s: no guest memory among %d mappings", f.Name(), len(areas))
	}
	var u memoryUsage
	for i, a := range areas {
		if i == guest {
			continue
		}
		u.pss += a.pss
		u.rss += a.rss
		u.private += a.private
		if verbose && a.rss > 0.1 {
			fmt.Printf("%7.2f %7.2f %s\n", a.pss, a.rss, a.head)
		}
	}
	return u, nil
}
