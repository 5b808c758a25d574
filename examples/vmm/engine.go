package main

import (
	"fmt"
	"os"

	"github.com/vmkit-go/vmkit/kvm"
	"github.com/vmkit-go/vmkit/vm"
)

// chooseEngine settles what auto means here, and finds out about a missing
// permission before anything is fetched. The user is told why it is soft once
// that is all there is to tell: see session.explain.
func (o *options) chooseEngine() error {
	if o.engine == vm.EngineAuto {
		o.engine, o.whySoft = vm.ChooseEngine()
	}
	if o.engine != vm.EngineKVM {
		return nil
	}
	sys, err := kvm.Open()
	if err != nil {
		return err
	}
	return sys.Close()
}

// explain says once why the engine is not KVM, unless it was asked for.
func (o *options) explain() {
	if o.whySoft != "" {
		fmt.Fprintf(os.Stderr, "vmm: %s; running in software\n", o.whySoft)
		o.whySoft = ""
	}
}
