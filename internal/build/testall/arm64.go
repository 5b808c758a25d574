package main

import (
	"fmt"
	"os"
	"os/exec"
)

// emulator runs a program for linux/arm64 on this machine: QEMU's, of the Debian
// package qemu-user.
const emulator = "qemu-aarch64"

// onARM64 are the packages whose tests run on arm64 too: a machine in software and
// all that it is made of.
var onARM64 = []string{
	"internal/acpipm", "internal/chip", "internal/i8042", "internal/inbox", "internal/ioapic", "internal/irqchip",
	"internal/lapic", "internal/pci", "internal/pic", "internal/pit", "internal/pvpanic", "internal/rtc",
	"internal/serial", "internal/x86diff", "memory", "vcpu", "vm",
}

// notARM64 are packages below them that are for an amd64's KVM alone.
var notARM64 = []string{"vcpu/kvmcpu"}

// arm64 runs tests in their short form as programs for linux/arm64. What they
// expect of the engine in software, which is bits from the manuals, from
// processors and from amd64, they expect there as well.
func (a *all) arm64() error {
	if _, err := exec.LookPath(emulator); err != nil {
		return fmt.Errorf("tests for arm64 need Debian's qemu-user (make deps installs it): %w", err)
	}
	pkgs, err := a.arm64Packages()
	if err != nil {
		return err
	}
	return a.goTest(os.Stdout, "arm64", []string{
		"CGO_ENABLED=0", "GOOS=linux", "GOARCH=arm64",
		// Tests that take too long in the emulator say so.
		"VMKIT_EMULATED=1",
		// Now and then QEMU 7.2 dies of the runtime's preemption signals:
		// "cpu_exec: assertion failed: (cpu == current_cpu)".
		"GODEBUG=asyncpreemptoff=1",
	}, []string{"-short", "-exec=" + emulator}, pkgs)
}

// arm64Packages lists the packages to test that are meant for arm64 too.
func (a *all) arm64Packages() ([]string, error) {
	pkgs, err := a.list("{{.ImportPath}}")
	if err != nil {
		return nil, err
	}
	var chosen []string
	for _, p := range without(pkgs, notARM64) {
		if matches(p, onARM64) {
			chosen = append(chosen, p)
		}
	}
	return chosen, nil
}
