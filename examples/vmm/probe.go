package main

import (
	"context"
	"fmt"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
)

// probeCommand says what this host can run, and why not.
func probeCommand(_ context.Context, args []string) error {
	if len(args) != 0 {
		return usageError("probe takes no arguments")
	}
	row := func(name, format string, values ...any) {
		fmt.Printf("%-18s %s\n", name, fmt.Sprintf(format, values...))
	}
	r, err := kvmcpu.Probe("")
	if err != nil {
		row("kvm", "no: %v", err)
		row("vmm run", "in the nested host (QEMU's emulator with kvm-amd)")
		return nil
	}
	if r.Native {
		row("kvm", "yes: %v", r)
		row("vmm run", "natively")
	} else {
		row("kvm", "no: %v", r)
		row("vmm run", "in the nested host (QEMU's emulator with kvm-amd)")
	}
	sys, err := kvm.Open()
	if err != nil {
		return err
	}
	defer sys.Close()
	host, err := kvmcpu.Supported(sys)
	if err != nil {
		return err
	}
	for _, m := range []vcpu.Model{vcpu.ModelV1, vcpu.ModelV2, vcpu.ModelV3} {
		if _, err := m.Apply(host); err != nil {
			row("cpu "+m.String(), "no: %v", err)
		} else {
			row("cpu "+m.String(), "yes")
		}
	}
	return nil
}
