package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vmkit-go/vmkit/vm"
)

// softShift is -icount's shift: an instruction takes 1<<softShift nanoseconds of the
// guest's time, as many as on vmkit's engine.
const softShift = 2

// benchSoft measures the boot to init on the engine in software, and on QEMU's
// emulator with and without -icount: how long it takes, and how many million instructions
// a second that is.
func benchSoft(ctx context.Context, o options) (err error) {
	dir, err := os.MkdirTemp("", "bench-soft")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := prepare(ctx, dir); err != nil {
		return err
	}
	at := func(name string) string { return filepath.Join(dir, filepath.Base(name)) }
	guest := []string{"-kernel", at(kernelFile), "-initrd", at(bootInitrd), "-append", o.cmdline}
	emulator := func(name string, args ...string) machine {
		return machine{name: name, vmm: "qemu-system-x86_64", args: append(append([]string{
			"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
			"-cpu", "max", "-smp", "1", "-m", fmt.Sprint(guestMemory >> 20),
			"-M", "microvm,x-option-roms=off", "-bios", "qboot.rom",
		}, args...), guest...)}
	}
	soft := append([]string{"-engine", vm.EngineSoft, "-mmio", "-memory", fmt.Sprint(guestMemory)}, guest...)
	ours := machine{name: "vmkit", vmm: at(vmmProgram), args: soft}
	machines := o.pick([]machine{
		ours,
		emulator("qemu-tcg", "-accel", "tcg"),
		emulator("qemu-icount", "-accel", "tcg", "-icount", fmt.Sprintf("shift=%d,sleep=off", softShift)),
	})
	t := newTable("boot to init on an emulated CPU", "ms, million instructions, and of these a second")
	for range o.roundsOr(5) {
		for _, m := range machines {
			last := "tsc"
			if m.name == ours.name {
				last = "instructions"
			}
			rs, err := m.run(ctx, o, last, nil)
			if err != nil {
				return err
			}
			addSoft(t, m.name, rs)
		}
	}
	if o.out != "" {
		ours.args = append(soft, "-cpuprofile", filepath.Join(o.out, "soft.pprof"))
		if _, err := ours.run(ctx, o, "instructions", nil); err != nil {
			return err
		}
	}
	// QEMU without -icount does not count; it runs what QEMU with it runs.
	if n := t.median("qemu-icount", "instructions"); n > 0 {
		t.add("qemu-tcg", "instructions", n)
		t.add("qemu-tcg", "mips", n/t.median("qemu-tcg", "time")*1000)
	}
	t.print()
	for _, m := range machines {
		figure("soft-boot-"+m.name, t.median(m.name, "time"), "ms")
		figure("soft-mips-"+m.name, t.median(m.name, "mips"), "MIPS")
	}
	ratio("soft-boot-to-tcg", t.median("vmkit", "time"), t.median("qemu-tcg", "time"))
	ratio("soft-boot-to-icount", t.median("vmkit", "time"), t.median("qemu-icount", "time"))
	return nil
}

// addSoft enters what one boot has said.
func addSoft(t *table, name string, rs []result) {
	var after float64
	for _, r := range rs {
		switch r.name {
		case "init":
			after = float64(r.after.Microseconds()) / 1000
			t.add(name, "time", after)
		case "mips":
			t.add(name, "mips", r.value)
		case "instructions":
			t.add(name, "instructions", r.value/1e6)
		case "tsc":
			if name == "qemu-icount" {
				n := r.value / (1 << softShift) / 1e6
				t.add(name, "instructions", n)
				t.add(name, "mips", n/after*1000)
			}
		}
	}
}
