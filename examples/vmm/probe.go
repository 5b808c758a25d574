package main

import (
	"context"
	"fmt"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vcpu"
	"github.com/vmkit-go/vmkit/vcpu/kvmcpu"
	"github.com/vmkit-go/vmkit/vcpu/soft"
	"github.com/vmkit-go/vmkit/vm"
)

// probeCommand says what this host can run, and why not.
func probeCommand(_ context.Context, args []string) error {
	rest, err := parseFlags(newFlags("probe"), args, "")
	if err != nil {
		return err
	}
	if len(rest) != 0 {
		return usageError("probe takes no arguments")
	}
	row := func(name, format string, values ...any) {
		fmt.Printf("%-18s %s\n", name, fmt.Sprintf(format, values...))
	}
	engine, why := vm.ChooseEngine()
	r, err := kvmcpu.Probe("")
	switch {
	case err != nil:
		row("kvm", "no: %s", why)
	case r.Native:
		row("kvm", "yes: %v", r)
	default:
		row("kvm", "no: %v", r)
	}
	row("soft", "yes: it interprets the CPU, and needs nothing of this host")
	row("vmm run", "on %s", engine)
	models := func(engine string, have vcpu.CPUID) {
		for _, m := range []vcpu.Model{vcpu.ModelV1, vcpu.ModelV2, vcpu.ModelV3} {
			if _, err := m.Apply(have); err != nil {
				row(engine+" "+m.String(), "no: %v", err)
			} else {
				row(engine+" "+m.String(), "yes")
			}
		}
	}
	if err == nil {
		sys, err := kvm.Open()
		if err != nil {
			return err
		}
		defer sys.Close()
		host, err := kvmcpu.Supported(sys)
		if err != nil {
			return err
		}
		models(vm.EngineKVM, host)
	}
	models(vm.EngineSoft, soft.Supported())
	return nil
}
