package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// boot measures the time from the start of a VMM's process to the first line of
// the guest's init process.
func boot(ctx context.Context, o options) error {
	args := []string{"-initrd", bootInitrd, "-append", o.cmdline}
	// QEMU's documentation of microvm turns the same things off. The kernel
	// finds no serial port without isa-serial. qboot is the quicker of its two
	// firmwares, and the only one that boots without option ROMs.
	const lean = ",x-option-roms=off,pit=off,pic=off,rtc=off"
	machines := o.pick([]machine{
		vmkit("vmkit", append(args, "-mmio")...),
		qemu("qemu", lean, append(args, "-bios", "qboot.rom")...),
		extra(vmkit("vmkit-pci", args...)),
		extra(qemu("qemu-seabios", ",pit=off,pic=off,rtc=off", args...)),
		extra(qemu("qemu-plain", ",x-option-roms=off", append(args, "-bios", "qboot.rom")...)),
	})
	t := newTable("boot to init", "ms")
	exits := newTable("KVM's counters at that time", "number")
	for range o.roundsOr(7) {
		for _, m := range machines {
			r, err := m.run(ctx, o, "init", func(int) error {
				countExits(exits, m.name, o.verbose)
				return nil
			})
			if err != nil {
				return err
			}
			t.add(m.name, "time", float64(r[len(r)-1].after.Microseconds())/1000)
		}
	}
	if o.out != "" {
		m := vmkit("vmkit", append(args, "-mmio", "-cpuprofile", filepath.Join(insideDir, "boot.pprof"))...)
		if _, err := m.run(ctx, o, "init", nil); err != nil {
			return err
		}
	}
	t.print()
	exits.print()
	figure("boot-vmkit", t.median("vmkit", "time"), "ms")
	figure("boot-qemu", t.median("qemu", "time"), "ms")
	ratio("boot-ratio", t.median("vmkit", "time"), t.median("qemu", "time"))
	return nil
}

// countExits adds KVM's statistics, which are those of all machines that exist,
// as far as the host has debugfs.
func countExits(t *table, name string, verbose bool) {
	for _, stat := range []string{
		"exits", "io_exits", "mmio_exits", "halt_exits", "irq_exits", "signal_exits",
		"insn_emulation", "irq_injections", "pf_taken", "pf_fixed", "pages_2m",
	} {
		data, err := os.ReadFile(filepath.Join("/sys/kernel/debug/kvm", stat))
		if err != nil {
			continue
		}
		if v, err := strconv.ParseFloat(strings.TrimSpace(string(data)), 64); err == nil {
			t.add(name, stat, v)
			if verbose {
				fmt.Printf("%s: %s %g\n", name, stat, v)
			}
		}
	}
}
