package main

import (
	"fmt"
	"os"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vm"
)

// chooseEngine settles what auto means here, and finds out about a missing
// permission before anything is fetched. What the user should know about the engine is
// told once that is all there is to tell: see explain.
func (o *options) chooseEngine() error {
	if o.engine == vm.EngineSoft {
		return nil
	}
	best, why := vm.ChooseEngine()
	if o.engine == vm.EngineAuto {
		o.engine = best
		if best == vm.EngineSoft {
			o.note = why + "; running in software"
			return nil
		}
	}
	sys, err := kvm.Open()
	if err != nil {
		return err
	}
	if best != vm.EngineKVM {
		o.note = why
	}
	return sys.Close()
}

// explain says once why the engine is not KVM, unless that was asked for, or what is
// wrong with the KVM that was.
func (o *options) explain() {
	if o.note != "" {
		fmt.Fprintf(os.Stderr, "vmm: %s\n", o.note)
		o.note = ""
	}
}
